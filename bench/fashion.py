"""What calibration reaches on Fashion-MNIST, for every kind of family. See README.md.

baseline      a network of the cost of a middle topology: trained alone, and distilled
FAMILY        what its anchors, its least squares and its fine-tuned network reach
page          the page and its pictures, from what the others recorded
"""

import argparse
import platform
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import platformdirs
import torch
from pages import result_path, table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edgestitch import __version__, load_family
from edgestitch.accuracy import wilson
from edgestitch.artifact import Value, load
from edgestitch.batchnorm import has_batchnorm, reestimated
from edgestitch.calibrate import Calibration, Splits, distilled, initialize, load_splits
from edgestitch.catalog import shipped_network
from edgestitch.complexity import above_line
from edgestitch.data import preprocess
from edgestitch.device import detect
from edgestitch.evaluate import count_correct
from edgestitch.family import Family
from edgestitch.images import batches
from edgestitch.network import StitchNetwork, build_network, count, load_network
from edgestitch.recipe import Finetuning, Recipe, Training, load_recipe
from edgestitch.shipped import shipped
from edgestitch.train import Trainer

SHIPPED = "fashion-vit"
FAMILIES = (SHIPPED, "fashion-resnet", "fashion-resnet-swin", "fashion-swin", "fashion-two-way")
BATCHNORM_IMAGES = 4_000
BATCH = 250

T = TypeVar("T")


# --- what a family reached ---------------------------------------------------------------------


class Reached(Value, frozen=True, kw_only=True):
    """Top-1 in percent of one topology, on the test images."""

    topology: str
    mmacs: float
    params: int
    alone: float | None
    joint: float
    """With stitching layers from least squares, one solve over all stitches of a layer."""
    reference: float
    """The same with the mean of their solutions."""
    finetuned: float
    own_batchnorm: float | None = None
    """Fine-tuned, with running statistics re-estimated for it alone."""


class Measured(Value, frozen=True, kw_only=True):
    """All topologies of a family."""

    family: str
    network: str
    num_images: int
    shared_layers: int
    """Stitching layers that more than one stitch shares: only there do the two solves differ."""
    layers: int
    repeated: float
    """Largest difference of the joint solve, done again, to what the calibration recorded."""
    rows: tuple[Reached, ...]


def measure(name: str, splits: Splits, networks: Path) -> Measured:
    """Both kinds of least squares from the anchors alone; the fine-tuned as it was calibrated."""
    recipe = load_recipe(name)
    folder = networks / name
    made = shipped("calibrate") if name == SHIPPED else folder
    calibration = load(Calibration, made / f"{name}.calibration.json")
    network = load_network(made / f"{name}.safetensors", family=recipe.family)
    assert calibration.network == network.digest
    assert calibration.data == splits.test.digest
    layers = {name for name, stitches in recipe.family.stitches.items() if len(stitches) > 1}
    shared = [t.name for t in recipe.family.topologies if layers & set(recipe.family.atoms(t))]
    solved = least_squares(recipe, shared, splits, folder / "work") if shared else {}
    own = own_batchnorm(network, splits) if has_batchnorm(network) else {}
    complexity = count(network)
    rows = []
    for step in calibration.steps:
        assert step.finetuned is not None
        both = solved.get(step.topology, {})
        rows.append(
            Reached(
                topology=step.topology,
                mmacs=1e3 * complexity.gmacs(recipe.family, step.topology),
                params=complexity.params(recipe.family, step.topology),
                alone=step.alone,
                joint=both.get("joint", step.initialized),
                reference=both.get("reference", step.initialized),
                finetuned=step.finetuned,
                own_batchnorm=own.get(step.topology),
            )
        )
    recorded = {step.topology: step.initialized for step in calibration.steps}
    return Measured(
        family=name,
        network=network.digest,
        num_images=len(splits.test),
        shared_layers=len(layers),
        layers=len(recipe.family.stitches),
        repeated=max((abs(solved[n]["joint"] - recorded[n]) for n in shared), default=0.0),
        rows=tuple(rows),
    )


