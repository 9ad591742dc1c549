"""A ROS 2 lifecycle node around a worker: `python -m edgestitch.robotics.ros2`.

    subscribes   image            sensor_msgs/Image: rgb8, bgr8 or mono8
    publishes    classification   vision_msgs/Classification: the five best classes, by probability
                 logits           std_msgs/Float32MultiArray, where vision_msgs is not installed
                 /diagnostics     diagnostic_msgs/DiagnosticArray, once a second in every state
    parameters   deployment       folder that `edgestitch compile` made; empty: what Runtime() opens
                 budget_ms        from an image's stamp to its answer, 0: none; may change at any time
                 stale_after_ms   an older image is not answered
                 period_ms        deadline that the answers' topic offers, 0: none

    ros2 lifecycle set /edgestitch configure
    ros2 lifecycle set /edgestitch activate
    ros2 param set /edgestitch budget_ms 5

Written for ROS 2 Humble and later. Nothing here needs ROS 2 until a node is made.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import msgspec
import numpy as np

from edgestitch.errors import EdgestitchError
from edgestitch.family import Family
from edgestitch.runtime import Diagnostics, Runtime
from edgestitch.schedule import Budget, choose

from .pixels import network_input, unpack
from .watchdog import Watchdog
from .worker import Answer, Worker

BEST = 5
"""Classes that an answer names."""

_PARAMETERS: dict[str, tuple[Any, str, bool]] = {
    "deployment": ("", "folder that `edgestitch compile` made; empty: the default one", True),
    "budget_ms": (0.0, "from an image's stamp to its answer, in milliseconds; 0: none", False),
    "stale_after_ms": (1000.0, "age from which on an image is not answered", True),
    "period_ms": (0.0, "deadline that the topic of answers offers; 0: none", True),
}
"""Default, description, and whether it is read once, when the node is made."""


def create_node(
    name: str = "edgestitch", *, open_runtime: Callable[..., Runtime] = Runtime, **options: Any
) -> Any:
    """A lifecycle node, unconfigured; `options` are those of rclpy's LifecycleNode.

    `open_runtime` is called by `configure` with `deployment` and `budget_ms`.

    Raises:
        EdgestitchError: ROS 2 is not here.
    """
    require_ros2()
    lifecycle = import_module("rclpy.lifecycle")

    class EdgestitchNode(lifecycle.LifecycleNode):  # type: ignore[misc, name-defined]
        """What rclpy calls; all work is the adapter's."""

        def __init__(self) -> None:
            super().__init__(name, **options)
            self.adapter = _Adapter(self, open_runtime)

        def on_configure(self, state: Any) -> Any:
            return self._done(self.adapter.configure)

        def on_activate(self, state: Any) -> Any:
            super().on_activate(state)  # lets the managed publisher publish
            return self._done(self.adapter.worker.activate)

        def on_deactivate(self, state: Any) -> Any:
            done = self._done(self.adapter.worker.deactivate)
            super().on_deactivate(state)
            return done

        def on_cleanup(self, state: Any) -> Any:
            return self._done(self.adapter.cleanup)

        def on_shutdown(self, state: Any) -> Any:
            return self._done(self.adapter.shutdown)

        def destroy_node(self) -> None:
            self.adapter.shutdown()
            super().destroy_node()

        def _done(self, step: Callable[[], None]) -> Any:
            # rclpy makes an exception a silent ERROR, from which a node has to be recovered.
            try:
                step()
            except Exception as error:
                self.get_logger().error(str(error))
                return lifecycle.TransitionCallbackReturn.FAILURE
            return lifecycle.TransitionCallbackReturn.SUCCESS

    return EdgestitchNode()


def require_ros2() -> None:
    """Raises unless rclpy can be imported."""
    if find_spec("rclpy") is None:
        raise EdgestitchError(
            "the node needs ROS 2's rclpy, which no package index has: install ROS 2 and "
            "`source /opt/ros/<distribution>/setup.bash`, with the Python that it was made for; "
            "edgestitch.robotics.Worker needs no ROS"
        )


