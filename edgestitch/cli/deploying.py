"""Verbs that compile a plan and run it."""

from contextlib import nullcontext
from pathlib import Path

import click

from edgestitch import load_accuracy, load_plan

from .base import (
    accuracy_argument,
    backend_option,
    budget_option,
    device_option,
    json_option,
    measure_settings,
    min_samples_option,
    named_network,
    out_option,
    precision_option,
    print_json,
    print_table,
    progress_bar,
    time_cap_option,
    verb,
)


@verb("edgestitch compile fashion-vit.safetensors plan.json accuracy.json --out deployment")
@click.argument("network")
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@accuracy_argument
@out_option("deployment", "the deployment")
@device_option
@backend_option
@precision_option
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1),
    help="Images of a call; the first one is what PLAN is about, others may follow.  [default: 1]",
)
@time_cap_option
@min_samples_option
@click.option(
    "--energy/--no-energy", default=True, show_default=True, help="Measure energy if it can be."
)
@click.option(
    "--from-estimate", is_flag=True, help="Even though PLAN was made from estimated costs."
)
@click.option(
    "--memory-mib",
    type=click.FloatRange(min=0, min_open=True),
    help="Compile longer segments, with second copies of weights, as far as all fits in that.",
)
@click.option(
    "--fallback/--no-fallback",
    default=True,
    show_default=True,
    help="Try other variants, precisions and backends where one is not equal to eager.",
)
@json_option
def compile(  # noqa: A001 (the verb's name)
    network: str,
    plan_file: Path,
    accuracy_file: Path | None,
    out: Path,
    device: str,
    backend: str,
    precision: str,
    batches: tuple[int, ...],
    time_cap_s: float,
    min_samples: int,
    energy: bool,
    from_estimate: bool,
    memory_mib: float | None,
    fallback: bool,
    as_json: bool,
) -> None:
    """Compiles the resident topologies of PLAN, checks each against eager, and measures it.

    ACCURACY is the one that PLAN was made from; without it, what ships for PLAN's family.
    """
    from edgestitch.catalog import require_accuracy
    from edgestitch.device import resolve

    found = resolve(device)
    from edgestitch.deploy import compile_deployment
    from edgestitch.instruments import find_instruments
    from edgestitch.report import format_ms

    plan = load_plan(plan_file)
    if accuracy_file is not None:
        accuracy = load_accuracy(accuracy_file)
    else:
        accuracy = require_accuracy(plan.family, of_plan=plan.accuracy)
    loaded = named_network(network)
    with progress_bar() as progress:
        deployment = compile_deployment(
            loaded,
            plan,
            accuracy,
            out,
            find_instruments(found, energy=energy),
            measure_settings(time_cap_s, min_samples, energy),
            backend=backend,
            precision=precision,
            batch=batches[0] if batches else 1,
            other_batches=batches[1:],
            from_estimate=from_estimate,
            memory_mib=memory_mib,
            fallback=fallback,
            progress=progress,
        )
    manifest = deployment.manifest
    if as_json:
        return print_json(manifest)
    costs = deployment.profile.by_topology
    rows = [
        [
            check.topology,
            str(len(manifest.chains[check.topology])),
            f"{check.max_difference:.1e}",
            f"{100 * check.top1_agreement:.0f} %",
            format_ms(costs[check.topology].latency_ms),
            format_ms(costs[check.topology].bound_ms),
        ]
        for check in manifest.checks
    ]
    print_table(
        f"{manifest.family.name} by {manifest.conditions.backend} {manifest.conditions.precision}: "
        f"{len(manifest.segments)} segments",
        ["topology", "segments", "off eager", "same class", "median", "p99 bound"],
        rows,
    )
    print(f"resident in {manifest.memory}")
    print(f"wrote {out}")
    return None


