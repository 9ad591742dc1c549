"""One self-contained HTML page: what each topology is worth, what it costs, what a deadline picks.

The only file that scales units for people; everything upstream keeps one unit per quantity. The
page itself is `report.html`; here it is filled. The picks on it are the scheduler's own, embedded
as data, so that the page cannot disagree with the runtime.
"""

import html
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .accuracy import Accuracy, TopologyAccuracy
from .artifact import Value, digest, write
from .complexity import Complexity
from .errors import EdgestitchError, MismatchError
from .family import Family
from .peers import Peer, Peers, outdone
from .profile import Conditions, Cost, Profile, Protocol, require_equal
from .schedule import Candidate, Plan, candidates, front_along, pareto_front, staircase
from .topology import Topology

T = TypeVar("T")
R = TypeVar("R")
Pools = Mapping[str, Sequence[Candidate]]
"""What the slider may choose from, by the label of that choice."""


class RunRow(Value, frozen=True, kw_only=True):
    """What a runtime session measured while one budget held."""

    budget_ms: float
    topology: str
    frames: int
    median_ms: float
    p99_ms: float
    top1: float
    top1_low: float
    top1_high: float
    """Top-1 in percent over the frames, with its 95 % interval."""
    hit_rate: float
    """Fraction of the frames that ended within the budget."""
    switch_us: float | None
    """`None`: nothing was switched, or it was not measured."""
    first_ms: float | None
    """The first inference after the switch."""


def write_report(
    path: Path,
    family: Family,
    accuracy: Accuracy,
    *,
    profile: Profile | None = None,
    plan: Plan | None = None,
    complexity: Complexity | None = None,
    peers: Peers | None = None,
    runs: Sequence[RunRow] = (),
) -> None:
    """Writes the page of `render`, whole or not at all."""
    page = render(
        family,
        accuracy,
        profile=profile,
        plan=plan,
        complexity=complexity,
        peers=peers,
        runs=runs,
    )
    write(path, page.encode())


def render(
    family: Family,
    accuracy: Accuracy,
    *,
    profile: Profile | None = None,
    plan: Plan | None = None,
    complexity: Complexity | None = None,
    peers: Peers | None = None,
    runs: Sequence[RunRow] = (),
) -> str:
    """The report as one HTML page that loads nothing; `peers` are drawn beside the family.

    Raises:
        MismatchError: the arguments are of different networks or were made from other artifacts.
        ValueError: neither a profile nor a complexity, so nothing to set the accuracy against.
    """
    if profile is None and complexity is None:
        raise ValueError(
            "a report sets accuracy against a cost, and was given none: pass profile= (latency on "
            "a device), complexity= (multiply-adds), or both"
        )
    _require_same_network(family, accuracy, profile, plan, complexity)
    front = pareto_front(candidates(profile, accuracy)) if profile is not None else ()
    rows = _rows(family, accuracy, profile, complexity)
    pools = _pools(front, plan)
    picture = _picture(rows, pools, profile)
    macs = picture["macs"] = _macs_picture(family, rows, peers)
    return _fill(
        title=_text(_title(family, profile)),
        family=_text(family.name),
        subtitle=_text(_subtitle(family, profile)),
        summary=_text(_summary(family, accuracy, rows, profile)),
        no_latencies="" if profile is not None else " hidden",
        figure=_text(_description(rows, picture)),
        no_budget="" if pools else _paragraph(_NO_LATENCY),
        no_macs="" if macs else " hidden",
        macs_heading=_text(_macs_heading(peers)),
        macs_figure=_text(_macs_description(rows, peers)),
        macs_note=_paragraph(_macs_note(family, rows, peers)) if macs and peers else "",
        plan=_plan_section(plan, accuracy),
        runs=_runs_section(runs),
        topologies=_topology_table(rows, accuracy, profile),
        conditions=_conditions_section(profile),
        digests=_definitions(_digests(family, accuracy, profile, plan)),
        picture=_json(picture),
        plotly=_plotly(),
    )


def _fill(**parts: str) -> str:
    """The page with each `{{marker}}` replaced by the part of that name."""
    template = (files(__package__) / "report.html").read_text(encoding="utf-8")
    # One pass: what was put in is not searched again, so no data can pose as a marker.
    return re.sub(r"\{\{(\w+)\}\}", lambda marker: parts[marker[1]], template)


# --- units for people ------------------------------------------------------------------------

_Scale = tuple[tuple[float, float, str], ...]
"""Steps (from this value on, factor, unit), the largest first; the last one takes the rest."""

