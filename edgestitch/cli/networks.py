"""Verbs about networks: their topologies and costs, their weights, what they are worth."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgestitch import load_accuracy, load_profile
from edgestitch.artifact import save
from edgestitch.errors import CompileError
from edgestitch.recipe import load_family, load_recipe

from .base import (
    DEFAULT_NETWORK,
    json_option,
    module_option,
    named_network,
    out_option,
    print_json,
    print_table,
    progress_bar,
    readers_option,
    super_option,
    verb,
)

if TYPE_CHECKING:
    from edgestitch.accuracy import Accuracy
    from edgestitch.adhoc import Rule
    from edgestitch.complexity import Complexity
    from edgestitch.family import Family, Mode
    from edgestitch.profile import Profile


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
    from edgestitch.catalog import overview, shipped_accuracy, shipped_complexity
    from edgestitch.schedule import Budget, candidates, choose
    from edgestitch.tables import beside_profile, of_overview

    count = count or anchors is not None
    if out is not None and not count:
        raise click.UsageError("--out is for counts: give --count or --anchors with it")
    if profile_file is not None and estimate_for is not None:
        raise click.UsageError("give --profile or --device, not both: measured or estimated")
    if anchors is None:
        found = _family(family, rule, window, stride, all_pairs or None)
    elif family is None:
        from edgestitch.adhoc import describe

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
        profile = estimated_profile(
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
        return print_json(table)
    print_table(*of_overview(table, latencies=profile is not None, best=best, budget_ms=budget_ms))
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
    from edgestitch.calibrate import calibrate as run
    from edgestitch.calibrate import load_splits, own_images
    from edgestitch.distributed import first_process
    from edgestitch.progress import tensorboard
    from edgestitch.report import format_percent
    from edgestitch.tables import maybe

    settings = load_recipe(recipe)
    if data is not None and frames is not None:
        raise click.UsageError("give labelled images with --data or others with --frames, not both")
    with progress_bar() as progress, tensorboard(log) as logged:
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
        return print_json(result)
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
    print_table(
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
    from edgestitch.checkpoint import import_checkpoint, provenance
    from edgestitch.network import save_network
    from edgestitch.report import format_count

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
        return print_json({**facts, **source})
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
    from edgestitch.evaluate import evaluate as run
    from edgestitch.images import evaluation_images
    from edgestitch.report import format_percent

    loaded = named_network(network)
    images = evaluation_images(loaded.family, data)
    with progress_bar() as progress:
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
        return print_json(result)
    rows = [
        [row.topology, format_percent(row.top1), f"{row.low:.2f} to {row.high:.2f}"]
        for row in result.rows
    ]
    print_table(f"{result.family}: {result.num_images} images", ["topology", "top-1", "95 %"], rows)
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
    from edgestitch.export import conversions
    from edgestitch.export import export as run
    from edgestitch.report import format_count

    loaded = named_network(network)
    names = [name.strip() for name in topologies.split(",") if name.strip()]
    with progress_bar() as progress:
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
        return print_json({"export": result, "tensorrt": converted} if converted else result)
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
    print_table(
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
        print_table(
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


def estimated_profile(
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
    from edgestitch.catalog import shipped_complexity
    from edgestitch.device import detect
    from edgestitch.estimate import estimate, peaks

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
    from edgestitch.complexity import check_order
    from edgestitch.network import build_network, count

    complexity = count(build_network(family))
    check_order(family, complexity)
    if out is not None:
        save(complexity, out)
    return complexity
