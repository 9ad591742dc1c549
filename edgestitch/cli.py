"""The command line: each verb parses, calls one library function, and prints.

What needs torch is imported inside the verb that uses it, so that the planning verbs answer at once.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
import msgspec

from . import __version__, load_accuracy, load_plan, load_profile
from .artifact import save
from .errors import ArtifactError, EdgestitchError
from .family import load_family, load_recipe
from .progress import Progress, silent

if TYPE_CHECKING:
    from .report import RunRow
    from .schedule import Plan
    from .timer import TimerSettings

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_NETWORK = "fashion-vit"


class Verb(click.Command):
    """A verb whose errors are one line on stderr."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (EdgestitchError, ValueError, TypeError) as error:
            if context.find_root().params.get("traceback"):
                raise
            _fail(error)


def _fail(error: Exception) -> NoReturn:
    print(f"edgestitch: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgestitch")
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
def cli(traceback: bool) -> None:
    """Stitchable networks on the device: measured, scheduled, compiled, switched in place."""


def verb(example: str) -> Callable[[F], click.Command]:
    return cli.command(cls=Verb, epilog=f"Example:  {example}")


def main() -> None:
    """The console script; Ctrl-C ends it with exit code 130 and nothing half-written."""
    try:
        cli(standalone_mode=False)
    except click.Abort:
        print("edgestitch: interrupted; nothing half-written is left", file=sys.stderr)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)


# --- options that verbs share ------------------------------------------------------------------

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="What to run on: auto, cpu, cuda, jetson-orin, jetson-thor, jetson-xavier.",
)
data_option = click.option(
    "--data", type=click.Path(path_type=Path), help="Folder with the data set's files."
)
precision_option = click.option(
    "--precision", default="fp32", show_default=True, help="fp32 or bf16."
)
backend_option = click.option(
    "--backend", default="auto", show_default=True, help="auto, openvino or eager."
)
batch_option = click.option(
    "--batch", default=1, show_default=True, type=click.IntRange(1), help="Images in a call."
)
time_cap_option = click.option(
    "--time-cap-s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Measuring ends after that at the latest.",
)
min_samples_option = click.option(
    "--min-samples",
    default=1000,
    show_default=True,
    type=click.IntRange(1),
    help="Of each topology; 99th percentiles need 473.",
)
budget_option = click.option(
    "--budget-ms", "budgets_ms", multiple=True, type=float, help="A deadline; may be repeated."
)


def out_option(default: str | None, what: str) -> Callable[[F], F]:
    return click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=default,
        required=default is None,
        show_default=default is not None,
        help=f"Where {what} goes.",
    )


# --- verbs -------------------------------------------------------------------------------------


@verb("edgestitch env")
@json_option
def env(as_json: bool) -> None:
    """What this machine is, and what works on it."""
    from .environment import describe

    found = describe()
    if as_json:
        return _print_json(found)
    device = found.device
    print(f"device     {device.name}: {device.hardware}")
    print(f"memory     {device.memory_mib} MiB")
    print(f"power mode {device.power_mode or 'none that can be read'}")
    print(
        f"meter      {found.meter.name}" + (f": {found.meter.reason}" if found.meter.reason else "")
    )
    for backend in found.backends:
        print(f"backend    {backend.name}: {backend.reason or 'works'}")
    print(f"python     {found.python}")
    for name, version in found.packages.items():
        print(f"package    {name} {version or 'not installed'}")
    return None


