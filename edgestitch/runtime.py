"""The resident runtime: every topology of a plan ready, the one in use switched in place.

with Runtime(budget_ms=10) as runtime:
    logits = runtime(image)
    runtime.budget_ms = 5        # same weights, nothing rebuilt, from the next frame on
"""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import msgspec
import numpy as np

from .artifact import Value
from .control import Event, Governor, PowerLoop, Watch, readings
from .deployment import Deployment, open_deployment, require_fit
from .device import descriptor, resolve
from .errors import DeviceError, MismatchError
from .frames import like, viewed
from .lane import Active, Lane
from .meters import Meter, find_meter
from .residents import Residents
from .schedule import Budget
from .sensors import State, find_sensors

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

WAITED_MS = 0.1
"""Taking the lock takes less than that if no other inference has it."""
SLOW = 1.25
"""Times as slow as profiled, from which on it is worth a warning."""
HISTORY = 1000
"""Frames that `diagnostics` looks back on."""


class Diagnostics(Value, frozen=True, kw_only=True):
    """The runtime's state in the form of a ROS diagnostic status."""

    level: Literal["OK", "WARN", "ERROR"]
    message: str
    values: dict[str, str]


class Result(Value, frozen=True, kw_only=True):
    """One inference and how it kept its deadline."""

    output: Any
    """Logits [B, classes], of the type of the image."""
    topology: str
    latency_ms: float
    """From the call to the output, waiting for other threads included."""
    budget_ms: float | None
    """The deadline of this call; `None` if it had none."""
    met: bool | None
    margin_ms: float | None
    """What was left of the deadline; negative if it was missed."""
    feasible: bool
    """Whether the plan has a topology for the budgets; if not, the fastest one ran."""


