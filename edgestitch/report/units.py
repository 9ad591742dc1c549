"""Numbers for people: the one place that scales units; upstream each quantity has one unit."""

import math
from collections.abc import Iterable, Mapping

from edgestitch.schedule import Budget

RARELY = 0.05
"""A topology with a smaller share of the frames stood in for another."""

Scale = tuple[tuple[float, float, str], ...]
"""Steps (from this value on, factor, unit), the largest first; the last one takes the rest."""

_MS: Scale = ((1e4, 1e-3, "s"), (0.1, 1, "ms"), (0, 1e3, "\N{MICRO SIGN}s"))
_MJ: Scale = ((1e7, 1e-6, "kJ"), (1e4, 1e-3, "J"), (0.1, 1, "mJ"), (0, 1e3, "\N{MICRO SIGN}J"))
_W: Scale = ((0.1, 1, "W"), (0, 1e3, "mW"))
_S: Scale = ((7200, 1 / 3600, "h"), (600, 1 / 60, "min"), (0.1, 1, "s"), (0, 1e3, "ms"))
GMACS: Scale = ((0.1, 1, "GMACs"), (1e-3, 1e3, "MMACs"), (0, 1e6, "kMACs"))
_COUNT: Scale = ((1e9, 1e-9, "G"), (1e6, 1e-6, "M"), (1e4, 1e-3, "k"))


def format_number(value: float) -> str:
    """Three significant digits, never in scientific notation."""
    return f"{value:.{decimals([value])}f}"


def format_ms(latency_ms: float) -> str:
    """A latency; in ms, as budgets are given, unless it is far from any budget."""
    return _scaled(latency_ms, _MS)


def format_budget(budget: Budget) -> str:
    """A deadline as latencies are shown; what else is bounded in the budget's own words."""
    if budget.latency_ms is not None and budget.only_latency:
        return format_ms(budget.latency_ms)
    return str(budget)


def format_ran(frames: Mapping[str, int]) -> str:
    """What ran, most first: one topology, or those that ran in turn with their shares."""
    total = sum(frames.values())
    often = {name: number for name, number in frames.items() if number >= RARELY * total}
    if len(often) == 1:
        return next(iter(often))
    return ", ".join(f"{name} {100 * number / total:.0f} %" for name, number in often.items())


def format_mj(energy_mj: float) -> str:
    return _scaled(energy_mj, _MJ)


def format_w(power_w: float) -> str:
    return _scaled(power_w, _W)


def format_s(duration_s: float) -> str:
    return _scaled(duration_s, _S)


def format_gmacs(gmacs: float) -> str:
    return _scaled(gmacs, GMACS)


def format_count(count: int) -> str:
    """A large count in three digits, such as `5.72 M`; a small one in full."""
    return _scaled(count, _COUNT) if count >= _COUNT[-1][0] else str(count)


def format_percent(percent: float) -> str:
    return f"{percent:.2f} %"


def format_points(points: float) -> str:
    """A difference of two percentages, with its sign."""
    return f"{points:+.2f}".replace("-", "\N{MINUS SIGN}")


def format_interval(low: float, high: float, decimals: int = 2) -> str:
    return f"{low:.{decimals}f} to {high:.{decimals}f}"


def _scaled(value: float, scale: Scale) -> str:
    factor, unit = unit_for(value, scale)
    return f"{format_number(value * factor)} {unit}"


def unit_for(value: float, scale: Scale) -> tuple[float, str]:
    """Factor and unit in which the value is easiest to read."""
    return next(((f, unit) for least, f, unit in scale if value >= least), scale[-1][1:])


def decimals(values: Iterable[float | None]) -> int:
    """Decimals that show three digits of the smallest value: one precision for a whole column."""
    sizes = [abs(value) for value in values if value]
    return min(6, max(0, 2 - math.floor(math.log10(min(sizes))))) if sizes else 0


def plural(number: int, one: str, many: str) -> str:
    return f"{grouped(number)} {one if number == 1 else many}"


def grouped(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NO-BREAK SPACE}")
