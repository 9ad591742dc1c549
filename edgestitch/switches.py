"""What it costs to switch: the host's time, and the first inference after it over the steady state.

Measured on a live runtime over all ordered pairs of its topologies, in random order.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cached_property
from itertools import permutations
from typing import TYPE_CHECKING, ClassVar

from .artifact import Artifact, Value, digest
from .errors import DeviceError
from .profile import Conditions
from .progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np

    from .data import LabelledImages
    from .runtime import Result, Runtime

BEFORE = 3
"""Inferences of the first topology before each switch: it is then what caches and clocks hold."""
STEADY = 10
"""The inference after a switch that is taken as the steady state."""


class Middle(Value, frozen=True, kw_only=True):
    """A median with its 95 % interval from order statistics; with few repeats all there was."""

    median: float
    low: float
    high: float


class Transition(Value, frozen=True, kw_only=True):
    """From one topology to another."""

    before: str
    after: str
    switch_us: Middle
    """What the call of `switch` takes the host."""
    first_ms: Middle
    """The first inference after it."""
    steady_ms: Middle
    """The tenth."""
    ratio: Middle
    """The first over the tenth of the same repeat, so that drift cancels."""


class SwitchMatrix(Artifact, frozen=True, kw_only=True, dict=True):
    """All ordered pairs of resident topologies of one deployment."""

    kind: ClassVar[str] = "switches"
    version: ClassVar[int] = 1

    family: str
    network: str
    """Digest of the weights."""
    plan: str
    """Digest of the plan that ran."""
    conditions: Conditions
    date: str
    repeats: int
    """Of each pair."""
    topologies: tuple[str, ...]
    """Fastest first."""
    transitions: tuple[Transition, ...]

    @cached_property
    def by_pair(self) -> dict[tuple[str, str], Transition]:
        return {(one.before, one.after): one for one in self.transitions}


def measure_switches(
    runtime: "Runtime",
    image: "np.ndarray",
    *,
    repeats: int = 20,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
    progress: Progress = silent,
) -> SwitchMatrix:
    """What each switch costs between two topologies of a runtime, which nothing else may use.

    Afterwards its budgets hold again.

    Args:
        runtime: with every topology that it will have; it is waited for.
        image: what every inference is of.
        repeats: of each ordered pair. With 6 or more the medians have intervals of 95 %.
        seed: of the order.
        clock: nanoseconds.
        progress: told of the repeats.

    Raises:
        DeviceError: another topology ran than the one that was switched to, since that one failed.
        ValueError: fewer than one repeat, or an image that the runtime does not take.
    """
    import numpy as np

    if repeats < 1:
        raise ValueError(f"each switch is measured once at least, not {repeats} times")
    runtime.wait()
    deployment, names = runtime.deployment, runtime.topologies
    pairs = list(permutations(names, 2))
    taken: dict[tuple[str, str], list[tuple[int, int, int]]] = {pair: [] for pair in pairs}
    random = np.random.default_rng(seed)
    try:
        with _undisturbed():
            for number in range(repeats):
                for index in random.permutation(len(pairs)):
                    before, after = pairs[index]
                    sample = _switch(runtime, before, after, image, clock)
                    taken[before, after].append(sample)
                progress("switches", number + 1, repeats)
    finally:
        runtime.budget_ms = runtime.budget_ms  # releases what was switched to last
    return SwitchMatrix(
        family=deployment.manifest.family.name,
        network=deployment.manifest.network,
        plan=digest(deployment.plan),
        conditions=deployment.manifest.conditions,
        date=datetime.now(timezone.utc).date().isoformat(),
        repeats=repeats,
        topologies=names,
        transitions=tuple(_transition(*pair, samples) for pair, samples in taken.items()),
    )


def first_frame(runtime: "Runtime", data: "LabelledImages") -> "np.ndarray":
    """The first images, normalised, as many as a call of the runtime takes."""
    from .data import preprocess

    family = runtime.deployment.manifest.family
    images = data.images[: runtime.input_shape[0]]
    return preprocess(images, mean=family.mean, std=family.std)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Garbage is collected before, not meanwhile."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _switch(
    runtime: "Runtime", before: str, after: str, image: "np.ndarray", clock: Callable[[], int]
) -> tuple[int, int, int]:
    """Nanoseconds of a switch, of the first inference after it and of the tenth."""
    runtime.switch(before)
    for _ in range(BEFORE - 1):
        runtime(image)
    _require(before, runtime.infer(image))
    start = clock()
    runtime.switch(after)
    switched = clock()
    result = runtime.infer(image)
    first = clock()
    _require(after, result)
    for _ in range(STEADY - 2):
        runtime(image)
    last = clock()
    result = runtime.infer(image)
    end = clock()
    _require(after, result)
    return switched - start, first - switched, end - last


def _require(topology: str, result: "Result") -> None:
    if result.topology != topology:
        raise DeviceError(
            f"{topology} was switched to, and {result.topology} ran: {topology} has failed; "
            "`Runtime.diagnostics` says why"
        )


def _transition(before: str, after: str, samples: list[tuple[int, int, int]]) -> Transition:
    switches, firsts, steady = zip(*samples, strict=True)
    return Transition(
        before=before,
        after=after,
        switch_us=_middle([ns / 1e3 for ns in switches]),
        first_ms=_middle([ns / 1e6 for ns in firsts]),
        steady_ms=_middle([ns / 1e6 for ns in steady]),
        # A clock too coarse for the steady state could say 0; it is a nanosecond at least.
        ratio=_middle([first / max(last, 1) for first, last in zip(firsts, steady, strict=True)]),
    )


def _middle(samples: list[float]) -> Middle:
    import numpy as np

    from .timer import interval_ranks

    ordered = sorted(samples)
    low, high = interval_ranks(len(ordered), 0.5)
    return Middle(
        median=float(np.median(ordered)),
        low=ordered[max(low, 1) - 1],
        high=ordered[min(high, len(ordered)) - 1],
    )
