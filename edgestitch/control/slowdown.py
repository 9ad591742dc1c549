"""How much slower than profiled the device is now, from the latency of each call.

A call takes `host x fixed + device x (cost - fixed)`: the fixed part of every call (launch, copies) and
what the device computes are slowed by different things. One latency tells their weighted sum; calls
of cheaper and dearer topologies tell them apart. Where the fixed part is not known it is 0, and one
factor is left. Compute and memory would need profiles at several clocks to be told apart.

    both factors               a Kalman filter over what they add up to, as ALERT's over one (Wan et al.,
                               ATC 2020)
    innovation beyond three scales     counts as three (Huber 1964): one spike moves little
    sums of innovations (CUSUM, Page 1954)  past their limit: a step, taken over from the last two calls
"""

from collections.abc import Mapping
from math import exp, inf, log, sqrt

from edgestitch.profile import Profile

CLIP = 3.0
"""Scales of noise beyond which an innovation counts no more."""
DRIFT = 1.0
"""What the sums let go of in each frame, in scales: half of the least step that they look for."""
ALARM = 3.5
"""More than `CLIP - DRIFT`, so that no single frame is a step; less than twice that, so that two are."""
TRUST = 0.1
"""Standard deviation of a factor before the first call: the profile holds."""
DOUBT = 0.5
"""The same of the device's after a step, relative to it."""
HOST_DOUBT = 2.0
"""And of the host's: a busy core makes a launch several times as long."""
SETTLE = 4
"""Standard deviations of the prediction that are kept away from right after a step, when the noise may
be another as well; one later on."""
LEARN = 0.1
"""Weight of the newest alarm in the share of them that were steps."""
BELIEF = 0.25
"""That share, below which alarms are not heeded: on a device with many spikes they cost accuracy."""
WANDER = 0.05
"""Standard deviation by which a factor wanders from frame to frame, in scales of noise."""
FLOOR = 0.003
"""Least scale of noise: a device without any must not turn rounding errors into steps."""
FADE = 0.03
"""Weight of the newest frame in the scale of noise."""
LEAST, MOST = 0.01, 150.0
"""Of a factor."""
FAR = 5.0
"""Largest logarithm of an alarm."""


def fixed_ms(profile: Profile) -> float:
    """What every call takes however small the network; 0 where the profile does not tell.

    Marks between segments (`attribution`) measure it; a composed profile has fitted it.
    """
    if profile.attribution is not None:
        found = profile.attribution.rest_ms
    elif profile.composition is not None:
        found = profile.composition.latency.costs.get("call", 0.0)
    else:
        return 0.0
    # A fit may give the call more than the fastest topology takes in all.
    return min(max(found, 0.0), 0.9 * min(cost.latency_ms for cost in profile.costs))


def _bounded(factor: float) -> float:
    return LEAST if factor < LEAST else MOST if factor > MOST else factor


