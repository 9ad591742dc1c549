"""Calibration: from a recipe to the weights of a stitched network.

    anchors alone  ->  least squares for the stitching layers  ->  fine-tuning, some topologies a step

A calibration that was killed goes on from its last checkpoint and reaches the same weights.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, softmax
from torch.nn.utils import parametrize

from .artifact import Artifact, Value, save, sha256
from .complexity import Complexity, check_order
from .data import LabelledImages, fashion_mnist, preprocess, toy_images
from .distributed import ALONE, Workers, local_device, workers
from .evaluate import count_correct
from .family import Family
from .images import ArraySource, Source, batches, broken_rows, held_out, open_source
from .network import StitchNetwork, count, join, save_network
from .pretrained import Weights, build_anchors, build_teacher
from .progress import Log, Progress, silent, unlogged
from .recipe import Finetuning, Recipe, Training
from .stitch import LeastSquares, StitchingLayer, rows
from .train import Trainer

LEAST_SQUARES_BATCH = 250


class Step(Value, frozen=True, kw_only=True):
    """What one topology reached at the stages of its calibration, in percent."""

    topology: str
    alone: float | None
    """An anchor as it was trained alone; `None` for stitched topologies."""
    initialized: float
    """With stitching layers from least squares, nothing else trained."""
    finetuned: float | None


class Calibration(Artifact, frozen=True, kw_only=True):
    """What a calibration reached on the test images."""

    kind: ClassVar[str] = "calibration"
    version: ClassVar[int] = 1

    family: str
    network: str
    """Digest of the resulting weights."""
    recipe: str
    """Digest of the recipe."""
    data: str
    """Digest of the test images."""
    judged_by: str = "labels"
    """`labels`: percentages are top-1; else the share of images in which a topology says what this
    anchor alone says, for images without labels."""
    skipped: int = 0
    """Images that could not be read."""
    weights: dict[str, Weights] = msgspec.field(default_factory=dict)
    """The files that anchors began with, by anchor."""
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Splits:
    """The images that a calibration learns from, and those that judge it."""

    train: Source
    test: Source


def load_splits(dataset: str, folder: Path | None = None) -> Splits:
    """The data set that a recipe names.

    Raises:
        ArtifactError: its files are not here; the message says how to get them.
        ValueError: the recipe names none.
    """
    if dataset == "fashion-mnist":
        return in_memory(fashion_mnist("train", folder), fashion_mnist("test", folder))
    if dataset == "toy":
        return in_memory(toy_images(512, seed=0), toy_images(256, seed=1))
    raise ValueError(
        "the recipe names no data set: give a folder of classes with --data, or images without "
        "labels with --frames"
    )


def own_images(
    family: Family,
    *,
    data: Path | None = None,
    frames: Path | None = None,
    every: int = 1,
    progress: Progress = silent,
) -> Splits:
    """A user's own images: a folder of classes, or a folder or video without labels.

    A folder that holds `train` and `val` is divided so already; of anything else a tenth is held
    out to judge by.

    Raises:
        ArtifactError: no images can be read from there.
    """
    shape, number = family.input_shape, family.num_classes
    if frames is not None:
        found: Source = open_source(
            frames, shape=shape, labelled=False, every=every, progress=progress
        )
        return Splits(*held_out(found))
    assert data is not None
    parts = [data / "train", data / "val"]
    if all(part.is_dir() for part in parts):
        train, test = (
            open_source(part, shape=shape, labelled=True, num_classes=number) for part in parts
        )
        return Splits(train, test)
    return Splits(*held_out(open_source(data, shape=shape, labelled=True, num_classes=number)))


def in_memory(train: LabelledImages, test: LabelledImages) -> Splits:
    return Splits(ArraySource(train), ArraySource(test))


def choose_device(device: str = "auto") -> torch.device:
    """The device to compute on; `auto` is a CUDA GPU where there is one."""
    if device == "auto":
        return local_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return local_device(torch.device(device))


def calibrate(
    recipe: Recipe,
    splits: Splits,
    work: Path,
    out: Path,
    *,
    weights: Mapping[str, Path] | None = None,
    device: str = "auto",
    readers: int = 0,
    progress: Progress = silent,
    log: Log = unlogged,
) -> Calibration:
    """Makes the weights of a recipe; writes them to `out` and the calibration beside it as JSON.

    Anchors that the recipe does not train come from timm's hub, or from the files in `weights`, by
    anchor; one that it does train begins with those of its file. `teacher` names the file of the
    recipe's teacher. `work` keeps the checkpoints; calling again with the same recipe, data and
    folder goes on where the last call ended. Under `torchrun` the processes divide the work, and
    only the first one writes.

    Raises:
        MismatchError: `work` holds checkpoints of another recipe or data set.
        ValueError: the recipe's anchors do not stand in order of cost, or it trains on labels that
            the images lack.
    """
    target = choose_device(device)
    with workers(target) as all_workers:
        torch.manual_seed(recipe.seed)
        files = dict(weights or {})
        taught_by = (
            files.pop("teacher", None) if recipe.finetune and recipe.finetune.teacher else None
        )
        models, sources = build_anchors(recipe.family, pretrained=not recipe.anchors, weights=files)
        network = join(recipe.family, models).to(target)
        complexity = count(network)
        check_order(recipe.family, complexity)
        session = _Session(
            recipe=recipe,
            splits=splits,
            weights=sources,
            taught_by=taught_by,
            trainer=Trainer(
                family=recipe.family,
                source=splits.train,
                seed=recipe.seed,
                work=work,
                device=target,
                workers=all_workers,
                parts=recipe.finetune.topologies_per_step if recipe.finetune else 1,
                readers=readers,
                progress=progress if all_workers.first else silent,
                log=log if all_workers.first else unlogged,
            ),
        )
        return session.run(network, complexity, out)


def initialize(
    network: StitchNetwork,
    images: Iterable[Tensor],
    num_images: int,
    mode: str = "joint",
    workers: Workers = ALONE,
) -> None:
    """Sets the stitching layers by least squares over a stream of input batches, in eval mode.

    `joint` solves one problem over all stitches that share a layer; `reference` takes the mean of
    their solutions, as the authors' code does. Memory does not grow with the number of images.
    """
    network.eval()
    # From nothing, since a process may have no share of few images.
    problems = {
        layer: [_no_rows(network.atoms[layer]) for _ in stitches]
        for layer, stitches in network.family.stitches.items()
    }
    with torch.no_grad():
        for batch in _first(images, num_images):
            features = {a.name: _features(network, a.name, batch) for a in network.family.anchors}
            for layer, stitches in network.family.stitches.items():
                new = [
                    LeastSquares.over(
                        rows(features[s.front][s.stop], network.layouts[s.front]),
                        rows(features[s.back][s.start], network.layouts[s.back]),
                    )
                    for s in stitches
                ]
                problems[layer] = [a + b for a, b in zip(problems[layer], new, strict=True)]
    workers.add(tensor for parts in problems.values() for part in parts for tensor in part.tensors)
    with torch.no_grad():
        for name, parts in problems.items():
            if mode == "joint":
                solutions = [sum(parts[1:], parts[0]).solve()]
            else:
                solutions = [part.solve() for part in parts]
            stitching_layer = network.atoms[name]
            assert isinstance(stitching_layer, StitchingLayer)
            stitching_layer.weight.copy_(torch.stack([w for w, _ in solutions]).mean(0))
            stitching_layer.bias.copy_(torch.stack([b for _, b in solutions]).mean(0))


def _no_rows(layer: nn.Module) -> LeastSquares:
    assert isinstance(layer, StitchingLayer)
    none = (
        layer.weight.new_empty(0, layer.in_features),
        layer.weight.new_empty(0, layer.out_features),
    )
    return LeastSquares.over(*none)


def _features(network: StitchNetwork, anchor: str, images: Tensor) -> list[Tensor]:
    """What enters block 0, 1, ... of an anchor, and last what leaves its last block."""
    features = [network.atoms[f"{anchor}:stem"](images)]
    for index in range(network.family.anchor(anchor).depth):
        features.append(network.atoms[f"{anchor}:{index}"](features[-1]))
    return features


def _first(stream: Iterable[Tensor], num_images: int) -> Iterator[Tensor]:
    left = num_images
    for batch in stream:
        if left <= 0:
            return
        yield batch[:left]
        left -= len(batch)


def groups(family: Family, complexity: Complexity, gap_gmacs: float) -> list[list[int]]:
    """Topologies, by their place in the family, in groups of like cost (SN-Netv2, section 3.3).

    From cheap to dear; a group ends where multiply-adds exceed its first member's by more than the
    gap.
    """
    costs = [complexity.gmacs(family, topology) for topology in family.topologies]
    found: list[list[int]] = []
    for index in sorted(range(len(costs)), key=lambda index: costs[index]):
        if not found or costs[index] - costs[found[-1][0]] > gap_gmacs:
            found.append([])
        found[-1].append(index)
    return found


class LowRank(nn.Module):
    """A weight as what it was plus a product of rank r, `B @ A / r` (Hu et al. 2022; SN-Netv2)."""

    def __init__(self, width: int, back_width: int, rank: int, random: torch.Generator) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, width))
        self.b = nn.Parameter(torch.zeros(back_width, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5), generator=random)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a / len(self.a)


def make_low_rank(network: StitchNetwork, rank: int, seed: int = 0) -> None:
    """Freezes the stitching layers' weights and adds what is trained in their place.

    Drawn from the seed alone: torch's own state depends on what a process trained before.
    """
    random = torch.Generator().manual_seed(seed)
    for layer in _stitching_layers(network):
        layer.weight.requires_grad_(False)
        change = LowRank(layer.in_features, layer.out_features, rank, random)
        change = change.to(layer.weight.device)
        parametrize.register_parametrization(layer, "weight", change)


def fold_low_rank(network: StitchNetwork) -> None:
    """Makes the stitching layers plain again, what was trained folded into their weights."""
    for layer in _stitching_layers(network):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        layer.weight.requires_grad_(True)


def _stitching_layers(network: StitchNetwork) -> list[StitchingLayer]:
    return [layer for layer in network.atoms.values() if isinstance(layer, StitchingLayer)]


@dataclass(frozen=True, kw_only=True)
class _Session:
    """One calibration: its recipe, its images and its trainer."""

    recipe: Recipe
    splits: Splits
    weights: Mapping[str, Weights]
    taught_by: Path | None
    trainer: Trainer

    @property
    def family(self) -> Family:
        return self.recipe.family

    @property
    def largest(self) -> str:
        return self.family.whole(self.family.anchors[-1].name).name

    def run(self, network: StitchNetwork, complexity: Complexity, out: Path) -> Calibration:
        for name, training in self.recipe.anchors.items():
            self.train_anchor(network, name, training)
        anchors = [self.family.whole(anchor.name).name for anchor in self.family.anchors]
        judge = self.judge(network)
        alone = judge(network, anchors, "anchors alone")

        settings = self.recipe.initialize
        initialize(
            network,
            self.images(settings.images),
            settings.images,
            settings.mode,
            self.trainer.workers,
        )
        names = [topology.name for topology in self.family.topologies]
        initialized = judge(network, names, "least squares alone")

        finetuned: dict[str, float] = {}
        if self.recipe.finetune is not None:
            self.finetune(network, self.recipe.finetune, complexity)
            finetuned = judge(network, names, "fine-tuned")

        recipe_digest = sha256(msgspec.json.encode(self.recipe, order="sorted"))
        result = Calibration(
            family=self.family.name,
            network=network.digest,
            recipe=recipe_digest,
            data=self.splits.test.digest,
            judged_by="labels" if self.splits.test.labelled else self.largest,
            skipped=self.num_skipped(self.splits.train) + self.num_skipped(self.splits.test),
            weights=dict(self.weights),
            steps=tuple(
                Step(
                    topology=name,
                    alone=alone.get(name),
                    initialized=initialized[name],
                    finetuned=finetuned.get(name),
                )
                for name in names
            ),
        )
        if self.trainer.workers.first:
            save_network(network, out, recipe=recipe_digest, dataset=self.recipe.dataset)
            save(result, out.with_suffix(".calibration.json"))
        self.trainer.workers.wait()
        return result

    def images(self, number: int) -> Iterator[Tensor]:
        """This process's share of the first training images, as a network takes them."""
        total = min(number, len(self.splits.train))
        starts = range(0, total, LEAST_SQUARES_BATCH)
        mine = [starts[index] for index in self.trainer.workers.share(len(starts))]
        for done, start in enumerate(mine):
            self.trainer.progress("least squares", done, len(mine))
            chosen = range(start, min(start + LEAST_SQUARES_BATCH, total))
            pixels, _ = self.splits.train.load(chosen)
            yield self.normalize(pixels)

    def normalize(self, pixels: Tensor) -> Tensor:
        images = pixels.to(self.trainer.device)
        return preprocess(images, mean=self.family.mean, std=self.family.std)

    def judge(self, network: StitchNetwork) -> "Judge":
        """Percent of test images on which each topology is right, or agrees with the largest anchor."""
        truth = None
        if not self.splits.test.labelled:
            truth = predictions(network, self.largest, self.splits.test)

        def judge(network: StitchNetwork, names: Sequence[str], stage: str) -> dict[str, float]:
            progress = partial(self.trainer.progress, f"evaluate: {stage}")
            correct = count_correct(
                network,
                names,
                self.splits.test,
                labels=truth,
                progress=progress,
                workers=self.trainer.workers,
            )
            total = self.num_good(self.splits.test)
            shares = {name: 100 * hits / total for name, hits in correct.items()}
            self.trainer.log(stage, 0, shares)
            return shares

        return judge

    def num_good(self, source: Source) -> int:
        """Images of a source but for the broken ones, which any process may have met."""
        broken = torch.zeros(len(source), device=self.trainer.device)
        broken[list(broken_rows(source))] = 1
        self.trainer.workers.add([broken])
        return len(source) - int((broken > 0).sum())

    def num_skipped(self, source: Source) -> int:
        """Broken images that any process met, and what was left out without a row, as all know."""
        rowless = sum(skipped.row is None for skipped in source.skipped)
        return len(source) - self.num_good(source) + rowless

    def train_anchor(self, network: StitchNetwork, name: str, training: Training) -> None:
        anchor = network.assemble(self.family.whole(name))
        self.require_labels(f"training anchor {name}")

        def loss(images: Tensor, labels: Tensor, _: torch.Generator) -> Tensor:
            return cross_entropy(anchor(images), labels, label_smoothing=training.label_smoothing)

        begun = {"weights": self.weights[name]} if name in self.weights else {}
        self.trainer.fit(anchor, loss, training, f"anchor {name}", {"training": training, **begun})

    def finetune(
        self, network: StitchNetwork, training: Finetuning, complexity: Complexity
    ) -> None:
        """Random topologies a step; labels where there are any, and a teacher."""
        labelled = self.splits.train.labelled
        if training.distillation == 0:
            self.require_labels("fine-tuning without distillation")
        share = training.distillation if labelled else 1.0
        teacher = self.teacher(network, training)
        draw = self.sampler(training, complexity)
        if training.rank:
            make_low_rank(network, training.rank, self.recipe.seed)

        def loss(images: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
            student = network.assemble(draw(random))
            logits = student(images)
            parts = torch.zeros((), device=logits.device)
            if share > 0:
                with torch.no_grad():
                    taught = teacher(images)
                parts = parts + share * distilled(logits, taught, training)
            if share < 1:
                hard = cross_entropy(logits, labels, label_smoothing=training.label_smoothing)
                parts = parts + (1 - share) * hard
            return parts

        made_of = {"recipe": self.recipe, **{f"{a} weights": w for a, w in self.weights.items()}}
        self.trainer.fit(network, loss, training, "fine-tuning", made_of)
        if training.rank:
            fold_low_rank(network)

    def teacher(self, network: StitchNetwork, training: Finetuning) -> nn.Module:
        """A frozen copy of the largest anchor as it is now, or the timm model that is named."""
        if not training.teacher:
            teacher: nn.Module = copy.deepcopy(network.assemble(self.largest))
        else:
            teacher = build_teacher(training.teacher, self.family, self.taught_by)
        return teacher.to(self.trainer.device).eval().requires_grad_(False)

    def sampler(
        self, training: Finetuning, complexity: Complexity
    ) -> Callable[[torch.Generator], str]:
        """Draws the topology of a step."""
        names = [topology.name for topology in self.family.topologies]
        members = [list(range(len(names)))]
        if training.sampling == "grouped":
            members = groups(self.family, complexity, training.group_gap_gmacs)

        def draw(random: torch.Generator) -> str:
            group = members[int(torch.randint(len(members), (), generator=random))]
            return names[group[int(torch.randint(len(group), (), generator=random))]]

        return draw

    def require_labels(self, what: str) -> None:
        if not self.splits.train.labelled:
            raise ValueError(
                f"{what} needs labels, and the images have none; give a folder of classes with "
                "--data, or anchors that are pretrained and a recipe that distils"
            )


Judge = Callable[[StitchNetwork, Sequence[str], str], dict[str, float]]


def distilled(logits: Tensor, taught: Tensor, training: Finetuning) -> Tensor:
    """Cross-entropy against what a teacher says: its most probable class, or its probabilities."""
    if training.hard:
        return cross_entropy(logits, taught.argmax(1))
    target = softmax(taught / training.temperature, dim=1)
    soft = log_softmax(logits / training.temperature, dim=1)
    return -(target * soft).sum(1).mean() * training.temperature**2


def predictions(network: StitchNetwork, topology: str, source: Source) -> Tensor:
    """The class that a topology gives each image, [N]."""
    family = network.family
    device = next(network.parameters()).device
    chain = network.eval().assemble(topology)
    found = []
    with torch.inference_mode():
        for pixels, _ in batches(source, range(len(source)), LEAST_SQUARES_BATCH):
            images = preprocess(pixels.to(device), mean=family.mean, std=family.std)
            found.append(chain(images).argmax(1).cpu())
    return torch.cat(found)