def least_squares(
    recipe: Recipe, topologies: list[str], splits: Splits, work: Path
) -> dict[str, dict[str, float]]:
    """Top-1 with nothing trained after the anchors, whose checkpoints are in `work`, by mode."""
    family = recipe.family
    torch.manual_seed(recipe.seed)
    network = build_network(family)
    trainer = Trainer(
        family=family,
        source=splits.train,
        seed=recipe.seed,
        work=work,
        device=torch.device("cpu"),
        progress=tell,
    )
    for name, training in recipe.anchors.items():
        if not (work / f"anchor-{name}.safetensors").is_file():
            raise SystemExit(f"{family.name}: no checkpoint of anchor {name} in its work")
        # Finished, so it is loaded and no step is taken.
        anchor = network.assemble(family.whole(name))
        trainer.fit(anchor, _no_step, training, f"anchor {name}", {"training": training})
    found: dict[str, dict[str, float]] = {name: {} for name in topologies}
    for mode in ("joint", "reference"):
        number = recipe.initialize.images
        inputs = (images for images, _ in normalized(splits.train, family, number))
        tell(f"{family.name}: least squares, {mode}", 0, 1)
        initialize(network, inputs, number, mode)
        correct = count_correct(network, topologies, splits.test)
        for name, hits in correct.items():
            found[name][mode] = 100 * hits / len(splits.test)
    return found