_MS: _Scale = ((1e4, 1e-3, "s"), (0.1, 1, "ms"), (0, 1e3, "\N{MICRO SIGN}s"))
_MJ: _Scale = ((1e4, 1e-3, "J"), (0.1, 1, "mJ"), (0, 1e3, "\N{MICRO SIGN}J"))
_W: _Scale = ((0.1, 1, "W"), (0, 1e3, "mW"))
_GMACS: _Scale = ((0.1, 1, "GMACs"), (1e-3, 1e3, "MMACs"), (0, 1e6, "kMACs"))
_COUNT: _Scale = ((1e9, 1e-9, "G"), (1e6, 1e-6, "M"), (1e4, 1e-3, "k"))


def format_number(value: float) -> str:
    """Three significant digits, never in scientific notation."""
    return f"{value:.{_decimals([value])}f}"


def format_ms(latency_ms: float) -> str:
    """A latency; in ms, as budgets are given, unless it is far from any budget."""
    return _scaled(latency_ms, _MS)


def format_mj(energy_mj: float) -> str:
    return _scaled(energy_mj, _MJ)


def format_w(power_w: float) -> str:
    return _scaled(power_w, _W)


def format_gmacs(gmacs: float) -> str:
    return _scaled(gmacs, _GMACS)


def format_count(count: int) -> str:
    """A large count in three digits, such as `5.72 M`; a small one in full."""
    return _scaled(count, _COUNT) if count >= _COUNT[-1][0] else str(count)


def format_percent(percent: float) -> str:
    return f"{percent:.2f} %"


def format_interval(low: float, high: float, decimals: int = 2) -> str:
    return f"{low:.{decimals}f} to {high:.{decimals}f}"


def _scaled(value: float, scale: _Scale) -> str:
    factor, unit = _unit(value, scale)
    return f"{format_number(value * factor)} {unit}"


def _unit(value: float, scale: _Scale) -> tuple[float, str]:
    """Factor and unit in which the value is easiest to read."""
    return next(((f, unit) for least, f, unit in scale if value >= least), scale[-1][1:])


def _decimals(values: Iterable[float | None]) -> int:
    """Decimals that show three digits of the smallest value: one precision for a whole column."""
    sizes = [abs(value) for value in values if value]
    return min(6, max(0, 2 - math.floor(math.log10(min(sizes))))) if sizes else 0


# --- the facts, joined -----------------------------------------------------------------------


class _Row(NamedTuple):
    """All that is known of one topology."""

    topology: Topology
    accuracy: TopologyAccuracy | None
    cost: Cost | None
    gmacs: float | None
    params: int | None
    front: bool = False
    """Whether it is the most accurate within some deadline; without latencies, within some number
    of multiply-adds."""

    @property
    def name(self) -> str:
        return self.topology.name

    @property
    def is_anchor(self) -> bool:
        return len(self.topology.runs) == 1

    @property
    def top1(self) -> float | None:
        return self.accuracy.top1 if self.accuracy is not None else None

    @property
    def median_ms(self) -> float | None:
        return self.cost.latency_ms if self.cost is not None else None

    @property
    def bound_ms(self) -> float | None:
        return self.cost.bound_ms if self.cost is not None else None


def _require_same_network(
    family: Family,
    accuracy: Accuracy,
    profile: Profile | None,
    plan: Plan | None,
    complexity: Complexity | None,
) -> None:
    require_equal("family and accuracy", family=(family.name, accuracy.family))
    if complexity is not None:
        complexity.check(family)
    if profile is not None:
        accuracy.check("profile", profile.family, profile.network)
    if plan is not None:
        accuracy.check("plan", plan.family, plan.network)
        require_equal("plan and accuracy", accuracy=(plan.accuracy, digest(accuracy)))
    if plan is not None and profile is not None:
        require_equal("plan and profile", profile=(plan.profile, digest(profile)))


def _rows(
    family: Family, accuracy: Accuracy, profile: Profile | None, complexity: Complexity | None
) -> tuple[_Row, ...]:
    """One row for every topology of the family, fastest or smallest first."""
    costs = profile.by_topology if profile is not None else {}
    _require_known(family, (*costs, *accuracy.by_topology))
    rows = [
        _Row(
            topology=topology,
            accuracy=accuracy.by_topology.get(topology.name),
            cost=costs.get(topology.name),
            gmacs=complexity.gmacs(family, topology) if complexity is not None else None,
            params=complexity.params(family, topology) if complexity is not None else None,
        )
        for topology in family.topologies
    ]
    best = set(
        _front((lambda row: row.gmacs) if profile is None else (lambda row: row.bound_ms), rows)
    )
    return tuple(row._replace(front=row.name in best) for row in sorted(rows, key=_expense))


