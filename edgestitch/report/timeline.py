"""A run over time: budget, topology, latency, misses, power, temperature.

A picture of a hundred thousand frames has some thousand points: of each column of the picture, a
pixel or so wide, the fastest and the slowest frame. A missed deadline is never left out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from edgestitch.runlog import Frame, Reading, RunLog

from .markup import Column, choices, definitions, numbers, paragraph, picture, section, table, text
from .units import format_mj, format_ms, format_s, format_w, grouped, plural

COLUMNS = 1000
"""Of a picture: more would be narrower than a pixel."""

MISSES = 2000
"""So many are drawn one by one; of more, each column's worst stands for all of it, with their number."""

FEW = 100
"""Frames below which a 99th percentile says nothing that the slowest frame does not."""

Point = tuple[float, float]


def timeline_section(logs: Sequence[RunLog]) -> tuple[str, list[dict[str, Any]]]:
    """The section, and what the page's script draws in it: one picture for each run."""
    if not logs:
        return "", []
    parts: list[str] = []
    drawn: list[dict[str, Any]] = []
    for log in logs:
        if not log.frames:
            parts.append(paragraph(f"The run of {log.date} has no frame in it."))
            continue
        heading = f"<h3>{text(_heading(log))}</h3>" if len(logs) > 1 else ""
        found = draw_run(log)
        name = f"plot-run-{len(drawn)}"
        scale = choices(f"scales-run-{len(drawn)}", "Latency axis")
        shown = picture(name, _describe(log), controls=scale)
        parts.append(heading + paragraph(_said(log)) + shown)
        parts.append(_what_ran(log) + definitions(_facts(log)))
        drawn.append(found)
    return section("Timeline of a run", "".join(parts), "timeline"), drawn


def _heading(log: RunLog) -> str:
    return f"{log.date}, {log.conditions.label}"


def _said(log: RunLog) -> str:
    frames = f"{plural(len(log.frames), 'frame', 'frames')} in {format_s(_end(log))}"
    lost = f", after {grouped(log.lost)} that the log did not keep" if log.lost else ""
    thinned = (
        " Of what is closer together than a pixel the fastest and the slowest frame are drawn, and "
        "every miss."
        if len(log.frames) > 2 * COLUMNS
        else ""
    )
    return f"{frames}{lost}; {_kept(log)}.{thinned}"


def _kept(log: RunLog) -> str:
    asked = [frame for frame in log.frames if frame.met is not None]
    if not asked:
        return "none had a deadline"
    missed = sum(not frame.met for frame in asked)
    of = plural(len(asked), "deadline", "deadlines")
    return f"{grouped(missed)} of {of} missed ({100 * missed / len(asked):.2f} %)"


def _end(log: RunLog) -> float:
    last = log.frames[-1]
    ends = [last.time_s + last.latency_ms / 1e3, *(reading.time_s for reading in log.readings[-1:])]
    return max(ends)


def _describe(log: RunLog) -> str:
    latencies = [frame.latency_ms for frame in log.frames]
    shown = [name for name, there in _panels(log).items() if there]
    return (
        f"Timeline of {plural(len(log.frames), 'frame', 'frames')} over {format_s(_end(log))}: "
        f"{', '.join(shown)}. Latencies from {format_ms(min(latencies))} to "
        f"{format_ms(max(latencies))}. The table below says what ran."
    )


def _panels(log: RunLog) -> dict[str, bool]:
    return {
        "latency and deadline": True,
        "topology": True,
        "power": any(reading.power_w is not None for reading in log.readings),
        "temperature": any(reading.temperatures_c for reading in log.readings),
        "throttling": any(reading.throttle for reading in log.readings),
    }


# --- what is drawn ---------------------------------------------------------------------------


def draw_run(log: RunLog) -> dict[str, Any]:
    """A run as data for the page's script; seconds from its beginning."""
    end = _end(log)
    column_s = end / COLUMNS or 1.0
    frames, readings = log.frames, log.readings
    return {
        "end": _short(end),
        "latency": _frames([frames[i] for i in _extremes(_latencies(frames), column_s)]),
        "missed": _missed(frames, column_s),
        "budget_ms": _steps([(f.time_s, f.budget_ms) for f in frames], column_s, end),
        "lanes": _lanes(frames, column_s),
        "power": _line(_readings(readings, lambda r: r.power_w), column_s),
        "budget_w": _steps([(f.time_s, f.budget_w) for f in frames], column_s, end),
        "temperatures": [
            {"name": name, **_line(_readings(readings, _temperature(name)), column_s)}
            for name in sorted({name for r in readings for name in r.temperatures_c})
        ],
        "throttle": _throttled(readings, column_s, end),
    }


