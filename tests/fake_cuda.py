"""A GPU whose memory is the host's: what `from torch import cuda` gives where there is one.

Its streams are as lazy as a GPU's. A copy or a replay is queued, and done when something waits for
it: code that forgets to wait for a stream, or to make one stream wait for another, reads old values.
A capture records every operator with its tensors, and a replay runs them again on the same tensors;
what other graphs of its pool have written is lost by then. `log` has what was called, in order, as
(stream, operation).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

WAITING = ("_local_scalar_dense", "nonzero", "item")
"""Operators that wait for the device, which a capture does not survive."""


class FakeCuda:
    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.default = FakeStream(self, "default")
        self.streams = [self.default]
        self.graphs: list[FakeGraph] = []
        self.pools: list[tuple[int, int]] = []
        self.recording: set[tuple[int, int]] = set()
        """Pools of captures that have not ended; one that was broken off never does."""
        self.capturing: FakeGraph | None = None
        self.running = threading.RLock()
        self._here = threading.local()

    # --- what `torch.cuda` has -----------------------------------------------------------------

    def Stream(self, device: object = None) -> "FakeStream":
        self.streams.append(FakeStream(self, f"side{len(self.streams)}"))
        return self.streams[-1]

    def Event(self, enable_timing: bool = False) -> "FakeEvent":
        return FakeEvent(self, enable_timing)

    def CUDAGraph(self) -> "FakeGraph":
        self.graphs.append(FakeGraph(self))
        return self.graphs[-1]

    def graph_pool_handle(self) -> tuple[int, int]:
        self.pools.append((0, len(self.pools) + 1))
        return self.pools[-1]

    def current_stream(self, device: object = None) -> "FakeStream":
        found: FakeStream = getattr(self._here, "stream", self.default)
        return found

    @contextmanager
    def stream(self, stream: "FakeStream") -> Iterator[None]:
        before, self._here.stream = self.current_stream(), stream
        try:
            with _Dispatch(self):
                yield
        finally:
            self._here.stream = before

    @contextmanager
    def graph(
        self,
        cuda_graph: "FakeGraph",
        pool: tuple[int, int],
        stream: "FakeStream",
        capture_error_mode: str = "global",
    ) -> Iterator[None]:
        self._begin(cuda_graph, pool, stream, capture_error_mode)
        self._here.stream = stream  # left so where the end fails, as older versions of PyTorch do
        try:
            with _Dispatch(self):
                yield
        finally:
            self.capturing = None
            stream.log("capture_end")
            if cuda_graph.broken:
                raise RuntimeError("CUDA error: operation failed due to a previous error")
            self.recording.discard(pool)

    # --- what tests ask ------------------------------------------------------------------------

    def pinned(self, shape: Sequence[int]) -> tuple[Tensor, np.ndarray]:
        self.current_stream().log("pinned")
        memory = torch.full(tuple(shape), torch.nan)
        return memory, memory.numpy()

    def calls(self, function: Callable[[], object]) -> list[tuple[str, str]]:
        """What a function did."""
        start = len(self.log)
        with self.stream(self.default):
            function()
        return self.log[start:]

    # --- inside --------------------------------------------------------------------------------

    def _begin(
        self, graph: "FakeGraph", pool: tuple[int, int], stream: "FakeStream", mode: str
    ) -> None:
        for each in self.streams:  # the real one synchronises the device
            each.finish()
        if pool in self.recording:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        if self.capturing:
            raise RuntimeError("only one capture may be underway at a time")
        self.recording.add(pool)
        self.capturing = graph
        graph.pool, graph.stream, graph.mode = pool, stream, mode
        graph.thread = threading.get_ident()
        stream.log("capture_begin")

    def permit(self, stream: "FakeStream") -> "FakeGraph | None":
        """The graph that is captured from a stream by this very thread, if one is."""
        graph = self.capturing
        if graph is None or graph.stream is not stream:
            return None
        if graph.thread != threading.get_ident():
            graph.broken = True
            raise RuntimeError("two threads used a stream during a capture")
        return graph

    def dispatch(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stream, name = self.current_stream(), operator.overloadpacket.__name__
        graph = self.permit(stream)
        if graph:
            if name in WAITING:
                graph.broken = True
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
            result = operator(*args, **kwargs)
            graph.nodes.append((operator, args, kwargs, result))
            return result
        if name == "copy_":
            return self._copy(stream, operator, args, kwargs)
        stream.log(name)
        stream.finish()
        return operator(*args, **kwargs)

    def _copy(
        self, stream: "FakeStream", operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        waits = not (kwargs.get("non_blocking") or args[2:] == (True,))
        converts = args[0].dtype != args[1].dtype
        stream.log("waiting " * waits + "converting " * converts + "copy_")
        stream.add(lambda: operator(*args, **kwargs))
        if waits:
            stream.finish()
        return args[0]


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every operator of its thread to the device."""

    def __init__(self, device: FakeCuda) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        with _disable_current_modes():
            return self._device.dispatch(func, args, kwargs or {})


