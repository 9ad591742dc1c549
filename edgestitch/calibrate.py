"""Calibration: from a recipe to the weights of a stitched network.

    anchors alone  ->  least squares for the stitching layers  ->  fine-tuning, one topology a step

Each epoch ends in a checkpoint; a calibration that was killed goes on after the last one and
reaches the same weights, because everything random is drawn from the seed, the stage and the epoch.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, softmax

from .artifact import Artifact, Value, load_tensors, save, save_tensors, sha256
from .data import LabelledImages, fashion_mnist, preprocess, toy_images
from .errors import MismatchError
from .evaluate import count_correct
from .family import Family, Finetuning, Recipe, Training
from .network import StitchNetwork, build_network, save_network
from .progress import Progress, silent
from .stitch import LeastSquares, StitchingLayer

CHECKPOINT = "calibration checkpoint"
CHECKPOINT_VERSION = 1


class Step(Value, frozen=True, kw_only=True):
    """Top-1, in percent, of one topology at the stages of its calibration."""

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
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Splits:
    """The images that a calibration learns from, and those that judge it."""

    train: LabelledImages
    test: LabelledImages


def load_splits(dataset: str, folder: Path | None = None) -> Splits:
    """The data set that a recipe names.

    Raises:
        ArtifactError: its files are not here; the message says how to get them.
        ValueError: the recipe names none.
    """
    if dataset == "fashion-mnist":
        return Splits(fashion_mnist("train", folder), fashion_mnist("test", folder))
    if dataset == "toy":
        return Splits(toy_images(512, seed=0), toy_images(256, seed=1))
    raise ValueError("the recipe names no data set: it describes a family, not a calibration")


def choose_device(device: str = "auto") -> torch.device:
    """The device to compute on; `auto` is a CUDA GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def calibrate(
    recipe: Recipe,
    splits: Splits,
    work: Path,
    out: Path,
    *,
    device: str = "auto",
    progress: Progress = silent,
) -> Calibration:
    """Makes the weights of a recipe; writes them to `out` and the calibration beside it as JSON.

    `work` keeps the checkpoints; calling again with the same recipe, data and folder goes on where
    the last call ended.

    Raises:
        MismatchError: `work` holds checkpoints of another recipe or data set.
    """
    target = choose_device(device)
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.family, pretrained=not recipe.anchors).to(target)
    session = _Session(recipe, splits, work, target, progress)

    for name, training in recipe.anchors.items():
        session.train_anchor(network, name, training)
    anchors = [f"{a.name}:0:{a.depth}" for a in recipe.family.anchors]
    alone = session.top1(network, anchors, "anchors alone")

    progress("least squares", 0, 1)
    initialize(
        network, session.images(splits.train), recipe.initialize.images, recipe.initialize.mode
    )
    names = [topology.name for topology in recipe.family.topologies]
    initialized = session.top1(network, names, "least squares alone")

    finetuned: dict[str, float] = {}
    if recipe.finetune is not None:
        session.finetune(network, recipe.finetune)
        finetuned = session.top1(network, names, "fine-tuned")

    digest = save_network(network, out, recipe=session.recipe_digest, dataset=recipe.dataset)
    result = Calibration(
        family=recipe.family.name,
        network=digest,
        recipe=session.recipe_digest,
        data=splits.test.digest,
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
    save(result, out.with_suffix(".calibration.json"))
    return result


def initialize(
    network: StitchNetwork, batches: Iterator[Tensor], num_images: int, mode: str = "joint"
) -> None:
    """Sets the stitching layers by least squares over a stream of input batches, in eval mode.

    `joint` solves one problem over all stitches that share a layer; `reference` takes the mean of
    their solutions, as the authors' code does.
    """
    problems: dict[str, list[LeastSquares]] = {}
    network.eval()
    with torch.inference_mode():
        for batch in _first(batches, num_images):
            tokens = {a.name: _tokens(network, a.name, batch) for a in network.family.anchors}
            for layer, stitches in network.family.stitches.items():
                new = [
                    LeastSquares.over(
                        tokens[s.front][s.stop].flatten(0, -2),
                        tokens[s.back][s.start].flatten(0, -2),
                    )
                    for s in stitches
                ]
                old = problems.get(layer)
                problems[layer] = [a + b for a, b in zip(old, new, strict=True)] if old else new
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


def _tokens(network: StitchNetwork, anchor: str, images: Tensor) -> list[Tensor]:
    """What enters block 0, 1, ... of an anchor, and last what leaves its last block."""
    tokens = [network.atoms[f"{anchor}:stem"](images)]
    for index in range(network.family.anchor(anchor).depth):
        tokens.append(network.atoms[f"{anchor}:{index}"](tokens[-1]))
    return tokens


def _first(batches: Iterator[Tensor], num_images: int) -> Iterator[Tensor]:
    left = num_images
    for batch in batches:
        if left <= 0:
            return
        yield batch[:left]
        left -= len(batch)


class _Session:
    """One calibration: its data on the device, its seeds and its checkpoints."""

    def __init__(
        self, recipe: Recipe, splits: Splits, work: Path, device: torch.device, progress: Progress
    ) -> None:
        self.recipe = recipe
        self.family: Family = recipe.family
        self.splits = splits
        self.work = work
        self.device = device
        self.progress = progress
        self.recipe_digest = sha256(msgspec.json.encode(recipe, order="sorted"))
        self.pixels = torch.from_numpy(np.ascontiguousarray(splits.train.images)).to(device)
        self.labels = torch.from_numpy(splits.train.labels).to(device)
        self.data_digest = splits.train.digest

    def normalize(self, pixels: Tensor) -> Tensor:
        return preprocess(pixels, mean=self.family.mean, std=self.family.std)

    def images(self, data: LabelledImages, batch_size: int = 256) -> Iterator[Tensor]:
        for start in range(0, len(data), batch_size):
            pixels = torch.from_numpy(data.images[start : start + batch_size])
            yield self.normalize(pixels.to(self.device))

    def top1(self, network: StitchNetwork, topologies: list[str], stage: str) -> dict[str, float]:
        progress = partial(self.progress, f"evaluate: {stage}")
        correct = count_correct(network, topologies, self.splits.test, progress=progress)
        return {name: 100 * hits / len(self.splits.test) for name, hits in correct.items()}

    def train_anchor(self, network: StitchNetwork, name: str, training: Training) -> None:
        anchor = network.assemble(f"{name}:0:{self.family.anchor(name).depth}")

        def loss(images: Tensor, labels: Tensor, _: torch.Generator) -> Tensor:
            return cross_entropy(anchor(images), labels, label_smoothing=training.label_smoothing)

        self.fit(anchor, loss, training, f"anchor {name}", {"training": training})

    def finetune(self, network: StitchNetwork, training: Finetuning) -> None:
        """One random topology a step; hard labels, and soft ones of the largest anchor as it was."""
        largest = self.family.anchors[-1]
        teacher = _frozen_copy(network.assemble(f"{largest.name}:0:{largest.depth}"))
        topologies = [network.assemble(t) for t in self.family.topologies]

        def loss(images: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
            student = topologies[int(torch.randint(len(topologies), (), generator=random))]
            with torch.no_grad():
                target = softmax(teacher(images) / training.temperature, dim=1)
            logits = student(images)
            hard = cross_entropy(logits, labels, label_smoothing=training.label_smoothing)
            soft_log = log_softmax(logits / training.temperature, dim=1)
            soft = -(target * soft_log).sum(1).mean() * training.temperature**2
            return (1 - training.distillation) * hard + training.distillation * soft

        made_from = {"recipe": self.recipe}
        self.fit(network, loss, training, "fine-tuning", made_from)

    def fit(
        self,
        module: nn.Module,
        loss: Callable[[Tensor, Tensor, torch.Generator], Tensor],
        training: Training,
        stage: str,
        conditions: Mapping[str, Value],
    ) -> None:
        """Trains a module in place, or loads it where a checkpoint says that it is done."""
        path = self.work / f"{stage.replace(' ', '-')}.safetensors"
        optimizer = torch.optim.AdamW(module.parameters(), weight_decay=training.weight_decay)
        key = self.key(conditions)
        done = _resume(module, optimizer, path, key)
        num_steps = len(self.labels) // training.batch_size
        if num_steps == 0:
            raise ValueError(
                f"{stage}: a batch of {training.batch_size} is more than the {len(self.labels)} images"
            )
        for epoch in range(done, training.epochs):
            random = torch.Generator().manual_seed(_seed(self.recipe.seed, stage, epoch))
            torch.manual_seed(_seed(self.recipe.seed, stage, epoch))
            order = torch.randperm(len(self.labels), generator=random)
            module.train()
            for step in range(num_steps):
                self.progress(stage, epoch * num_steps + step, training.epochs * num_steps)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(training, epoch + step / num_steps)
                rows = order[step * training.batch_size : (step + 1) * training.batch_size]
                rows = rows.to(self.device)
                images = self.normalize(augment(self.pixels[rows], training, random))
                optimizer.zero_grad(set_to_none=True)
                loss(images, self.labels[rows], random).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            _checkpoint(module, optimizer, path, key, epoch + 1)
        module.eval()

    def key(self, conditions: Mapping[str, Value]) -> str:
        """What a checkpoint must have been made from to be resumed."""
        content = {
            "family": self.family.digest,
            "seed": self.recipe.seed,
            "data": self.data_digest,
            **{name: msgspec.to_builtins(value) for name, value in conditions.items()},
        }
        return sha256(msgspec.json.encode(content, order="sorted"))


def learning_rate(training: Training, epoch: float) -> float:
    """Linear warm-up, then half a cosine down to zero; `epoch` counts with its fraction."""
    if epoch < training.warmup_epochs:
        return training.learning_rate * min(1.0, (epoch + 1e-3) / training.warmup_epochs)
    left = training.epochs - training.warmup_epochs
    return (
        training.learning_rate
        * 0.5
        * (1 + math.cos(math.pi * (epoch - training.warmup_epochs) / left))
    )


def augment(pixels: Tensor, training: Training, random: torch.Generator) -> Tensor:
    """Each image of uint8 [B, C, H, W] mirrored, shifted and partly blanked at random."""
    batch, _, height, width = pixels.shape

    def draw(high: int) -> Tensor:
        return torch.randint(high, (batch,), generator=random).to(pixels.device)

    def chance(probability: float) -> Tensor:
        return (torch.rand(batch, generator=random) < probability).to(pixels.device)

    if training.flip:
        pixels = torch.where(chance(0.5).view(-1, 1, 1, 1), pixels.flip(-1), pixels)
    if training.shift:
        s = training.shift
        padded = nn.functional.pad(pixels, (s, s, s, s))
        rows = draw(2 * s + 1)[:, None] + torch.arange(height, device=pixels.device)
        columns = draw(2 * s + 1)[:, None] + torch.arange(width, device=pixels.device)
        index = torch.arange(batch, device=pixels.device)[:, None, None]
        pixels = padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if training.erase:
        top, left = draw(height), draw(width)
        tall, wide = draw(height // 2) + 1, draw(width // 2) + 1
        y = torch.arange(height, device=pixels.device)
        x = torch.arange(width, device=pixels.device)
        inside_y = (y >= top[:, None]) & (y < (top + tall)[:, None])
        inside_x = (x >= left[:, None]) & (x < (left + wide)[:, None])
        inside = inside_y[:, :, None] & inside_x[:, None, :] & chance(training.erase)[:, None, None]
        pixels = pixels.masked_fill(inside[:, None], 0)
    return pixels


def _frozen_copy(module: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(module).eval().requires_grad_(False)


def _seed(seed: int, stage: str, epoch: int) -> int:
    return zlib.crc32(f"{seed} {stage} {epoch}".encode())


def _checkpoint(
    module: nn.Module, optimizer: torch.optim.Optimizer, path: Path, key: str, epochs: int
) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{field}": value for field, value in state.items()}
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    save_tensors(CHECKPOINT, CHECKPOINT_VERSION, {"key": key, "epochs": str(epochs)}, arrays, path)


def _resume(module: nn.Module, optimizer: torch.optim.Optimizer, path: Path, key: str) -> int:
    """Loads a checkpoint if there is one; returns the number of epochs that are done."""
    if not path.exists():
        return 0
    metadata, tensors = load_tensors(CHECKPOINT, CHECKPOINT_VERSION, path)
    if metadata["key"] != key:
        raise MismatchError(
            f"{path} is a checkpoint of another recipe, seed or data set; "
            "remove it, or give another folder with --work"
        )
    arrays = {name: torch.from_numpy(array) for name, array in tensors.items()}
    module.load_state_dict(
        {n.removeprefix("module."): t for n, t in arrays.items() if n.startswith("module.")}
    )
    state = optimizer.state_dict()
    for name, tensor in arrays.items():
        if name.startswith("optimizer."):
            _, index, field = name.split(".")
            state["state"].setdefault(int(index), {})[field] = tensor
    optimizer.load_state_dict(state)
    return int(metadata["epochs"])
