"""Each topology as one CUDA graph: to run it is one launch, to switch is to launch another.

A topology's steps are captured when it is loaded. All graphs take their input from one tensor and
share one memory pool for what passes between their steps; each keeps its own logits. A call copies
the images in, launches, copies the logits out and waits, and allocates nothing but what it returns.
"""

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, cuda

from edgestitch.errors import CompileError, DeviceError, EdgestitchError

from . import Compiled, Load, Resident
from .chain import DTYPES, Step, Steps

# PyTorch's own number before it captures: libraries choose kernels and take workspace in the first
# calls, and neither may happen in a capture.
WARM_UPS = 3


def captured(steps: Steps, compiled: Compiled) -> Load:
    """Topologies that are captured when they are loaded, also while others run in another thread.

    Loading raises:
        DeviceError: the device has no memory left for it.
        CompileError: a step does what cannot be captured, such as waiting for the device.
    """
    shared = _Shared(compiled)

    def load(topology: str) -> Resident:
        with _explained(topology):
            graph = shared.capture(tuple(steps(topology)))
        return Resident(run=graph.run, marked=graph.marked, on_device=graph.on_device)

    return load


def pinned(shape: Sequence[int]) -> tuple[Tensor, np.ndarray]:
    """Float32 host memory that the device itself copies from and to, as a tensor and as an array."""
    memory = torch.empty(tuple(shape), pin_memory=True)
    return memory, memory.numpy()


class _Shared:
    """What the graphs of all topologies have in common.

    One stream and one lock keep them apart in time, which sharing needs: they have the same input,
    the same host memory, and overlay each other's intermediate values in the pool. The logits of
    one are safe in any order of replays, since each graph keeps its own and they are copied out
    before the lock is free. A capture holds the lock as well: it is recorded from the same stream,
    where a replay would become part of it.
    """

    def __init__(self, compiled: Compiled) -> None:
        device = torch.device(compiled.accelerator)
        self.dtype = DTYPES[compiled.precision]
        self.stream = cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.lock = threading.Lock()
        self.arrived = cuda.Event()  # type: ignore[no-untyped-call]
        """Recorded in a caller's stream when its images are there."""
        self.images, self.images_array = pinned(compiled.input_shape)
        self.logits: tuple[Tensor, np.ndarray] | None = None
        """Pinned as well; the shape is known once a topology has run."""
        # Float32 in every precision: a copy from the host that converts as well does so on the
        # host, into memory that is not pinned. The graphs begin with the conversion instead.
        with cuda.stream(self.stream):
            self.input = torch.zeros(compiled.input_shape, device=device)
        self._pool = cuda.graph_pool_handle()
        self._broken: list[cuda.CUDAGraph] = []
        # To wait for a stream breaks a capture from it, and a warm-up waits without the other lock.
        self._loading = threading.Lock()

    def capture(self, steps: tuple[Step, ...]) -> "_Graph":
        with self._loading:
            return self._capture(steps)

    def _capture(self, steps: tuple[Step, ...]) -> "_Graph":
        self.stream.wait_stream(cuda.current_stream(self.input.device))  # for the weights
        # Around the capture too: older PyTorch leaves its stream the current one where that fails.
        with torch.inference_mode(), cuda.stream(self.stream):
            self._warm_up(steps)
            with self.lock:
                graph, logits = self._record(steps)
                if self.logits is None:
                    self.logits = pinned(logits.shape)
        staged, staged_array = self.logits
        return _Graph(
            shared=self,
            graph=graph,
            logits=logits,
            staged=staged,
            staged_array=staged_array,
            steps=steps,
        )

    def _warm_up(self, steps: tuple[Step, ...]) -> None:
        for _ in range(WARM_UPS):
            with self.lock:  # steps are not made for two threads either
                self.forward(steps)
            self.stream.synchronize()  # without the lock: a call that waits gets its turn

    def _record(self, steps: tuple[Step, ...]) -> tuple[cuda.CUDAGraph, Tensor]:
        graph = cuda.CUDAGraph()
        refusal: Exception | None = None
        try:
            # Only of this thread's calls may one break the capture: others go on serving.
            with cuda.graph(
                graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"
            ):
                try:
                    logits = self.forward(steps)
                except Exception as error:
                    refusal = error
                    raise
        except BaseException as last:
            # When CUDA itself ends a capture, PyTorch goes on recording allocations to its pool:
            # it refuses to begin there again, and asks the graph about each, so that must live.
            self._broken.append(graph)
            self._pool = cuda.graph_pool_handle()
            raise refusal or last from None  # the end of a broken capture fails too, and says less
        return graph, logits

    def forward(self, steps: Sequence[Step]) -> Tensor:
        value = self.input.to(self.dtype)
        for step in steps:
            value = step(value)
        return value.float()

    def enter(self, images: np.ndarray) -> None:
        np.copyto(self.images_array, images)
        self.input.copy_(self.images, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """A captured topology."""

    shared: _Shared
    graph: cuda.CUDAGraph
    logits: Tensor
    """Where the graph writes them."""
    staged: Tensor
    """Where they are copied to on the host."""
    staged_array: np.ndarray
    steps: tuple[Step, ...]
    """Kept alive: the graph knows their tensors by address alone."""

    def run(self, images: np.ndarray) -> np.ndarray:
        shared = self.shared
        with shared.lock, torch.inference_mode(), cuda.stream(shared.stream):
            shared.enter(images)
            self.graph.replay()
            self.staged.copy_(self.logits, non_blocking=True)
            shared.stream.synchronize()
            return self.staged_array.copy()

    def on_device(self, images: Tensor) -> Tensor:
        shared = self.shared
        caller = cuda.current_stream(images.device)
        with shared.lock, torch.inference_mode():
            # Of the caller's stream, in which it will be used and freed.
            result = torch.empty_like(self.logits)
            shared.arrived.record(caller)
            with cuda.stream(shared.stream):
                shared.stream.wait_event(shared.arrived)
                shared.input.copy_(images, non_blocking=True)
                self.graph.replay()
                result.copy_(self.logits, non_blocking=True)
                shared.stream.synchronize()
        return result

    def marked(self, images: np.ndarray) -> list[float]:
        """One call of the steps themselves, since no event can be set between the nodes of a graph."""
        shared = self.shared
        with shared.lock, torch.inference_mode(), cuda.stream(shared.stream):
            shared.enter(images)
            value = shared.input.to(shared.dtype)
            marks = [self._mark()]
            for step in self.steps:
                value = step(value)
                marks.append(self._mark())
            shared.stream.synchronize()
        return [start.elapsed_time(stop) for start, stop in pairwise(marks)]

    def _mark(self) -> cuda.Event:
        event = cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self.shared.stream)
        return event


@contextmanager
def _explained(topology: str) -> Iterator[None]:
    try:
        yield
    except EdgestitchError:
        raise
    except Exception as error:  # CUDA's failures have many classes
        reason = " ".join(str(error).split())
        if "out of memory" in reason:
            asked = re.search(r"Tried to allocate ([\d.]+ [KMGT]?i?B)", reason)
            wanted = f"{asked[1]} more were asked for" if asked else "it does not say how much more"
            raise DeviceError(
                f"the GPU has no memory left to make {topology} resident: {wanted}; keep fewer "
                "topologies resident, use a lower precision, or end other processes on the GPU"
            ) from error
        raise CompileError(
            f"{topology} cannot be captured into a CUDA graph: {reason[:500]}; use backend eager"
        ) from error
