"""The command line: each verb parses, calls one library function, and prints.

What needs torch is imported inside the verb that uses it, so that the planning verbs answer at once.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import click
import msgspec

from . import __version__, load_accuracy, load_plan, load_profile
from .artifact import save
from .errors import (
    ArtifactError,
    CompileError,
    DeviceError,
    EdgestitchError,
    MismatchError,
)
from .progress import Progress, silent
from .recipe import load_family, load_recipe

if TYPE_CHECKING:
    import numpy as np

    from .accuracy import Accuracy
    from .adhoc import Rule
    from .complexity import Complexity
    from .device import Device
    from .family import Family, Mode
    from .measure import MeasureSettings
    from .profile import Load, Profile
    from .residency import Memory
    from .schedule import Budget, Plan

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


def verb(example: str, name: str | None = None) -> Callable[[F], click.Command]:
    return cli.command(name, cls=Verb, epilog=f"Example:  {example}")


def main() -> None:
    """The console script; Ctrl-C ends it with exit code 130, SIGTERM with 143, nothing half-written."""
    signal.signal(signal.SIGTERM, _terminate)
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


def _terminate(number: int, frame: object) -> NoReturn:
    """As Ctrl-C does: what must be put back is put back on the way out."""
    print("edgestitch: terminated; nothing half-written is left", file=sys.stderr)
    sys.exit(128 + number)


# --- options that verbs share ------------------------------------------------------------------

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="What to run on: auto, cpu, cuda, or a Jetson, such as jetson-orin.",
)
data_option = click.option(
    "--data", type=click.Path(path_type=Path), help="Folder with the data set's files."
)
readers_option = click.option(
    "--readers", type=click.IntRange(min=0), default=0, help="Processes that read images ahead."
)
precision_option = click.option(
    "--precision", default="fp32", show_default=True, help="fp32, fp16 or bf16."
)
backend_option = click.option(
    "--backend", default="auto", show_default=True, help="auto, openvino, eager or inductor."
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
accuracy_argument = click.argument(
    "accuracy_file", metavar="[ACCURACY]", required=False, type=click.Path(path_type=Path)
)
budget_option = click.option(
    "--budget-ms", "budgets_ms", multiple=True, type=float, help="A deadline; may be repeated."
)


module_option = click.option("--module", help="For an estimate: the part number, as p3767-0004.")
super_option = click.option(
    "--super", "super_clocks", is_flag=True, help="For an estimate: in JetPack's Super modes."
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


def _anchor_files(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, Path]:
    """Files by anchor, from ANCHOR=FILE."""
    files: dict[str, Path] = {}
    for value in values:
        anchor, given, file = value.partition("=")
        if not (anchor and given and file) or anchor in files:
            raise click.BadParameter(f"{value!r} should be ANCHOR=FILE, each anchor once")
        files[anchor] = Path(file)
    return files


# --- verbs -------------------------------------------------------------------------------------


@verb("edgestitch env")
@json_option
def env(as_json: bool) -> None:
    """What this machine is, and what works on it."""
    from .environment import describe, lines

    found = describe()
    if as_json:
        return _print_json(found)
    for line in lines(found):
        print(line)
    return None


@verb("edgestitch show deit-ti-s-b")
@click.argument("family", required=False)
@click.option("--profile", "profile_file", type=click.Path(path_type=Path), help="Adds latencies.")
@click.option(
    "--device", "estimate_for", help="Adds estimated latencies on a device, before any is measured."
)
@click.option(
    "--precision", default="fp16", show_default=True, help="With --device: fp32, fp16 or bf16."
)
@module_option
@super_option
@click.option(
    "--accuracy",
    "accuracy_file",
    type=click.Path(path_type=Path),
    help="Instead of the shipped one.",
)
@click.option(
    "--budget-ms", type=float, help="Marks the best topology under a deadline; needs --profile."
)
@click.option(
    "--mode",
    type=click.Choice(["corrected", "reference"]),
    help="How stitched paths are computed: corrected, or as the authors' code does. If not given, "
    "as in the network whose accuracies are shown.",
)
@click.option("--count", is_flag=True, help="Count multiply-adds now, with torch, where none ship.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the counts go.")
@click.option(
    "--anchors", help="Instead of FAMILY: models of timm, cheapest first, with commas between."
)
@click.option(
    "--rule",
    type=click.Choice(["paired", "staged", "two-way"]),
    help="With --anchors: how they are stitched; as suits them, if not given.",
)
@click.option("--window", type=click.IntRange(1), help="With --anchors: blocks of a window (2).")
@click.option("--stride", type=click.IntRange(1), help="With --anchors: from window to window (1).")
@click.option(
    "--all-pairs",
    is_flag=True,
    help="With --anchors: join any two, not only neighbours, in chains.",
)
@json_option
def show(
    family: str | None,
    profile_file: Path | None,
    estimate_for: str | None,
    precision: str,
    module: str | None,
    super_clocks: bool,
    accuracy_file: Path | None,
    budget_ms: float | None,
    mode: "Mode | None",
    count: bool,
    out: Path | None,
    anchors: str | None,
    rule: "Rule | None",
    window: int | None,
    stride: int | None,
    all_pairs: bool,
    as_json: bool,
) -> None:
    """The topologies of FAMILY, a shipped recipe's name or a TOML file, or of models of timm."""
    from .catalog import overview, shipped_accuracy, shipped_complexity
    from .schedule import Budget, candidates, choose
    from .tables import beside_profile, of_overview

    count = count or anchors is not None
    if out is not None and not count:
        raise click.UsageError("--out is for counts: give --count or --anchors with it")
    if profile_file is not None and estimate_for is not None:
        raise click.UsageError("give --profile or --device, not both: measured or estimated")
    if anchors is None:
        found = _family(family, rule, window, stride, all_pairs or None)
    elif family is None:
        from .adhoc import describe

        found = describe(
            [model.strip() for model in anchors.split(",") if model.strip()],
            rule=rule,
            window=window or 2,
            stride=stride or 1,
            nearest=not all_pairs,
        )
    else:
        raise click.UsageError(f"give either FAMILY ({family}) or --anchors, not both")
    accuracy: Accuracy | None = None  # of models that somebody put together nothing is known
    if accuracy_file is not None:
        accuracy = load_accuracy(accuracy_file)
    elif anchors is None:
        accuracy = shipped_accuracy(found)
    found = found.in_mode(mode or (accuracy.mode if accuracy else found.mode))
    complexity = _counted(found, out) if count else shipped_complexity(found)
    profile = load_profile(profile_file) if profile_file else None
    if estimate_for is not None:
        profile = _estimated(
            found, estimate_for, precision, module, super_clocks, complexity=complexity
        )
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
    _print_table(*of_overview(table, latencies=profile is not None, best=best, budget_ms=budget_ms))
    if all(entry.gmacs is None for entry in table.topologies):
        print(f"no multiply-adds ship for {found.name}, {found.mode}; --count counts them")
    for line in beside_profile(profile) if profile else ():
        print(line)
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
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Labelled images: one folder for each class, or such folders under train and val; for "
    "Fashion-MNIST its files.",
)
@click.option(
    "--frames",
    type=click.Path(path_type=Path),
    help="Images without labels, a folder or a video: the largest anchor teaches the rest.",
)
@click.option(
    "--every",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="With --frames of a video: only each so many-th one.",
)
@readers_option
@click.option(
    "--log", type=click.Path(path_type=Path), help="Folder for TensorBoard: losses and accuracies."
)
@click.option(
    "--weights",
    multiple=True,
    metavar="ANCHOR=FILE",
    callback=_anchor_files,
    help="Weights of an anchor, safetensors or a state dict of torch, instead of those of timm's "
    "hub; may be repeated.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@json_option
def calibrate(
    recipe: str,
    out: Path,
    work: Path,
    data: Path | None,
    frames: Path | None,
    every: int,
    readers: int,
    log: Path | None,
    weights: dict[str, Path],
    device: str,
    as_json: bool,
) -> None:
    """Trains and stitches the network of RECIPE, a shipped recipe's name or a TOML file.

    On several GPUs: torchrun --nproc-per-node 4 -m edgestitch calibrate ...
    """
    from .calibrate import calibrate as run
    from .calibrate import load_splits, own_images
    from .distributed import first_process
    from .progress import tensorboard
    from .report import format_percent
    from .tables import maybe

    settings = load_recipe(recipe)
    if data is not None and frames is not None:
        raise click.UsageError("give labelled images with --data or others with --frames, not both")
    with _progress() as progress, tensorboard(log) as logged:
        if frames is not None or (settings.dataset == "none" and data is not None):
            splits = own_images(
                settings.family, data=data, frames=frames, every=every, progress=progress
            )
        else:
            splits = load_splits(settings.dataset, data)
        result = run(
            settings,
            splits,
            work,
            out,
            weights=weights,
            device=device,
            readers=readers,
            progress=progress,
            log=logged,
        )
    if not first_process():
        return None
    if as_json:
        return _print_json(result)
    rows = [
        [
            step.topology,
            maybe(format_percent, step.alone),
            format_percent(step.initialized),
            maybe(format_percent, step.finetuned),
        ]
        for step in result.steps
    ]
    judged = "top-1" if result.judged_by == "labels" else f"agreement with {result.judged_by}"
    _print_table(
        f"{result.family}: {judged}", ["topology", "alone", "least squares", "fine-tuned"], rows
    )
    if result.skipped:
        print(f"{result.skipped} images could not be read and were left out", file=sys.stderr)
    for name, source in result.weights.items():
        print(f"weights of {name}: {source.file}, matched by {source.matched}")
    print(f"wrote {out}")
    return None


@verb("edgestitch import deit-ti-s-b snnet_deit.pth --out deit.safetensors", name="import")
@click.argument("family")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@out_option(None, "the network")
@json_option
def import_(family: str, checkpoint: Path, out: Path, as_json: bool) -> None:
    """The stitched network in CHECKPOINT, a file that the code of SN-Net or SN-Netv2 wrote.

    FAMILY, a shipped recipe's name or a TOML file, says what it was trained as.
    """
    from .checkpoint import import_checkpoint, provenance
    from .network import save_network
    from .report import format_count

    network = import_checkpoint(load_family(family), checkpoint)
    source = provenance(checkpoint)
    digest = save_network(network, out, **source)
    params = sum(parameter.numel() for parameter in network.parameters())
    facts = {
        "family": network.family.name,
        "mode": network.mode,
        "topologies": len(network.family.topologies),
        "params": params,
        "digest": digest,
    }
    if as_json:
        return _print_json({**facts, **source})
    for name, fact in {**facts, "params": format_count(params)}.items():
        print(f"{name:<10} {fact}")
    print(f"wrote {out}")
    return None


@verb("edgestitch evaluate deit-ti-s-b.safetensors --data imagenet/val --readers 8")
@click.argument("network", default=DEFAULT_NETWORK)
@out_option("accuracy.json", "the accuracy")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="For networks of colour images, a folder with one folder of images for each class; for "
    "those of one channel, one with Fashion-MNIST's test files (else they are looked for).",
)
@readers_option
@json_option
def evaluate(network: str, out: Path, data: Path | None, readers: int, as_json: bool) -> None:
    """Top-1 of every topology of NETWORK on labelled test images."""
    from .evaluate import evaluate as run
    from .images import evaluation_images
    from .report import format_percent

    loaded = _network(network)
    images = evaluation_images(loaded.family, data)
    with _progress() as progress:
        result = run(
            loaded,
            images,
            readers=readers,
            progress=lambda done, total: progress("evaluate", done, total),
        )
    save(result, out)
    if images.skipped:
        some = "; ".join(f"{one.path} {one.reason}" for one in images.skipped[:3])
        print(f"{len(images.skipped)} broken left out: {some}", file=sys.stderr)
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
@click.option(
    "--host", help="Measure there, over SSH: user@jetson. A lost connection is taken up again."
)
@click.option(
    "--remote-command",
    default="edgestitch",
    show_default=True,
    help="With --host: what starts edgestitch there.",
)
@backend_option
@precision_option
@batch_option
@click.option("--topologies", help="Only these, with commas between.")
@click.option("--all", "everything", is_flag=True, help="Measure all and compose none.")
@click.option(
    "--target",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Error of composed costs, 95th percentile; above it more are measured.",
)
@click.option(
    "--confidence",
    default=0.9,
    show_default=True,
    type=click.FloatRange(0.5, 0.99),
    help="Of the bounds of composed costs.",
)
@click.option("--rate", type=float, help="One call every 1/RATE seconds, as a camera asks.")
@click.option("--idle-ms", type=float, help="Rest that long before each call.")
@click.option("--contend", metavar="CMD", help="Runs beside, to take part of the device away.")
@click.option("--keep-throttled", is_flag=True, help="Keep what is measured while it throttles.")
@click.option("--power-modes", help="Profile in each of these modes in turn, with commas between.")
@click.option(
    "--energy/--no-energy", default=True, show_default=True, help="Measure energy if it can be."
)
@click.option("--require-energy", is_flag=True, help="Fail where no energy meter works.")
@click.option("--meter", help="Use this energy meter: one that `edgestitch env` lists.")
@click.option(
    "--estimate", "estimated", is_flag=True, help="Measure nothing: from the device's facts alone."
)
@module_option
@super_option
@click.option(
    "--time-cap-s",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Measuring latency ends after that at the latest, and so does energy.",
)
@click.option(
    "--min-samples",
    default=473,
    show_default=True,
    type=click.IntRange(1),
    help="Of each topology; 99th percentiles need 473.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where the profile goes; named after its conditions otherwise.",
)
@json_option
def profile(
    network: str,
    device: str,
    host: str | None,
    remote_command: str,
    backend: str,
    precision: str,
    batch: int,
    topologies: str | None,
    everything: bool,
    target: float,
    confidence: float,
    rate: float | None,
    idle_ms: float | None,
    contend: str | None,
    keep_throttled: bool,
    power_modes: str | None,
    energy: bool,
    require_energy: bool,
    meter: str | None,
    estimated: bool,
    module: str | None,
    super_clocks: bool,
    time_cap_s: float,
    min_samples: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measures latency and energy of the topologies of NETWORK: some of them, and composes the rest.

    NETWORK is a file of weights, or the name of a shipped network or recipe; where no weights ship,
    random ones are measured, which cost the same. A profile that is killed goes on where it was when
    it is called again.
    """
    modes = power_modes.split(",") if power_modes else [None]
    if len(modes) > 1 and (out is not None or host is not None):
        raise click.UsageError("--out and --host are for one profile, of one of the --power-modes")
    if host is not None and estimated:
        raise click.UsageError("an estimate needs no --host: it is made from the device's name")
    if host is not None:
        return _profile_on(host, remote_command, network, out, as_json)
    if estimated:
        result = _estimated(
            load_family(network), device, precision, module, super_clocks, batch=batch
        )
        out = out or Path(f"{result.family}.{device}.estimate-{precision}.json")
        save(result, out)
        return _print_json(result) if as_json else _show_profile(result, out)
    from .device import resolve

    resolve(device)  # before torch is imported: this is the error people meet first
    from .energy import EnergySettings
    from .measure import MeasureSettings
    from .timer import TimerSettings

    settings = MeasureSettings(
        timer=TimerSettings(
            time_cap_s=time_cap_s, min_samples=min_samples, keep_throttled=keep_throttled
        ),
        energy=EnergySettings(time_cap_s=time_cap_s) if energy or require_energy else None,
        load=_load(rate, idle_ms),
        contention=contend,
        compose=not everything,
        target=target,
        confidence=confidence,
    )
    loaded, random_weights = _network_or_random(network)
    for mode in modes:
        with _power_mode(mode):
            path, result = _measure_profile(
                loaded,
                device,
                settings,
                out,
                topologies=tuple(topologies.split(",")) if topologies else (),
                backend=backend,
                precision=precision,
                batch=batch,
                random_weights=random_weights,
                require_energy=require_energy,
                meter=meter,
            )
        if as_json:
            _print_json(result)
        else:
            _show_profile(result, path)
    return None


@verb("edgestitch verify profile.json")
@click.argument("profile_file", metavar="PROFILE", type=click.Path(path_type=Path))
@click.argument("network", required=False)
@click.option("--number", default=5, show_default=True, type=click.IntRange(2), help="Topologies.")
@click.option(
    "--tolerance",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0),
    help="Relative change of a median that is let pass.",
)
@json_option
def verify(
    profile_file: Path, network: str | None, number: int, tolerance: float, as_json: bool
) -> None:
    """Whether PROFILE still holds: measures a few of its topologies again.

    Exit code 0: it holds; 1: no longer; 3: this is another network, device, mode, driver or backend,
    or it cannot be measured here as it was.
    NETWORK may be left out where the profile is of shipped or of random weights.
    """
    from .report import format_ms

    profile = load_profile(profile_file)
    try:
        from .device import resolve

        # What the profile is of, if that can be had here; else this machine, to say what it is.
        found = resolve("cpu" if profile.conditions.device == "cpu" else "auto")
        from .instruments import find_instruments
        from .verify import verify as run

        loaded, _ = _network_or_random(network or profile.family)
        with _progress() as progress:
            result = run(
                profile,
                loaded,
                find_instruments(found, energy=False),
                number=number,
                tolerance=tolerance,
                progress=progress,
            )
    except (MismatchError, DeviceError) as error:
        print(f"edgestitch: not comparable: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(3)
    if as_json:
        _print_json({"holds": result.holds, "verification": result})
    else:
        rows = [
            [
                replay.topology,
                format_ms(replay.then_ms),
                format_ms(replay.now_ms),
                f"{replay.ratio:.3f}x",
                "holds" if replay.holds else "no longer",
            ]
            for replay in result.replays
        ]
        _print_table(
            f"{profile.family} on {profile.conditions.label}, measured {profile.date}",
            ["topology", "then", "now", "ratio", f"within {tolerance:.0%}"],
            rows,
        )
        print("the profile holds" if result.holds else "the profile no longer holds: measure again")
    sys.exit(0 if result.holds else 1)


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
    from .catalog import require_accuracy
    from .schedule import plan
    from .tables import of_plan

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
        return _print_json(result)
    _print_table(*of_plan(result))
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
    from .schedule import Budget

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
    from .measure import load_samples

    try:
        return load_samples(profile, path)
    except ArtifactError:  # a profile alone says less of rare latencies, and says so
        return None


def _memory(
    profile: "Profile", accuracy: "Accuracy", memory_mib: float | None, precision: str | None
) -> "Memory | None":
    if memory_mib is None:
        return None
    from .catalog import shipped_complexity
    from .network import build_network, count
    from .residency import memory_of_weights

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
    from .coschedule import coschedule as chosen
    from .coschedule import load_streams
    from .report import format_ms, format_percent

    result = chosen(load_streams(streams_file), power_w=budget_w, idle_w=idle_w)
    save(result, out)
    if as_json:
        return _print_json(result)
    _print_table(
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
    from .catalog import require_accuracy
    from .device import resolve

    found = resolve(device)
    from .deploy import compile_deployment
    from .instruments import find_instruments
    from .report import format_ms

    plan = load_plan(plan_file)
    if accuracy_file is not None:
        accuracy = load_accuracy(accuracy_file)
    else:
        accuracy = require_accuracy(plan.family, of_plan=plan.accuracy)
    loaded = _network(network)
    with _progress() as progress:
        deployment = compile_deployment(
            loaded,
            plan,
            accuracy,
            out,
            find_instruments(found, energy=energy),
            _settings(time_cap_s, min_samples, energy),
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
        f"{manifest.family.name} by {manifest.conditions.backend} {manifest.conditions.precision}: "
        f"{len(manifest.segments)} segments",
        ["topology", "segments", "off eager", "same class", "median", "p99 bound"],
        rows,
    )
    print(f"resident in {manifest.memory}")
    print(f"wrote {out}")
    return None


@verb("edgestitch export fashion-vit --topologies s:0:6,s:0:3+m:2:6 --out export")
@click.argument("network", default=DEFAULT_NETWORK)
@click.option("--topologies", required=True, help="Which ones, with commas between.")
@out_option("export", "the folder")
@click.option(
    "--batch",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Images that a program takes: always as many.",
)
@click.option(
    "--tensorrt",
    "precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Build each as an engine of TensorRT-RTX too, to know that it converts; no GPU is needed.",
)
@json_option
def export(
    network: str, topologies: str, out: Path, batch: int, precision: str | None, as_json: bool
) -> None:
    """Some topologies of NETWORK on their own, for other toolchains.

    The folder has one file with the weights that these topologies need, each once, which every verb
    takes for a NETWORK; a program of torch.export (.pt2) of each topology, of a fixed batch; and
    export.json, which says what goes in. Each program is compared with eager.
    """
    from .export import conversions
    from .export import export as run
    from .report import format_count

    loaded = _network(network)
    names = [name.strip() for name in topologies.split(",") if name.strip()]
    with _progress() as progress:
        result = run(loaded, names, out, batch=batch, progress=progress)
        converted = (
            conversions(loaded, names, precision=precision, batch=batch, progress=progress)
            if precision
            else {}
        )
    lacking = {name: one.unsupported for name, one in converted.items() if one.unsupported}
    if lacking:
        raise CompileError(
            "TensorRT cannot convert "
            + "; ".join(f"{name}: {', '.join(operators)}" for name, operators in lacking.items())
            + f"; the programs in {out} are written, for other toolchains"
        )
    if as_json:
        return _print_json({"export": result, "tensorrt": converted} if converted else result)
    rows = [
        [
            one.topology,
            format_count(one.params),
            f"{one.num_bytes / 1e6:.1f} MB",
            f"{check.max_difference:.1e}",
            one.file,
        ]
        for one, check in zip(result.topologies, result.checks, strict=True)
    ]
    _print_table(
        f"{result.family}: programs of torch {result.torch} for input {list(result.input_shape)}",
        ["topology", "parameters", "size", "off eager", "file"],
        rows,
    )
    part, whole = result.slice, result.whole
    print(
        f"network.safetensors: {format_count(part.params)} of {format_count(whole.params)} parameters, "
        f"{part.num_bytes / 1e6:.1f} of {whole.num_bytes / 1e6:.1f} MB"
    )
    if converted:
        _print_table(
            f"engines of TensorRT-RTX, {precision}, built to be thrown away",
            ["topology", "operators", "layers", "size", "versions"],
            [
                [
                    name,
                    str(one.ops),
                    str(one.layers),
                    f"{(one.engine_bytes or 0) / 1e6:.1f} MB",
                    ", ".join(f"{package} {version}" for package, version in one.versions.items()),
                ]
                for name, one in converted.items()
            ],
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
@click.option(
    "--rebuild/--no-rebuild",
    default=True,
    show_default=True,
    help="Compile and measure again what was made for another machine or version.",
)
@json_option
def run(
    deployment: Path | None,
    budgets_ms: tuple[float, ...],
    images: Path | None,
    rebuild: bool,
    as_json: bool,
) -> None:
    """Runs a deployment on labelled images, one budget after the other, switching in place.

    Without DEPLOYMENT: $EDGESTITCH_DEPLOYMENT, else ./deployment, else the shipped network.
    """
    from .data import load_images, shipped_images
    from .runtime import Runtime
    from .session import run_session
    from .tables import of_session

    data = load_images(images) if images else shipped_images()
    with Runtime(deployment, rebuild=rebuild) as runtime, _progress() as progress:
        budgets = budgets_ms or tuple(c.latency_ms for c in runtime.deployment.plan.resident)
        rows = run_session(runtime, data, budgets, progress=progress)
    if as_json:
        return _print_json(rows)
    _print_table(*of_session(rows))
    return None


@verb("edgestitch report accuracy.json --profile profile.json --plan plan.json --out report.html")
@accuracy_argument
@click.option(
    "--family",
    "family_name",
    help="The family, a shipped recipe's name or a TOML file; needed without ACCURACY, and where "
    "ACCURACY names one that does not ship.",
)
@click.option("--profile", "profile_file", type=click.Path(path_type=Path), help="Latencies.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="What is resident.")
@out_option("report.html", "the page")
def report(
    accuracy_file: Path | None,
    family_name: str | None,
    profile_file: Path | None,
    plan_file: Path | None,
    out: Path,
) -> None:
    """One self-contained HTML page: accuracy against latency, a budget slider, multiply-adds.

    Without ACCURACY: what ships for --family.
    """
    from .catalog import require_accuracy, shipped_complexity, shipped_peers
    from .report import write_report

    if accuracy_file is not None:
        accuracy = load_accuracy(accuracy_file)
    elif family_name is not None:
        accuracy = require_accuracy(load_family(family_name).name)
    else:
        raise click.UsageError("give ACCURACY or --family")
    family = load_family(family_name or accuracy.family).in_mode(accuracy.mode)
    write_report(
        out,
        family,
        accuracy,
        profile=load_profile(profile_file) if profile_file else None,
        plan=load_plan(plan_file) if plan_file else None,
        complexity=shipped_complexity(family),
        peers=shipped_peers(family),
    )
    print(f"wrote {out}")


@verb("edgestitch demo --out demo")
@out_option("demo", "everything that is made")
@backend_option
def demo(out: Path, backend: str) -> None:
    """The shipped network through every stage, on real images, on this machine."""
    from .demo import demonstrate
    from .report import format_ms, format_percent
    from .tables import of_plan, of_session

    with _progress() as progress:
        seen = demonstrate(out, backend=backend, progress=progress)
    profile, plan = seen.profile, seen.plan
    print(
        f"\n{profile.family} on {profile.conditions.label}: {len(profile.costs)} topologies profiled"
    )
    print(f"energy: not measured: {profile.energy_reason}")
    _print_table(*of_plan(plan))
    checks = seen.deployment.manifest.checks
    worst = max(check.max_difference for check in checks)
    print(
        f"\ncompiled {len(checks)} resident topologies into {len(seen.deployment.manifest.segments)} "
        f"segments; furthest from eager: {worst:.1e} of the largest logit"
    )
    _print_table(*of_session(seen.rows))
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


def _network_or_random(name: str) -> tuple[Any, bool]:
    """A network by name or file, and whether its weights are random since none ship for the name."""
    from .catalog import shipped_network
    from .network import build_network

    if Path(name).suffix == ".safetensors" or shipped_network(name).is_file():
        return _network(name), False
    try:
        family = load_family(name)
    except (ArtifactError, ValueError) as error:
        raise ValueError(
            f"no network {name!r}; give a .safetensors file with weights, or a recipe: {error}"
        ) from error
    print(f"no weights ship for {family.name}: random ones, which cost the same", file=sys.stderr)
    return build_network(family), True


def _load(rate: float | None, idle_ms: float | None) -> "Load":
    from .profile import Load

    if rate is not None and idle_ms is not None:
        raise click.UsageError("give --rate or --idle-ms, not both")
    if rate is not None:
        return Load(kind="paced", rate_hz=rate)
    return Load() if idle_ms is None else Load(kind="after-idle", gap_ms=idle_ms)


def _power_mode(mode: str | None) -> AbstractContextManager[object]:
    """The board in that mode meanwhile; `None` leaves it as it is."""
    if mode is None:
        return nullcontext()
    from .power import switched

    return switched(mode)


def _measure_profile(
    network: Any,
    device: str,
    settings: "MeasureSettings",
    out: Path | None,
    *,
    backend: str,
    precision: str,
    require_energy: bool,
    meter: str | None,
    **options: Any,
) -> "tuple[Path, Profile]":
    """One profile in the power mode that holds, kept while it is measured, and saved."""
    from .backends import backend as find_backend
    from .device import resolve
    from .engine import profile_network
    from .instruments import find_instruments
    from .measure import save_profile

    found = resolve(device)
    instruments = find_instruments(found, energy=settings.energy is not None, meter=meter)
    if require_energy and instruments.meter.reason is not None:
        raise DeviceError(f"no energy meter works on {found.name}: {instruments.meter.reason}")
    chosen = find_backend(backend, found.accelerator)
    out = out or Path(_profile_name(network.family.name, found, chosen.name, precision))
    unfinished = out.with_suffix(".unfinished")
    with _progress() as progress:
        result, samples = profile_network(
            network,
            instruments,
            settings,
            backend=chosen,
            precision=precision,
            unfinished=unfinished,
            progress=progress,
            **options,
        )
    save_profile(result, samples, out)
    unfinished.unlink()
    return out, result


def _profile_name(family: str, device: "Device", backend: str, precision: str) -> str:
    mode = "" if device.power_mode is None else f".{device.power_mode.lower().replace(' ', '-')}"
    return f"{family}.{device.name}{mode}.{backend}-{precision}.json"


def _profile_on(host: str, command: str, network: str, out: Path | None, as_json: bool) -> None:
    """The same command on another machine, with its own options but those that say where."""
    from .device import Device
    from .remote import profile_on

    context = click.get_current_context()
    path = Path(network)
    arguments = [path.absolute() if path.is_file() else network, *_given_options(context)]

    def where(profile: "Profile") -> Path:
        conditions = profile.conditions
        device = Device(
            name=conditions.device,
            hardware=conditions.hardware,
            cores=conditions.threads,
            memory_mib=0,
            power_mode=conditions.power_mode,
        )
        name = _profile_name(profile.family, device, conditions.backend, conditions.precision)
        return out or Path(name)

    with _progress() as progress:
        result, path = profile_on(
            host,
            arguments,
            where,
            command=command,
            progress=progress,
            tell=lambda line: print(line, file=sys.stderr),
        )
    if as_json:
        return _print_json(result)
    return _show_profile(result, path)


def _given_options(context: click.Context) -> list[str]:
    """The options that were given on the command line, for another machine."""
    here = {"network", "host", "remote_command", "out", "as_json"}
    words: list[str] = []
    for option in context.command.params:
        name = option.name or ""
        source = context.get_parameter_source(name)
        if name in here or source is not click.core.ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if isinstance(option, click.Option) and option.is_flag:
            words.append((option.opts if value else option.secondary_opts)[0])
        else:
            words += [option.opts[0], str(value)]
    return words


def _estimated(
    family: "Family",
    device: str,
    precision: str,
    module: str | None,
    super_clocks: bool,
    *,
    batch: int = 1,
    complexity: "Complexity | None" = None,
) -> "Profile":
    """The costs of a family on a device, from what is known of both without measuring."""
    from .catalog import shipped_complexity
    from .device import detect
    from .estimate import estimate, peaks

    complexity = complexity or shipped_complexity(family) or _counted(family, None)
    name = detect().name if device == "auto" else device
    found = peaks(name, module=module, super_clocks=super_clocks)
    return estimate(family, complexity, found, precision=precision, batch=batch)


def _family(name: str | None, *of_anchors: object) -> "Family":
    """The family of that name or file; what only --anchors has a use for is refused."""
    if name is None:
        raise click.UsageError("give FAMILY or --anchors")
    if any(option is not None for option in of_anchors):
        raise click.UsageError(
            f"--rule, --window, --stride and --all-pairs are for --anchors; {name} has its own"
        )
    return load_family(name)


def _counted(family: "Family", out: Path | None) -> "Complexity":
    """A family's multiply-adds and parameters, counted now."""
    from .complexity import check_order
    from .network import build_network, count

    complexity = count(build_network(family))
    check_order(family, complexity)
    if out is not None:
        save(complexity, out)
    return complexity


def _settings(time_cap_s: float, min_samples: int, energy: bool) -> "MeasureSettings":
    from .energy import EnergySettings
    from .measure import MeasureSettings
    from .timer import TimerSettings

    return MeasureSettings(
        timer=TimerSettings(time_cap_s=time_cap_s, min_samples=min_samples),
        energy=EnergySettings(time_cap_s=time_cap_s) if energy else None,
    )


def _show_profile(profile: "Profile", path: Path) -> None:
    from .tables import beside_profile, of_profile

    _print_table(*of_profile(profile))
    for line in beside_profile(profile):
        print(line)
    print(f"wrote {path}")


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # As wide as the table needs where nobody's terminal limits it.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print()
    # Not the table's own title, which is broken where the table ends.
    console.print(title, markup=False, highlight=False, soft_wrap=True, style="italic")
    console.print(table)


def _print_json(value: object) -> None:
    data = msgspec.json.encode(value)
    print(msgspec.json.format(data, indent=1).decode())


@contextmanager
def _progress() -> Iterator[Progress]:
    """A progress bar with the time left on a terminal, and nothing elsewhere.

    With EDGESTITCH_PROGRESS=json lines of JSON for whoever started this, such as `remote`.
    """
    if os.environ.get("EDGESTITCH_PROGRESS") == "json":
        from .remote import progress_lines

        yield progress_lines(sys.stderr)
        return
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
