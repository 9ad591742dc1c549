"""Rules of stitching: which pairs of blocks are joined, and which pairs share a stitching layer.

Blocks are counted from 0. A pair (i, k) is the stitch after block i of the front anchor, before
block k of the back anchor. Each rule gives its stitching layers in order, each as the pairs that
share it, as the released code of SN-Net (Pan et al., CVPR 2023) and SN-Netv2 (Pan et al., ECCV
2024) enumerates them.
"""

from collections.abc import Iterable

Pair = tuple[int, int]
Layers = tuple[tuple[Pair, ...], ...]


def paired_layers(depth: int, window: int, stride: int) -> Layers:
    """Two anchors of equal depth (SN-Net, section 3.3).

    Windows of `window` blocks start every `stride` blocks; each gives every ordered pair inside it
    that no earlier window gave, row by row, and all of them share one layer. A window that adds no
    pair gets no layer.
    """
    seen: set[Pair] = set()
    layers = []
    for first in range(0, depth, stride):
        blocks = range(first, min(first + window, depth))
        pairs = tuple((i, k) for i in blocks for k in blocks if (i, k) not in seen)
        seen.update(pairs)
        if pairs:
            layers.append(pairs)
    return tuple(layers)


def unpaired_layers(front: int, back: int, *, reference: bool = False) -> Layers:
    """Two anchors of `front` and `back` blocks: block j of the back one belongs to one of the front.

    That is m(j) = floor(j * front / back), as nearest-neighbour upsampling maps them; (m(j), j) is a
    stitch where m(j) < j, and the stitches of one front block share its layer. `reference`: the
    released code pairs the list of layers, which begins with j = 0, with the list of stitches, which
    lacks it, so that stitch (m(j), j) has the layer of m(j - 1).
    """
    match = [j * front // back for j in range(back)]
    pairs = [(match[j], j) for j in range(back) if match[j] < j]
    owners = match if reference else [i for i, _ in pairs]
    layers: dict[int, list[Pair]] = {}
    for owner, pair in zip(owners, pairs, strict=False):
        layers.setdefault(owner, []).append(pair)
    return tuple(tuple(pairs) for pairs in layers.values())


def stage_layers(
    front: int, back: int, window: int, stride: int, *, reference: bool = False
) -> Layers:
    """One stage of two anchors: paired where they are equally deep, else unpaired.

    Only pairs with i < k: block 0 of a stage may change the resolution, so it is never entered.
    """
    if front != back:
        return unpaired_layers(front, back, reference=reference)
    forward = (
        tuple((i, k) for i, k in pairs if i < k) for pairs in paired_layers(front, window, stride)
    )
    return tuple(pairs for pairs in forward if pairs)


def two_way_stitches(small: int, large: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Stitches from the small anchor to the large one, and back (SN-Netv2, section 3.2).

    With r = large / small: after block i of the small anchor to block (i + 1) * r of the large one,
    and after every r-th block of the large anchor to the block of the small one that comes next;
    never after the last block. Each stitch has a layer of its own.

    Raises:
        ValueError: the depth of the large anchor is no multiple of the small one's.
    """
    ratio, rest = divmod(large, small)
    if rest or not ratio:
        raise ValueError(
            f"two-way stitching needs a second anchor whose depth is a multiple of the first one's, "
            f"found {small} and {large} blocks"
        )
    up = tuple((i, (i + 1) * ratio) for i in range(small - 1))
    down = tuple((i, i // ratio + 1) for i in range(ratio - 1, large - 1, ratio))
    return up, down


def chained(first: Iterable[Pair], second: Iterable[Pair]) -> tuple[tuple[Pair, Pair], ...]:
    """Every stitch of `first` followed by every one of `second` that leaves after it has entered."""
    second = tuple(second)
    return tuple(((i, k), (j, n)) for i, k in first for j, n in second if j >= k)