def _require_known(family: Family, measured: Iterable[str]) -> None:
    strange = sorted(set(measured) - {topology.name for topology in family.topologies})
    if strange:
        raise MismatchError(
            f"{strange[0]} was measured, but {family.name} has no such topology; give the family "
            "that the measurements were made with"
        )


def _expense(row: _Row) -> tuple[float, ...]:
    known = (row.bound_ms, row.median_ms, row.gmacs)
    return tuple(math.inf if value is None else value for value in known)


def _front(cost: Callable[[_Row], float | None], rows: Iterable[_Row]) -> list[str]:
    """The Pareto front in accuracy and one cost, cheapest first."""
    return front_along(
        (row.name, x, row.top1)
        for row in rows
        if row.top1 is not None and (x := cost(row)) is not None
    )


# --- the picture and the slider, as data for the page's script -------------------------------


class _Axis(NamedTuple):
    """A cost that accuracy can be set against."""

    key: str
    label: str
    title: str
    cost: Callable[[_Row], float | None]


def _axes(rows: Sequence[_Row]) -> list[_Axis]:
    """The axes along which there are points."""
    factor, unit = _macs_unit(rows)
    axes = (
        _Axis(
            "bound",
            "Latency, p99 bound",
            "Latency, upper bound of p99 (ms)",
            lambda row: row.bound_ms,
        ),
        _Axis("median", "Latency, median", "Median latency (ms)", lambda row: row.median_ms),
        _Axis(
            "macs",
            "Multiply-adds",
            f"Multiply-adds for one image ({unit})",
            lambda row: None if row.gmacs is None else row.gmacs * factor,
        ),
    )
    found = [axis for axis in axes if _front(axis.cost, rows)]
    if not found:
        raise MismatchError(
            f"accuracy and costs of {len(rows)} topologies have none in common; evaluate what was "
            "profiled"
        )
    return found


def _macs_unit(rows: Iterable[_Row]) -> tuple[float, str]:
    """One unit for the multiply-adds of all topologies: the one that suits the largest."""
    return _unit(max((row.gmacs or 0 for row in rows), default=0), _GMACS)


def _picture(rows: Sequence[_Row], pools: Pools, profile: Profile | None) -> dict[str, Any]:
    """What the page's script draws: points, the axes they can be set against, and the picks."""
    axes = _axes(rows)
    slider = _slider(rows, pools)
    drawn = [row for row in rows if row.top1 is not None]
    return {
        "points": [_point(row, axes, profile) for row in drawn],
        "axes": [
            {
                "key": axis.key,
                "label": axis.label,
                "title": axis.title,
                "range": _padded(map(axis.cost, drawn))
                if axis.key == "macs"
                else (slider["min"], slider["max"]),
                "front": _front(axis.cost, rows),
            }
            for axis in axes
        ],
        "top1_range": _padded(row.top1 for row in drawn),
        "slider": slider,
        "pools": {label: _picks(pool, rows) for label, pool in pools.items()},
    }


def _macs_picture(
    family: Family, rows: Sequence[_Row], peers: Peers | None
) -> dict[str, Any] | None:
    """The second picture: multiply-adds on a linear or logarithmic axis, the networks of others."""
    drawn = [row for row in rows if row.top1 is not None and row.gmacs]
    if not drawn:
        return None
    factor, _ = _macs_unit(rows)
    others = _others(family, peers, factor)
    x = [row.gmacs * factor for row in drawn if row.gmacs] + [x for o in others for x in o["x"]]
    least, most = min(x), max(x)
    pad = 1.1 * (most / least) ** 0.08
    return {
        "scales": [
            {"label": "Linear", "type": "linear", "range": _padded(x)},
            {"label": "Logarithmic", "type": "log", "range": (least / pad, most * pad)},
        ],
        "scale": int(most > 8 * least),  # a linear axis would crowd the small ones at its border
        "top1_range": _padded([row.top1 for row in drawn] + [y for o in others for y in o["y"]]),
        "others": others,
    }


def _others(family: Family, peers: Peers | None, factor: float) -> list[dict[str, Any]]:
    """The networks of others, and another training of the family, if its numbers are known."""
    if peers is None:
        return []
    groups = {
        f"{_plural(len(peers.single), 'network', 'networks')} of timm": peers.single,
        "another training": peers.stitched(family),
    }
    return [
        {
            "name": name,
            "x": [peer.gmacs * factor for peer in group],
            "y": [peer.top1 for peer in group],
            "hover": [_peer_hover(peer) for peer in group],
        }
        for name, group in groups.items()
        if group
    ]