@verb("edgestitch show deit-ti-s-b")
@click.argument("family")
@click.option("--profile", "profile_file", type=click.Path(path_type=Path), help="Adds latencies.")
@click.option(
    "--accuracy",
    "accuracy_file",
    type=click.Path(path_type=Path),
    help="Instead of the shipped one.",
)
@click.option(
    "--budget-ms", type=float, help="Marks the best topology under a deadline; needs --profile."
)
@click.option("--count", is_flag=True, help="Count multiply-adds now, with torch, where none ship.")
@click.option("--out", type=click.Path(path_type=Path), help="With --count: where the counts go.")
@json_option
def show(
    family: str,
    profile_file: Path | None,
    accuracy_file: Path | None,
    budget_ms: float | None,
    count: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """The topologies of FAMILY, a shipped recipe's name or a TOML file."""
    from .catalog import overview, shipped_accuracy, shipped_complexity
    from .schedule import Budget, candidates, choose

    found = load_family(family)
    complexity = shipped_complexity(found)
    if count:
        from .network import build_network
        from .network import count as count_complexity

        complexity = count_complexity(build_network(found))
        if out is not None:
            save(complexity, out)
    accuracy = load_accuracy(accuracy_file) if accuracy_file else shipped_accuracy(found)
    profile = load_profile(profile_file) if profile_file else None
    table = overview(found, complexity=complexity, accuracy=accuracy, profile=profile)
    best = None
    if budget_ms is not None:
        if profile is None or accuracy is None:
            raise ValueError(
                "--budget-ms needs --profile and a known accuracy; `edgestitch profile` measures"
            )
        best = choose(candidates(profile, accuracy), Budget(latency_ms=budget_ms)).topology
    if as_json:
        return _print_json(table)
    from .report import format_count, format_gmacs, format_ms, format_percent

    rows = [
        [
            entry.topology,
            _maybe(format_gmacs, entry.gmacs),
            "" if entry.params is None else format_count(entry.params),
            _maybe(format_percent, entry.top1),
            *(
                []
                if profile is None
                else [_maybe(format_ms, entry.latency_ms), _maybe(format_ms, entry.bound_ms)]
            ),
            *([] if best is None else ["<- best" if entry.topology == best else ""]),
        ]
        for entry in table.topologies
    ]
    columns = ["topology", "multiply-adds", "parameters", "top-1"]
    columns += [] if profile is None else ["median", "p99 bound"]
    columns += [] if best is None else [f"within {budget_ms:g} ms"]
    _print_table(f"{found.name}: {len(rows)} topologies", columns, rows)
    return None


@verb("edgestitch calibrate fashion-vit --out fashion-vit.safetensors")
@click.argument("recipe")
@out_option(None, "the network")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default="work",
    show_default=True,
    help="Folder of the checkpoints; a killed calibration goes on from there.",
)
@data_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@json_option
def calibrate(
    recipe: str, out: Path, work: Path, data: Path | None, device: str, as_json: bool
) -> None:
    """Trains and stitches the network of RECIPE, a shipped recipe's name or a TOML file."""
    from .calibrate import calibrate as run
    from .calibrate import load_splits
    from .report import format_percent

    settings = load_recipe(recipe)
    splits = load_splits(settings.dataset, data)
    with _progress() as progress:
        result = run(settings, splits, work, out, device=device, progress=progress)
    if as_json:
        return _print_json(result)
    rows = [
        [
            step.topology,
            _maybe(format_percent, step.alone),
            format_percent(step.initialized),
            _maybe(format_percent, step.finetuned),
        ]
        for step in result.steps
    ]
    _print_table(
        f"{result.family}: top-1", ["topology", "alone", "least squares", "fine-tuned"], rows
    )
    print(f"wrote {out}")
    return None


@verb("edgestitch evaluate fashion-vit --out accuracy.json")
@click.argument("network", default=DEFAULT_NETWORK)
@out_option("accuracy.json", "the accuracy")
@data_option
@json_option
def evaluate(network: str, out: Path, data: Path | None, as_json: bool) -> None:
    """Top-1 of every topology of NETWORK on the test images of its data set."""
    from .data import fashion_mnist
    from .evaluate import evaluate as run
    from .report import format_percent

    loaded = _network(network)
    images = fashion_mnist("test", data)
    with _progress() as progress:
        result = run(loaded, images, progress=lambda done, total: progress("evaluate", done, total))
    save(result, out)
    if as_json:
        return _print_json(result)
    rows = [
        [row.topology, format_percent(row.top1), f"{row.low:.2f} to {row.high:.2f}"]
        for row in result.rows
    ]
    _print_table(
        f"{result.family}: {result.num_images} images", ["topology", "top-1", "95 %"], rows
    )
    print(f"wrote {out}")
    return None


