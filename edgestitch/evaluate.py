"""What each topology is worth: top-1 on labelled images, with its interval."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .accuracy import Accuracy, accuracy_row
from .data import LabelledImages, preprocess
from .distributed import ALONE, Workers
from .images import Source, as_source, batches, broken_rows
from .network import StitchNetwork

Tree = dict[str, "Tree"]
"""Topologies as a tree of atoms, so that a shared prefix is one path; `""` ends a topology."""


def evaluate(
    network: StitchNetwork,
    data: LabelledImages | Source,
    *,
    topologies: Iterable[str] | None = None,
    batch_size: int = 250,
    readers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Top-1 of every topology, or of those given, on raw labelled images.

    `readers` processes read ahead, which pays where images are files. Broken images count for
    nothing: `num_images` is without them.

    Raises:
        ValueError: the images do not fit the network, or have no labels.
    """
    source = as_source(data)
    names = list(topologies or (t.name for t in network.topologies))
    correct = count_correct(
        network, names, source, batch_size=batch_size, readers=readers, progress=progress
    )
    number = len(source) - len(broken_rows(source))
    return Accuracy(
        family=network.family.name,
        mode=network.mode,
        network=network.digest,
        data=source.digest,
        num_images=number,
        rows=tuple(accuracy_row(name, correct[name], number) for name in names),
    )


def count_correct(
    network: StitchNetwork,
    topologies: Iterable[str],
    data: LabelledImages | Source,
    *,
    labels: Tensor | None = None,
    batch_size: int = 250,
    readers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: Workers = ALONE,
) -> dict[str, int]:
    """Correctly classified images of each topology; what several have in common is computed once.

    `labels` [N], if given, are the truth instead of the source's own. Several processes divide the
    batches. Broken images count for nothing, nor do those that their rows give instead.

    Raises:
        ValueError: the images do not fit the network, or they have no labels and none are given.
    """
    family, source = network.family, as_source(data)
    if source.shape != family.input_shape:
        raise ValueError(
            f"{family.name} takes images of {list(family.input_shape)}, the data are "
            f"{list(source.shape)}"
        )
    if labels is None and not source.labelled:
        raise ValueError("the images have no labels to judge by; give a folder of classes")
    ends = {family.atoms(name): name for name in topologies}
    tree: Tree = {}
    for atoms in ends:
        branch = tree
        for atom in atoms:
            branch = branch.setdefault(atom, {})
    device = next(network.parameters()).device
    names = list(ends.values())
    correct = dict.fromkeys(names, 0)

    def walk(x: Tensor, branch: Tree, path: tuple[str, ...], truth: Tensor) -> None:
        if not branch:
            correct[ends[path]] += int((x.argmax(1) == truth).sum())
        for atom, rest in branch.items():
            walk(network.atoms[atom](x), rest, (*path, atom), truth)

    network.eval()
    parts = [range(len(source))[i : i + batch_size] for i in range(0, len(source), batch_size)]
    mine = [parts[index] for index in workers.share(len(parts))]
    # Only the very last part is smaller, so that reading in batches gives the parts back.
    stream = batches(source, [row for rows in mine for row in rows], batch_size, workers=readers)
    with torch.inference_mode():
        for rows, (pixels, own) in zip(mine, stream, strict=True):
            progress(rows.start, len(source))
            broken = broken_rows(source)
            good = torch.tensor([row not in broken for row in rows])
            if good.any():
                truth = (own if labels is None else labels[rows.start : rows.stop])[good]
                images = preprocess(pixels[good].to(device), mean=family.mean, std=family.std)
                walk(images, tree, (), truth.to(device))
    progress(len(source), len(source))
    total = torch.tensor([correct[name] for name in names], device=device)
    workers.add([total])
    return dict(zip(names, total.tolist(), strict=True))
