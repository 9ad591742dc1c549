"""Accuracy against each cost, and the slider under it: as data for the page's script.

The picks are the scheduler's own, embedded, so that the page cannot disagree with the runtime.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from edgestitch.errors import MismatchError
from edgestitch.family import Family
from edgestitch.peers import Peer, Peers
from edgestitch.profile import Cost, Profile
from edgestitch.schedule import Candidate, Plan, candidates, pareto_front, staircase
from edgestitch.zoo import Zoo, ZooRow

from .evidence import Evidence
from .markup import text
from .rows import Row, front_of, macs_unit
from .units import (
    decimals,
    format_count,
    format_gmacs,
    format_interval,
    format_mj,
    format_ms,
    format_percent,
    format_w,
    grouped,
    plural,
)

Pools = Mapping[str, Sequence[Candidate]]
"""What the slider may choose from, by the label of that choice."""

LATENCIES = ("bound", "median")
"""Axes in the milliseconds of the slider."""


class Axis(NamedTuple):
    """A cost that accuracy can be set against."""

    key: str
    label: str
    title: str
    of_row: Callable[[Row], float | None]
    of_zoo: Callable[[ZooRow], float | None]


def draw(evidence: Evidence, rows: Sequence[Row]) -> dict[str, Any]:
    """What the page's script draws: points, the axes they can be set against, and the picks."""
    pools = _pools(evidence)
    zoo = evidence.zoo
    axes = _axes(evidence, rows, zoo)
    slider = _slider(rows, pools)
    drawn = [row for row in rows if row.top1 is not None]
    return {
        "points": [_point(row, axes, evidence.profile) for row in drawn],
        "axes": [_drawn_axis(axis, rows, zoo, slider if pools else None) for axis in axes],
        "zoo": None if zoo is None else _zoo_points(zoo, axes),
        "slider": slider,
        "pools": {label: _picks(pool, rows) for label, pool in pools.items()},
        "macs": _macs(evidence, rows),
    }


def _axes(evidence: Evidence, rows: Sequence[Row], zoo: Zoo | None) -> list[Axis]:
    """The axes along which there are points."""
    factor, unit = macs_unit(rows, (row.gmacs for row in zoo.measured) if zoo else ())
    axes = (
        Axis(
            "bound",
            "Latency, p99 bound",
            "Latency, upper bound of p99 (ms)",
            lambda row: row.bound_ms,
            lambda row: row.cost.bound_ms if row.cost else None,
        ),
        Axis(
            "median",
            "Latency, median",
            "Median latency (ms)",
            lambda row: row.median_ms,
            lambda row: row.latency_ms,
        ),
        Axis(
            "energy",
            "Energy",
            "Energy of one inference (mJ)",
            lambda row: row.energy_mj,
            lambda row: row.energy_mj,
        ),
        Axis(
            "macs",
            "Multiply-adds",
            f"Multiply-adds for one image ({unit})",
            lambda row: None if row.gmacs is None else row.gmacs * factor,
            lambda row: row.gmacs * factor,
        ),
    )
    of_zoo = [axis for axis in axes if zoo and any(map(axis.of_zoo, zoo.measured))]
    found = [axis for axis in axes if front_of(axis.of_row, rows)]
    if evidence.accuracy is None or (evidence.profile is None and of_zoo):
        return of_zoo
    if not found and (evidence.profile or evidence.complexity):
        raise MismatchError(
            f"accuracy and costs of {len(rows)} topologies have none in common; evaluate what was "
            "profiled"
        )
    return found