class FakeStream:
    def __init__(self, device: FakeCuda, name: str) -> None:
        self.device, self.name = device, name
        self._queue: deque[Callable[[], object]] = deque()
        self.added = self._done = 0

    def log(self, operation: str) -> None:
        self.device.log.append((self.name, operation))

    def add(self, work: Callable[[], object]) -> None:
        with self.device.running:
            self._queue.append(work)
            self.added += 1

    def finish(self, until: int | None = None) -> None:
        """Does what was queued, or the first so many of all."""
        with self.device.running, _disable_current_modes(), torch.inference_mode():
            while self._queue and (until is None or self._done < until):
                self._done += 1
                self._queue.popleft()()

    def synchronize(self) -> None:
        graph = self.device.permit(self)
        if graph:
            graph.broken = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        self.log("synchronize")
        self.finish()

    def wait_event(self, event: "FakeEvent") -> None:
        self.log("wait_event")
        assert event.stream is not None, "an event that was never recorded orders nothing"
        stream, until = event.stream, event.position
        self.add(lambda: stream.finish(until))

    def wait_stream(self, stream: "FakeStream") -> None:
        self.log("wait_stream")
        until = stream.added
        self.add(lambda: stream.finish(until))


class FakeEvent:
    def __init__(self, device: FakeCuda, enable_timing: bool) -> None:
        self._device, self._timing = device, enable_timing
        self.stream: FakeStream | None = None
        self.position = 0
        self._time_ns: int | None = None

    def record(self, stream: FakeStream | None = None) -> None:
        self.stream = stream or self._device.current_stream()
        self.stream.log("record")
        self.stream.add(self._set)
        self.position = self.stream.added

    def _set(self) -> None:
        self._time_ns = time.perf_counter_ns()

    def elapsed_time(self, end_event: "FakeEvent") -> float:
        assert self._timing, "both events must be made with enable_timing"
        assert end_event._timing, "both events must be made with enable_timing"
        if self._time_ns is None or end_event._time_ns is None:
            raise RuntimeError("device not ready")
        return (end_event._time_ns - self._time_ns) / 1e6


class FakeGraph:
    def __init__(self, device: FakeCuda) -> None:
        self._device = device
        self.pool: tuple[int, int] | None = None
        self.stream: FakeStream | None = None
        self.mode = ""
        self.thread = 0
        self.broken = False
        self.nodes: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        stream = self._device.current_stream()
        if self._device.capturing:
            self._device.capturing.broken = True
            raise RuntimeError("a replay during a capture")
        stream.log("replay")
        stream.add(self._run)

    def _run(self) -> None:
        for graph in self._device.graphs:
            if graph is not self and graph.pool == self.pool:
                graph.lose()
        for operator, args, kwargs, result in self.nodes:
            found = operator(*args, **kwargs)
            if not _is_view(result, (args, kwargs)):
                for kept, new in zip(tree_leaves(result), tree_leaves(found), strict=True):
                    kept.copy_(new)

    def lose(self) -> None:
        """Another graph has used the memory."""
        for _, args, kwargs, result in self.nodes:
            if not _is_view(result, (args, kwargs)):
                for tensor in tree_leaves(result):
                    tensor.fill_(torch.nan)


def _is_view(result: Any, arguments: Any) -> bool:
    memory = {t.untyped_storage()._cdata for t in tree_leaves(arguments) if isinstance(t, Tensor)}
    return any(t.untyped_storage()._cdata in memory for t in tree_leaves(result))