class _Adapter:
    """Messages and parameters of a node, for a worker."""

    def __init__(self, node: Any, open_runtime: Callable[..., Runtime]) -> None:
        self._node = node
        self._open_runtime = open_runtime
        self._publisher: Any = None
        self._subscription: Any = None
        self._qos = import_module("rclpy.qos")
        self._message, self._filled = _answer_message()
        self._diagnostic = import_module("diagnostic_msgs.msg")
        self._interfaces = import_module("rcl_interfaces.msg")
        for name, (default, description, read_only) in _PARAMETERS.items():
            # Numbers are typed dynamically, since `ros2 param set budget_ms 5` sends a whole one.
            descriptor = self._interfaces.ParameterDescriptor(
                description=description,
                read_only=read_only,
                dynamic_typing=not isinstance(default, str),
            )
            node.declare_parameter(name, default, descriptor)
        node.add_on_set_parameters_callback(self._set_parameters)
        self.worker = Worker(
            self._open,
            self._publish,
            prepare=_prepared,
            stale_after_ms=self._value("stale_after_ms"),
            watchdog=Watchdog(),
            clock=lambda: int(node.get_clock().now().nanoseconds),  # simulated time, if asked for
        )
        self._reports = node.create_publisher(self._diagnostic.DiagnosticArray, "/diagnostics", 10)
        self._timer = node.create_timer(1.0, self.report)

    # --- lifecycle ----------------------------------------------------------------------------

    def configure(self) -> None:
        """Opens the runtime, then the topics."""
        self.worker.configure()
        self._publisher = self._node.create_lifecycle_publisher(
            self._message, _topic(self._message), self._best_effort(self._value("period_ms"))
        )
        # Without a deadline: asking for one that a camera's driver does not offer would make the
        # two incompatible, and no image would ever come.
        image = import_module("sensor_msgs.msg").Image
        self._subscription = self._node.create_subscription(
            image, "image", self._put, self._best_effort(0.0)
        )

    def cleanup(self) -> None:
        self._forget_topics()
        self.worker.cleanup()

    def shutdown(self) -> None:
        self.worker.shutdown()
        self._forget_topics()

    def _forget_topics(self) -> None:
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._node.destroy_lifecycle_publisher(self._publisher)
            self._subscription = self._publisher = None

    def _best_effort(self, period_ms: float) -> Any:
        """The newest message, or none: one that is sent again comes too late."""
        profile = self._qos.QoSProfile(
            depth=1,
            history=self._qos.HistoryPolicy.KEEP_LAST,
            reliability=self._qos.ReliabilityPolicy.BEST_EFFORT,
            durability=self._qos.DurabilityPolicy.VOLATILE,
        )
        if period_ms > 0:
            duration = import_module("rclpy.duration").Duration
            profile.deadline = duration(nanoseconds=round(period_ms * 1e6))
        return profile

    def _open(self) -> Runtime:
        budget_ms = self._value("budget_ms")
        runtime = self._open_runtime(self._value("deployment") or None)
        try:
            if runtime.input_shape[0] != 1:
                raise EdgestitchError(
                    f"this deployment takes {runtime.input_shape[0]} images at once, and a camera "
                    "sends one; compile it with --batch 1"
                )
            _require_feasible(runtime, budget_ms)
            runtime.budget_ms = budget_ms or None
        except BaseException:
            runtime.close()
            raise
        return runtime

    # --- parameters ---------------------------------------------------------------------------

    def _value(self, name: str) -> Any:
        return self._node.get_parameter(name).value

    def _set_parameters(self, parameters: Sequence[Any]) -> Any:
        """The verdict on new values; a budget that is accepted holds from the next image on."""
        result = self._interfaces.SetParametersResult
        for parameter in parameters:
            if parameter.name == "budget_ms":
                try:
                    self._set_budget(parameter.value)
                except (EdgestitchError, TypeError, ValueError) as error:
                    return result(successful=False, reason=str(error))
        return result(successful=True)

    def _set_budget(self, value: Any) -> None:
        _require_number(value)
        if self.worker.state in ("inactive", "active"):
            runtime = self.worker.runtime
            _require_feasible(runtime, value)
            runtime.budget_ms = float(value) or None

    # --- messages -----------------------------------------------------------------------------

    def _put(self, message: Any) -> None:
        self.worker.put(message, stamp_ns=_stamp_ns(message.header.stamp))

    def _publish(self, answer: Answer) -> None:
        self._publisher.publish(self._filled(answer))

    def report(self) -> None:
        """Publishes the diagnostics."""
        status = self._status(self.worker.diagnostics())
        array = self._diagnostic.DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._reports.publish(array)

    def _status(self, found: Diagnostics) -> Any:
        status, pair = self._diagnostic.DiagnosticStatus, self._diagnostic.KeyValue
        return status(
            level=getattr(status, found.level),
            name=f"{self._node.get_name()}: inference",
            message=found.message,
            hardware_id=found.values.get("hardware", ""),
            values=[pair(key=key, value=value) for key, value in found.values.items()],
        )


# --- values ------------------------------------------------------------------------------------


def _require_number(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"budget_ms must be a number of milliseconds, not {value!r}")
    if value != 0:
        Budget(latency_ms=float(value))  # finite, above zero


def _require_feasible(runtime: Runtime, budget_ms: Any) -> None:
    """Raises unless a topology that is resident fits the budget with those that already hold."""
    _require_number(budget_ms)
    bounds = msgspec.structs.replace(runtime.budget, latency_ms=float(budget_ms) or None)
    resident = runtime.deployment.plan.resident
    choose((c for c in resident if c.topology in runtime.topologies), bounds)


def _stamp_ns(stamp: Any) -> int | None:
    """`None` for a stamp that was never set, which drivers send as zero."""
    return int(stamp.sec) * 10**9 + int(stamp.nanosec) or None


def _prepared(message: Any, family: Family) -> np.ndarray:
    pixels = unpack(
        message.data,
        encoding=message.encoding,
        height=message.height,
        width=message.width,
        step=message.step,
    )
    return network_input(pixels, family)


def _answer_message() -> tuple[Any, Callable[[Answer], Any]]:
    """The type of message that answers are published as, and what fills one."""
    if find_spec("vision_msgs") is not None:
        vision = import_module("vision_msgs.msg")
        if hasattr(vision, "Classification"):  # before Humble it was Classification2D
            return vision.Classification, lambda answer: _classification(vision, answer)
    array = import_module("std_msgs.msg").Float32MultiArray
    return array, lambda answer: array(data=_logits(answer).tolist())


def _topic(message: Any) -> str:
    return "classification" if message.__name__ == "Classification" else "logits"


def _classification(vision: Any, answer: Answer) -> Any:
    """The best classes by their index, with the image's own header, so that the two can be joined."""
    logits = _logits(answer)
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    best = np.argsort(-probabilities, kind="stable")[:BEST]
    return vision.Classification(
        header=answer.image.header,
        results=[
            vision.ObjectHypothesis(class_id=str(index), score=float(probabilities[index]))
            for index in best
        ],
    )


def _logits(answer: Answer) -> np.ndarray:
    return np.asarray(answer.result.output[0], np.float64)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a node until it is interrupted."""
    try:
        require_ros2()
    except EdgestitchError as error:
        sys.exit(str(error))
    rclpy, executors = import_module("rclpy"), import_module("rclpy.executors")
    rclpy.init(args=arguments)
    node = create_node()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, executors.ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
