"""Makes the files in `parity/` from what the authors' own code computed.

Of ziplab/SN-Net (commit c2dcf30) and ziplab/SN-Netv2 (commit dd17607), both under the Apache-2.0
licence, each network was built as their main script builds it, without pretrained weights. Every
tensor of its state dict was filled with `tests.reference.value` of its key and shape, but for index
buffers, masks and counters, and each configuration ran in evaluation mode on `tests.reference.images`,
in float32 on a CPU.

    python -m tests.data.make_goldens FOLDER

FOLDER holds, for every name in SHIPPED and TINY, what was written down on the way:

    NAME.npz           ids [N] and logits [N, 2, classes], by number of the configuration
    NAME.keys.json     the state dict's keys, each with its shape
    NAME.configs.json  the anchors' depths and the configurations: which blocks ran, through which
                       stitching layers, multiply-adds by fvcore and parameters that took part
"""

import json
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgestitch.family import Anchor, Family, Stitching
from edgestitch.recipe import load_family

HERE = Path(__file__).parent / "parity"
EVERY = 25
"""Of 1000 logits, each so manieth is kept; of few, all."""


def tiny(name: str, anchors: dict[str, tuple[str, int, int, int]], stitching: Stitching) -> Family:
    """A family of small transformers on images of 32 pixels; each anchor's depth, width and heads."""
    return Family(
        name=name,
        anchors=tuple(
            Anchor(
                name=anchor,
                model=model,
                depth=depth,
                options={"depth": depth, "embed_dim": width, "num_heads": heads},
            )
            for anchor, (model, depth, width, heads) in anchors.items()
        ),
        stitching=stitching,
        input_shape=(3, 32, 32),
        num_classes=10,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def tiny_deit(name: str, *, nearest: bool) -> Family:
    model = "deit_tiny_patch16_224"
    anchors = {"a": (model, 12, 16, 2), "b": (model, 12, 24, 3), "c": (model, 12, 32, 4)}
    return tiny(name, anchors, Stitching(rule="paired", nearest=nearest))


def tiny_deit3(name: str, small: int, large: int) -> Family:
    model = "deit3_small_patch16_224"
    anchors = {"a": (model, small, 16, 2), "b": (model, large, 32, 4)}
    return tiny(name, anchors, Stitching(rule="two-way"))


SHIPPED = (
    "deit-ti-s-b",
    "swin-ti-s-b",
    "resnet18-50",
    "resnet18-swin-ti",
    "levit-192-256",
    "deit3-s-b",
)
TINY = (
    tiny_deit("tiny-deit", nearest=True),
    tiny_deit("tiny-deit-chains", nearest=False),
    tiny_deit3("tiny-deit3-4-4", 4, 4),
    tiny_deit3("tiny-deit3-12-24", 12, 24),
)


def rows(family: Family, configs: dict[str, Any]) -> list[list[Any]]:
    """Number, name, stitching layers, multiply-adds and parameters of each configuration."""
    return [
        [
            config["id"],
            topology_name(family, config),
            [layer.split(".", 1)[1].removesuffix(".transform") for layer in layers(config)],
            config.get("flops"),
            config.get("params_used"),
        ]
        for config in configs["configs"]
        if not enters_nothing(family, config)
    ]


def layers(config: dict[str, Any]) -> list[str]:
    if "stitch_layers" in config:
        return list(config["stitch_layers"])
    return [config["stitch_layer"]] if "stitch_layer" in config else []


def enters_nothing(family: Family, config: dict[str, Any]) -> bool:
    """Whether it runs an anchor whole and then no block of the next, which is no topology here."""
    backs = [family.anchors[index] for index in config["anchors"][1:]]
    entries = [block for _, block in config.get("stitches", ())]
    return any(entry >= back.depth for entry, back in zip(entries, backs, strict=False))


def topology_name(family: Family, config: dict[str, Any]) -> str:
    anchors = [family.anchors[index] for index in config["anchors"]]
    if "segments" in config:
        runs = [
            (family.anchors[run["anchor"]].name, run["first"], run["last"] + 1)
            for run in config["segments"]
        ]
    elif len(anchors) == 1:
        runs = [(anchors[0].name, 0, anchors[0].depth)]
    else:
        front, back = anchors
        stage = config.get("stage", 0)
        left, entered = (
            tuple(accumulate(anchor.stages, initial=0))[stage] if anchor.stages else 0
            for anchor in anchors
        )
        runs = [
            (front.name, 0, left + config["front_block"] + 1),
            (back.name, entered + config["back_block"], back.depth),
        ]
    return "+".join(f"{name}:{first}:{stop}" for name, first, stop in runs)


def convert(family: Family, folder: Path) -> None:
    """Writes a family's two files."""
    keys, configs = (
        json.loads((folder / f"{family.name}.{what}.json").read_text())
        for what in ("keys", "configs")
    )
    golden = np.load(folder / f"{family.name}.npz")
    every = EVERY if golden["logits"].shape[-1] > EVERY else 1
    topologies = rows(family, configs)
    at = [golden["ids"].tolist().index(number) for number, *_ in topologies]
    logits = golden["logits"][at][:, :, ::every]
    np.savez_compressed(HERE / f"{family.name}.npz", logits=logits, every=every)
    content = {
        "family": msgspec.to_builtins(family) if family in TINY else family.name,
        "topologies": topologies,
        "keys": keys,
    }
    (HERE / f"{family.name}.json").write_text(one_entry_a_line(content))


def one_entry_a_line(content: dict[str, Any]) -> str:
    family = json.dumps(content["family"])
    topologies = ",\n".join(f"  {json.dumps(row)}" for row in content["topologies"])
    keys = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in content["keys"].items())
    return f'{{\n "family": {family},\n "topologies": [\n{topologies}\n ],\n "keys": {{\n{keys}\n }}\n}}\n'


if __name__ == "__main__":
    for each in (*map(load_family, SHIPPED), *TINY):
        convert(each, Path(sys.argv[1]))