@verb("edgestitch profile --device jetson-orin")
@click.argument("network", default=DEFAULT_NETWORK)
@device_option
@backend_option
@precision_option
@batch_option
@click.option("--topologies", help="Only these, with commas between.")
@time_cap_option
@min_samples_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where the profile goes; named after its conditions otherwise.",
)
@json_option
def profile(
    network: str,
    device: str,
    backend: str,
    precision: str,
    batch: int,
    topologies: str | None,
    time_cap_s: float,
    min_samples: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measures the latency of every topology of NETWORK on this machine."""
    from .device import resolve

    found = resolve(device)
    from .engine import profile_network
    from .measure import save_profile
    from .report import format_ms

    loaded = _network(network)
    with _progress() as progress:
        result, samples = profile_network(
            loaded,
            found,
            _settings(time_cap_s, min_samples),
            topologies=tuple(topologies.split(",")) if topologies else (),
            backend=backend,
            precision=precision,
            batch=batch,
            progress=progress,
        )
    conditions = result.conditions
    out = out or Path(
        f"{result.family}.{conditions.device}.{conditions.backend}-{conditions.precision}.json"
    )
    save_profile(result, samples, out)
    if as_json:
        return _print_json(result)
    rows = [
        [
            cost.topology,
            format_ms(cost.latency_ms),
            f"{format_ms(cost.latency_low_ms)} to {format_ms(cost.latency_high_ms)}",
            format_ms(cost.bound_ms),
            str(cost.samples),
        ]
        for cost in sorted(result.costs, key=lambda cost: cost.latency_ms)
    ]
    _print_table(
        f"{result.family} on {conditions.label}",
        ["topology", "median", "95 %", "p99 bound", "samples"],
        rows,
    )
    if result.energy_reason:
        print(f"energy: not measured: {result.energy_reason}")
    if result.protocol.capped:
        print("the time cap ended the sampling before every interval was narrow enough")
    if not result.protocol.steady:
        print("the latencies had not settled when sampling began")
    print(f"wrote {out}")
    return None


@verb("edgestitch schedule profile.json accuracy.json --budget-ms 5 --budget-ms 10")
@click.argument("profile_file", metavar="PROFILE", type=click.Path(path_type=Path))
@click.argument("accuracy_file", metavar="ACCURACY", type=click.Path(path_type=Path))
@budget_option
@click.option("--budget-mj", type=float, help="Energy of an inference.")
@click.option("--budget-w", type=float, help="Average power.")
@out_option("plan.json", "the plan")
@json_option
def schedule(
    profile_file: Path,
    accuracy_file: Path,
    budgets_ms: tuple[float, ...],
    budget_mj: float | None,
    budget_w: float | None,
    out: Path,
    as_json: bool,
) -> None:
    """The plan for the budgets given, or the whole Pareto front for whatever may come."""
    from .schedule import Budget, plan

    budgets = [Budget(latency_ms=b, energy_mj=budget_mj, power_w=budget_w) for b in budgets_ms]
    if not budgets and (budget_mj is not None or budget_w is not None):
        budgets = [Budget(energy_mj=budget_mj, power_w=budget_w)]
    result = plan(load_profile(profile_file), load_accuracy(accuracy_file), budgets)
    save(result, out)
    if as_json:
        return _print_json(result)
    _print_plan(result)
    print(f"wrote {out}")
    return None


@verb("edgestitch compile fashion-vit.safetensors plan.json accuracy.json --out deployment")
@click.argument("network")
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.argument("accuracy_file", metavar="ACCURACY", type=click.Path(path_type=Path))
@out_option("deployment", "the deployment")
@device_option
@backend_option
@precision_option
@batch_option
@time_cap_option
@min_samples_option
@json_option
def compile(  # noqa: A001 (the verb's name)
    network: str,
    plan_file: Path,
    accuracy_file: Path,
    out: Path,
    device: str,
    backend: str,
    precision: str,
    batch: int,
    time_cap_s: float,
    min_samples: int,
    as_json: bool,
) -> None:
    """Compiles the resident topologies of PLAN, checks each against eager, and measures it."""
    from .device import resolve

    found = resolve(device)
    from .engine import compile_deployment
    from .report import format_ms

    loaded = _network(network)
    with _progress() as progress:
        deployment = compile_deployment(
            loaded,
            load_plan(plan_file),
            load_accuracy(accuracy_file),
            out,
            found,
            _settings(time_cap_s, min_samples),
            backend=backend,
            precision=precision,
            batch=batch,
            progress=progress,
        )
    manifest = deployment.manifest
    if as_json:
        return _print_json(manifest)
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
    _print_table(
        f"{manifest.family.name} by {manifest.conditions.backend}: {len(manifest.segments)} segments",
        ["topology", "segments", "off eager", "same class", "median", "p99 bound"],
        rows,
    )
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
@json_option
def run(
    deployment: Path | None, budgets_ms: tuple[float, ...], images: Path | None, as_json: bool
) -> None:
    """Runs a deployment on labelled images, one budget after the other, switching in place.

    Without DEPLOYMENT: $EDGESTITCH_DEPLOYMENT, else ./deployment, else the shipped network.
    """
    from .data import load_images, shipped_images
    from .runtime import Runtime
    from .session import run_session

    data = load_images(images) if images else shipped_images()
    with Runtime(deployment) as runtime, _progress() as progress:
        budgets = budgets_ms or tuple(c.latency_ms for c in runtime.deployment.plan.resident)
        rows = run_session(runtime, data, budgets, progress=progress)
    if as_json:
        return _print_json(rows)
    _print_session(rows)
    return None


@verb("edgestitch report accuracy.json --profile profile.json --plan plan.json --out report.html")
@click.argument("accuracy_file", metavar="ACCURACY", type=click.Path(path_type=Path))
@click.option(
    "--family", "family_name", help="Recipe of the family, where its name is not a shipped one."
)
@click.option("--profile", "profile_file", type=click.Path(path_type=Path), help="Latencies.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="What is resident.")
@out_option("report.html", "the page")
def report(
    accuracy_file: Path,
    family_name: str | None,
    profile_file: Path | None,
    plan_file: Path | None,
    out: Path,
) -> None:
    """One self-contained HTML page with the accuracy-latency picture and a budget slider."""
    from .catalog import shipped_complexity
    from .report import write_report

    accuracy = load_accuracy(accuracy_file)
    family = load_family(family_name or accuracy.family)
    write_report(
        out,
        family,
        accuracy,
        profile=load_profile(profile_file) if profile_file else None,
        plan=load_plan(plan_file) if plan_file else None,
        complexity=shipped_complexity(family),
    )
    print(f"wrote {out}")


@verb("edgestitch demo --out demo")
@out_option("demo", "everything that is made")
@backend_option
def demo(out: Path, backend: str) -> None:
    """The shipped network through every stage, on real images, on this machine."""
    from .demo import demonstrate
    from .report import format_ms, format_percent

    with _progress() as progress:
        seen = demonstrate(out, backend=backend, progress=progress)
    profile, plan = seen.profile, seen.plan
    print(
        f"\n{profile.family} on {profile.conditions.label}: {len(profile.costs)} topologies profiled"
    )
    print(f"energy: not measured: {profile.energy_reason}")
    _print_plan(plan)
    checks = seen.deployment.manifest.checks
    worst = max(check.max_difference for check in checks)
    print(
        f"\ncompiled {len(checks)} resident topologies into {len(seen.deployment.manifest.segments)} "
        f"segments; furthest from eager: {worst:.1e} of the largest logit"
    )
    _print_session(seen.rows)
    fastest = min(profile.costs, key=lambda cost: cost.latency_ms)
    best = max(seen.accuracy.rows, key=lambda row: row.top1)
    print(
        f"\nfastest {fastest.topology} {format_ms(fastest.latency_ms)}; most accurate {best.topology} {format_percent(best.top1)}"
    )
    print(f"report: {seen.report}   ({seen.duration_s:.0f} s in all)")


# --- printing ----------------------------------------------------------------------------------


def _network(name: str) -> Any:
    """A network by the name of a shipped one or by its file."""
    from .catalog import shipped_network
    from .network import load_network

    path = Path(name)
    if path.suffix != ".safetensors":
        path = shipped_network(name)
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in path.parent.glob("*.safetensors")))
            raise ArtifactError(
                f"no network {name!r}; give a .safetensors file that `edgestitch calibrate` wrote, "
                f"or a shipped one: {known}"
            )
    return load_network(path)


def _settings(time_cap_s: float, min_samples: int) -> "TimerSettings":
    from .timer import TimerSettings

    return TimerSettings(time_cap_s=time_cap_s, min_samples=min_samples)


def _print_plan(plan: "Plan") -> None:
    from .report import format_ms, format_percent

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
    _print_table(
        f"plan of {plan.family}: {len(rows)} resident",
        ["topology", "top-1", "median", "p99 bound", "budget"],
        rows,
    )


def _print_session(rows: "tuple[RunRow, ...]") -> None:
    from .report import format_ms, format_percent

    _print_table(
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
                format_ms(row.budget_ms),
                row.topology,
                format_ms(row.median_ms),
                format_ms(row.p99_ms),
                format_percent(row.top1),
                f"{row.top1_low:.1f} to {row.top1_high:.1f}",
                f"{100 * row.hit_rate:.1f} %",
                "" if row.switch_us is None else f"{row.switch_us:.1f} us",
                _maybe(format_ms, row.first_ms),
            ]
            for row in rows
        ],
    )


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # As wide as the table needs where nobody's terminal limits it.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print()
    console.print(table)


def _maybe(form: Callable[[float], str], value: float | None) -> str:
    return "" if value is None else form(value)


def _print_json(value: object) -> None:
    data = msgspec.json.encode(value)
    print(msgspec.json.format(data, indent=1).decode())


@contextmanager
def _progress() -> Iterator[Progress]:
    """A progress bar with the time left on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            for task in tasks.values():
                bars.update(task, visible=False)
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total, visible=True)

    with bars:
        yield progress
