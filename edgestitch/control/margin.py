"""How much room a prediction needs, so that no more deadlines are missed than asked for.

A score is `log(latency / predicted bound)`. The margin is the conformal quantile of the last scores
plus what an integrator has learned from misses (conformal PID control, Angelopoulos et al. 2023, after
adaptive conformal inference, Gibbs and Candes 2021):

    margin = quantile of the last scores at 1 - target + integral
    integral += gain x (1 if missed else 0  -  target)

Whatever the latencies do, the integral is bounded, hence over N frames

    misses / N  <=  target + (MOST - start) / (gain x N)

as long as the integral stays below `MOST`: what is missed beyond that, no margin would have kept.
"""

from bisect import bisect_left, insort
from collections import deque
from math import ceil, exp, floor, inf

MOST = 1.5
"""Largest integral, in logarithms: a factor of 4.5 on top of the quantile."""
SPEND = 3.0
"""The margin stays above the quantile at this many times the target. Without, a steady device would
be made to miss deadlines on purpose, only to have missed as many as were allowed."""


class Margin:
    """The margin of now, from the last `window` scores.

    Args:
        target: Share of the deadlines that may be missed.
        gain: What a miss adds to the logarithm of the margin.
    """

    __slots__ = (
        "_first",
        "_gain",
        "_integral",
        "_order",
        "_second",
        "_sorted",
        "_window",
        "factor",
        "log",
        "target",
    )

    def __init__(self, target: float = 0.01, *, window: int = 1000, gain: float = 0.01) -> None:
        if not 0 < target < 0.5:
            raise ValueError(f"target must be between 0 and 0.5, 0.01 for 1 %, not {target}")
        if window * target < 2:
            raise ValueError(
                f"a window of {window} scores has no quantile at 1 - {target}; at least "
                f"{ceil(2 / target)} are needed"
            )
        self.target = target
        self._window = window
        # The next of n exchangeable scores is above the k-th largest with probability k / (n + 1).
        self._first = floor((window + 1) * target)
        self._second = min(floor((window + 1) * SPEND * target), window)
        self._gain = gain
        self.reset()

    def reset(self) -> None:
        """Forgets every score: the profile's bounds hold."""
        self._order: deque[float] = deque()
        self._sorted: list[float] = []
        self._integral = 0.0
        self.log = 0.0
        self.factor = 1.0

    def observe(self, score: float, missed: bool, *, stepped: bool = False) -> None:
        """Takes in a finite score, and whether its deadline was missed.

        Of a call that no deadline depended on: whether its score was above the margin. With `stepped`
        it and the last one are of a step that is being followed: what was missed counts, but a
        quantile that has such scores in it would keep away from steps, at a price in every frame.
        """
        order, ordered = self._order, self._sorted
        if stepped and len(order) > 1:
            del ordered[bisect_left(ordered, order.pop())]
        if not stepped:
            if len(order) == self._window:
                del ordered[bisect_left(ordered, order.popleft())]
            order.append(score)
            insort(ordered, score)
        integral = self._integral + self._gain * (missed - self.target)
        if len(ordered) == self._window:
            base, least = ordered[-self._first], ordered[-self._second]
        else:
            base, least = self._filling(self._first), self._filling(self._second)
        # Not below the floor, or hits would wind it down to where it takes long to come back.
        self._integral = min(max(integral, least - base), MOST)
        self.log = base + self._integral
        self.factor = exp(self.log)

    def _filling(self, rank: int) -> float:
        """The score of that rank, counted from the largest, while the window fills.

        It begins full of what the profile says: the share of scores that the quantile leaves above it
        are 0, at the profile's bound, and the others below. A new score takes the place of one of all.
        """
        ordered = self._sorted
        zeros = rank * (self._window - len(ordered)) // self._window
        upper = ordered[-rank] if rank <= len(ordered) else -inf
        lower = ordered[zeros - rank] if rank - zeros <= len(ordered) else -inf
        return max(upper, min(lower if rank > zeros else inf, 0.0))
