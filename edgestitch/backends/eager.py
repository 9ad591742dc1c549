"""The network's own modules, run by PyTorch: works everywhere, shares all weights, is the reference."""

import copy
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import Backend, Compiled, Loaded, Marked, Run

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def _compile(segment: nn.Module, example: Tensor, path: Path, precision: str) -> None:
    """Nothing is compiled: `load` takes the modules from the network itself."""


def _load(compiled: Compiled) -> Loaded:
    device = torch.device(compiled.accelerator)
    dtype = _DTYPES[compiled.precision]
    network = compiled.network().eval()
    # In another precision it is another network: the one that was given stays as it is.
    network = (copy.deepcopy(network) if dtype != torch.float32 else network).to(device, dtype)
    chains = {
        topology: [network.chain(compiled.atoms[name]) for name in segments]
        for topology, segments in compiled.chains.items()
    }
    return Loaded(
        runs={topology: _run(chain, device, dtype) for topology, chain in chains.items()},
        marked={topology: _marked(chain, device, dtype) for topology, chain in chains.items()},
    )


def _run(chain: list[nn.Sequential], device: torch.device, dtype: torch.dtype) -> Run:
    whole = nn.Sequential(*(atom for segment in chain for atom in segment)).eval()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            # The copy back waits for the device.
            logits: np.ndarray = whole(_enter(images, device, dtype)).float().cpu().numpy()
        return logits

    return run


def _marked(chain: list[nn.Sequential], device: torch.device, dtype: torch.dtype) -> Marked:
    def run(images: np.ndarray) -> list[float]:
        with torch.inference_mode():
            value = _enter(images, device, dtype)
            marks = [_mark(device)]
            for segment in chain:
                value = segment(value)
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
    precisions=tuple(_DTYPES),
    unavailable=lambda: None,
    compile=_compile,
    load=_load,
    version=lambda: str(torch.__version__),
)
