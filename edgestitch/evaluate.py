"""What each topology is worth: top-1 on labelled images, with its interval."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .accuracy import Accuracy, TopologyAccuracy
from .data import LabelledImages, preprocess
from .network import StitchNetwork

Tree = dict[str, "Tree"]
"""Topologies as a tree of atoms, so that a shared prefix is one path; `""` ends a topology."""


def evaluate(
    network: StitchNetwork,
    data: LabelledImages,
    *,
    topologies: Iterable[str] | None = None,
    batch_size: int = 250,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Top-1 of every topology, or of those given, on raw labelled images.

    Raises:
        ValueError: the images do not fit the network.
    """
    names = list(topologies or (t.name for t in network.family.topologies))
    correct = count_correct(network, names, data, batch_size=batch_size, progress=progress)
    return Accuracy(
        family=network.family.name,
        network=network.digest,
        data=data.digest,
        num_images=len(data),
        rows=tuple(accuracy_row(name, correct[name], len(data)) for name in names),
    )


def count_correct(
    network: StitchNetwork,
    topologies: Iterable[str],
    data: LabelledImages,
    *,
    batch_size: int = 250,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Correctly classified images of each topology; what several have in common is computed once."""
    family = network.family
    if data.images.shape[1:] != family.input_shape:
        raise ValueError(
            f"{family.name} takes images of {list(family.input_shape)}, the data are "
            f"{list(data.images.shape[1:])}"
        )
    ends = {family.atoms(name): name for name in topologies}
    tree: Tree = {}
    for atoms in ends:
        branch = tree
        for atom in atoms:
            branch = branch.setdefault(atom, {})
    correct = dict.fromkeys(ends.values(), 0)
    device = next(network.parameters()).device

    def walk(x: Tensor, branch: Tree, path: tuple[str, ...], labels: Tensor) -> None:
        if not branch:
            correct[ends[path]] += int((x.argmax(1) == labels).sum())
        for atom, rest in branch.items():
            walk(network.atoms[atom](x), rest, (*path, atom), labels)

    network.eval()
    with torch.inference_mode():
        for start in range(0, len(data), batch_size):
            progress(start, len(data))
            rows = slice(start, start + batch_size)
            pixels = torch.from_numpy(data.images[rows]).to(device)
            images = preprocess(pixels, mean=family.mean, std=family.std)
            walk(images, tree, (), torch.from_numpy(data.labels[rows]).to(device))
    progress(len(data), len(data))
    return correct


def accuracy_row(name: str, correct: int, total: int) -> TopologyAccuracy:
    """Top-1 of a topology that put `correct` of `total` images in their class."""
    low, high = wilson(correct, total)
    return TopologyAccuracy(
        topology=name, top1=100 * correct / total, low=100 * low, high=100 * high, correct=correct
    )


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