def _drawn_axis(
    axis: Axis, rows: Sequence[Row], zoo: Zoo | None, slider: Mapping[str, float] | None
) -> dict[str, Any]:
    """Its ends are those of the topologies; networks of a zoo beyond them are a zoom away."""
    ours = [(axis.of_row(row), row.top1) for row in rows if row.top1 is not None]
    others = [(axis.of_zoo(row), row.top1) for row in zoo.measured] if zoo else []
    if slider is not None and axis.key in LATENCIES:
        ends = (slider["min"], slider["max"])
    else:
        ends = padded([x for x, _ in ours if x is not None] or [x for x, _ in others])
    seen = [top1 for x, top1 in others if x is not None and ends[0] <= x <= ends[1]]
    return {
        "key": axis.key,
        "label": axis.label,
        "title": axis.title,
        "range": ends,
        "top1_range": padded([*(top1 for _, top1 in ours), *seen]),
        "front": front_of(axis.of_row, rows),
        "outside": sum(x is not None and not ends[0] <= x <= ends[1] for x, _ in others),
    }


def padded(values: Iterable[float | None]) -> tuple[float, float]:
    """The ends of an axis that shows all values clear of its border."""
    known = [value for value in values if value is not None]
    pad = 0.08 * (max(known) - min(known)) or 0.1 * max(known) or 1
    return max(0, min(known) - pad), max(known) + pad


# --- points ----------------------------------------------------------------------------------


def _point(row: Row, axes: Iterable[Axis], profile: Profile | None) -> dict[str, Any]:
    assert row.accuracy is not None  # only evaluated topologies are drawn
    return {
        "topology": row.name,
        "group": " + ".join(run.anchor for run in row.topology.runs),
        "is_anchor": row.is_anchor,
        "top1": [row.accuracy.top1, row.accuracy.low, row.accuracy.high],
        "x": {axis.key: axis.of_row(row) for axis in axes},
        "hover": _hover(row, profile),
    }


def _hover(row: Row, profile: Profile | None) -> str:
    """What is known of a topology, as the lines of its hover box."""
    lines = _facts(row)
    if profile is not None and row.cost is not None and row.cost.energy_mj is None:
        # The hover box does not wrap by itself.
        lines += textwrap.wrap(f"Energy not measured: {energy_reason(profile)}", 56)
    return _box(row.name, lines)


def _box(name: str, lines: Iterable[str]) -> str:
    return "<br>".join((f"<b>{text(name)}</b>", *map(text, lines)))


def _facts(row: Row) -> list[str]:
    facts = []
    if (found := row.accuracy) is not None:
        interval = format_interval(found.low, found.high)
        facts.append(f"Top-1 {format_percent(found.top1)} ({interval})")
    if row.cost is not None:
        facts += _cost_facts(row.cost)
    if row.gmacs is not None and row.params is not None:
        facts.append(_size(row.gmacs, row.params))
    return facts


def _cost_facts(cost: Cost) -> list[str]:
    facts = [f"Median {format_ms(cost.latency_ms)} ({median_interval(cost)})", _tail(cost)]
    if cost.energy_mj is not None and cost.power_w is not None:
        facts.append(f"Energy {format_mj(cost.energy_mj)}, {format_w(cost.power_w)}")
    return facts


def _size(gmacs: float, params: int) -> str:
    return f"{format_gmacs(gmacs)}, {format_count(params)} parameters"


def _tail(cost: Cost) -> str:
    if cost.origin != "measured":
        return f"{cost.origin.capitalize()}, not measured; at most {format_ms(cost.bound_ms)}"
    if cost.p99_ms is None:
        return f"Largest of {grouped(cost.samples)} samples {format_ms(cost.bound_ms)}"
    return f"99th percentile {format_ms(cost.p99_ms)}, at most {format_ms(cost.bound_ms)}"


def median_interval(cost: Cost) -> str:
    places = decimals([cost.latency_low_ms])
    return format_interval(cost.latency_low_ms, cost.latency_high_ms, places)


def energy_reason(profile: Profile) -> str:
    return profile.energy_reason or "no reason was recorded"


# --- networks of others ----------------------------------------------------------------------


