"""What the command line shows of each value: tables, and the lines beside them."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from .catalog import Entry, Overview
from .profile import Profile
from .report import (
    RunRow,
    format_budget,
    format_count,
    format_gmacs,
    format_mj,
    format_ms,
    format_percent,
    format_ran,
    format_w,
)
from .schedule import Plan


class Table(NamedTuple):
    title: str
    columns: list[str]
    rows: list[list[str]]


def of_overview(
    table: Overview, *, latencies: bool, best: str | None = None, budget_ms: float | None = None
) -> Table:
    """A family's topologies, those on the front and the best within a budget marked."""
    rows = [
        [
            entry.topology,
            str(entry.reference_id),
            maybe(format_gmacs, entry.gmacs),
            "" if entry.params is None else format_count(entry.params),
            maybe(format_percent, entry.top1),
            entry.origin or "",
            "*" if entry.pareto else "",
            *(_latency_cells(entry) if latencies else []),
            *([] if best is None else ["<- best" if entry.topology == best else ""]),
        ]
        for entry in table.topologies
    ]
    columns = ["topology", "id", "multiply-adds", "parameters", "top-1", "origin", "front"]
    columns += ["median", "interval", "bound", "cost"] if latencies else []
    columns += [] if best is None else [f"within {budget_ms:g} ms"]
    title = f"{table.family}, {table.mode}: {len(rows)} topologies"
    if any(entry.pareto for entry in table.topologies):
        title += f", {sum(entry.pareto or False for entry in table.topologies)} on the Pareto front"
    if table.source is not None:
        title += f"\ntop-1 {table.source}"
    return Table(title, columns, rows)


def _latency_cells(entry: Entry) -> list[str]:
    """Median, interval, bound, and whether they were measured, composed or estimated."""
    if entry.latency_ms is None or entry.latency_low_ms is None or entry.latency_high_ms is None:
        return [""] * 4
    return [
        format_ms(entry.latency_ms),
        f"{format_ms(entry.latency_low_ms)} to {format_ms(entry.latency_high_ms)}",
        maybe(format_ms, entry.bound_ms),
        entry.latency_origin or "",
    ]


def of_profile(profile: Profile) -> Table:
    """Costs, fastest first, with where each number is from."""
    energy = any(cost.energy_mj is not None for cost in profile.costs)
    columns = ["topology", "", "median", "interval", "bound"]
    rows = [
        [
            cost.topology,
            cost.origin,
            format_ms(cost.latency_ms),
            f"{format_ms(cost.latency_low_ms)} to {format_ms(cost.latency_high_ms)}",
            format_ms(cost.bound_ms),
            *([maybe(format_mj, cost.energy_mj), maybe(format_mj, cost.energy_above_idle_mj)])
            * energy,
        ]
        for cost in sorted(profile.costs, key=lambda cost: cost.latency_ms)
    ]
    return Table(
        f"{profile.family} on {profile.conditions.label}",
        [*columns, *["energy", "above idle"] * energy],
        rows,
    )


def beside_profile(profile: Profile) -> Iterator[str]:
    """What must be said beside a profile's costs."""
    composition, energy, protocol = profile.composition, profile.energy, profile.protocol
    if composition is not None:
        yield (
            f"{profile.number('measured')} measured, {profile.number('composed')} composed; error on "
            f"the {composition.latency.held_out} held out: median "
            f"{composition.latency.median_error:.1%}, 95th percentile "
            f"{composition.latency.p95_error:.1%}; bounds hold with {composition.latency.confidence:.0%}"
        )
        if composition.energy is not None:
            yield (
                f"energy, the same: median {composition.energy.median_error:.1%}, 95th percentile "
                f"{composition.energy.p95_error:.1%}"
            )
    if profile.estimated:
        yield from profile.notes
        return
    if energy is not None:
        yield (
            f"energy by {profile.meter}: {energy.scope}; windows of {energy.window_s:.3g} s, "
            f"{energy.windows} or more of each; 95 % interval +-{energy.precision:.1%}; idle "
            f"{maybe(format_w, energy.idle_before_w)} before, "
            f"{maybe(format_w, energy.idle_after_w)} after"
        )
        if energy.mixed_difference is not None:
            yield (
                f"energy by mixtures, a second method: {energy.mixed_difference:.1%} apart, errors "
                f"explain {energy.mixed_error:.1%}"
            )
    if profile.energy_reason:
        yield f"energy: not measured: {profile.energy_reason}"
    if protocol.resumed:
        yield f"interrupted and taken up again: {protocol.resumed} times"
    if protocol.throttled:
        reasons = ", ".join(f"{n} for {reason}" for reason, n in protocol.throttled.items())
        yield f"samples taken while the device throttled: {reasons}"
    if protocol.late:
        yield f"{protocol.late} calls began late: the rate is more than the device does"
    if protocol.capped:
        yield "the time cap ended the sampling before every interval was narrow enough"
    if not protocol.steady:
        yield "the latencies had not settled when sampling began"
    yield from profile.notes


def of_plan(plan: Plan) -> Table:
    """The residents, fastest first, and the budgets that each answers."""
    chosen: dict[str, list[str]] = {}
    for choice in plan.choices:
        chosen.setdefault(choice.topology, []).append(str(choice.budget))
    rows = [
        [
            candidate.topology,
            format_percent(candidate.top1),
            format_ms(candidate.median_ms),
            format_ms(candidate.latency_ms),
            ", ".join(chosen.get(candidate.topology, []))
            or ("safety" if candidate is plan.safety else ""),
        ]
        for candidate in plan.resident
    ]
    return Table(
        f"plan of {plan.family}: {len(rows)} resident"
        + "; accuracies published, not of these weights" * (plan.origin == "published")
        + "; costs ESTIMATED, nothing was measured" * plan.estimated,
        ["topology", "top-1", "median", "p99 bound", "budget"],
        rows,
    )


def of_session(rows: Sequence[RunRow]) -> Table:
    """What a runtime did under each budget."""
    return Table(
        f"runtime on {rows[0].frames} images a budget",
        [
            "budget",
            "topology",
            "median",
            "p99",
            "top-1",
            "95 %",
            "in time",
            "switch",
            "first after",
        ],
        [
            [
                format_budget(row.budget),
                format_ran(row.topologies),
                format_ms(row.median_ms),
                format_ms(row.p99_ms),
                format_percent(row.top1),
                f"{row.top1_low:.1f} to {row.top1_high:.1f}",
                maybe(lambda rate: f"{100 * rate:.1f} %", row.hit_rate),
                "" if row.switch_us is None else f"{row.switch_us:.1f} us",
                maybe(format_ms, row.first_ms),
            ]
            for row in rows
        ],
    )


def maybe(form: Callable[[float], str], value: float | None) -> str:
    """A number for people, or nothing where there is none."""
    return "" if value is None else form(value)