@verb("edgestitch run deployment --budget-ms 5 --budget-ms 1")
@click.argument("deployment", required=False, type=click.Path(path_type=Path))
@budget_option
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="A file of labelled images instead of the shipped ones.",
)
@click.option(
    "--rebuild/--no-rebuild",
    default=True,
    show_default=True,
    help="Compile and measure again what was made for another machine or version.",
)
@click.option(
    "--log",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where every frame and the device's readings go.",
)
@click.option(
    "--live",
    is_flag=True,
    help="Until Ctrl-C, with a page that shows the run and moves its budget.",
)
@click.option("--port", type=click.IntRange(0, 65535), help="Of the page.  [default: any free one]")
@click.option(
    "--bind",
    metavar="ADDRESS",
    help="Where the page is served; from any address but loopback's other machines can steer the "
    "run.  [default: 127.0.0.1]",
)
@click.option(
    "--rate-hz",
    type=click.FloatRange(min=0),
    help="Frames in a second of --live, 0 for as many as it can.  [default: 30]",
)
@click.option("--frames", type=click.IntRange(1), help="Of --live, after which it ends.")
@click.option(
    "--switches",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the cost of every switch goes, which is measured afterwards.",
)
@json_option
def run(
    deployment: Path | None,
    budgets_ms: tuple[float, ...],
    images: Path | None,
    rebuild: bool,
    log: Path | None,
    live: bool,
    port: int | None,
    bind: str | None,
    rate_hz: float | None,
    frames: int | None,
    switches: Path | None,
    as_json: bool,
) -> None:
    """Runs a deployment on labelled images, one budget after the other, switching in place.

    Without --budget-ms: the budgets of its plan, with the mixes that it has for them.
    Without DEPLOYMENT: $EDGESTITCH_DEPLOYMENT, else ./deployment, else the shipped network.
    """
    from edgestitch.artifact import save
    from edgestitch.data import load_images, shipped_images
    from edgestitch.runlog import Recorder
    from edgestitch.runtime import Runtime
    from edgestitch.schedule import Budget
    from edgestitch.session import budgets_of, run_session
    from edgestitch.switches import first_frame, measure_switches
    from edgestitch.tables import of_session

    if live and switches:
        raise click.UsageError(
            "--switches are measured after a run that ends by itself, not --live"
        )
    if live:
        return _run_live(
            deployment, budgets_ms, images, rebuild, log, port, bind, rate_hz, frames, as_json
        )
    for name, value in {"port": port, "bind": bind, "rate-hz": rate_hz, "frames": frames}.items():
        if value is not None:
            raise click.UsageError(f"--{name} is for a run with --live")
    data = load_images(images) if images else shipped_images()
    with Runtime(deployment, rebuild=rebuild) as runtime, progress_bar() as progress:
        given = tuple(Budget(latency_ms=budget_ms) for budget_ms in budgets_ms)
        budgets = given or budgets_of(runtime.deployment.plan)
        recorder = Recorder(runtime) if log else None
        with recorder.saving(log) if recorder else nullcontext():
            rows = run_session(runtime, data, budgets, recorder=recorder, progress=progress)
        if switches:
            save(measure_switches(runtime, first_frame(runtime, data), progress=progress), switches)
    if as_json:
        return print_json(rows)
    print_table(*of_session(rows))
    return None


def _run_live(
    deployment: Path | None,
    budgets_ms: tuple[float, ...],
    images: Path | None,
    rebuild: bool,
    log: Path | None,
    port: int | None,
    bind: str | None,
    rate_hz: float | None,
    frames: int | None,
    as_json: bool,
) -> None:
    """Runs until it is interrupted; with --json the last state goes to stdout, the rest to stderr."""
    from rich.console import Console

    from edgestitch.data import load_images, shipped_images
    from edgestitch.live import watch_session
    from edgestitch.runtime import Runtime

    if len(budgets_ms) > 1:
        raise click.UsageError("--live begins with one --budget-ms; the page moves it")
    data = load_images(images) if images else shipped_images()
    budget_ms = budgets_ms[0] if budgets_ms else None
    with Runtime(deployment, budget_ms=budget_ms, rebuild=rebuild) as runtime:
        status = watch_session(
            runtime,
            data,
            console=Console(stderr=as_json),
            rate_hz=30.0 if rate_hz is None else rate_hz,
            frames=frames,
            bind=bind or "127.0.0.1",
            port=port or 0,
            log=log,
        )
    if as_json:
        print_json(status)


@verb("edgestitch demo --out demo")
@out_option("demo", "everything that is made")
@backend_option
def demo(out: Path, backend: str) -> None:
    """The shipped network through every stage, on real images, on this machine."""
    from edgestitch.demo import demonstrate
    from edgestitch.report import format_ms, format_percent
    from edgestitch.tables import of_plan, of_session

    with progress_bar() as progress:
        seen = demonstrate(out, backend=backend, progress=progress)
    profile, plan = seen.profile, seen.plan
    print(
        f"\n{profile.family} on {profile.conditions.label}: {len(profile.costs)} topologies profiled"
    )
    print(f"energy: not measured: {profile.energy_reason}")
    print_table(*of_plan(plan))
    checks = seen.deployment.manifest.checks
    worst = max(check.max_difference for check in checks)
    print(
        f"\ncompiled {len(checks)} resident topologies into {len(seen.deployment.manifest.segments)} "
        f"segments; furthest from eager: {worst:.1e} of the largest logit"
    )
    print_table(*of_session(seen.rows))
    fastest = min(profile.costs, key=lambda cost: cost.latency_ms)
    best = max(seen.accuracy.rows, key=lambda row: row.top1)
    print(
        f"\nfastest {fastest.topology} {format_ms(fastest.latency_ms)}; most accurate {best.topology} {format_percent(best.top1)}"
    )
    print(f"report: {seen.report}   ({seen.duration_s:.0f} s in all)")