class Runtime:
    """A deployment in memory; calls run the best topology under the budgets of the moment.

    Budgets are upper bounds: `budget_ms` for the latency of a call, `budget_mj` for its energy,
    `budget_w` for the average power, kept by topologies in turn and by what a meter says; `None`
    leaves one free, and without any the most accurate topology runs. A budget that cannot be met runs
    the fastest topology and the result says so; with `strict` it raises `InfeasibleError`.

    `budget` takes all that a plan can be made for: a rate, a battery, a least accuracy. Where the plan
    was made for that very budget and has a mix for it, its topologies run in turn, and what is not a
    deadline holds in the mean.

    It keeps its deadlines when the device is slower than it was when profiled: what calls take is
    followed, and a faster topology runs while it must, with no more than `miss_rate` of the deadlines
    missed where anything can keep them. Never one that the plan would not allow.

    A deployment may be made for several batch sizes; each image runs the topology that is the best for
    its own. All methods may be called from several threads; inferences run one at a time.

    A topology that fails, while it is loaded or while it runs, is left out from then on: another one
    answers in its place, at last eager PyTorch on the CPU.

    Args:
        deployment: a folder that `edgestitch compile` made. Without it $EDGESTITCH_DEPLOYMENT, else
            ./deployment, else the shipped demonstration network, compiled and measured on first
            use into the user's cache folder.
        topologies: keep only these of the deployment's resident ones.
        wait: until every topology is ready. Without, only until the fastest one is: the others are
            loaded in the background, and until then the best that is ready runs.
        miss_rate: share of deadlines that may be missed in the long run; `None`: the profile is taken to
            hold, and nothing is followed.
        meter: what an average power is held by; without, the device's, looked for when there is a
            `budget_w`. Without any that works, the profile's numbers hold.
        rebuild: compile and measure again what was made for another machine or another version of
            its backend; without, that is an error.

    Raises:
        ArtifactError, MismatchError: the deployment is damaged, or made for another machine.
        DeviceError: an energy or power budget where no energy was measured.
        InfeasibleError: the topologies do not fit into the memory that is left; the message has the
            largest set that would.
        ValueError: a budget that is not above zero, or a topology that is not resident.
    """

    def __init__(
        self,
        deployment: str | os.PathLike[str] | Deployment | None = None,
        *,
        budget: Budget | None = None,
        budget_ms: float | None = None,
        budget_w: float | None = None,
        budget_mj: float | None = None,
        strict: bool = False,
        topologies: Iterable[object] | None = None,
        wait: bool = True,
        miss_rate: float | None = 0.01,
        meter: Meter | None = None,
        rebuild: bool = True,
    ) -> None:
        bounds = Budget(latency_ms=budget_ms, power_w=budget_w, energy_mj=budget_mj)
        if budget is not None and bounds.bounds:
            raise ValueError("give budget, or budget_ms, budget_w and budget_mj, not both")
        budget = budget or bounds
        self._deployment = _open(deployment, rebuild=rebuild, whole=wait)
        self._require_measured(budget)
        self._closed = False
        self._inference = threading.Lock()
        self._control = threading.Lock()
        # Not the inference's lock, so that diagnostics never wait for an inference.
        self._counting = threading.Lock()
        self._history: deque[bool] = deque(maxlen=HISTORY)
        self._frames = 0
        self._misses = 0
        self._last_ms: float | None = None
        conditions = self._deployment.manifest.conditions
        self._accelerator = "cpu" if conditions.device == "cpu" else "cuda"
        self._lanes = {
            one.input_shape[0]: Lane(
                one, topologies, self._inference, strict=strict, miss_rate=miss_rate
            )
            for one in (self._deployment, *self._deployment.others)
        }
        self._lane = next(iter(self._lanes.values()))
        require_fit([(lane.deployment, lane.topologies) for lane in self._lanes.values()])
        for lane in self._lanes.values():
            lane.load_first()
        self._watching = contextlib.ExitStack()
        self._meter = meter
        self._metering = False
        self._set(budget)
        for lane in self._lanes.values():
            lane.residents.load_rest()
        self._watch: Watch | None = None
        self._sensed: State | None = None
        self._mode_changed = False
        if miss_rate is not None:
            self._watch = Watch(
                find_sensors(resolve(conditions.device)), profiled_mode=conditions.power_mode
            )
            self._watching.enter_context(self._watch.running(self._told, then=self._seen))
        if wait:
            self.wait()

    def _told(self, event: Event) -> None:
        log.log(logging.WARNING if event.level == "WARN" else logging.INFO, "%s", event.message)
        self._mode_changed = self._mode_changed or event.what == "power mode"

    def _seen(self, state: State | None) -> None:
        self._sensed = state

    def _follow_device(self, lane: Lane) -> None:
        """Takes in what was seen of the device since the last call; it belongs to the inference."""
        state, self._sensed = self._sensed, None
        if lane.governor is None:
            return
        if self._mode_changed:
            self._mode_changed = False
            lane.governor.slowdown.loosen()
        profiled = lane.deployment.profile.protocol.clocks_mhz
        if state and state.clocks_mhz and profiled:
            medians = {name: clocks[1] for name, clocks in profiled.items()}
            lane.governor.clocks(medians, state.clocks_mhz)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until every topology is ready, or has failed; whether that is so."""
        return all(lane.residents.wait(timeout_s) for lane in self._lanes.values())

    # --- budgets ------------------------------------------------------------------------------

    @property
    def budget(self) -> Budget:
        return self._lane.budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        with self._control:
            self._set(budget)

    @property
    def budget_ms(self) -> float | None:
        return self.budget.latency_ms

    @budget_ms.setter
    def budget_ms(self, value: float | None) -> None:
        self._change(latency_ms=value)

    @property
    def budget_mj(self) -> float | None:
        return self.budget.energy_mj

    @budget_mj.setter
    def budget_mj(self, value: float | None) -> None:
        self._change(energy_mj=value)

    @property
    def budget_w(self) -> float | None:
        return self.budget.power_w

    @budget_w.setter
    def budget_w(self, value: float | None) -> None:
        self._change(power_w=value)

    def _change(self, **bounds: float | None) -> None:
        with self._control:
            self._set(msgspec.structs.replace(self.budget, **bounds))

    def _set(self, budget: Budget) -> None:
        """Makes a budget the current one, or raises and leaves the last one in force."""
        self._require_measured(budget)
        for lane in self._lanes.values():
            lane.check(budget)  # raises before any of them is changed
        for lane in self._lanes.values():
            lane.budget = budget
        if self._lane.power and not self._metering:
            self._metering = True
            self._watching.enter_context(readings(self._find_meter, self._metered))

    def _find_meter(self) -> Meter:
        device = resolve(self._deployment.manifest.conditions.device)
        return self._meter or find_meter(device, totals=descriptor(device.name).rails.totals)

    def _metered(self, time_s: float, power_w: float | None) -> None:
        for lane in self._lanes.values():
            if lane.power:
                lane.power.reading(time_s, power_w)

    def _require_measured(self, budget: Budget) -> None:
        if budget.energy_mj is None and budget.average_w is None and budget.minimise != "energy":
            return
        profile = self._deployment.profile
        if profile.energy_reason is not None:
            raise DeviceError(
                f"a budget of {budget} needs measured energy, which this deployment's profile "
                f"lacks: {profile.energy_reason}; use a latency budget, or profile with a meter"
            )

    # --- topologies ---------------------------------------------------------------------------

    @property
    def topologies(self) -> tuple[str, ...]:
        """The resident topologies, fastest first; those that failed are left out."""
        return self._lane.topologies

    @property
    def topology(self) -> str:
        """The one that the next call runs."""
        return self._lane.active.candidate.topology

    def switch(self, topology: object) -> None:
        """Pins a resident topology, by value or name, until a budget is set.

        One that is still being loaded is waited for.

        Raises:
            ValueError: it is not resident, or has failed.
        """
        name = str(topology)
        for lane in self._lanes.values():
            lane.switch(name)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """What a call takes: batch, channels, height, width; `batches` has the other batch sizes."""
        return self._deployment.input_shape

    @property
    def batches(self) -> tuple[int, ...]:
        """How many images a call takes; the first one is what the plan is about."""
        return tuple(self._lanes)

    @property
    def input_dtype(self) -> "np.dtype[np.float32]":
        return np.dtype(np.float32)

    @property
    def deployment(self) -> Deployment:
        return self._deployment

    # --- inference ----------------------------------------------------------------------------

    @overload
    def __call__(self, image: np.ndarray) -> np.ndarray: ...
    @overload
    def __call__(self, image: "torch.Tensor") -> "torch.Tensor": ...
    @overload
    def __call__(self, image: Any) -> Any: ...

    def __call__(self, image: Any) -> Any:
        """Logits [B, classes] of a normalised image, in its kind.

        An image is a NumPy array, a torch tensor, or any array that can be lent through DLPack or
        CUDA's array interface; where it lies in the memory that the network needs, it is not copied
        on the way. One on the GPU is waited for in the stream that is current; its logits are a torch
        tensor there.

        Raises:
            ValueError: wrong shape, type, range or device, or not-a-number; the message has both sides.
            DeviceError: every topology failed, eager PyTorch on the CPU as well.
            RuntimeError: the runtime was closed.
        """
        return self.infer(image).output

    def infer(
        self, image: Any, *, budget_ms: float | None = None, deadline_ns: int | None = None
    ) -> Result:
        """One inference, with what ran and whether it met its deadline.

        `budget_ms` or `deadline_ns` (of `time.monotonic_ns`; what is left until then counts) hold
        for this call in place of the runtime's own `budget_ms`.
        """
        start = time.monotonic_ns()
        values = viewed(image)
        lane = self._lanes.get(values.shape[0] if values.shape else 0, self._lane)
        values = lane.frames.checked(values, self._accelerator)
        came = time.monotonic_ns()
        with self._inference:
            if self._closed:
                raise RuntimeError("this Runtime is closed; open a new one")
            if self._sensed or self._mode_changed:
                self._follow_device(lane)
            active, limit, left = self._decide(lane, start, came, budget_ms, deadline_ns)
            active, logits = lane.run(active, values, left)
            latency_ms = (time.monotonic_ns() - start) / 1e6
            met = None if limit is None else latency_ms <= limit
            self._record(latency_ms, met)
        return Result(
            output=like(image, logits),
            topology=active.candidate.topology,
            latency_ms=latency_ms,
            budget_ms=limit,
            met=met,
            margin_ms=None if limit is None else limit - latency_ms,
            feasible=active.feasible,
        )

    def _decide(
        self,
        lane: Lane,
        start: int,
        came: int,
        budget_ms: float | None,
        deadline_ns: int | None,
    ) -> tuple[Active, float | None, float | None]:
        """What runs, the deadline of the call, and what is left of it; in milliseconds or `None`."""
        now = time.monotonic_ns()
        if deadline_ns is not None:
            until = (deadline_ns - now) / 1e6
            return lane.next(until, pinned=False), (deadline_ns - start) / 1e6, until
        limit = budget_ms if budget_ms is not None else lane.budget.latency_ms
        # What calls always take before this point is part of what was profiled; waiting is not.
        waited_ms = (now - came) / 1e6
        left = limit - waited_ms if limit is not None and waited_ms > WAITED_MS else limit
        if budget_ms is not None:
            Budget(latency_ms=budget_ms)  # refuses what is no budget
        return lane.next(left, pinned=budget_ms is None), limit, left

    def _record(self, latency_ms: float, met: bool | None) -> None:
        with self._counting:
            self._frames += 1
            self._last_ms = latency_ms
            if met is not None:
                self._history.append(met)
                self._misses += not met

    # --- state --------------------------------------------------------------------------------

    def diagnostics(self) -> Diagnostics:
        """Level, message and values.

        WARN if the budget cannot be met, more than 1 % was late, the device is much slower than when it
        was profiled, throttles or has another power mode, or a topology has failed; ERROR if all that
        was compiled has.
        """
        active, budget = self._lane.active, self._lane.budget
        with self._counting:
            history, last_ms = list(self._history), self._last_ms
            frames, misses = self._frames, self._misses
        all_residents = [lane.residents for lane in self._lanes.values()]
        failed = {name: why for one in all_residents for name, why in one.failed.items()}
        failure = "; ".join(f"{name} ({why})" for name, why in failed.items())
        warnings = list(self._warnings(active, failure, history))
        level: Literal["OK", "WARN", "ERROR"]
        if self._closed:
            level, message = "ERROR", "closed"
        elif any(residents.eager for residents in all_residents):
            level = "ERROR"
            message = f"everything compiled has failed, eager PyTorch runs on the CPU: {failure}"
        elif warnings:
            level, message = "WARN", "; ".join(warnings)
        else:
            level, message = "OK", f"running {active.candidate.topology}"
        conditions = self._deployment.profile.conditions
        values = {
            "topology": active.candidate.topology,
            "budget": str(budget),
            "top1_percent": f"{active.candidate.top1:.2f}",
            "profiled_latency_ms": f"{active.candidate.median_ms:.3f}",
            "profiled_bound_ms": f"{active.candidate.latency_ms:.3f}",
            "last_latency_ms": _ms(last_ms),
            "frames": str(frames),
            "deadlines_missed": str(misses),
            "ready_ms": _ms(self._lane.residents.first_ready_ms),
            "all_ready_ms": _ms(_latest(all_residents)),
            "failed": failure,
            **_followed(self._lane.governor),
            **_held(self._lane.power),
            "backend": f"{conditions.backend} {conditions.precision}",
            "hardware": conditions.hardware,
        }
        return Diagnostics(level=level, message=message, values=values)

    def _warnings(self, active: Active, failure: str, history: list[bool]) -> Iterator[str]:
        """What a user should know, the gravest first."""
        if failure:
            yield f"left out: {failure}"
        governor = self._lane.governor
        if not active.feasible:
            yield f"no topology fits {self._lane.budget}: running the fastest"
        if governor and governor.slowdown.device > SLOW:
            yield f"{governor.slowdown.device:.2f} times as slow as profiled"
        late = history.count(False) / len(history) if history else 0.0
        if late > 0.01:
            yield f"{100 * late:.1f} % of the last {len(history)} deadlines missed"
        power = self._lane.power
        if power and power.state != "measured":
            yield f"average power: {power.reason}"
        yield from self._watch.warnings if self._watch else ()

    def close(self) -> None:
        """Waits for a running inference and frees the topologies; later calls raise."""
        with self._inference:
            self._closed = True
            for lane in self._lanes.values():
                lane.stop()
        self._watching.close()

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def find_deployment(deployment: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder given, else $EDGESTITCH_DEPLOYMENT, else ./deployment; `None` if there is none."""
    named = deployment or os.environ.get("EDGESTITCH_DEPLOYMENT")
    if named:
        return Path(named)
    here = Path("deployment")
    return here if here.is_dir() else None