def _zoo_points(zoo: Zoo, axes: Iterable[Axis]) -> dict[str, Any]:
    """Networks that were measured on the same device, for every axis."""
    return {
        "name": f"{plural(len(zoo.measured), 'network', 'networks')} of timm, measured here",
        "x": {axis.key: [axis.of_zoo(row) for row in zoo.measured] for axis in axes},
        "y": [row.top1 for row in zoo.measured],
        "hover": [_zoo_hover(row) for row in zoo.measured],
    }


def _zoo_hover(row: ZooRow) -> str:
    facts = [f"Top-1 {format_percent(row.top1)}, published"]
    if row.cost is not None:
        facts += _cost_facts(row.cost)
    return _box(row.name, (*facts, _size(row.gmacs, row.params)))


def _macs(evidence: Evidence, rows: Sequence[Row]) -> dict[str, Any] | None:
    """The second picture: multiply-adds on a linear or logarithmic axis, the networks of others."""
    drawn = [row for row in rows if row.top1 is not None and row.gmacs]
    if not drawn or evidence.family is None:
        return None
    factor, _ = macs_unit(rows)
    others = _others(evidence.family, evidence.peers, factor)
    x = [row.gmacs * factor for row in drawn if row.gmacs] + [x for o in others for x in o["x"]]
    least, most = min(x), max(x)
    pad = 1.1 * (most / least) ** 0.08
    return {
        "scales": [
            {"label": "Linear", "type": "linear", "range": padded(x)},
            {"label": "Logarithmic", "type": "log", "range": (least / pad, most * pad)},
        ],
        "scale": int(most > 8 * least),  # a linear axis would crowd the small ones at its border
        "top1_range": padded([row.top1 for row in drawn] + [y for o in others for y in o["y"]]),
        "others": others,
    }


def _others(family: Family, peers: Peers | None, factor: float) -> list[dict[str, Any]]:
    """The networks of others, and another training of the family, if its numbers are known."""
    if peers is None:
        return []
    groups = {
        f"{plural(len(peers.single), 'network', 'networks')} of timm": peers.single,
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
    return _box(peer.name, (f"Top-1 {format_percent(peer.top1)}", _size(peer.gmacs, peer.params)))


# --- the slider ------------------------------------------------------------------------------


def _slider(rows: Iterable[Row], pools: Pools) -> dict[str, float]:
    """Ends, step and start of the budget slider in ms, and the decimals that its step needs.

    Its ends are also those of the latency axes, so that the slider lies under the picture like a
    cursor. They reach below the fastest topology, to where nothing fits.
    """
    if not pools:
        return {"min": 0, "max": 1, "step": 1, "value": 1, "decimals": 0}
    pool = [candidate for candidates in pools.values() for candidate in candidates]
    latencies = [x for row in rows for x in (row.median_ms, row.bound_ms) if x is not None]
    latencies += [x for candidate in pool for x in (candidate.median_ms, candidate.latency_ms)]
    least, most = padded(latencies)
    places = max(0, -math.floor(math.log10((most - least) / 100)))  # 100 to 1000 steps
    step = 10.0**-places
    bounds, _ = staircase(next(iter(pools.values())))
    ends = {
        "min": max(1, math.floor(least / step)) * step,
        "max": math.ceil(most / step) * step,
        "step": step,
        "value": math.ceil(bounds[len(bounds) // 2] / step) * step,
    }
    return {**{name: round(value, places) for name, value in ends.items()}, "decimals": places}


def _pools(evidence: Evidence) -> dict[str, Sequence[Candidate]]:
    """The plan's resident topologies first: they are what a runtime has."""
    profile, accuracy, plan = evidence.profile, evidence.accuracy, evidence.plan
    if profile is None or accuracy is None:
        return {}
    front = pareto_front(candidates(profile, accuracy))
    return {**_resident(plan), **({"All measured": front} if front else {})}


def _resident(plan: Plan | None) -> dict[str, Sequence[Candidate]]:
    return {} if plan is None else {"Resident in the plan": plan.resident}


def _picks(pool: Iterable[Candidate], rows: Iterable[Row]) -> list[dict[str, Any]]:
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
