"""As much of ROS 2 as the node uses: modules to put into `sys.modules`, no middleware behind them.

Transitions run as rclpy's do: an exception in a callback is a silent ERROR, a lifecycle publisher
drops what is published while it is not active, parameters have types unless declared without.
"""

import enum
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any


class TransitionCallbackReturn(enum.Enum):
    SUCCESS = 0
    FAILURE = 1
    ERROR = 2


class FakeMessage:
    """Keyword arguments as attributes, none but those that the type has."""

    def __init__(self, **values: Any) -> None:
        defaults = {name: make() for name, make in self.fields.items()}
        assert values.keys() <= defaults.keys(), (type(self), values)
        self.__dict__.update({**defaults, **values})

    fields: dict[str, Callable[[], Any]] = {}  # noqa: RUF012


def message(name: str, /, **fields: Callable[[], Any]) -> Any:
    return type(name, (FakeMessage,), {"fields": fields})


Time = message("Time", sec=int, nanosec=int)
Header = message("Header", stamp=Time, frame_id=str)
Image = message(
    "Image",
    header=Header,
    height=int,
    width=int,
    encoding=str,
    is_bigendian=int,
    step=int,
    data=bytes,
)
Float32MultiArray = message("Float32MultiArray", layout=SimpleNamespace, data=list)
Classification = message("Classification", header=Header, results=list)
ObjectHypothesis = message("ObjectHypothesis", class_id=str, score=float)
KeyValue = message("KeyValue", key=str, value=str)
DiagnosticStatus = message(
    "DiagnosticStatus", level=bytes, name=str, message=str, hardware_id=str, values=list
)
DiagnosticStatus.OK, DiagnosticStatus.WARN = b"\x00", b"\x01"
DiagnosticStatus.ERROR, DiagnosticStatus.STALE = b"\x02", b"\x03"
DiagnosticArray = message("DiagnosticArray", header=Header, status=list)
ParameterDescriptor = message(
    "ParameterDescriptor", description=str, read_only=bool, dynamic_typing=bool
)
SetParametersResult = message("SetParametersResult", successful=bool, reason=str)


class QoSProfile:
    def __init__(self, **policies: Any) -> None:
        self.deadline: Any = None
        self.__dict__.update(policies)


class FakePublisher:
    def __init__(self, kind: Any, topic: str, qos: Any, *, managed: bool) -> None:
        self.kind, self.topic, self.qos = kind, topic, qos
        self.active = not managed
        self.published: list[Any] = []

    def publish(self, message: Any) -> None:
        assert isinstance(message, self.kind)
        if self.active:
            self.published.append(message)


