"""The network's own modules, run by PyTorch: works everywhere, shares all weights, is the reference."""

import copy
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from . import Backend, Compiled, Loaded, Marked, Run

M = TypeVar("M", bound=nn.Module)
Step = Callable[[Tensor], Tensor]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def _compile(segment: nn.Module, example: Tensor, path: Path, precision: str) -> None:
    """Nothing is compiled: `load` takes the modules from the network itself."""


def _load(compiled: Compiled) -> Loaded:
    device, dtype = torch.device(compiled.accelerator), DTYPES[compiled.precision]
    network = in_precision(compiled.network().eval(), device, dtype)
    return chained(
        {name: network.chain(atoms) for name, atoms in compiled.atoms.items()},
        compiled.chains,
        device,
        dtype,
    )


def in_precision(module: M, device: torch.device, dtype: torch.dtype) -> M:
    """The module on a device in a precision; in another than its own a copy, which leaves it as it is."""
    own = next(module.parameters()).dtype
    return (module if dtype == own else copy.deepcopy(module)).to(device, dtype)


def chained(
    segments: Mapping[str, Step],
    chains: Mapping[str, tuple[str, ...]],
    device: torch.device,
    dtype: torch.dtype,
) -> Loaded:
    """Topologies that call their segments one after the other."""
    steps = {topology: [segments[name] for name in names] for topology, names in chains.items()}
    return Loaded(
        runs={topology: _run(found, device, dtype) for topology, found in steps.items()},
        marked={topology: _marked(found, device, dtype) for topology, found in steps.items()},
    )


def _run(steps: list[Step], device: torch.device, dtype: torch.dtype) -> Run:
    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            value = _enter(images, device, dtype)
            for step in steps:
                value = step(value)
            # The copy back waits for the device.
            logits: np.ndarray = value.float().cpu().numpy()
        return logits

    return run


def _marked(steps: list[Step], device: torch.device, dtype: torch.dtype) -> Marked:
    def run(images: np.ndarray) -> list[float]:
        with torch.inference_mode():
            value = _enter(images, device, dtype)
            marks = [_mark(device)]
            for step in steps:
                value = step(value)
                marks.append(_mark(device))
            value.float().cpu()
        return [_between(*pair) for pair in pairwise(marks)]

    return run


def _enter(images: np.ndarray, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(images).to(device).to(dtype)


def _mark(device: torch.device) -> int | torch.cuda.Event:
    """A moment: on the host, which waits for what it computes, or in the device's stream."""
    if device.type == "cpu":
        return time.perf_counter_ns()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(start: int | torch.cuda.Event, stop: int | torch.cuda.Event) -> float:
    if isinstance(start, int):
        return (stop - start) / 1e6  # type: ignore[operator]  # marks of one device are of a kind
    return float(start.elapsed_time(stop))  # type: ignore[arg-type]


BACKEND = Backend(
    name="eager",
    accelerators=("cpu", "cuda"),
    precisions=tuple(DTYPES),
    unavailable=lambda: None,
    compile=_compile,
    load=_load,
    version=lambda: str(torch.__version__),
)
