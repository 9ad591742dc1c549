"""Topologies that call PyTorch's segments one after the other, on whatever device."""

import copy
import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from . import Compiled, Load, Marked, OnDevice, Resident, Run

if TYPE_CHECKING:
    from edgestitch.network import StitchNetwork

M = TypeVar("M", bound=nn.Module)
Step = Callable[[Tensor], Tensor]
"""A segment: features in, features out, on the device."""
Steps = Callable[[str], Sequence[Step]]
"""The segments of a topology, by its name."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def in_precision(module: M, device: torch.device, dtype: torch.dtype) -> M:
    """The module on a device in a precision; in another than its own a copy, which leaves it as it is."""
    own = next(module.parameters()).dtype
    return (module if dtype == own else copy.deepcopy(module)).to(device, dtype)


def loaded_network(compiled: Compiled) -> "StitchNetwork":
    """The network whose weights are used, on the device, in the precision."""
    device, dtype = torch.device(compiled.accelerator), DTYPES[compiled.precision]
    return in_precision(compiled.network().eval(), device, dtype)


def per_segment(segment: Callable[[str], Step], compiled: Compiled) -> Steps:
    """Steps of which each is made once, when the first topology needs it, and serves all of them."""
    once = cache(segment)

    def steps(topology: str) -> list[Step]:
        return [once(name) for name in compiled.chains[topology]]

    return steps


def chained(steps: Steps, compiled: Compiled) -> Load:
    """Topologies that call their steps one after the other."""
    device, dtype = torch.device(compiled.accelerator), DTYPES[compiled.precision]

    def load(topology: str) -> Resident:
        chain = steps(topology)
        return Resident(
            run=_run(chain, device, dtype),
            marked=_marked(chain, device, dtype),
            on_device=_on_device(chain, dtype),
        )

    return load


def _run(steps: Sequence[Step], device: torch.device, dtype: torch.dtype) -> Run:
    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            value = _enter(images, device, dtype)
            for step in steps:
                value = step(value)
            # The copy back waits for the device.
            logits: np.ndarray = value.float().cpu().numpy()
        return logits

    return run


def _on_device(steps: Sequence[Step], dtype: torch.dtype) -> OnDevice:
    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            value = images.to(dtype)
            for step in steps:
                value = step(value)
            logits = value.float()
        if logits.is_cuda:
            torch.cuda.current_stream(logits.device).synchronize()
        return logits

    return run


def _marked(steps: Sequence[Step], device: torch.device, dtype: torch.dtype) -> Marked:
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
