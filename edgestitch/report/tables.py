"""The tables of the page, and how the numbers in them came about."""

from collections.abc import Sequence

from edgestitch.accuracy import Accuracy, TopologyAccuracy
from edgestitch.artifact import digest
from edgestitch.profile import Conditions, Cost, Profile, Protocol
from edgestitch.schedule import Candidate, Plan, staircase
from edgestitch.zoo import Zoo

from .evidence import Evidence, RunRow
from .markup import Column, definitions, each, folded, numbers, paragraph, section, table
from .pictures import energy_reason
from .rows import Row, macs_unit
from .units import (
    decimals,
    format_budget,
    format_count,
    format_interval,
    format_ms,
    format_ran,
    grouped,
    plural,
)


def topologies_section(evidence: Evidence, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    accuracy, profile = evidence.accuracy, evidence.profile
    columns = [
        Column("Topology", [row.name for row in rows], "name"),
        Column("Role", [_role(row) for row in rows], "role"),
    ]
    if accuracy is not None:
        columns += accuracy_columns([row.accuracy for row in rows])
    if profile is not None:
        columns += _cost_columns([row.cost for row in rows])
    if any(row.gmacs is not None for row in rows):
        columns += _complexity_columns(rows)
    css = [
        " ".join(("anchor" * row.is_anchor, "front" * (row.front or accuracy is None))).strip()
        for row in rows
    ]
    order = "fewest multiply-adds" if profile is None else "fastest"
    content = table(f"All of the family, {order} first", columns, css)
    notes = " ".join(_notes(accuracy, profile))
    return section("Topologies", content + (paragraph(notes) if notes else ""), "topologies")


def _notes(accuracy: Accuracy | None, profile: Profile | None) -> list[str]:
    """What the numbers in the table are, and why some are not there."""
    notes = []
    if accuracy is not None:
        notes.append(
            f"Accuracy on {grouped(accuracy.num_images)} images, with 95 % Wilson intervals."
        )
        if accuracy.origin == "published":
            other = ", and not of the weights that were profiled" if profile is not None else ""
            notes.append(f"It was not measured here{other}, but published: {accuracy.source}.")
    if profile is None:
        return notes
    few = sum(cost.p99_ms is None and cost.origin == "measured" for cost in profile.costs)
    if few:
        notes.append(
            f"{plural(few, 'topology has', 'topologies have')} fewer samples than a bound of the "
            "99th percentile takes: the largest sample stands in its place."
        )
    if profile.number("composed"):
        notes.append(f"Costs without a 99th percentile are {_composed(profile)}.")
    if profile.estimated:
        notes.append("Latencies are estimates from the device's peaks: nothing was measured yet.")
    if any(cost.energy_mj is None for cost in profile.costs):
        notes.append(f"Energy {_energy(profile)}.")
    return notes


def _role(row: Row) -> str:
    roles = {"anchor": row.is_anchor, "front": row.front and row.top1 is not None}
    return ", ".join(role for role, holds in roles.items() if holds)


def accuracy_columns(found: Sequence[TopologyAccuracy | None]) -> list[Column]:
    top1 = each(found, lambda row: f"{row.top1:.2f}")
    intervals = each(found, lambda row: format_interval(row.low, row.high))
    return [
        Column("Top-1 (%)", top1, missing="not evaluated"),
        Column("95 % interval", intervals, "interval", missing=""),
    ]


def _cost_columns(costs: Sequence[Cost | None]) -> list[Column]:
    origins = each(costs, lambda cost: cost.origin)
    whole = not {"composed", "estimated"} & set(origins)
    columns = [
        numbers("Median (ms)", each(costs, lambda cost: cost.latency_ms)),
        Column("95 % interval", _median_intervals(costs), "interval", missing=""),
        *_tails(costs, "few samples" if whole else "none"),
        numbers("p99 bound (ms)", each(costs, lambda cost: cost.bound_ms)),
        *([] if whole else [Column("Cost", origins)]),
    ]
    energies = each(costs, lambda cost: cost.energy_mj)
    if any(energies):
        powers = each(costs, lambda cost: cost.power_w)
        columns += [numbers("Energy (mJ)", energies), numbers("Power (W)", powers)]
    return columns


def _median_intervals(costs: Sequence[Cost | None]) -> list[str | None]:
    """In the precision of the medians."""
    places = decimals(each(costs, lambda cost: cost.latency_ms))
    return each(
        costs, lambda cost: format_interval(cost.latency_low_ms, cost.latency_high_ms, places)
    )


def _tails(costs: Sequence[Cost | None], missing: str) -> list[Column]:
    """The 99th percentiles, where any is known."""
    tails = each(costs, lambda cost: cost.p99_ms)
    return [numbers("p99 (ms)", tails, missing)] if any(tails) else []


def _complexity_columns(rows: Sequence[Row]) -> list[Column]:
    factor, unit = macs_unit(rows)
    return [
        numbers(unit, each((row.gmacs for row in rows), lambda gmacs: gmacs * factor)),
        Column("Parameters", each((row.params for row in rows), format_count)),
    ]


def plan_section(plan: Plan | None, accuracy: Accuracy | None) -> str:
    if plan is None:
        return ""
    budgets, chosen = _answers(plan)
    columns = [
        Column("Budget", budgets, "budget"),
        Column("Topology", [candidate.topology for candidate in chosen], "name"),
        *_plan_accuracy(chosen, accuracy),
        numbers("Median (ms)", [candidate.median_ms for candidate in chosen]),
        numbers("p99 bound (ms)", [candidate.latency_ms for candidate in chosen]),
    ]
    energies = [candidate.energy_mj for candidate in chosen]
    if any(energies):
        columns.append(numbers("Energy (mJ)", energies))
    resident = (
        f"{plural(len(plan.resident), 'topology stays', 'topologies stay')} resident. "
        f"{plan.safety.topology} is the safety topology: it runs when nothing fits."
    )
    content = table("What the plan answers to each budget", columns)
    return section("Plan", paragraph(resident) + content, "plan")


def _plan_accuracy(chosen: Sequence[Candidate], accuracy: Accuracy | None) -> list[Column]:
    if accuracy is None:
        return [Column("Top-1 (%)", [f"{candidate.top1:.2f}" for candidate in chosen])]
    return accuracy_columns([accuracy.by_topology[candidate.topology] for candidate in chosen])


def _answers(plan: Plan) -> tuple[list[str], list[Candidate]]:
    """Budgets and what the plan picks for them; without budgets, from where on each is picked."""
    if not plan.choices:
        bounds, steps = staircase(plan.resident)
        return [f"from {format_ms(bound)}" for bound in bounds], steps
    resident = {candidate.topology: candidate for candidate in plan.resident}
    budgets = [str(choice.budget) for choice in plan.choices]
    return budgets, [resident[choice.topology] for choice in plan.choices]


def session_section(runs: Sequence[RunRow]) -> str:
    if not runs:
        return ""
    intervals = [format_interval(run.top1_low, run.top1_high) for run in runs]
    switches = each((run.switch_us for run in runs), lambda us: format_ms(us / 1e3))
    columns = [
        Column("Budget", [format_budget(run.budget) for run in runs], "budget"),
        Column("Topology", [format_ran(run.topologies) for run in runs], "name"),
        Column("Frames", [grouped(run.frames) for run in runs]),
        numbers("Median (ms)", [run.median_ms for run in runs]),
        numbers("p99 (ms)", [run.p99_ms for run in runs]),
        Column("In time (%)", each((r.hit_rate for r in runs), lambda h: f"{100 * h:.2f}")),
        Column("Top-1 (%)", [f"{run.top1:.2f}" for run in runs]),
        Column("95 % interval", intervals, "interval"),
        Column("Switch", switches),
        numbers("First after switch (ms)", [run.first_ms for run in runs]),
    ]
    content = table("What a runtime did under each budget", columns)
    return section("Measured run", content, "session")


def zoo_section(zoo: Zoo | None) -> str:
    if zoo is None:
        return ""
    rows = sorted(zoo.measured, key=lambda row: (row.latency_ms or 0, row.name))
    costs = [row.cost for row in rows]
    columns = [
        Column("Network", [row.name for row in rows], "name"),
        Column("Top-1 (%)", [f"{row.top1:.2f}" for row in rows]),
        *_cost_columns(costs),
        numbers("GMACs", [row.gmacs for row in rows]),
        Column("Parameters", [format_count(row.params) for row in rows]),
    ]
    caption = "Individually trained networks on the same device, fastest first"
    notes = [
        f"Accuracies are published ones, on {zoo.dataset}, as listed by {zoo.source}; networks as "
        f"timm {zoo.timm} builds them, with random weights; measured {zoo.date} on "
        f"{zoo.conditions.label}."
    ]
    left = [row for row in zoo.rows if row.cost is None]
    if left:
        notes.append(f"{plural(len(left), 'network was', 'networks were')} not measured.")
    if zoo.energy_reason is not None:
        notes.append(f"Energy not measured: {zoo.energy_reason}.")
    content = paragraph(" ".join((*notes, *zoo.notes)))
    shown = table(caption, columns) if rows else paragraph("None was measured.")
    content += folded("Show the networks", shown)
    if left:
        reasons = [
            Column("Network", [row.name for row in left], "name"),
            Column("Why", [row.reason for row in left], "words"),
        ]
        content += folded("Show what was not measured", table("Not measured", reasons))
    return section("Individually trained networks", content, "zoo")


# --- conditions ------------------------------------------------------------------------------


def conditions_section(profile: Profile | None) -> str:
    if profile is None:
        return ""
    items = [*_where(profile.conditions), *_how(profile, profile.protocol)]
    notes = "".join(paragraph(note) for note in profile.notes)
    return section("How it was measured", definitions(items) + notes, "conditions")


def _where(conditions: Conditions) -> list[tuple[str, str]]:
    versions = sorted(conditions.versions.items())
    return [
        ("Hardware", conditions.hardware),
        ("Device", conditions.device),
        ("Power mode", conditions.power_mode or "none that could be read"),
        ("Backend", f"{conditions.backend}, {conditions.precision}"),
        ("Batch", plural(conditions.batch, "image", "images")),
        ("Threads", str(conditions.threads)),
        ("Load", str(conditions.load)),
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
            f"least {grouped(protocol.min_samples)} samples, or {protocol.time_cap_s:g} s",
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
    number = grouped(most) if least == most else f"{grouped(least)} to {grouped(most)}"
    return f"{number} of each topology"


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
        return f"measured for {of}; for the others not: {energy_reason(profile)}"
    return f"not measured: {energy_reason(profile)}"


def digests(evidence: Evidence) -> list[tuple[str, str]]:
    """What the page was made from, so that it can be told from others."""
    accuracy, profile = evidence.accuracy, evidence.profile
    items: list[tuple[str, str | None]] = [("Weights", _weights(evidence))]
    if evidence.family is not None:
        items.append(("Family", evidence.family.digest))
    if accuracy is not None:
        data = accuracy.data or "not here: the accuracies are published ones"
        items += [("Data set", data), ("Accuracy", digest(accuracy))]
    if profile is not None:
        items += [("Profile", digest(profile)), ("Raw samples", profile.samples_digest or None)]
    for name, artifact in (
        ("Plan", evidence.plan),
        ("Zoo", evidence.zoo),
        ("Switches", evidence.switches),
        *(("Run log", log) for log in evidence.logs),
    ):
        if artifact is not None:
            items.append((name, digest(artifact)))
    return [(name, value) for name, value in items if value is not None]


def _weights(evidence: Evidence) -> str | None:
    artifacts = (
        evidence.accuracy,
        evidence.profile,
        evidence.plan,
        evidence.switches,
        *evidence.logs,
    )
    for artifact in artifacts:
        if artifact is not None and artifact.network is not None:
            return artifact.network
    if evidence.accuracy is not None:
        return "not here: the accuracies are published ones"
    return None if evidence.profile is None else "random ones, which cost the same"
