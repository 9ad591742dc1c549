"""The resident runtime: every topology of a plan ready, the one in use switched in place.

with Runtime(budget_ms=10) as runtime:
    logits = runtime(image)
    runtime.budget_ms = 5        # same weights, nothing rebuilt, from the next frame on
"""

import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import msgspec
import numpy as np

from .artifact import Value
from .backends import Resident
from .deployment import Deployment, open_deployment, require_fit
from .errors import DeviceError, InfeasibleError, MismatchError
from .frames import Frames, like
from .residents import Residents
from .schedule import Budget, Candidate, Plan, choose

if TYPE_CHECKING:
    import torch

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


class _Active(NamedTuple):
    """A topology and how to run it."""

    candidate: Candidate
    resident: Resident
    feasible: bool


class _State(NamedTuple):
    """What the next call goes by; replaced as a whole, so that readers need no lock."""

    active: _Active
    budget: Budget


class Runtime:
    """A deployment in memory; calls run the best topology under the budgets of the moment.

    Budgets are upper bounds: `budget_ms` for the latency of a call, `budget_mj` for its energy,
    `budget_w` for the average power while it runs; `None` leaves one free, and without any the
    most accurate topology runs. A budget that cannot be met runs the fastest topology and the
    result says so; with `strict` it raises `InfeasibleError`.

    All methods may be called from several threads; inferences run one at a time.

    A topology that fails, while it is loaded or while it runs, is left out from then on: another one
    answers in its place, at last eager PyTorch on the CPU.

    Args:
        deployment: a folder that `edgestitch compile` made. Without it $EDGESTITCH_DEPLOYMENT, else
            ./deployment, else the shipped demonstration network, compiled and measured on first
            use into the user's cache folder.
        topologies: keep only these of the deployment's resident ones.
        wait: until every topology is ready. Without, only until the fastest one is: the others are
            loaded in the background, and until then the best that is ready runs.
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
        budget_ms: float | None = None,
        budget_w: float | None = None,
        budget_mj: float | None = None,
        strict: bool = False,
        topologies: Iterable[object] | None = None,
        wait: bool = True,
        rebuild: bool = True,
    ) -> None:
        budget = Budget(latency_ms=budget_ms, power_w=budget_w, energy_mj=budget_mj)
        self._deployment = _open(deployment, rebuild=rebuild, whole=wait)
        self._strict = strict
        self._closed = False
        self._inference = threading.Lock()
        self._control = threading.Lock()
        self._pinned: _Active | None = None  # written alone: a switch costs one attribute
        self._pins: dict[str, _Active] = {}
        # Not the inference's lock, so that diagnostics never wait for an inference.
        self._counting = threading.Lock()
        self._history: deque[bool] = deque(maxlen=HISTORY)
        self._frames = 0
        self._misses = 0
        self._last_ms: float | None = None
        self._shape = self._deployment.input_shape
        self._expected = Frames.of(self._deployment.manifest.family, self._shape)
        device = self._deployment.manifest.conditions.device
        self._accelerator = "cpu" if device == "cpu" else "cuda"
        self._kept = _kept(self._deployment.plan, topologies)
        self._plan = self._kept
        require_fit(self._deployment, self.topologies)
        self._residents = Residents(
            self._deployment,
            self.topologies,
            self._inference,
            self._refresh,
        )
        self._residents.load_first()
        self._state = _State(self._safety(), Budget())
        self._refresh()
        self._set(budget)
        self._residents.load_rest()
        if wait:
            self.wait()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until every topology is ready, or has failed; whether that is so."""
        return self._residents.wait(timeout_s)

    def _refresh(self) -> None:
        """Goes by what is ready now."""
        with self._control:
            ready, failed = self._residents.ready, self._residents.failed
            left = tuple(
                c for c in self._kept.resident if c.topology in ready or c.topology not in failed
            )
            self._plan = msgspec.structs.replace(self._kept, resident=left)
            if self._pinned and self._pinned.candidate.topology not in self._residents.ready:
                self._pinned = None
            budget = self._state.budget
            try:
                self._state = _State(self._best(budget), budget)
            except InfeasibleError:  # it was feasible until something failed
                self._state = _State(self._safety(), budget)

    # --- budgets ------------------------------------------------------------------------------

    @property
    def budget(self) -> Budget:
        return self._state.budget

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
        self._state = _State(self._best(budget), budget)
        self._pinned = None

    def _require_measured(self, budget: Budget) -> None:
        if budget.energy_mj is None and budget.power_w is None:
            return
        profile = self._deployment.profile
        if profile.energy_reason is not None:
            raise DeviceError(
                f"a budget of {budget} needs measured energy, which this deployment's profile "
                f"lacks: {profile.energy_reason}; use a latency budget, or profile with a meter"
            )

    def _best(self, budget: Budget) -> _Active:
        try:
            wanted = self._plan.choose(budget)
        except InfeasibleError:
            if self._strict:
                raise
            return self._safety()
        resident = self._residents.ready.get(wanted.topology)
        return _Active(wanted, resident, True) if resident else self._stand_in(budget)

    def _stand_in(self, budget: Budget) -> _Active:
        """The best that is ready, while what the plan has for a budget is being loaded."""
        ready = dict(self._residents.ready)
        try:
            found = choose((c for c in self._plan.resident if c.topology in ready), budget)
        except InfeasibleError:
            return self._safety()
        return _Active(found, ready[found.topology], True)

    def _safety(self) -> _Active:
        """The fastest one that is ready, for when nothing fits."""
        ready = dict(self._residents.ready)
        if not ready:
            raise RuntimeError("this Runtime is closed; open a new one")
        found = next(c for c in self._kept.resident if c.topology in ready)
        return _Active(found, ready[found.topology], False)

    # --- topologies ---------------------------------------------------------------------------

    @property
    def topologies(self) -> tuple[str, ...]:
        """The resident topologies, fastest first; those that failed are left out."""
        return tuple(candidate.topology for candidate in self._plan.resident)

    @property
    def topology(self) -> str:
        """The one that the next call runs."""
        return self._next.candidate.topology

    @property
    def _next(self) -> _Active:
        return self._pinned or self._state.active

    def switch(self, topology: object) -> None:
        """Pins a resident topology, by value or name, until a budget is set.

        One that is still being loaded is waited for.

        Raises:
            ValueError: it is not resident, or has failed.
        """
        active = self._pins.get(str(topology)) or self._pin(str(topology))
        self._pinned = active

    def _pin(self, topology: str) -> _Active:
        candidate = next((c for c in self._plan.resident if c.topology == topology), None)
        if candidate is None or not self._residents.wait_for(topology):
            failure = self._residents.failed.get(topology)
            why = f"failed ({failure})" if failure else "is not resident"
            raise ValueError(f"{topology} {why}; resident are {', '.join(self.topologies)}")
        active = _Active(candidate, self._residents.ready[topology], True)
        self._pins[topology] = active
        return active

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """What a call takes: batch, channels, height, width."""
        return self._shape

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
        values = self._expected.entered(image, self._accelerator)
        with self._inference:
            if self._closed:
                raise RuntimeError("this Runtime is closed; open a new one")
            current, budget = self._state
            active, limit = self._pinned or current, budget.latency_ms
            if deadline_ns is not None:
                limit = (deadline_ns - start) / 1e6
                left = (deadline_ns - time.monotonic_ns()) / 1e6
                active = self._within(left, budget)
            elif budget_ms is not None:
                limit = budget_ms
                active = self._best(msgspec.structs.replace(budget, latency_ms=budget_ms))
            active, logits = self._run(active, values)
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

    def _run(self, active: _Active, values: Any) -> tuple[_Active, Any]:
        """The logits, and the topology that they are of: the next one where one fails."""
        while True:
            try:
                return active, _logits(active.resident, values)
            except Exception as error:  # of a driver, an engine, an allocator: all mean the same
                active = self._instead_of(active.candidate.topology, error)

    def _instead_of(self, topology: str, error: Exception) -> _Active:
        """What runs from now on, since a topology has failed."""
        self._pins.pop(topology, None)
        self._residents.fail(topology, error)
        if not self._residents.ready:
            self._residents.fall_back()
        self._refresh()
        return self._safety()

    def _within(self, latency_ms: float, budget: Budget) -> _Active:
        if latency_ms <= 0:  # already late
            if self._strict:
                raise InfeasibleError(f"the deadline passed {-latency_ms:.3g} ms ago")
            return self._safety()
        return self._best(msgspec.structs.replace(budget, latency_ms=latency_ms))

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

        WARN if the budget cannot be met, more than 1 % was late, or a topology has failed; ERROR if
        all that was compiled has.
        """
        active, budget, closed = self._next, self._state.budget, self._closed
        with self._counting:
            history, last_ms = list(self._history), self._last_ms
            frames, misses = self._frames, self._misses
        late = history.count(False) / len(history) if history else 0.0
        residents = self._residents
        failure = "; ".join(f"{name} ({why})" for name, why in residents.failed.items())
        level: Literal["OK", "WARN", "ERROR"]
        if closed:
            level, message = "ERROR", "closed"
        elif residents.eager:
            level = "ERROR"
            message = f"everything compiled has failed, eager PyTorch runs on the CPU: {failure}"
        elif failure:
            level, message = "WARN", f"left out: {failure}"
        elif not active.feasible:
            level = "WARN"
            message = f"no topology fits {budget}: running the fastest"
        elif late > 0.01:
            level = "WARN"
            message = f"{100 * late:.1f} % of the last {len(history)} deadlines missed"
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
            "ready_ms": _ms(residents.first_ready_ms),
            "all_ready_ms": _ms(residents.all_ready_ms),
            "failed": failure,
            "backend": f"{conditions.backend} {conditions.precision}",
            "hardware": conditions.hardware,
        }
        return Diagnostics(level=level, message=message, values=values)

    def close(self) -> None:
        """Waits for a running inference and frees the topologies; later calls raise."""
        with self._inference:
            self._closed = True
            self._residents.stop()

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


def _kept(plan: Plan, topologies: Iterable[object] | None) -> Plan:
    """The plan with only some of its resident topologies."""
    if topologies is None:
        return plan
    names = dict.fromkeys(map(str, topologies))
    known = {candidate.topology for candidate in plan.resident}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(
            f"{', '.join(unknown) or 'nothing'} is not resident in this deployment, which has "
            f"{', '.join(candidate.topology for candidate in plan.resident)}"
        )
    kept = tuple(candidate for candidate in plan.resident if candidate.topology in names)
    return msgspec.structs.replace(plan, resident=kept)


def _logits(resident: Resident, values: Any) -> Any:
    """Of an image in host memory, or of one on the accelerator, where they stay."""
    if isinstance(values, np.ndarray):
        return resident.run(values)
    if resident.on_device:
        return resident.on_device(values)
    return resident.run(values.cpu().numpy())


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