def _short(value: float) -> float:
    """Without the digits that no picture shows: they would be half of the page."""
    return float(f"{value:.7g}")


def _latencies(frames: Iterable[Frame]) -> list[Point]:
    return [(frame.time_s, frame.latency_ms) for frame in frames]


def _extremes(points: Sequence[Point], column_s: float) -> list[int]:
    """Indices of the lowest and the highest point of each column, in order; all, if they are few."""
    if len(points) <= 2 * COLUMNS:
        return list(range(len(points)))
    kept = {0, len(points) - 1}
    for _, column in groupby(range(len(points)), lambda index: points[index][0] // column_s):
        indices = list(column)
        kept.add(min(indices, key=lambda index: points[index][1]))
        kept.add(max(indices, key=lambda index: points[index][1]))
    return sorted(kept)


def _frames(frames: Sequence[Frame]) -> dict[str, Any]:
    return {
        "x": [_short(frame.time_s) for frame in frames],
        "y": [_short(frame.latency_ms) for frame in frames],
        "topology": [frame.topology for frame in frames],
    }


def _missed(frames: Iterable[Frame], column_s: float) -> dict[str, Any]:
    """Every missed deadline; of many, the worst of a column with the number that it stands for."""
    missed = [frame for frame in frames if frame.met is False]
    if len(missed) <= MISSES:
        return {**_frames(missed), "number": [1] * len(missed)}
    columns = [list(c) for _, c in groupby(missed, lambda frame: frame.time_s // column_s)]
    worst = [max(column, key=lambda frame: frame.latency_ms) for column in columns]
    return {**_frames(worst), "number": [len(column) for column in columns]}


def _steps(
    values: Sequence[tuple[float, float | None]], column_s: float, end: float
) -> dict[str, Any]:
    """A line that holds each value until the next one; empty where there never is any."""
    changes = [values[0]] if values else []
    changes += [now for before, now in pairwise(values) if now[1] != before[1]]
    if len(changes) > 2 * COLUMNS:  # another budget every frame
        known = [(time, value) for time, value in changes if value is not None]
        changes = [known[index] for index in _extremes(known, column_s)]
    if all(value is None for _, value in changes):
        return {"x": [], "y": []}
    changes.append((end, changes[-1][1]))
    return {
        "x": [_short(time) for time, _ in changes],
        "y": [None if value is None else _short(value) for _, value in changes],
    }


def _lanes(frames: Sequence[Frame], column_s: float) -> list[dict[str, Any]]:
    """When each topology ran, fastest first; pauses too short to be seen are closed."""
    spans: dict[str, list[list[float]]] = {}
    for start, stop, topology in _runs(frames):
        mine = spans.setdefault(topology, [])
        if mine and start - mine[-1][1] <= column_s:
            mine[-1][1] = stop
        else:
            mine.append([start, stop])
    medians = {name: _median(latencies) for name, latencies in _by_topology(frames).items()}
    return [
        {"name": name, "spans": [[_short(start), _short(stop)] for start, stop in spans[name]]}
        for name in sorted(spans, key=lambda name: medians[name])
    ]


def _runs(frames: Sequence[Frame]) -> Iterator[tuple[float, float, str]]:
    """Start, stop and topology of frames in a row; one runs until the next one begins."""
    grouped_frames = [(name, list(run)) for name, run in groupby(frames, lambda f: f.topology)]
    starts = [run[0].time_s for _, run in grouped_frames[1:]]
    last = frames[-1].time_s + frames[-1].latency_ms / 1e3
    for (name, run), stop in zip(grouped_frames, [*starts, last], strict=True):
        yield run[0].time_s, stop, name


def _by_topology(frames: Iterable[Frame]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for frame in frames:
        found.setdefault(frame.topology, []).append(frame.latency_ms)
    return found


def _temperature(name: str) -> Callable[[Reading], float | None]:
    return lambda reading: reading.temperatures_c.get(name)


def _readings(
    readings: Iterable[Reading], quantity: Callable[[Reading], float | None]
) -> list[Point]:
    return [(r.time_s, value) for r in readings if (value := quantity(r)) is not None]


def _line(points: Sequence[Point], column_s: float) -> dict[str, Any]:
    shown = [points[index] for index in _extremes(points, column_s)]
    return {"x": [_short(time) for time, _ in shown], "y": [_short(value) for _, value in shown]}


def _throttled(readings: Sequence[Reading], column_s: float, end: float) -> list[list[Any]]:
    """Start, stop and reasons; what a reading says holds until the next one."""
    spans: list[list[Any]] = []
    stops = [*(reading.time_s for reading in readings), end][1:]
    for reading, stop in zip(readings, stops, strict=True):
        if not reading.throttle:
            continue
        why = ", ".join(reading.throttle)
        if spans and spans[-1][2] == why and reading.time_s - spans[-1][1] <= column_s:
            spans[-1][1] = _short(stop)
        else:
            spans.append([_short(reading.time_s), _short(stop), why])
    return spans


# --- what is said ----------------------------------------------------------------------------


def _what_ran(log: RunLog) -> str:
    found = _by_topology(log.frames)
    names = sorted(found, key=lambda name: _median(found[name]))
    missed = {name: sum(f.met is False for f in log.frames if f.topology == name) for name in names}
    latencies = [sorted(found[name]) for name in names]
    columns = [
        Column("Topology", names, "name"),
        Column("Frames", [grouped(len(each)) for each in latencies]),
        Column("Share (%)", [f"{100 * len(each) / len(log.frames):.1f}" for each in latencies]),
        numbers("Median (ms)", [_median(each) for each in latencies]),
        numbers("p99 (ms)", [_p99(each) for each in latencies], missing="few frames"),
        numbers("Slowest (ms)", [each[-1] for each in latencies]),
        Column("Missed", [grouped(missed[name]) for name in names]),
    ]
    return table("What ran", columns)


def _median(values: Sequence[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _p99(ordered: Sequence[float]) -> float | None:
    return None if len(ordered) < FEW else ordered[-(len(ordered) // 100) - 1]


class _Power(NamedTuple):
    mean_w: float
    energy_mj: float


def _facts(log: RunLog) -> list[tuple[str, str]]:
    items = [("Conditions", log.conditions.label), ("Date", log.date)]
    infeasible = sum(not frame.feasible for frame in log.frames)
    if infeasible:
        items.append(("No topology fitted", f"for {plural(infeasible, 'frame', 'frames')}"))
    power = _power(log.readings)
    if power is not None:
        said = f"{format_w(power.mean_w)} in the mean, {format_mj(power.energy_mj)} in all"
        items.append(("Power", said))
    elif log.power_reason is not None:
        items.append(("Power", f"not measured: {log.power_reason}"))
    hottest = [(c, name) for r in log.readings for name, c in r.temperatures_c.items()]
    if hottest:
        temperature, name = max(hottest)
        items.append(("Hottest", f"{temperature:.1f} \N{DEGREE SIGN}C ({name})"))
    if log.readings:
        items.append(("Throttled", _throttling(log)))
    slowdowns = [r.slowdown for r in log.readings if r.slowdown is not None]
    if slowdowns:
        items.append(("Slower than profiled", f"{_median(slowdowns):.2f} times in the median"))
    return items


def _throttling(log: RunLog) -> str:
    spans = _throttled(log.readings, 0.0, _end(log))
    if not spans:
        return "the device never said so"
    seconds = sum(stop - start for start, stop, _ in spans)
    why = ", ".join(dict.fromkeys(reason for *_, reason in spans))
    return f"for {format_s(seconds)}: {why}"


def _power(readings: Sequence[Reading]) -> _Power | None:
    """Mean over time, and energy: each reading is the mean since the one before."""
    spans = [
        (now.time_s - before.time_s, now.power_w)
        for before, now in pairwise(readings)
        if now.power_w is not None
    ]
    seconds = sum(span for span, _ in spans)
    if not seconds:
        return None
    joules = sum(span * power for span, power in spans)
    return _Power(joules / seconds, 1e3 * joules)