def _peer_hover(peer: Peer) -> str:
    facts = (
        f"Top-1 {format_percent(peer.top1)}",
        f"{format_gmacs(peer.gmacs)}, {format_count(peer.params)} parameters",
    )
    return "<br>".join((f"<b>{_text(peer.name)}</b>", *map(_text, facts)))


def _point(row: _Row, axes: Iterable[_Axis], profile: Profile | None) -> dict[str, Any]:
    assert row.accuracy is not None  # only evaluated topologies are drawn
    return {
        "topology": row.name,
        "group": " + ".join(run.anchor for run in row.topology.runs),
        "is_anchor": row.is_anchor,
        "top1": [row.accuracy.top1, row.accuracy.low, row.accuracy.high],
        "x": {axis.key: axis.cost(row) for axis in axes},
        "hover": _hover(row, profile),
    }


def _hover(row: _Row, profile: Profile | None) -> str:
    """What is known of a topology, as the lines of its hover box."""
    lines = _facts(row)
    if profile is not None and row.cost is not None and row.cost.energy_mj is None:
        # The hover box does not wrap by itself.
        lines += textwrap.wrap(f"Energy not measured: {_energy_reason(profile)}", 56)
    return "<br>".join((f"<b>{_text(row.name)}</b>", *map(_text, lines)))


def _facts(row: _Row) -> list[str]:
    facts = []
    if (found := row.accuracy) is not None:
        interval = format_interval(found.low, found.high)
        facts.append(f"Top-1 {format_percent(found.top1)} ({interval})")
    if (cost := row.cost) is not None:
        facts += [f"Median {format_ms(cost.latency_ms)} ({_median_interval(cost)})", _tail(cost)]
        if cost.energy_mj is not None and cost.power_w is not None:
            facts.append(f"Energy {format_mj(cost.energy_mj)}, {format_w(cost.power_w)}")
    if row.gmacs is not None and row.params is not None:
        facts.append(f"{format_gmacs(row.gmacs)}, {format_count(row.params)} parameters")
    return facts


def _tail(cost: Cost) -> str:
    if cost.origin != "measured":
        return f"{cost.origin.capitalize()}, not measured; at most {format_ms(cost.bound_ms)}"
    if cost.p99_ms is None:
        return f"Largest of {_grouped(cost.samples)} samples {format_ms(cost.bound_ms)}"
    return f"99th percentile {format_ms(cost.p99_ms)}, at most {format_ms(cost.bound_ms)}"


def _median_interval(cost: Cost) -> str:
    decimals = _decimals([cost.latency_low_ms])
    return format_interval(cost.latency_low_ms, cost.latency_high_ms, decimals)


def _padded(values: Iterable[float | None]) -> tuple[float, float]:
    """The ends of an axis that shows all values clear of its border."""
    known = [value for value in values if value is not None]
    pad = 0.08 * (max(known) - min(known)) or 0.1 * max(known) or 1
    return max(0, min(known) - pad), max(known) + pad