class Slowdown:
    """The factors of now; plain numbers, a few microseconds for each call."""

    __slots__ = (
        "_believed",
        "_clock_device",
        "_clocked",
        "_fixed_ms",
        "_frames",
        "_last",
        "_last_cost_ms",
        "_last_ms",
        "_last_variance",
        "_level",
        "_p_both",
        "_p_device",
        "_p_host",
        "_ratio",
        "_rise",
        "_sink",
        "_suspect",
        "_variance",
        "alarm",
        "caution",
        "device",
        "doubt",
        "host",
        "steps",
    )

    def __init__(self, fixed_ms: float = 0.0) -> None:
        self._fixed_ms = fixed_ms
        self.reset()

    def reset(self) -> None:
        """Forgets every call: the profile holds."""
        self._as_profiled()
        self._variance = self._last_variance = 0.05**2
        self._rise = self._sink = self._last = 0.0
        self._last_cost_ms = self._last_ms = 1.0
        self._suspect, self._believed = False, 0.5
        self._frames = 0
        self._ratio = 1.0  # of the profile's clock to the last one that was read
        self._clock_device = 1.0  # the device's factor at that time
        self._clocked = 0  # calls since then
        self.steps = 0
        """Steps that were followed."""
        self.caution = 1.0
        """Factor of one standard deviation of the last prediction itself, as large as the noise right
        after a step and little later on; without it the second call after a step is often late."""
        self.doubt = 0.0
        """Standard deviation of the device's factor, relative. After a step it is well known what a
        call like the last ones takes, but not how much of that the host does."""
        self.alarm = 0.0
        """Logarithm of what the last call was slower by, where noise does not explain it and it may
        be the first of a step; 0: nothing is the matter."""

    def _as_profiled(self) -> None:
        self.host = self.device = self._level = 1.0  # the last one of a whole call
        self._p_host = self._p_device = TRUST**2
        self._p_both = 0.0

    def loosen(self) -> None:
        """Lets the next calls decide: something has changed, it is not known by how much."""
        self._p_host = (HOST_DOUBT * self._level) ** 2
        self._p_device = (DOUBT * self._level) ** 2
        self._p_both = 0.0

    @property
    def noise(self) -> float:
        """Standard deviation of a latency around the prediction, relative."""
        return sqrt(self._variance)

    def predict(self, cost_ms: float) -> float:
        """What a call takes now that took `cost_ms` when it was profiled."""
        fixed = self._fixed_ms if self._fixed_ms < cost_ms else cost_ms
        return fixed * self.host + (cost_ms - fixed) * self.device

    def observe(self, cost_ms: float, latency_ms: float) -> None:
        """Takes in a call; both above zero, `cost_ms` the profile's median."""
        error = log(latency_ms / self.predict(cost_ms))
        scale = sqrt(self._variance)
        stepped = self._stepped(error, scale)
        self._suspect_step(error, scale, stepped)
        if stepped:
            self._step(cost_ms, latency_ms, error, scale)
        else:
            clipped = min(max(error, -CLIP * scale), CLIP * scale)
            self._correct(cost_ms, clipped)
            fade = max(FADE, 1 / (self._frames + 3))
            variance = self._variance + fade * (clipped * clipped - self._variance)
            self._last_variance, self._variance = self._variance, max(variance, FLOOR**2)
        self._last, self._last_cost_ms, self._last_ms = error, cost_ms, latency_ms
        self._frames += 1
        self._clocked += 1

    def _stepped(self, error: float, scale: float) -> bool:
        """Whether everything has become slower or faster, as the last two calls agree."""
        scales = min(max(error / scale, -CLIP), CLIP)
        self._rise = max(self._rise + scales - DRIFT, 0.0)
        self._sink = max(self._sink - scales - DRIFT, 0.0)
        if self._rise <= ALARM and self._sink <= ALARM:
            return False
        farther = error - self._last if self._rise > ALARM else self._last - error
        if (
            farther > CLIP * scale
        ):  # noise brought the sum there; the step, if it is one, begins here
            return False
        self._rise = self._sink = 0.0
        return True

    def _suspect_step(self, error: float, scale: float, stepped: bool) -> None:
        """Raises an alarm, as long as enough of them have turned out to be steps."""
        if self._suspect:
            self._believed += LEARN * (stepped - self._believed)
        self._suspect = not stepped and error > CLIP * scale
        self.alarm = min(error, FAR) if self._suspect and self._believed > BELIEF else 0.0

    def _step(self, cost_ms: float, latency_ms: float, error: float, scale: float) -> None:
        """Takes over what the last two calls say, that they were of a new speed."""
        self.steps += 1
        self._variance = self._last_variance  # they say nothing of the noise
        sign = 1.0 if error > 0 else -1.0
        # Little beyond the lesser of both: two spikes of which one is huge are no huge step.
        most = max(min(sign * error, sign * self._last), scale) + CLIP * scale
        calls = (
            (self._last_cost_ms, self._last_ms * exp(sign * min(most - sign * self._last, 0.0))),
            (cost_ms, latency_ms * exp(sign * min(most - sign * error, 0.0))),
        )
        if all(abs(log(took_ms / was_ms)) < CLIP * scale for was_ms, took_ms in calls):
            self._as_profiled()
        else:
            self.loosen()
        for was_ms, took_ms in calls:
            self._correct(was_ms, took_ms / self.predict(was_ms) - 1)
        self.caution **= SETTLE

    def _correct(self, cost_ms: float, error: float) -> None:
        """One step of the filter; `error` is relative to the prediction."""
        fixed = self._fixed_ms if self._fixed_ms < cost_ms else cost_ms
        rest = cost_ms - fixed
        expected = fixed * self.host + rest * self.device
        level = expected / cost_ms
        of_fixed, of_rest = fixed / expected, rest / expected
        wander = (WANDER * level) ** 2 * self._variance
        # No factor is less certain than after a step, however long nothing tells of it.
        host = min(self._p_host + wander, (HOST_DOUBT * level) ** 2)
        device = min(self._p_device + wander, (DOUBT * level) ** 2)
        most = 0.999 * sqrt(host * device)
        both = min(max(self._p_both, -most), most)
        of_host = host * of_fixed + both * of_rest
        of_device = both * of_fixed + device * of_rest
        seen = of_host * of_fixed + of_device * of_rest
        total = seen + self._variance
        gain_host, gain_device = of_host / total, of_device / total
        self._p_host = host - gain_host * of_host
        self._p_device = device - gain_device * of_device
        self._p_both = both - gain_host * of_device
        found = expected * (1 + seen / total * error)
        self.host = _bounded(self.host + gain_host * error)
        if rest > 0:  # what a bound keeps the one from taking, the other takes
            self.device = _bounded((found - fixed * self.host) / rest)
        if fixed > 0:
            self.host = _bounded((found - rest * self.device) / fixed)
        self._level = found / cost_ms
        self.caution = exp(sqrt(seen * self._variance / total))
        self.doubt = sqrt(max(self._p_device, 0.0)) / self.device

    def clocks(self, profiled_mhz: Mapping[str, float], now_mhz: Mapping[str, float]) -> None:
        """Takes in the clocks, where they are read: a slower one is known before the next call is.

        Of a GPU where there is one, else of the CPU. Calls since the last look know better than
        clocks do; then, and where a clock has become faster, they only make the next calls count
        for more. Compute scales with the clock, memory does not: this is the slower of both.
        """
        name = "gpu" if "gpu" in profiled_mhz else "cpu"
        profiled, now = profiled_mhz.get(name, 0.0), now_mhz.get(name, 0.0)
        if not (0 < profiled < inf and 0 < now < inf):
            return
        ratio = profiled / now
        change = log(ratio / self._ratio)
        if abs(change) > 0.02:
            if change > 0 and self._clocked <= 2:
                self.device = max(self.device, min(self._clock_device * ratio / self._ratio, MOST))
            doubt = min(abs(change) / 2, DOUBT) * self.device
            self._p_device = max(self._p_device, doubt**2)
            self._p_both = 0.0
            self._ratio = ratio
        self._clock_device, self._clocked = self.device, 0
