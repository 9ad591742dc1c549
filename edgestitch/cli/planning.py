"""Verbs that plan, without torch."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from edgestitch import load_accuracy, load_profile
from edgestitch.artifact import save
from edgestitch.errors import ArtifactError
from edgestitch.recipe import load_family

from .base import (
    accuracy_argument,
    budget_option,
    json_option,
    out_option,
    print_json,
    print_table,
    verb,
)

if TYPE_CHECKING:
    import numpy as np

    from edgestitch.accuracy import Accuracy
    from edgestitch.profile import Profile
    from edgestitch.residency import Memory
    from edgestitch.schedule import Budget, Plan


@verb("edgestitch schedule profile.json accuracy.json --budget-ms 5 --budget-ms 10")
@click.argument("profile_file", metavar="PROFILE", type=click.Path(path_type=Path))
@accuracy_argument
@budget_option
@click.option("--quantile", default=0.99, show_default=True, help="Of latencies held to deadlines.")
@click.option("--budget-mj", type=float, help="Energy of a frame.")
@click.option("--budget-w", type=float, help="Average power.")
@click.option("--rate-hz", type=float, help="Frames a second: power and energy with the waiting.")
@click.option("--idle-w", type=float, help="Power while it waits, if PROFILE lacks it.")
@click.option("--battery-wh", type=float, help="What a mission may use; with --hours, --rate-hz.")
@click.option("--hours", type=float, help="How long the battery is to last.")
@click.option(
    "--min-top1", type=float, help="Least accuracy, in percent; then costs are minimised."
)
@click.option("--minimise", type=click.Choice(["latency", "energy"]), help="With --min-top1.")
@click.option("--mix", is_flag=True, help="Topologies in turn, where that is better in the mean.")
@click.option("--dwell", default=1, show_default=True, help="With --mix: frames in a row at least.")
@click.option("--memory-mib", type=float, help="Keep what fits in it and is worth most.")
@click.option("--weight", "weights", multiple=True, type=float, help="How often each budget comes.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), help="Of --memory-mib.")
@out_option("plan.json", "the plan")
@json_option
def schedule(
    profile_file: Path,
    accuracy_file: Path | None,
    budgets_ms: tuple[float, ...],
    quantile: float,
    memory_mib: float | None,
    weights: tuple[float, ...],
    precision: str | None,
    mix: bool,
    dwell: int,
    out: Path,
    as_json: bool,
    **bounds: Any,
) -> None:
    """The plan for the budgets given, or the whole Pareto front for whatever may come.

    Without ACCURACY: what ships for the profile's family, published by its authors where they did.
    """
    from edgestitch.catalog import require_accuracy
    from edgestitch.schedule import plan
    from edgestitch.tables import of_plan

    profile = load_profile(profile_file)
    accuracy = load_accuracy(accuracy_file) if accuracy_file else require_accuracy(profile.family)
    result = plan(
        profile,
        accuracy,
        _budgets(budgets_ms, **bounds),
        quantile=quantile,
        samples_ns=_samples(profile, profile_file) if quantile > 0.99 else None,
        mix=mix,
        dwell=dwell,
        memory=_memory(profile, accuracy, memory_mib, precision),
        weights=weights or None,
    )
    save(result, out)
    if accuracy_file is None:
        said = f"accuracies: those that ship for {accuracy.family}, {accuracy.provenance}"
        print(said, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        return print_json(result)
    print_table(*of_plan(result))
    for line in _remarks(result):
        print(line)
    print(f"wrote {out}")
    return None


def _budgets(
    budgets_ms: tuple[float, ...],
    *,
    budget_mj: float | None,
    budget_w: float | None,
    rate_hz: float | None,
    idle_w: float | None,
    battery_wh: float | None,
    hours: float | None,
    min_top1: float | None,
    minimise: Literal["latency", "energy"] | None,
) -> "list[Budget]":
    """One for each deadline, or one without any if other bounds are given."""
    from edgestitch.schedule import Budget

    more: dict[str, Any] = {
        "energy_mj": budget_mj,
        "power_w": budget_w,
        "rate_hz": rate_hz,
        "idle_w": idle_w,
        "battery_wh": battery_wh,
        "duration_h": hours,
        "min_top1": min_top1,
        "minimise": minimise,
    }
    given = {name: value for name, value in more.items() if value is not None}
    if budgets_ms:
        return [Budget(latency_ms=each, **given) for each in budgets_ms]
    return [Budget(**given)] if given else []


def _samples(profile: "Profile", path: Path) -> "dict[str, np.ndarray] | None":
    from edgestitch.measure import load_samples

    try:
        return load_samples(profile, path)
    except ArtifactError:  # a profile alone says less of rare latencies, and says so
        return None


def _memory(
    profile: "Profile", accuracy: "Accuracy", memory_mib: float | None, precision: str | None
) -> "Memory | None":
    if memory_mib is None:
        return None
    from edgestitch.catalog import shipped_complexity
    from edgestitch.network import build_network, count
    from edgestitch.residency import memory_of_weights

    family = load_family(profile.family).in_mode(accuracy.mode)
    complexity = shipped_complexity(family) or count(build_network(family))
    size = 4 if (precision or profile.conditions.precision) == "fp32" else 2
    return memory_of_weights(family, complexity, budget_mib=memory_mib, bytes_per_weight=size)


def _remarks(plan: "Plan") -> Iterator[str]:
    """What a table of a plan has no place for."""
    for choice in plan.choices:
        if choice.mix:
            shares = ", ".join(f"{100 * s.share:.1f} % {s.topology}" for s in choice.mix.shares)
            gain = f", {choice.mix.gain:+.3g} over one alone" if choice.mix.gain is not None else ""
            yield f"{choice.budget}: {shares}; top-1 {choice.mix.top1:.2f} %{gain}"
        doubt = choice.doubt
        if doubt and doubt.runner_up and doubt.sure < 0.95:
            yield (
                f"{choice.budget}: {choice.topology} with {100 * doubt.sure:.0f} %, else mostly "
                f"{doubt.runner_up}: measure more to be surer"
            )
    kept = plan.residency
    if kept:
        proof = (
            "nothing that fits is worth more" if kept.proven else f"at most {kept.gap:.2f} short"
        )
        yield (
            f"{len(kept.topologies)} topologies in {kept.memory_mib:.1f} of {kept.budget_mib:g} MiB "
            f"are worth {kept.expected_top1:.2f} % in the mean ({proof}; greedy "
            f"{kept.greedy_top1:.2f}, down the front {kept.front_top1:.2f})"
        )
    yield from plan.notes


@verb("edgestitch coschedule streams.toml")
@click.argument("streams_file", metavar="STREAMS", type=click.Path(path_type=Path))
@click.option("--budget-w", type=float, help="Average power of the device.")
@click.option("--idle-w", type=float, help="Of the device while it waits; with --budget-w.")
@out_option("joint-plan.json", "the joint plan")
@json_option
def coschedule(
    streams_file: Path, budget_w: float | None, idle_w: float | None, out: Path, as_json: bool
) -> None:
    """A topology for each of several networks on one device, such that all keep their deadlines.

    STREAMS has a table [NAME] for each network: profile, accuracy (files, beside it), period_ms, and if
    wanted deadline_ms, weight, priority, interference (times longer beside the others) and quantile.
    """
    from edgestitch.coschedule import coschedule as chosen
    from edgestitch.coschedule import load_streams
    from edgestitch.report import format_ms, format_percent

    result = chosen(load_streams(streams_file), power_w=budget_w, idle_w=idle_w)
    save(result, out)
    if as_json:
        return print_json(result)
    print_table(
        f"busy {100 * result.utilisation:.0f} % of the time at most"
        + (f", {result.power_w:.3g} W in the mean" if result.power_w is not None else ""),
        ["network", "topology", "top-1", "inference", "response", "deadline", "period"],
        [
            [
                one.name,
                one.topology,
                format_percent(one.top1),
                format_ms(one.latency_ms),
                format_ms(one.response_ms),
                format_ms(one.deadline_ms),
                format_ms(one.period_ms),
            ]
            for one in result.assignments
        ],
    )
    print(f"wrote {out}")
    return None
