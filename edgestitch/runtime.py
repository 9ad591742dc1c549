"""The resident runtime: every topology of a plan ready, the one in use switched in place.

with Runtime(budget_ms=10) as runtime:
    logits = runtime(image)
    runtime.budget_ms = 5        # same weights, nothing rebuilt, from the next frame on
"""

import os
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np

from .artifact import Value
from .backends import Run
from .engine import Deployment, open_deployment
from .errors import DeviceError, InfeasibleError
from .family import normalized_range
from .schedule import Budget, Candidate

if TYPE_CHECKING:
    import torch

Image = TypeVar("Image", np.ndarray, "torch.Tensor")

WARM_UP = 3
"""Inferences of each topology before a runtime is ready."""
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
    run: Run
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

    Args:
        deployment: a folder that `edgestitch compile` made. Without it $EDGESTITCH_DEPLOYMENT, else
            ./deployment, else the shipped demonstration network, compiled and measured on first
            use into the user's cache folder.

    Raises:
        ArtifactError, MismatchError: the deployment is damaged, or made for another machine.
        DeviceError: an energy or power budget where no energy was measured.
        ValueError: a budget that is not above zero.
    """

    def __init__(
        self,
        deployment: str | os.PathLike[str] | Deployment | None = None,
        *,
        budget_ms: float | None = None,
        budget_w: float | None = None,
        budget_mj: float | None = None,
        strict: bool = False,
    ) -> None:
        budget = Budget(latency_ms=budget_ms, power_w=budget_w, energy_mj=budget_mj)
        self._deployment = _open(deployment)
        self._strict = strict
        self._closed = False
        self._inference = threading.Lock()
        self._control = threading.Lock()
        self._pinned: _Active | None = None  # written alone: a switch costs one attribute
        # Not the inference's lock, so that diagnostics never wait for an inference.
        self._counting = threading.Lock()
        self._history: deque[bool] = deque(maxlen=HISTORY)
        self._frames = 0
        self._misses = 0
        self._last_ms: float | None = None
        self._shape = self._deployment.input_shape
        low, high = normalized_range(self._deployment.manifest.family)
        # Half a range of slack: augmented or re-normalised images are legitimate, raw pixels not.
        self._low, self._high = low - (high - low) / 2, high + (high - low) / 2
        self._by_name = {
            candidate.topology: _Active(
                candidate, self._deployment.program.load(candidate.topology).run, True
            )
            for candidate in self._deployment.plan.resident
        }
        self._warm_up()
        safety = self._deployment.plan.safety
        self._safety = _Active(safety, self._by_name[safety.topology].run, False)
        self._set(budget)

    def _warm_up(self) -> None:
        """Runs every topology, since a first inference allocates what later ones reuse."""
        image = np.zeros(self._shape, np.float32)
        for active in self._by_name.values():
            for _ in range(WARM_UP):
                active.run(image)

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
            return self._by_name[self._deployment.plan.choose(budget).topology]
        except InfeasibleError:
            if self._strict:
                raise
            return self._safety

    # --- topologies ---------------------------------------------------------------------------

    @property
    def topologies(self) -> tuple[str, ...]:
        """The resident topologies, fastest first."""
        return tuple(self._by_name)

    @property
    def topology(self) -> str:
        """The one that the next call runs."""
        return self._next.candidate.topology

    @property
    def _next(self) -> _Active:
        return self._pinned or self._state.active

    def switch(self, topology: object) -> None:
        """Pins a resident topology, by value or name, until a budget is set.

        Raises:
            ValueError: it is not resident.
        """
        active = self._by_name.get(str(topology))
        if active is None:
            raise ValueError(f"{topology} is not resident; resident are {', '.join(self._by_name)}")
        self._pinned = active

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

    def __call__(self, image: Image) -> Image:
        """Logits [B, classes] of a normalised image, a NumPy array or a torch tensor, in its kind.

        Raises:
            ValueError: wrong shape, type or range, or not-a-number; the message has both sides.
            RuntimeError: the runtime was closed.
        """
        output: Image = self.infer(image).output
        return output

    def infer(
        self, image: Any, *, budget_ms: float | None = None, deadline_ns: int | None = None
    ) -> Result:
        """One inference, with what ran and whether it met its deadline.

        `budget_ms` or `deadline_ns` (of `time.monotonic_ns`; what is left until then counts) hold
        for this call in place of the runtime's own `budget_ms`.
        """
        start = time.monotonic_ns()
        array = self._checked(image)
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
            logits = active.run(array)
            latency_ms = (time.monotonic_ns() - start) / 1e6
            met = None if limit is None else latency_ms <= limit
            self._record(latency_ms, met)
        return Result(
            output=_like(image, logits),
            topology=active.candidate.topology,
            latency_ms=latency_ms,
            budget_ms=limit,
            met=met,
            margin_ms=None if limit is None else limit - latency_ms,
            feasible=active.feasible,
        )

    def _within(self, latency_ms: float, budget: Budget) -> _Active:
        if latency_ms <= 0:  # already late
            if self._strict:
                raise InfeasibleError(f"the deadline passed {-latency_ms:.3g} ms ago")
            return self._safety
        return self._best(msgspec.structs.replace(budget, latency_ms=latency_ms))

    def _checked(self, image: Any) -> np.ndarray:
        array = image if isinstance(image, np.ndarray) else _to_numpy(image)
        if array.shape != self._shape or array.dtype != np.float32:
            raise ValueError(
                f"the network takes float32 {list(self._shape)}, got {array.dtype} "
                f"{list(array.shape)}; edgestitch.data.preprocess makes it from uint8 images"
            )
        # Written so that not-a-number fails as well.
        low, high = array.min(), array.max()
        if not (low >= self._low and high <= self._high):
            raise ValueError(
                f"the network takes normalised pixels, {self._low:.2f} to {self._high:.2f} with "
                f"slack, got {low:.4g} to {high:.4g}; edgestitch.data.preprocess normalises raw "
                "images"
            )
        return array if array.flags.c_contiguous else np.ascontiguousarray(array)

    def _record(self, latency_ms: float, met: bool | None) -> None:
        with self._counting:
            self._frames += 1
            self._last_ms = latency_ms
            if met is not None:
                self._history.append(met)
                self._misses += not met

    # --- state --------------------------------------------------------------------------------

    def diagnostics(self) -> Diagnostics:
        """Level, message and values: WARN if the budget cannot be met or more than 1 % was late."""
        active, budget, closed = self._next, self._state.budget, self._closed
        with self._counting:
            history, last_ms = list(self._history), self._last_ms
            frames, misses = self._frames, self._misses
        late = history.count(False) / len(history) if history else 0.0
        level: Literal["OK", "WARN", "ERROR"]
        if closed:
            level, message = "ERROR", "closed"
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
            "last_latency_ms": "" if last_ms is None else f"{last_ms:.3f}",
            "frames": str(frames),
            "deadlines_missed": str(misses),
            "backend": f"{conditions.backend} {conditions.precision}",
            "hardware": conditions.hardware,
        }
        return Diagnostics(level=level, message=message, values=values)

    def close(self) -> None:
        """Waits for a running inference and frees the topologies; later calls raise."""
        with self._inference:
            self._closed = True

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


def _open(deployment: str | os.PathLike[str] | Deployment | None) -> Deployment:
    if isinstance(deployment, Deployment):
        return deployment
    folder = find_deployment(deployment)
    if folder is None:
        from .default import shipped_deployment

        return shipped_deployment()
    return open_deployment(folder)


def _to_numpy(image: Any) -> np.ndarray:
    if not hasattr(image, "detach"):
        raise ValueError(f"an image is a NumPy array or a torch tensor, not {type(image).__name__}")
    array: np.ndarray = image.detach().cpu().numpy()
    return array


def _like(image: Any, logits: np.ndarray) -> Any:
    if isinstance(image, np.ndarray):
        return logits
    import torch

    return torch.from_numpy(logits).to(image.device)