def _open(
    deployment: str | os.PathLike[str] | Deployment | None, *, rebuild: bool, whole: bool
) -> Deployment:
    if isinstance(deployment, Deployment):
        return deployment
    folder = find_deployment(deployment)
    if folder is None:
        from .default import shipped_deployment

        return shipped_deployment()
    try:
        return open_deployment(folder, whole=whole)
    except (MismatchError, DeviceError):
        if not rebuild:
            raise
    from .deploy import made_again  # what compiles takes seconds to import

    return made_again(folder)


def _followed(governor: Governor | None) -> dict[str, str]:
    """What is known of the device's speed."""
    if governor is None:
        return {}
    status = governor.status()
    return {
        "device": status.state,
        "slowdown": f"{status.slowdown:.3f}",
        "margin": f"{status.margin:.3f}",
        "miss_rate": "" if status.miss_rate is None else f"{status.miss_rate:.4f}",
        "target_miss_rate": f"{status.target:g}",
    }


def _held(power: PowerLoop | None) -> dict[str, str]:
    """How an average power is held."""
    if power is None:
        return {}
    return {
        "power_by": power.state,
        "power_budget_w": f"{power.budget_w:.3f}",
        "power_scale": f"{power.scale:.3f}",
    }


def _latest(residents: Iterable[Residents]) -> float | None:
    """When the last of them had all its topologies; `None`: not yet."""
    moments = [one.all_ready_ms for one in residents]
    known = [moment for moment in moments if moment is not None]
    return max(known) if len(known) == len(moments) else None


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