class FakeLifecycleNode:
    """Construct, `set_parameter`, `trigger`; then look at its publishers and its log."""

    def __init__(self, name: str, *, parameters: dict[str, Any] | None = None) -> None:
        self.now_ns = 1_700_000_000 * 10**9
        self.errors: list[str] = []
        self.publishers: dict[str, FakePublisher] = {}
        self.subscriptions: dict[str, Any] = {}
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self._name = name
        self._overrides = dict(parameters or {})
        self._parameters: dict[str, Any] = {}
        self._descriptors: dict[str, Any] = {}
        self._verdicts: list[Callable[[list[Any]], Any]] = []

    # --- what the node calls ------------------------------------------------------------------

    def get_name(self) -> str:
        return self._name

    def get_logger(self) -> Any:
        return SimpleNamespace(error=self.errors.append)

    def get_clock(self) -> Any:
        sec, nanosec = divmod(self.now_ns, 10**9)
        now = SimpleNamespace(
            nanoseconds=self.now_ns, to_msg=lambda: Time(sec=sec, nanosec=nanosec)
        )
        return SimpleNamespace(now=lambda: now)

    def declare_parameter(self, name: str, value: Any, descriptor: Any) -> None:
        self._descriptors[name] = descriptor
        self._parameters[name] = value
        if name in self._overrides:
            self._require_type(name, self._overrides[name])
            self._parameters[name] = self._overrides[name]

    def get_parameter(self, name: str) -> Any:
        return SimpleNamespace(name=name, value=self._parameters[name])

    def add_on_set_parameters_callback(self, verdict: Callable[[list[Any]], Any]) -> None:
        self._verdicts.append(verdict)

    def create_publisher(self, kind: Any, topic: str, qos: Any) -> FakePublisher:
        return self._publisher(kind, topic, qos, managed=False)

    def create_lifecycle_publisher(self, kind: Any, topic: str, qos: Any) -> FakePublisher:
        return self._publisher(kind, topic, qos, managed=True)

    def _publisher(self, kind: Any, topic: str, qos: Any, *, managed: bool) -> FakePublisher:
        self.publishers[topic] = FakePublisher(kind, topic, qos, managed=managed)
        return self.publishers[topic]

    def destroy_lifecycle_publisher(self, publisher: FakePublisher) -> None:
        del self.publishers[publisher.topic]

    def create_subscription(self, kind: Any, topic: str, callback: Any, qos: Any) -> Any:
        self.subscriptions[topic] = SimpleNamespace(
            kind=kind, topic=topic, callback=callback, qos=qos
        )
        return self.subscriptions[topic]

    def destroy_subscription(self, subscription: Any) -> None:
        del self.subscriptions[subscription.topic]

    def create_timer(self, period_s: float, callback: Callable[[], None]) -> Any:
        self.timers.append((period_s, callback))
        return self.timers[-1]

    def destroy_node(self) -> None:
        self.timers.clear()

    def on_activate(self, state: Any) -> TransitionCallbackReturn:
        return self._managed(active=True)

    def on_deactivate(self, state: Any) -> TransitionCallbackReturn:
        return self._managed(active=False)

    def _managed(self, *, active: bool) -> TransitionCallbackReturn:
        for topic, publisher in self.publishers.items():
            if topic != "/diagnostics":
                publisher.active = active
        return TransitionCallbackReturn.SUCCESS

    # --- what a test calls --------------------------------------------------------------------

    def trigger(self, transition: str) -> TransitionCallbackReturn:
        """Runs a transition's callback as rclpy does."""
        try:
            done: TransitionCallbackReturn = getattr(self, f"on_{transition}")("state")
        except Exception:
            return TransitionCallbackReturn.ERROR
        return done

    def set_parameter(self, name: str, value: Any) -> Any:
        """The result, as `ros2 param set` shows it."""
        if self._descriptors[name].read_only:
            return SetParametersResult(successful=False, reason=f"{name} is read-only")
        self._require_type(name, value)
        for verdict in self._verdicts:
            result = verdict([SimpleNamespace(name=name, value=value)])
            if not result.successful:
                return result
        self._parameters[name] = value
        return SetParametersResult(successful=True)

    def _require_type(self, name: str, value: Any) -> None:
        if not self._descriptors[name].dynamic_typing:
            assert type(value) is type(self._parameters[name]), f"wrong parameter type of {name}"


def modules(*, vision: bool = True) -> dict[str, ModuleType]:
    """What to put into `sys.modules`; without `vision_msgs` if that is not to be there."""
    calls: list[str] = []
    contents: dict[str, dict[str, Any]] = {
        "rclpy": {
            "calls": calls,
            "init": lambda args=None: calls.append("init"),
            "spin": lambda node: calls.append("spin"),
            "try_shutdown": lambda: calls.append("try_shutdown"),
        },
        "rclpy.executors": {"ExternalShutdownException": type("External", (Exception,), {})},
        "rclpy.lifecycle": {
            "LifecycleNode": FakeLifecycleNode,
            "TransitionCallbackReturn": TransitionCallbackReturn,
        },
        "rclpy.qos": {
            "QoSProfile": QoSProfile,
            "HistoryPolicy": enum.Enum("HistoryPolicy", "KEEP_LAST KEEP_ALL"),
            "ReliabilityPolicy": enum.Enum("ReliabilityPolicy", "RELIABLE BEST_EFFORT"),
            "DurabilityPolicy": enum.Enum("DurabilityPolicy", "TRANSIENT_LOCAL VOLATILE"),
        },
        "rclpy.duration": {
            "Duration": lambda nanoseconds: SimpleNamespace(nanoseconds=nanoseconds)
        },
        "rcl_interfaces.msg": {
            "ParameterDescriptor": ParameterDescriptor,
            "SetParametersResult": SetParametersResult,
        },
        "sensor_msgs.msg": {"Image": Image},
        "std_msgs.msg": {"Float32MultiArray": Float32MultiArray},
        "diagnostic_msgs.msg": {
            "DiagnosticArray": DiagnosticArray,
            "DiagnosticStatus": DiagnosticStatus,
            "KeyValue": KeyValue,
        },
    }
    if vision:
        contents["vision_msgs"] = {}
        contents["vision_msgs.msg"] = {
            "Classification": Classification,
            "ObjectHypothesis": ObjectHypothesis,
        }
    return {name: _module(name, content) for name, content in contents.items()}


def _module(name: str, content: dict[str, Any]) -> ModuleType:
    from importlib.machinery import ModuleSpec

    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # what `find_spec` answers for a module that is loaded
    module.__dict__.update(content)
    return module