def _no_step(images: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
    raise SystemExit("the checkpoints of the anchors are not of finished trainings")


def own_batchnorm(network: StitchNetwork, splits: Splits) -> dict[str, float]:
    """Top-1 of each topology with running statistics of its own."""
    family = network.family
    found = {}
    for topology in family.topologies:
        tell(f"batch normalisation of {topology}", 0, 1)
        inputs = normalized(splits.train, family, BATCHNORM_IMAGES)
        own = reestimated(network.assemble(topology), (images for images, _ in inputs))
        found[topology.name] = top1(own, family, splits.test)
    return found


def normalized(source: Any, family: Family, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    for pixels, labels in batches(source, range(number), BATCH):
        yield preprocess(pixels, mean=family.mean, std=family.std), labels


def top1(module: nn.Module, family: Family, source: Any) -> float:
    hits = 0
    with torch.inference_mode():
        for images, labels in normalized(source, family, len(source)):
            hits += int((module(images).argmax(1) == labels).sum())
    return 100 * hits / len(source)


def tell(stage: str, done: int, total: int) -> None:
    """A line for each tenth of a stage."""
    if done % max(1, total // 10) == 0:
        print(f"{datetime.now(timezone.utc):%H:%M:%S} {stage} {done}/{total}", flush=True)


# --- baseline ----------------------------------------------------------------------------------

MIDDLE = "m:0:4+l:4:6"
EPOCHS = 10


class Baseline(Value, frozen=True, kw_only=True):
    """A network of its own, at the cost of a topology."""

    way: str
    mmacs: float
    params: int
    top1: float
    seconds: float
    """Of training, while other work went on beside it."""


def baseline_family() -> Family:
    """One ViT of 6 blocks, as wide as makes it cost what the middle topology does."""
    family = load_family(SHIPPED)
    options = {**family.anchor("l").options, "embed_dim": 64, "num_heads": 4, "mlp_ratio": 3.125}
    anchor = msgspec.structs.replace(family.anchor("l"), name="d", options=options)
    return msgspec.structs.replace(family, name="fashion-vit-middle", anchors=(anchor,))


def baselines(splits: Splits, work: Path, epochs: int) -> list[Baseline]:
    """The network trained alone as anchor l is, and the same taught by the shipped network's l."""
    recipe, family = load_recipe(SHIPPED), baseline_family()
    assert recipe.finetune is not None
    alone = msgspec.structs.replace(recipe.anchors["l"], epochs=epochs)
    taught = Finetuning(
        **{f: getattr(alone, f) for f in Training.__struct_fields__},
        distillation=recipe.finetune.distillation,
        temperature=recipe.finetune.temperature,
    )
    whole = load_network(shipped_network(SHIPPED))
    teacher = whole.assemble(whole.family.whole("l")).eval().requires_grad_(False)
    found = []
    for way, training in (("trained alone", alone), ("distilled from l", taught)):
        torch.manual_seed(recipe.seed)
        network = build_network(family)
        student = network.assemble(family.whole("d"))
        complexity = count(network)
        share = training.distillation if isinstance(training, Finetuning) else 0.0

        def loss(
            images: Tensor, labels: Tensor, _: torch.Generator, student=student, share=share
        ) -> Tensor:
            logits = student(images)
            hard = cross_entropy(logits, labels)
            if not share:
                return hard
            with torch.no_grad():
                said = teacher(images)
            return share * distilled(logits, said, taught) + (1 - share) * hard

        begun = time.monotonic()
        trainer = Trainer(
            family=family,
            source=splits.train,
            seed=recipe.seed,
            work=work,
            device=torch.device("cpu"),
            progress=tell,
        )
        conditions = {"training": training, **({"teacher": whole.digest} if share else {})}
        trainer.fit(student, loss, training, way, conditions)
        seconds = time.monotonic() - begun
        name = family.whole("d").name
        correct = count_correct(network, [name], splits.test)[name]
        found.append(
            Baseline(
                way=way,
                mmacs=1e3 * complexity.gmacs(family, name),
                params=complexity.params(family, name),
                top1=100 * correct / len(splits.test),
                seconds=seconds,
            )
        )
    return found


# --- pictures ----------------------------------------------------------------------------------


def draw(found: Measured, baselines: list[Baseline], path: Path) -> str:
    """Accuracy against multiply-adds, as SVG; says what the picture leaves out."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "edgestitch", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot as plt

    family = load_family(found.family)
    whole = {family.whole(anchor.name).name for anchor in family.anchors}
    stars = sorted((r for r in found.rows if r.topology in whole), key=lambda r: r.mmacs)
    dots = [r for r in found.rows if r.topology not in whole]
    shown = [r.finetuned for r in found.rows] + [b.top1 for b in baselines]
    shown += [r.alone for r in stars if r.alone is not None]
    low, high = min(shown), max(shown)
    span = max(high - low, 1.0)
    bottom, top = low - 0.15 * span, high + 0.25 * span
    faint = [r for r in dots if r.joint >= low - 0.6 * span]
    if len(faint) == len(dots):
        bottom = min([bottom, *(r.joint - 0.1 * span for r in faint)])
    else:
        faint = []

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    axes.plot(
        [r.mmacs for r in stars],
        [r.finetuned for r in stars],
        color="#999999",
        linewidth=1,
        zorder=1,
        label="straight line between anchors",
    )
    if faint:
        axes.plot(
            [r.mmacs for r in faint],
            [r.joint for r in faint],
            "o",
            color="#f0b27a",
            markersize=3.5,
            zorder=2,
            label="stitched, least squares only",
        )
    axes.plot(
        [r.mmacs for r in dots],
        [r.finetuned for r in dots],
        "o",
        color="#1f6fb2",
        markersize=4.5,
        zorder=3,
        label="stitched, fine-tuned",
    )
    axes.plot(
        [r.mmacs for r in stars],
        [r.alone for r in stars],
        "*",
        color="#c0392b",
        markersize=12,
        markerfacecolor="none",
        zorder=4,
        label="anchor, alone",
    )
    axes.plot(
        [r.mmacs for r in stars],
        [r.finetuned for r in stars],
        "*",
        color="#c0392b",
        markersize=12,
        zorder=4,
        label="anchor, fine-tuned",
    )
    for b, marker in zip(baselines, "sD", strict=False):
        axes.plot(
            [b.mmacs],
            [b.top1],
            marker,
            color="#2e7d32",
            markersize=5,
            markerfacecolor="none" if marker == "s" else "#2e7d32",
            linestyle="none",
            zorder=5,
            label=f"a network of its own, {b.way}",
        )
    for r in stars:
        axes.annotate(
            r.topology.partition(":")[0],
            (r.mmacs, r.finetuned),
            textcoords="offset points",
            xytext=(0, 8),
            ha="center",
        )
    middle = sum(r.finetuned for r in stars) / len(stars) / 100
    share = wilson(round(middle * found.num_images), found.num_images)
    half = 100 * (share[1] - share[0]) / 2
    right = max(r.mmacs for r in found.rows) * 1.06
    axes.errorbar(
        [right], [bottom + 1.2 * half], yerr=[half], color="#555555", capsize=3, linewidth=1
    )
    axes.annotate(
        "95 %",
        (right, bottom + 1.2 * half),
        textcoords="offset points",
        xytext=(-5, 0),
        ha="right",
        va="center",
        color="#555555",
    )
    axes.set_ylim(bottom, top)
    axes.set_xlim(left=0)
    axes.set_xlabel("multiply-adds, millions")
    axes.set_ylabel("top-1 on the test images, %")
    axes.set_title(found.family)
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    figure.legend(fontsize=7.5, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = path.read_text()
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")
    if faint:
        return ""
    values = [r.joint for r in dots]
    return f"Least squares only ({min(values):.1f} to {max(values):.1f} %) is below the picture. "


# --- page --------------------------------------------------------------------------------------


class Summary(Value, frozen=True, kw_only=True):
    """What a family's table comes to, in points."""

    above: dict[str, float]
    mean: float
    mean_alone: float
    """Over the line between the anchors as they were alone."""
    loss: float
    falls: tuple[str, str] | None
    """The last two neighbours of which the dearer is the less accurate one, as trained alone."""
    better: int
    """Stitched topologies more accurate than every anchor of the network."""


def summary(found: Measured) -> Summary:
    family = load_family(found.family)
    # From the table itself, so that the page follows from what was recorded.
    complexity = count(build_network(family))
    tuned = {r.topology: r.finetuned for r in found.rows}
    alone = {r.topology: r.finetuned if r.alone is None else r.alone for r in found.rows}
    above = above_line(family, complexity, tuned)
    above_alone = above_line(family, complexity, alone)
    names = [family.whole(anchor.name).name for anchor in family.anchors]
    falls = [(a, b) for a, b in pairwise(names) if alone[b] < alone[a]]
    return Summary(
        above=above,
        mean=sum(above.values()) / len(above),
        mean_alone=sum(above_alone.values()) / len(above_alone),
        loss=max(alone[name] - tuned[name] for name in names),
        falls=falls[-1] if falls else None,
        better=sum(tuned[name] > max(tuned[n] for n in names) for name in above),
    )


def section(found: Measured, baselines: list[Baseline], picture: Path) -> list[str]:
    total = summary(found)
    left_out = draw(found, baselines, picture)
    both = found.shared_layers > 0
    head = ["topology", "MMACs", "params", "alone", "least squares only: `joint`"]
    head += ["`reference`"] if both else []
    head += ["fine-tuned", "above the line"]
    rows = []
    for r in found.rows:
        stitched = r.topology in total.above
        cells = [f"`{r.topology}`", f"{r.mmacs:.2f}", f"{r.params:,}"]
        cells.append("" if r.alone is None else f"{r.alone:.2f}")
        cells.append(f"{r.joint:.2f}" if stitched else "")
        if both:
            cells.append(f"{r.reference:.2f}" if stitched else "")
        cells += [f"{r.finetuned:.2f}", f"{total.above[r.topology]:+.2f}" if stitched else ""]
        rows.append(cells)
    lines = [
        f"## {found.family}",
        "",
        f"![accuracy of {found.family} against multiply-adds]({picture.name})",
        "",
        f"{left_out}Mean above the line over {len(total.above)} stitched topologies: "
        f"**{total.mean:+.2f} points** ({total.mean_alone:+.2f} over the line between the anchors "
        f"as they were alone). Largest loss of an anchor against itself alone: {total.loss:+.2f} "
        f"points. {total.better} of {len(total.above)} stitched topologies are more accurate than "
        "every anchor of the network.",
    ]
    if total.falls:
        cheap, dear = (next(r for r in found.rows if r.topology == n) for n in total.falls)
        lines += [
            "",
            f"**The line falls**: `{dear.topology}` costs more than `{cheap.topology}` and is less "
            f"accurate ({dear.alone:.2f} against {cheap.alone:.2f} % alone). Above such a line is "
            f"less than it says; what counts is how many topologies beat `{cheap.topology}`.",
        ]
    if both:
        again = (
            "`joint`, done again from the anchors, is what the calibration recorded"
            if found.repeated < 0.005
            else f"`joint`, done again from the anchors, differs by up to {found.repeated:.2f} "
            "points from what the calibration recorded"
        )
        sharing = [r for r in found.rows if r.joint != r.reference]
        means = {
            mode: sum(getattr(r, mode) for r in sharing) / max(1, len(sharing))
            for mode in ("joint", "reference")
        }
        differ = (
            f"Over the {len(sharing)} topologies where the two solves differ, `joint` reaches "
            f"{means['joint']:.2f} % on average, `reference` {means['reference']:.2f} %"
            if sharing
            else "Those start from the same features, and then the mean of the solutions is the "
            "joint solution"
        )
        lines += [
            "",
            f"Least squares: {found.shared_layers} of {found.layers} layers "
            f"{'is' if found.shared_layers == 1 else 'are'} shared by several stitches. {differ}; "
            f"{again}.",
        ]
    else:
        lines += [
            "",
            "Least squares: every layer serves one stitch, so `joint` and `reference` are the same.",
        ]
    return [*lines, "", *table(head, rows), ""]


def batchnorm_section(measured: list[Measured]) -> list[str]:
    rows, notes = [], []
    for found in measured:
        gains = {
            r.topology: r.own_batchnorm - r.finetuned
            for r in found.rows
            if r.own_batchnorm is not None
        }
        if not gains:
            continue
        rows += [
            [
                found.family,
                f"`{r.topology}`",
                "" if r.alone is None else f"{r.alone:.2f}",
                f"{r.finetuned:.2f}",
                f"{r.own_batchnorm:.2f}",
                f"{gains[r.topology]:+.2f}",
            ]
            for r in found.rows
        ]
        own = tuple(msgspec.structs.replace(r, finetuned=r.own_batchnorm) for r in found.rows)
        before, after = summary(found), summary(msgspec.structs.replace(found, rows=own))
        notes.append(
            f"{found.family}: {sum(gains.values()) / len(gains):+.2f} points on average, "
            f"{min(gains.values()):+.2f} to {max(gains.values()):+.2f}; the largest loss of an "
            f"anchor goes from {before.loss:+.2f} to {after.loss:+.2f}, the mean above the line "
            f"between anchors alone from {before.mean_alone:+.2f} to {after.mean_alone:+.2f}."
        )
    columns = ["family", "topology", "alone", "shared statistics", "its own", "gain"]
    return [
        "## BatchNorm",
        "",
        "Top-1 of the fine-tuned network with its shared running statistics, and with those of "
        f"{BATCHNORM_IMAGES:,} training images in batches of {BATCH} estimated for the topology alone "
        "(`batchnorm.reestimated`); weights are the same. " + " ".join(notes),
        "",
        *table(columns, rows),
        "",
    ]


def baseline_section(found: list[Baseline], vit: Measured) -> list[str]:
    middle = next(r for r in vit.rows if r.topology == MIDDLE)
    rows = [
        [f"`{MIDDLE}` of the stitched network", f"{middle.mmacs:.2f}", f"{middle.params:,}",
         f"{middle.finetuned:.2f}", ""],
        *(
            [f"a ViT of its own, {b.way}", f"{b.mmacs:.2f}", f"{b.params:,}", f"{b.top1:.2f}",
             f"{b.top1 - middle.finetuned:+.2f}"]
            for b in found
        ),
    ]  # fmt: skip
    return [
        "## Why not distil?",
        "",
        f"A ViT of 6 blocks, width 64, 4 heads, as dear as `{MIDDLE}`: trained alone as anchor `l` "
        f"was ({EPOCHS} epochs, batches of 128), and from the same initial weights for as many steps "
        "with half of the loss from the shipped network's `l:0:6` (temperature 2), as fine-tuning "
        "has it. One run each, one seed.",
        "",
        *table(["network", "MMACs", "params", "top-1", "against stitched"], rows),
        "",
        f"One such network is one point; {len(vit.rows)} points would be {len(vit.rows)} trainings "
        "and as many sets of weights.",
        "",
    ]


def page(measured: list[Measured], baselines: list[Baseline], missing: list[str], out: Path) -> str:
    device = detect()
    low, high = (100 * share for share in wilson(8_900, 10_000))
    totals = {found.family: summary(found) for found in measured}
    reading = [
        f"Top-1 on 10,000 images: the 95 % interval (Wilson) is +-{(high - low) / 2:.1f} points at "
        "89 %, so a single difference below that is none; means over many topologies of one "
        "network share its images and its seed. One calibration of each family, one seed.",
        "Mean above the line: "
        + ", ".join(f"{name} {total.mean:+.2f}" for name, total in totals.items())
        + " points; above the line between the anchors as they were alone: "
        + ", ".join(f"{name} {total.mean_alone:+.2f}" for name, total in totals.items())
        + "; largest loss of an anchor: "
        + ", ".join(f"{name} {total.loss:+.2f}" for name, total in totals.items())
        + ".",
    ]
    falls = [name for name, total in totals.items() if total.falls]
    if falls:
        reading.append(
            f"In {' and '.join(falls)} the anchor that costs more is the less accurate one, so the "
            "line falls and being above it says little."
        )
    lines = [
        "# What does calibration reach on Fashion-MNIST, for every kind of family?",
        "",
        f"{datetime.now(timezone.utc).date().isoformat()}; networks made by `edgestitch calibrate` "
        "from the recipes of their names, Fashion-MNIST at 28 x 28, 60,000 training and 10,000 test "
        "images, fp32.",
        "",
        "## Reading",
        "",
        " ".join(reading),
        "",
        "## Machine",
        "",
        f"{device.hardware}, {device.memory_mib} MiB; one thread each.",
        "",
        "## Versions",
        "",
        f"edgestitch {__version__}, torch {torch.__version__}, timm {version('timm')}, matplotlib "
        f"{version('matplotlib')}, Python {platform.python_version()}.",
        "",
        "## Command",
        "",
        "For each family but the shipped `fashion-vit`, whose network is `calibrate/fashion-vit."
        "safetensors`:",
        "",
        "    edgestitch calibrate FAMILY --out NETWORKS/FAMILY/FAMILY.safetensors --work NETWORKS/FAMILY/work",
        f"    python bench/fashion.py {' '.join(totals)}{' baseline' if baselines else ''} page --networks NETWORKS",
        "",
        "*alone*: an anchor as it was trained by itself; *least squares only*: nothing trained after "
        "the anchors but the stitching layers' initialisation; *above the line*: fine-tuned top-1 "
        "minus the straight line, over multiply-adds, between the fine-tuned anchors that the "
        "topology runs through.",
        "",
    ]
    for found in measured:
        beside = baselines if found.family == SHIPPED else []
        lines += section(found, beside, out.with_name(f"{picture_name(found.family)}.svg"))
    if any(r.own_batchnorm is not None for found in measured for r in found.rows):
        lines += batchnorm_section(measured)
    vit = next((found for found in measured if found.family == SHIPPED), None)
    if baselines and vit:
        lines += baseline_section(baselines, vit)
    return "\n".join([*lines, "## Not measured", "", *missing, ""])


def picture_name(family: str) -> str:
    return f"{family.replace('-', '_')}_{datetime.now(timezone.utc):%Y%m}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=("baseline", *FAMILIES, "page"), metavar="WHAT")
    parser.add_argument(
        "--networks", type=Path, help="holds FAMILY/FAMILY.safetensors and its work"
    )
    parser.add_argument(
        "--record",
        type=Path,
        default=platformdirs.user_cache_path("edgestitch") / "bench-fashion",
        help="keeps what was measured until the page is made",
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    record: Path = options.record
    record.mkdir(parents=True, exist_ok=True)
    for what in [what for what in options.what if what != "page"]:
        splits = load_splits("fashion-mnist")
        if what == "baseline":
            keep(baselines(splits, record / "baseline", EPOCHS), record / "baseline.json")
        else:
            if options.networks is None:
                parser.error("--networks is needed for a family")
            keep(measure(what, splits, options.networks), record / f"{what}.json")
    if "page" not in options.what:
        return
    kept = {name: kept_in(record / f"{name}.json", Measured) for name in FAMILIES}
    measured = [found for found in kept.values() if found is not None]
    trained = kept_in(record / "baseline.json", list[Baseline]) or []
    missing = [f"- {name}: no network was there." for name, found in kept.items() if found is None]
    if not trained:
        missing.append(
            f"- A network of the cost of `{MIDDLE}`, trained alone and distilled: `python "
            "bench/fashion.py baseline page` trains both and adds them."
        )
    missing.append("- More than one seed. Photographs: Fashion-MNIST is 28 x 28 in grey.")
    out = options.out or result_path("fashion", detect().hardware)
    out.write_text(page(measured, trained, missing, out))
    print(out.read_text())


def keep(found: Any, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found)))


def kept_in(path: Path, kind: type[T]) -> T | None:
    return msgspec.json.decode(path.read_bytes(), type=kind) if path.exists() else None


if __name__ == "__main__":
    main()