def _slider(rows: Iterable[_Row], pools: Pools) -> dict[str, float]:
    """Ends, step and start of the budget slider in ms, and the decimals that its step needs.

    Its ends are also those of the latency axes, so that the slider lies under the picture like a
    cursor. They reach below the fastest topology, to where nothing fits.
    """
    if not pools:
        return {"min": 0, "max": 1, "step": 1, "value": 1, "decimals": 0}
    pool = [candidate for candidates in pools.values() for candidate in candidates]
    latencies = [x for row in rows for x in (row.median_ms, row.bound_ms) if x is not None]
    latencies += [x for candidate in pool for x in (candidate.median_ms, candidate.latency_ms)]
    least, most = _padded(latencies)
    decimals = max(0, -math.floor(math.log10((most - least) / 100)))  # 100 to 1000 steps
    step = 10.0**-decimals
    bounds, _ = staircase(next(iter(pools.values())))
    ends = {
        "min": max(1, math.floor(least / step)) * step,
        "max": math.ceil(most / step) * step,
        "step": step,
        "value": math.ceil(bounds[len(bounds) // 2] / step) * step,
    }
    return {**{name: round(value, decimals) for name, value in ends.items()}, "decimals": decimals}


def _pools(front: Sequence[Candidate], plan: Plan | None) -> dict[str, Sequence[Candidate]]:
    """The plan's resident topologies first: they are what a runtime has."""
    pools: dict[str, Sequence[Candidate]] = {}
    if plan is not None:
        pools["Resident in the plan"] = plan.resident
    if front:
        pools["All measured"] = front
    return pools


def _picks(pool: Iterable[Candidate], rows: Iterable[_Row]) -> list[dict[str, Any]]:
    """The scheduler's staircase: from each bound on, the topology that it picks, with its text."""
    known = {row.name: row.accuracy for row in rows if row.accuracy is not None}
    return [
        {
            "topology": step.topology,
            "bound_ms": step.latency_ms,
            "top1": format_percent(step.top1),
            "interval": format_interval(known[step.topology].low, known[step.topology].high),
            "median": format_ms(step.median_ms),
            "bound": format_ms(step.latency_ms),
        }
        for step in staircase(pool)[1]
    ]


# --- words -----------------------------------------------------------------------------------

_NO_LATENCY = (
    "No latency was measured, so nothing can be chosen for a deadline: `edgestitch profile` "
    "measures it on the device."
)


def _title(family: Family, profile: Profile | None) -> str:
    if profile is None:
        return f"{family.name}: accuracy and multiply-adds"
    return f"{family.name} on {profile.conditions.label}: accuracy and latency"


def _subtitle(family: Family, profile: Profile | None) -> str:
    models = ", ".join(f"{anchor.name} ({anchor.model})" for anchor in family.anchors)
    if profile is None:
        return f"{models}, not measured on a device yet"
    mode = profile.conditions.power_mode
    return ", ".join((profile.conditions.label, *([mode] if mode else []), profile.date))


def _summary(
    family: Family, accuracy: Accuracy, rows: Sequence[_Row], profile: Profile | None
) -> str:
    published = accuracy.origin == "published"
    sentences = [
        f"{_plural(len(rows), 'topology', 'topologies')} from "
        f"{_plural(len(family.anchors), 'pretrained network', 'pretrained networks')}, "
        f"{'with published accuracies' if published else 'evaluated'} on "
        f"{_grouped(accuracy.num_images)} images."
    ]
    front = [row for row in rows if row.front]
    if len(front) > 1:
        ends = f"{_worth(front[0])} to {_worth(front[-1])}"
        sentences.append(f"{len(front)} of them form the Pareto front, from {ends}.")
    else:
        sentences.append(f"One is better than all others: {_worth(front[0])}.")
    if profile is not None:
        sentences.append(
            "A deadline is held against the upper bound of the 99th percentile, not the median."
        )
    return " ".join(sentences)


def _worth(row: _Row) -> str:
    cost = format_gmacs(row.gmacs or 0) if row.bound_ms is None else format_ms(row.bound_ms)
    return f"{format_percent(row.top1 or 0)} at {cost}"


def _macs_heading(peers: Peers | None) -> str:
    if peers is None:
        return "Accuracy against multiply-adds"
    return f"One network against {_grouped(len(peers.single))}"


def _macs_note(family: Family, rows: Iterable[_Row], peers: Peers) -> str:
    points = [(row.gmacs, row.top1) for row in rows if row.gmacs and row.top1 is not None]
    sentences = [
        "A topology that needs no more multiply-adds equals or beats "
        f"{_grouped(len(outdone(peers.single, points)))} of the {_grouped(len(peers.single))} "
        "networks in accuracy."
    ]
    if stitched := peers.stitched(family):
        beaten = outdone(peers.single, [(peer.gmacs, peer.top1) for peer in stitched])
        sentences.append(f"By another training of the family, the open circles: {len(beaten)}.")
    return " ".join((*sentences, f"{peers.dataset}; all of them as listed by {peers.source}."))


def _macs_description(rows: Sequence[_Row], peers: Peers | None) -> str:
    beside = f", beside {_grouped(len(peers.single))} networks of others" if peers else ""
    return (
        f"Scatter plot of {_plural(len(rows), 'topology', 'topologies')}: top-1 accuracy over "
        f"{_macs_unit(rows)[1]}{beside}. The table holds the same numbers."
    )


def _description(rows: Sequence[_Row], picture: Mapping[str, Any]) -> str:
    """What the picture shows, for those who cannot see it."""
    axis = picture["axes"][0]
    drawn = [point for point in picture["points"] if point["x"][axis["key"]] is not None]
    x = [point["x"][axis["key"]] for point in drawn]
    top1 = [point["top1"][0] for point in drawn]
    return (
        f"Scatter plot of {_plural(len(drawn), 'topology', 'topologies')}. Top-1 accuracy, "
        f"{format_percent(min(top1))} to {format_percent(max(top1))}, over {axis['title']}, "
        f"{format_number(min(x))} to {format_number(max(x))}. "
        f"The table of all {len(rows)} topologies holds the same numbers."
    )


def _energy_reason(profile: Profile) -> str:
    return profile.energy_reason or "no reason was recorded"


def _plural(number: int, one: str, many: str) -> str:
    return f"{_grouped(number)} {one if number == 1 else many}"


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NO-BREAK SPACE}")


# --- tables ----------------------------------------------------------------------------------


class _Column(NamedTuple):
    """A column of a table; where a cell is `None`, the table says what is missing."""

    head: str
    cells: Sequence[str | None]
    css: str = "number"
    missing: str = "not measured"


def _numbers(head: str, values: Sequence[float | None], missing: str = "not measured") -> _Column:
    """A column of numbers in one precision, so that they compare at a glance."""
    decimals = _decimals(values)
    return _Column(head, _each(values, lambda value: f"{value:.{decimals}f}"), missing=missing)


def _each(values: Iterable[T | None], function: Callable[[T], R]) -> list[R | None]:
    return [None if value is None else function(value) for value in values]


def _table(caption: str, columns: Sequence[_Column], css: Sequence[str] = ()) -> str:
    """A table whose first column heads the rows; `css` has the classes of each row."""
    heads = "".join(f'<th scope="col" class="{c.css}">{_text(c.head)}</th>' for c in columns)
    body = []
    for index, head in enumerate(columns[0].cells):
        cells = "".join(_cell(column, index) for column in columns[1:])
        first = f'<th scope="row" class="{columns[0].css}">{_text(head or "")}</th>'
        body.append(f'\n<tr class="{css[index] if css else ""}">{first}{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(caption)}">'
        f"<table><caption>{_text(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(column: _Column, index: int) -> str:
    text = column.cells[index]
    if text is None:
        return f'<td class="{column.css} missing">{_text(column.missing)}</td>'
    return f'<td class="{column.css}">{_text(text)}</td>'


def _topology_table(rows: Sequence[_Row], accuracy: Accuracy, profile: Profile | None) -> str:
    columns = [
        _Column("Topology", [row.name for row in rows], "name"),
        _Column("Role", [_role(row) for row in rows], "role"),
        *_accuracy_columns([row.accuracy for row in rows]),
    ]
    if profile is not None:
        columns += _cost_columns([row.cost for row in rows])
    if any(row.gmacs is not None for row in rows):
        columns += _complexity_columns(rows)
    css = [" ".join(("anchor" * row.is_anchor, "front" * row.front)).strip() for row in rows]
    order = "fewest multiply-adds" if profile is None else "fastest"
    notes = " ".join(_notes(accuracy, profile))
    return _table(f"All of the family, {order} first", columns, css) + _paragraph(notes)


def _notes(accuracy: Accuracy, profile: Profile | None) -> list[str]:
    """What the numbers in the table are, and why some are not there."""
    notes = [f"Accuracy on {_grouped(accuracy.num_images)} images, with 95 % Wilson intervals."]
    if accuracy.origin == "published":
        other = ", and not of the weights that were profiled" if profile is not None else ""
        notes.append(f"It was not measured here{other}, but published: {accuracy.source}.")
    if profile is None:
        return notes
    few = sum(cost.p99_ms is None and cost.origin == "measured" for cost in profile.costs)
    if few:
        notes.append(
            f"{_plural(few, 'topology has', 'topologies have')} fewer samples than a bound of the "
            "99th percentile takes: the largest sample stands in its place."
        )
    if profile.number("composed"):
        notes.append(f"Costs without a 99th percentile are {_composed(profile)}.")
    if profile.estimated:
        notes.append("Latencies are estimates from the device's peaks: nothing was measured yet.")
    if any(cost.energy_mj is None for cost in profile.costs):
        notes.append(f"Energy {_energy(profile)}.")
    return notes


def _role(row: _Row) -> str:
    roles = {"anchor": row.is_anchor, "front": row.front}
    return ", ".join(role for role, holds in roles.items() if holds)


def _accuracy_columns(found: Sequence[TopologyAccuracy | None]) -> list[_Column]:
    top1 = _each(found, lambda row: f"{row.top1:.2f}")
    intervals = _each(found, lambda row: format_interval(row.low, row.high))
    return [
        _Column("Top-1 (%)", top1, missing="not evaluated"),
        _Column("95 % interval", intervals, "interval", missing=""),
    ]


def _cost_columns(costs: Sequence[Cost | None]) -> list[_Column]:
    origins = _each(costs, lambda cost: cost.origin)
    whole = not {"composed", "estimated"} & set(origins)
    columns = [
        _numbers("Median (ms)", _each(costs, lambda cost: cost.latency_ms)),
        _Column("95 % interval", _each(costs, _median_interval), "interval", missing=""),
        _numbers(
            "p99 (ms)", _each(costs, lambda cost: cost.p99_ms), "few samples" if whole else "none"
        ),
        _numbers("p99 bound (ms)", _each(costs, lambda cost: cost.bound_ms)),
        *([] if whole else [_Column("Cost", origins)]),
    ]
    energies = _each(costs, lambda cost: cost.energy_mj)
    if any(energies):
        powers = _each(costs, lambda cost: cost.power_w)
        columns += [_numbers("Energy (mJ)", energies), _numbers("Power (W)", powers)]
    return columns


def _complexity_columns(rows: Sequence[_Row]) -> list[_Column]:
    factor, unit = _macs_unit(rows)
    return [
        _numbers(unit, _each((row.gmacs for row in rows), lambda gmacs: gmacs * factor)),
        _Column("Parameters", _each((row.params for row in rows), format_count)),
    ]


def _plan_section(plan: Plan | None, accuracy: Accuracy) -> str:
    if plan is None:
        return ""
    budgets, chosen = _answers(plan)
    columns = [
        _Column("Budget", budgets, "budget"),
        _Column("Topology", [candidate.topology for candidate in chosen], "name"),
        *_accuracy_columns([accuracy.by_topology[candidate.topology] for candidate in chosen]),
        _numbers("Median (ms)", [candidate.median_ms for candidate in chosen]),
        _numbers("p99 bound (ms)", [candidate.latency_ms for candidate in chosen]),
    ]
    energies = [candidate.energy_mj for candidate in chosen]
    if any(energies):
        columns.append(_numbers("Energy (mJ)", energies))
    resident = (
        f"{_plural(len(plan.resident), 'topology stays', 'topologies stay')} resident. "
        f"{plan.safety.topology} is the safety topology: it runs when nothing fits."
    )
    table = _table("What the plan answers to each budget", columns)
    return _section("Plan", _paragraph(resident) + table)


def _answers(plan: Plan) -> tuple[list[str], list[Candidate]]:
    """Budgets and what the plan picks for them; without budgets, from where on each is picked."""
    if not plan.choices:
        bounds, steps = staircase(plan.resident)
        return [f"from {format_ms(bound)}" for bound in bounds], steps
    resident = {candidate.topology: candidate for candidate in plan.resident}
    budgets = [str(choice.budget) for choice in plan.choices]
    return budgets, [resident[choice.topology] for choice in plan.choices]


def _runs_section(runs: Sequence[RunRow]) -> str:
    if not runs:
        return ""
    intervals = [format_interval(run.top1_low, run.top1_high) for run in runs]
    switches = _each((run.switch_us for run in runs), lambda us: format_ms(us / 1e3))
    columns = [
        _Column("Budget", [format_ms(run.budget_ms) for run in runs], "budget"),
        _Column("Topology", [run.topology for run in runs], "name"),
        _Column("Frames", [_grouped(run.frames) for run in runs]),
        _numbers("Median (ms)", [run.median_ms for run in runs]),
        _numbers("p99 (ms)", [run.p99_ms for run in runs]),
        _Column("In time (%)", [f"{100 * run.hit_rate:.2f}" for run in runs]),
        _Column("Top-1 (%)", [f"{run.top1:.2f}" for run in runs]),
        _Column("95 % interval", intervals, "interval"),
        _Column("Switch", switches),
        _numbers("First after switch (ms)", [run.first_ms for run in runs]),
    ]
    return _section("Measured run", _table("What a runtime did under each budget", columns))


# --- conditions ------------------------------------------------------------------------------


def _conditions_section(profile: Profile | None) -> str:
    if profile is None:
        return ""
    items = [*_where(profile.conditions), *_how(profile, profile.protocol)]
    return _section("How it was measured", _definitions(items))


def _where(conditions: Conditions) -> list[tuple[str, str]]:
    versions = sorted(conditions.versions.items())
    return [
        ("Hardware", conditions.hardware),
        ("Device", conditions.device),
        ("Power mode", conditions.power_mode or "none that could be read"),
        ("Backend", f"{conditions.backend}, {conditions.precision}"),
        ("Batch", _plural(conditions.batch, "image", "images")),
        ("Threads", str(conditions.threads)),
        ("Software", ", ".join(f"{name} {version}" for name, version in versions)),
    ]


def _how(profile: Profile, protocol: Protocol) -> list[tuple[str, str]]:
    return [
        ("Date", f"{profile.date}, {protocol.duration_s:.0f} s long"),
        ("Samples", _samples([cost for cost in profile.costs if cost.origin == "measured"])),
        *([("Composed", _composed(profile))] if profile.composition else []),
        (
            "Stop rule",
            f"95 % interval of the median within {100 * protocol.precision:g} % either way and at "
            f"least {_grouped(protocol.min_samples)} samples, or {protocol.time_cap_s:g} s",
        ),
        ("Stopped", _stopped(protocol)),
        ("Warm-up", _settled(protocol)),
        ("Order", f"topologies in turn at random, seed {protocol.seed}"),
        ("Throttled", _throttled(protocol)),
        ("Segments", f"cut into {len(profile.segments)}"),
        ("Meter", profile.meter),
        ("Energy", _energy(profile)),
    ]


def _samples(costs: Sequence[Cost]) -> str:
    least = min((cost.samples for cost in costs), default=0)
    most = max((cost.samples for cost in costs), default=0)
    numbers = _grouped(most) if least == most else f"{_grouped(least)} to {_grouped(most)}"
    return f"{numbers} of each topology"


def _stopped(protocol: Protocol) -> str:
    if not protocol.capped:
        return "when every topology met the stop rule"
    return (
        "by the time cap, before every topology met the stop rule: some intervals are wider than "
        "was asked"
    )


def _settled(protocol: Protocol) -> str:
    if protocol.steady:
        return "latencies had settled before the first sample"
    return (
        "latencies had not settled before the first sample, so the device was still warming up or "
        "changing its clocks: measure again before relying on these numbers"
    )


def _composed(profile: Profile) -> str:
    """How the costs came about that were not measured."""
    if profile.composition is None:
        return "none: all were measured"
    latency = profile.composition.latency
    return (
        f"{profile.number('composed')} of {len(profile.costs)}, as sums fitted to "
        f"{len(profile.composition.designed)} measured ones; error on {latency.held_out} others: "
        f"median {100 * latency.median_error:.1f} %, 95th percentile {100 * latency.p95_error:.1f} %; "
        f"the bounds hold with {100 * latency.confidence:.0f} %"
    )


def _throttled(protocol: Protocol) -> str:
    if not protocol.throttled:
        return "no sample was taken while the device said that it throttles"
    reasons = ", ".join(f"{n} for {reason}" for reason, n in protocol.throttled.items())
    return f"samples taken while the device throttled, not counted above: {reasons}"


def _energy(profile: Profile) -> str:
    measured = sum(cost.energy_mj is not None for cost in profile.costs)
    if measured == len(profile.costs) and profile.energy is not None:
        found = profile.energy
        return (
            f"of {found.scope}, windows of {found.window_s:.3g} s, 95 % interval within "
            f"{100 * found.precision:.1f} % either way"
        )
    if measured == len(profile.costs):
        return "measured for every topology"
    if measured:
        of = f"{measured} of {len(profile.costs)} topologies"
        return f"measured for {of}; for the others not: {_energy_reason(profile)}"
    return f"not measured: {_energy_reason(profile)}"


def _digests(
    family: Family, accuracy: Accuracy, profile: Profile | None, plan: Plan | None
) -> list[tuple[str, str]]:
    weights = accuracy.network or (profile.network if profile is not None else None)
    items = [
        ("Weights", weights or "not here: the accuracies are published ones"),
        ("Family", family.digest),
        ("Data set", accuracy.data or "not here: the accuracies are published ones"),
        ("Accuracy", digest(accuracy)),
    ]
    if profile is not None:
        items += [("Profile", digest(profile)), ("Raw samples", profile.samples_digest)]
    if plan is not None:
        items.append(("Plan", digest(plan)))
    return items


# --- HTML ------------------------------------------------------------------------------------

_text = html.escape


def _paragraph(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{_text(heading)}</h2>{content}</section>"


def _definitions(items: Iterable[tuple[str, str]]) -> str:
    pairs = (f"<div><dt>{_text(term)}</dt><dd>{_text(text)}</dd></div>" for term, text in items)
    return f"<dl>{''.join(pairs)}</dl>"


def _json(data: Mapping[str, Any]) -> str:
    """JSON that can stand in a script element: without a `<`, which could end it."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _plotly() -> str:
    """The library that draws, read as a file: the page needs nothing of plotly's Python half."""
    try:
        script = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    except (ImportError, OSError) as error:
        raise EdgestitchError(
            f"the report draws with the plotly.min.js of Python's plotly, which is not here "
            f"({error}); `pip install 'plotly>=6'` brings it"
        ) from error
    return script.replace("</script", "<\\/script")
