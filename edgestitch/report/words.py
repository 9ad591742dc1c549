"""The sentences of the page: its title, what its pictures show, what its numbers mean."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgestitch.family import Family
from edgestitch.peers import Peers, outdone

from .evidence import Evidence
from .rows import Row, macs_unit
from .units import format_gmacs, format_ms, format_number, format_percent, grouped, plural

NO_LATENCY = (
    "No latency was measured, so nothing can be chosen for a deadline: `edgestitch profile` "
    "measures it on the device."
)
NO_ACCURACY = (
    "No accuracy is known here, so costs stand against nothing: `edgestitch evaluate` measures it, "
    "and `edgestitch report --family` takes what ships."
)


def name_of(evidence: Evidence) -> str:
    """What the page is about."""
    if evidence.family is not None:
        return evidence.family.name
    for artifact in (*evidence.logs, evidence.switches):
        if artifact is not None:
            return artifact.family
    return "Networks of timm" if evidence.zoo is not None else "Runs"


def _place(evidence: Evidence) -> tuple[str, str | None, str] | None:
    """Where the first artifact that says so was measured: conditions, power mode, date."""
    for artifact in (evidence.profile, *evidence.logs, evidence.switches, evidence.zoo):
        if artifact is not None:
            return artifact.conditions.label, artifact.conditions.power_mode, artifact.date
    return None


def title(evidence: Evidence) -> str:
    name, place = name_of(evidence), _place(evidence)
    if evidence.profile is not None:
        worth = "accuracy and latency" if evidence.accuracy is not None else "latency"
        return f"{name} on {evidence.profile.conditions.label}: {worth}"
    if evidence.accuracy is not None:
        return f"{name}: accuracy and multiply-adds"
    return name if place is None else f"{name} on {place[0]}"


def subtitle(evidence: Evidence) -> str:
    place = _place(evidence)
    if place is not None:
        label, mode, date = place
        return ", ".join((label, *([mode] if mode else []), date))
    if evidence.family is None:
        return ""
    models = ", ".join(f"{anchor.name} ({anchor.model})" for anchor in evidence.family.anchors)
    return f"{models}, not measured on a device yet"


def summary(evidence: Evidence, rows: Sequence[Row]) -> str:
    family, accuracy = evidence.family, evidence.accuracy
    if family is None or not rows:
        return _without_rows(evidence)
    of = (
        f"{plural(len(rows), 'topology', 'topologies')} from "
        f"{plural(len(family.anchors), 'pretrained network', 'pretrained networks')}"
    )
    if accuracy is None:
        return f"{of}{_fastest(rows)}."
    published = accuracy.origin == "published"
    sentences = [
        f"{of}, {'with published accuracies' if published else 'evaluated'} on "
        f"{grouped(accuracy.num_images)} images."
    ]
    front = [row for row in rows if row.front]
    if len(front) > 1:
        ends = f"{_worth(front[0])} to {_worth(front[-1])}"
        sentences.append(f"{len(front)} of them form the Pareto front, from {ends}.")
    elif front:
        sentences.append(f"One is better than all others: {_worth(front[0])}.")
    if evidence.profile is not None:
        sentences.append(
            "A deadline is held against the upper bound of the 99th percentile, not the median."
        )
    return " ".join(sentences)


def _fastest(rows: Sequence[Row]) -> str:
    medians = [row.median_ms for row in rows if row.median_ms is not None]
    if not medians:
        return ""
    return f", with median latencies of {format_ms(min(medians))} to {format_ms(max(medians))}"


def _without_rows(evidence: Evidence) -> str:
    parts = []
    if evidence.logs:
        frames = sum(len(log.frames) for log in evidence.logs)
        runs = plural(len(evidence.logs), "run", "runs")
        parts.append(f"{runs} of {plural(frames, 'frame', 'frames')}")
    if evidence.switches is not None:
        switches = plural(len(evidence.switches.transitions), "switch", "switches")
        parts.append(f"{switches} between resident topologies")
    if evidence.zoo is not None:
        networks = plural(len(evidence.zoo.measured), "network", "networks")
        parts.append(f"{networks} measured beside each other")
    said = "; ".join(parts)
    return f"{said[:1].upper()}{said[1:]}." if said else ""


def _worth(row: Row) -> str:
    cost = format_gmacs(row.gmacs or 0) if row.bound_ms is None else format_ms(row.bound_ms)
    return f"{format_percent(row.top1 or 0)} at {cost}"


def picture_description(rows: Sequence[Row], picture: Mapping[str, Any]) -> str:
    """What the first picture shows, for those who cannot see it."""
    axis = picture["axes"][0]
    points = [(point["x"][axis["key"]], point["top1"][0]) for point in picture["points"]]
    zoo = picture["zoo"]
    others = list(zip(zoo["x"][axis["key"]], zoo["y"], strict=True)) if zoo else []
    points = [point for point in points if point[0] is not None]
    x, top1 = zip(*(points or (point for point in others if point[0] is not None)), strict=True)
    what = plural(len(points), "topology", "topologies") if points else zoo["name"]
    beside = f", beside {zoo['name']}" if points and zoo else ""
    table = (
        f"The table of all {len(rows)} topologies holds the same numbers."
        if points
        else "The table of these networks holds the same numbers."
    )
    return (
        f"Scatter plot of {what}. Top-1 accuracy, {format_percent(min(top1))} to "
        f"{format_percent(max(top1))}, over {axis['title']}, {format_number(min(x))} to "
        f"{format_number(max(x))}{beside}. {table}"
    )


def macs_heading(peers: Peers | None) -> str:
    if peers is None:
        return "Accuracy against multiply-adds"
    return f"One network against {grouped(len(peers.single))}"


def macs_note(family: Family, rows: Iterable[Row], peers: Peers) -> str:
    points = [(row.gmacs, row.top1) for row in rows if row.gmacs and row.top1 is not None]
    sentences = [
        "A topology that needs no more multiply-adds equals or beats "
        f"{grouped(len(outdone(peers.single, points)))} of the {grouped(len(peers.single))} "
        "networks in accuracy."
    ]
    if stitched := peers.stitched(family):
        beaten = outdone(peers.single, [(peer.gmacs, peer.top1) for peer in stitched])
        sentences.append(f"By another training of the family, the open circles: {len(beaten)}.")
    return " ".join((*sentences, f"{peers.dataset}; all of them as listed by {peers.source}."))


def macs_description(rows: Sequence[Row], peers: Peers | None) -> str:
    beside = f", beside {grouped(len(peers.single))} networks of others" if peers else ""
    return (
        f"Scatter plot of {plural(len(rows), 'topology', 'topologies')}: top-1 accuracy over "
        f"{macs_unit(rows)[1]}{beside}. The table holds the same numbers."
    )
