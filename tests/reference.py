"""What the authors' code computes (see `data/make_goldens.py`), and checkpoints as it writes them."""

import json
import zlib
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from edgestitch.family import Family
from edgestitch.recipe import load_family

PARITY = Path(__file__).parent / "data" / "parity"
STRUCTURAL = ("relative_position_index", "attn_mask", "attention_bias_idxs")
COUNTER = "num_batches_tracked"
Shape = tuple[int, ...]


class Row(NamedTuple):
    """One of the authors' configurations; `None` where nothing was counted."""

    number: int
    topology: str
    layers: list[str]
    macs: int | None
    params: int | None


class Reference(NamedTuple):
    """A family as the authors' code has it."""

    family: Family
    rows: list[Row]
    keys: dict[str, Shape]
    logits: dict[str, np.ndarray]
    """By topology, each so manieth of them."""
    every: int


def load_reference(name: str) -> Reference:
    content = json.loads((PARITY / f"{name}.json").read_text())
    shipped = content["family"] == name
    family = load_family(name) if shipped else msgspec.convert(content["family"], Family)
    rows = [Row(*row) for row in content["topologies"]]
    with np.load(PARITY / f"{name}.npz") as golden:
        logits = dict(zip((row.topology for row in rows), golden["logits"], strict=True))
        every = int(golden["every"])
    return Reference(family, rows, content["keys"], logits, every)


def value(key: str, shape: Shape) -> np.ndarray:
    """The tensor of a key of the authors' state dict, the same wherever it is made."""
    drawn = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    leaf = key.rpartition(".")[2]
    if leaf in ("cls_token", "pos_embed", "relative_position_bias_table", "attention_biases"):
        drawn = 0.2 * drawn
    elif leaf in ("lora_A", "lora_B"):
        drawn = 0.05 * drawn
    elif leaf in ("gamma_1", "gamma_2"):
        drawn = 0.5 + 0.1 * drawn
    elif leaf == "running_var":
        drawn = 1 + 0.1 * np.abs(drawn)
    elif leaf in ("running_mean", "bias"):
        drawn = 0.1 * drawn
    elif len(shape) == 1:
        drawn = 1 + 0.1 * drawn
    else:
        drawn = drawn / np.sqrt(np.prod(shape[1:]))
    return drawn.astype(np.float32)


def images(family: Family) -> Tensor:
    """Two images that the logits are about."""
    shape = (2, *family.input_shape)
    drawn = np.random.RandomState(0).standard_normal(shape)
    return torch.from_numpy(drawn.astype(np.float32))


def state_dict(keys: Mapping[str, Shape]) -> dict[str, Tensor]:
    """The authors' state dict; what follows from the architecture is made up, so never to be used."""
    state = {}
    for key, shape in keys.items():
        if key.endswith(STRUCTURAL):
            state[key] = torch.full(shape, -1)
        elif key.endswith(COUNTER):
            state[key] = torch.tensor(0)
        else:
            state[key] = torch.from_numpy(value(key, tuple(shape)))
    return state


def write_checkpoint(path: Path, state: Mapping[str, Tensor]) -> Path:
    """Writes a state dict as most of the authors' training scripts do."""
    arguments = Namespace(lr=1e-4, output_dir="runs", device="cuda", sizes=[224, 224])
    torch.save({"model": dict(state), "optimizer": {}, "epoch": 49, "args": arguments}, path)
    return path
