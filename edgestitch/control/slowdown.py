"""How much slower than profiled the device is now, from the latency of each call.

A call takes `host x fixed + device x (cost - fixed)`: the fixed part of every call (launch, copies) and
what the device computes are slowed by different things. One latency tells their weighted sum; calls
of cheaper and dearer topologies tell them apart. Where the fixed part is not known it is 0, and one
factor is left. Compute and memory would need profiles at several clocks to be told apart.

    logarithms of both factors         an extended Kalman filter, as ALERT's (Wan et al., ATC 2020)
    innovation beyond three scales     counts as three (Huber 1964): one spike moves little
    sums of innovations (CUSUM, Page 1954)  past their limit: a step, taken over as a whole
"""

from collections.abc import Mapping
from math import exp, inf, log, sqrt

from edgestitch.profile import Profile

CLIP = 3.0
"""Scales of noise beyond which an innovation counts no more."""
DRIFT = 1.0
"""What the sums let go of in each frame, in scales: half of the least step that they look for."""
ALARM = 3.5
"""More than `CLIP - DRIFT`, so that no single frame raises an alarm; less than twice that, so that
two frames do."""
TRUST = 0.1
"""Standard deviation of the logarithm of a factor before the first call: the profile holds."""
DOUBT = 0.5
"""The same after a step."""
WANDER = 0.05
"""Standard deviation by which a factor wanders from frame to frame, in scales of noise."""
FLOOR = 0.003
"""Least scale of noise: a device without any must not turn rounding errors into steps."""
FADE = 0.03
"""Weight of the newest frame in the scale of noise."""


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


class Slowdown:
    """The factors of now; plain numbers, a few microseconds for each call."""

    __slots__ = (
        "_clock_device",
        "_clocked",
        "_device_log",
        "_fixed_ms",
        "_frames",
        "_host_log",
        "_last",
        "_p_both",
        "_p_device",
        "_p_host",
        "_ratio",
        "_rise",
        "_sink",
        "_variance",
        "caution",
        "device",
        "host",
        "steps",
    )

    def __init__(self, fixed_ms: float = 0.0) -> None:
        self._fixed_ms = fixed_ms
        self.reset()

    def reset(self) -> None:
        """Forgets every call: the profile holds."""
        self.host = self.device = 1.0
        self._host_log = self._device_log = 0.0
        self._p_host = self._p_device = TRUST**2
        self._p_both = 0.0
        self._variance = 0.05**2
        self._rise = self._sink = self._last = 0.0
        self._frames = 0
        self._ratio = 1.0  # of the profile's clock to the last one that was read
        self._clock_device = 0.0  # logarithm of the device's factor at that time
        self._clocked = 0  # calls since then
        self.steps = 0
        """Steps that were followed."""
        self.caution = 1.0
        """Factor of one standard deviation of the last prediction itself, as large as the noise right
        after a step and little later on; without it the second call after a step is often late."""

    def loosen(self) -> None:
        """Lets the next calls decide: something has changed, it is not known by how much."""
        self._p_host = self._p_device = DOUBT**2
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
        fixed = self._fixed_ms if self._fixed_ms < cost_ms else cost_ms
        of_host = fixed * self.host
        expected = of_host + (cost_ms - fixed) * self.device
        error = log(latency_ms / expected)
        share = of_host / expected
        scale = sqrt(self._variance)
        clipped = min(max(error, -CLIP * scale), CLIP * scale)
        step = self._step(error, scale)
        if step:
            self.steps += 1
            self.loosen()
            self._correct(share, step)
        else:
            self._correct(share, clipped)
        self._frames += 1
        self._clocked += 1
        fade = max(FADE, 1 / (self._frames + 2))
        variance = self._variance + fade * (clipped * clipped - self._variance)
        self._variance = max(variance, FLOOR**2)

    def _step(self, error: float, scale: float) -> float:
        """By how much everything has become slower (above 0) or faster; 0: no step so far."""
        scales = min(max(error / scale, -CLIP), CLIP)
        self._rise = max(self._rise + scales - DRIFT, 0.0)
        self._sink = max(self._sink - scales - DRIFT, 0.0)
        before, self._last = self._last, error
        if self._rise <= ALARM and self._sink <= ALARM:
            return 0.0
        rises = self._rise > ALARM
        self._rise = self._sink = 0.0
        # The lesser of the last two: two spikes of which one is huge are no huge step.
        return max(min(before, error), scale) if rises else min(max(before, error), -scale)

    def _correct(self, share: float, error: float) -> None:
        """One step of the filter; `share` of the prediction is the host's."""
        rest, wander = 1 - share, WANDER**2 * self._variance
        # No factor is less certain than after a step, however long nothing tells of it.
        host = min(self._p_host + wander, DOUBT**2)
        device = min(self._p_device + wander, DOUBT**2)
        most = 0.999 * sqrt(host * device)
        both = min(max(self._p_both, -most), most)
        of_host = host * share + both * rest
        of_device = both * share + device * rest
        total = of_host * share + of_device * rest + self._variance
        gain_host, gain_device = of_host / total, of_device / total
        self._host_log = min(max(self._host_log + gain_host * error, -5.0), 5.0)
        self._device_log = min(max(self._device_log + gain_device * error, -5.0), 5.0)
        self._p_host = host - gain_host * of_host
        self._p_device = device - gain_device * of_device
        self._p_both = both - gain_host * of_device
        seen = of_host * share + of_device * rest
        self.caution = exp(sqrt(seen * self._variance / (seen + self._variance)))
        self.host, self.device = exp(self._host_log), exp(self._device_log)

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
                self._device_log = max(self._device_log, self._clock_device + change)
                self._device_log = min(self._device_log, 5.0)
                self.device = exp(self._device_log)
            self._p_device = min(max(self._p_device, (change / 2) ** 2), DOUBT**2)
            self._p_both = 0.0
            self._ratio = ratio
        self._clock_device, self._clocked = self._device_log, 0
