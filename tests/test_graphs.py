"""Topologies as CUDA graphs, on a GPU that is not there: outputs, order, sharing, failures."""

import gc
import inspect
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgestitch import backends
from edgestitch.backends import Compiled, Resident, cudagraph, eager, graphs
from edgestitch.backends.chain import Step, Steps
from edgestitch.cut import cut_topologies
from edgestitch.errors import CompileError, DeviceError
from edgestitch.network import StitchNetwork
from edgestitch.program import example_images
from edgestitch.recipe import load_family
from edgestitch.testing import toy_network
from tests.fake_cuda import FakeCuda, FakeStream

TOPOLOGIES = ("a:0:3", "b:0:3", "a:0:1+b:1:3", "a:0:2+b:1:3")
FAMILY = load_family("toy")
CALL = [("side1", name) for name in ("copy_", "replay", "copy_", "synchronize")]


@pytest.fixture
def device(monkeypatch):
    return plug_in(monkeypatch)


def plug_in(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    device = FakeCuda()
    monkeypatch.setattr(graphs, "cuda", device)
    monkeypatch.setattr(graphs, "pinned", device.pinned)
    return device


def compiled_toy(network: StitchNetwork | None = None, precision: str = "fp32") -> Compiled:
    network = network or toy_network()
    cut = cut_topologies(FAMILY, TOPOLOGIES)
    return Compiled(
        folder=None,  # type: ignore[arg-type]  # no backend here has files
        chains=cut.chains,
        atoms=cut.atoms,
        precision=precision,
        threads=1,
        accelerator="cpu",
        input_shape=(1, *FAMILY.input_shape),
        network=lambda: network,
    )


def images(seed: int = 0) -> np.ndarray:
    return example_images(FAMILY, 1, seed=seed)


@cache
def logits(topology: str, seed: int) -> np.ndarray:
    """Eager's."""
    with torch.inference_mode():
        found: np.ndarray = toy_network().assemble(topology)(torch.from_numpy(images(seed))).numpy()
    return found


def on_device(resident: Resident, batch: torch.Tensor) -> torch.Tensor:
    assert resident.on_device is not None
    return resident.on_device(batch)


def marked(resident: Resident) -> Sequence[float]:
    assert resident.marked is not None
    return resident.marked(images())


# --- what comes out ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded():
    """All topologies, captured once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        device = plug_in(monkeypatch)
        load = cudagraph.BACKEND.load(compiled_toy())
        yield device, {name: load(name) for name in TOPOLOGIES}


calls = st.lists(st.tuples(st.sampled_from(TOPOLOGIES), st.integers(0, 3)), max_size=6)


@given(calls)
def test_every_topology_equals_eager_in_whatever_order_they_are_called(loaded, calls):
    _, residents = loaded
    found = [residents[name].run(images(seed)) for name, seed in calls]
    for (name, seed), one in zip(calls, found, strict=True):
        np.testing.assert_allclose(one, logits(name, seed), atol=1e-5)


@given(calls)
def test_the_same_holds_for_images_that_lie_on_the_device(loaded, calls):
    _, residents = loaded
    found = [on_device(residents[name], torch.from_numpy(images(seed))) for name, seed in calls]
    for (name, seed), one in zip(calls, found, strict=True):
        assert one.dtype == torch.float32
        np.testing.assert_allclose(one.numpy(), logits(name, seed), atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_converted_within_the_graph_and_not_on_the_way(device, precision):
    load = cudagraph.BACKEND.load(compiled_toy(precision=precision))
    resident = load("a:0:3")
    assert device.calls(lambda: resident.run(images())) == CALL
    found = resident.run(images())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, logits("a:0:3", 0), atol=0.05, rtol=0.1)


def test_weights_are_used_where_they_are(device):
    network = toy_network()
    run = cudagraph.BACKEND.load(compiled_toy(network))("a:0:3").run
    before = run(images())
    with torch.no_grad():
        dict(network.named_parameters())["atoms.a:head.model.head.weight"].mul_(2)
    assert not np.allclose(before, run(images()))


# --- what a call does --------------------------------------------------------------------------


def test_a_call_is_two_copies_and_a_launch_and_allocates_nothing(device):
    resident = cudagraph.BACKEND.load(compiled_toy())("a:0:3")
    assert device.calls(lambda: resident.run(images())) == CALL


def test_a_switch_costs_no_operation_more(device):
    load = cudagraph.BACKEND.load(compiled_toy())
    runs = [load(name).run for name in TOPOLOGIES]
    assert device.calls(lambda: [run(images()) for run in runs]) == CALL * len(runs)


def test_host_memory_is_taken_once_for_all_topologies(device):
    load = cudagraph.BACKEND.load(compiled_toy())
    for name in TOPOLOGIES:
        load(name)
    assert [operation for _, operation in device.log].count("pinned") == 2


def test_images_on_the_device_are_waited_for_in_the_callers_stream(device):
    resident = cudagraph.BACKEND.load(compiled_toy())("a:0:3")
    caller, batch = device.Stream(), torch.zeros(1, *FAMILY.input_shape)
    ready = torch.from_numpy(images())

    def late() -> None:
        with device.stream(caller):
            batch.copy_(ready, non_blocking=True)
            np.testing.assert_allclose(on_device(resident, batch), logits("a:0:3", 0), atol=1e-5)

    assert device.calls(late)[:8] == [
        ("side2", "copy_"),
        ("side2", "empty_like"),  # of the stream that will use it
        ("side2", "record"),
        ("side1", "wait_event"),
        *CALL,
    ]


def test_a_stream_that_is_not_waited_for_gives_old_values(device):
    """The fake is worth something: without the wait, the test above would fail."""
    resident = cudagraph.BACKEND.load(compiled_toy())("a:0:3")
    batch, ready = torch.zeros(1, *FAMILY.input_shape), torch.from_numpy(images())
    with device.stream(device.Stream()):
        batch.copy_(ready, non_blocking=True)
    found = on_device(resident, batch)  # its caller's stream is another one
    assert not np.allclose(found, logits("a:0:3", 0))


def test_what_a_call_returns_is_the_callers_own(device):
    load = cudagraph.BACKEND.load(compiled_toy())
    resident, other = load("a:0:3"), load("b:0:3")
    host, there = resident.run(images(0)), on_device(resident, torch.from_numpy(images(0)))
    other.run(images(1))
    resident.run(images(2))
    np.testing.assert_allclose(host, logits("a:0:3", 0), atol=1e-5)
    np.testing.assert_allclose(there, logits("a:0:3", 0), atol=1e-5)


def test_read_only_images_are_taken_without_a_warning(device):
    image = images()
    image.flags.writeable = False
    found = cudagraph.BACKEND.load(compiled_toy())("a:0:3").run(image)
    np.testing.assert_allclose(found, logits("a:0:3", 0), atol=1e-5)


def test_marks_give_the_time_of_each_step_on_the_same_stream(device):
    compiled = compiled_toy()
    steps = len(compiled.chains["a:0:2+b:1:3"])
    resident = cudagraph.BACKEND.load(compiled)("a:0:2+b:1:3")
    done = device.calls(lambda: marked(resident))
    assert done.count(("side1", "record")) == steps + 1
    assert {stream for stream, _ in done} == {"side1"}
    parts = marked(resident)
    assert len(parts) == steps
    assert all(part >= 0 for part in parts)


def running(*steps: Step) -> Steps:
    """Every topology has these."""
    return lambda topology: steps


# --- capturing ---------------------------------------------------------------------------------


def test_all_topologies_share_one_stream_and_one_pool(device):
    load = cudagraph.BACKEND.load(compiled_toy())
    for name in TOPOLOGIES:
        load(name)
    assert len(device.graphs) == len(TOPOLOGIES)
    assert {graph.pool for graph in device.graphs} == {device.pools[0]}
    assert {graph.stream for graph in device.graphs} == {device.streams[1]}
    assert {graph.mode for graph in device.graphs} == {"thread_local"}


def test_steps_run_three_times_before_they_are_captured_after_the_weights_are_there(device):
    seen = []

    def step(value):
        seen.append(device.capturing is not None)
        return value.flatten(1)

    graphs.captured(running(step), compiled_toy())("x")
    assert seen == [False, False, False, True]
    order = [operation for _, operation in device.log]
    assert order.index("wait_stream") < order.index("synchronize") < order.index("capture_begin")


def test_modules_live_as_long_as_what_runs_them(device):
    module = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    module(torch.from_numpy(images()))
    alive = weakref.ref(module)
    run = graphs.captured(running(module), compiled_toy())("x").run
    del module
    gc.collect()
    assert alive() is not None
    del run


def test_a_capture_and_a_replay_never_overlap(device):
    """Else the fake raises in one of the threads."""

    def slow(value):
        time.sleep(0.002)
        return value.flatten(1)

    load = graphs.captured(running(slow, slow, slow), compiled_toy())
    first, serving = load("first"), threading.Event()
    failures: list[Exception] = []

    def serve() -> None:
        try:
            while not done.is_set():
                np.testing.assert_array_equal(first.run(images()), images().reshape(1, -1))
                on_device(first, torch.from_numpy(images()))
                marked(first)
                serving.set()
        except Exception as error:
            failures.append(error)
            serving.set()

    done, thread = threading.Event(), threading.Thread(target=serve)
    thread.start()
    serving.wait()
    for number in range(6):
        load(f"later {number}").run(images())
    done.set()
    thread.join()
    assert failures == []
    assert not any(graph.broken for graph in device.graphs)


def with_step(step: Step) -> Steps:
    """The toy family's topologies, and `x`, which is the step."""
    modules = eager.modules(compiled_toy())
    return lambda topology: [step] if topology == "x" else modules(topology)


CALLS: dict[str, Callable[[Resident], object]] = {
    "run": lambda resident: resident.run(images()),
    "on_device": lambda resident: on_device(resident, torch.from_numpy(images())),
    "marked": marked,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_that_comes_during_a_capture_waits_for_its_end(device, call):
    ended = threading.Event()

    def late() -> None:
        call(first)
        ended.set()

    def captured_slowly(value):
        if device.capturing:
            thread.start()
            assert not ended.wait(0.05)
        return value.flatten(1)

    thread = threading.Thread(target=late)
    load = graphs.captured(with_step(captured_slowly), compiled_toy())
    first = load("a:0:3")
    load("x")
    thread.join()
    assert ended.is_set()
    assert not device.graphs[-1].broken


def test_topologies_can_be_loaded_by_several_threads_at_once(device, monkeypatch):
    def slow(value):
        time.sleep(0.005)
        return value.flatten(1)

    def late(stream):
        time.sleep(0.005)
        synchronize(stream)

    synchronize = FakeStream.synchronize
    monkeypatch.setattr(FakeStream, "synchronize", late)
    load = graphs.captured(running(slow), compiled_toy())
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load, "abcdefgh"))
    for resident in loaded:
        np.testing.assert_array_equal(resident.run(images()), images().reshape(1, -1))


# --- failures ----------------------------------------------------------------------------------


def test_a_failed_capture_says_why_and_leaves_the_other_topologies_as_they_were(device):
    def waits(value):
        return value.flatten(1) * value.sum().item()

    load = graphs.captured(with_step(waits), compiled_toy())
    before = load("a:0:3")
    with pytest.raises(CompileError, match=r"x cannot be captured .*not permitted when.*eager"):
        load("x")
    after = load("b:0:3")
    assert device.current_stream() is device.default
    np.testing.assert_allclose(before.run(images()), logits("a:0:3", 0), atol=1e-5)
    np.testing.assert_allclose(after.run(images()), logits("b:0:3", 0), atol=1e-5)


def test_a_graph_whose_capture_was_broken_off_stays_since_pytorch_asks_it(device):
    def waits(value):
        return value.flatten(1) * value.sum().item()

    load = graphs.captured(with_step(waits), compiled_toy())
    with pytest.raises(CompileError):
        load("x")
    broken = weakref.ref(device.graphs.pop())
    gc.collect()
    assert broken() is not None


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 3 MiB free", "2.00 GiB more"),
        ("CUDA error: out of memory", "does not say how much"),
    ],
)
def test_memory_that_is_not_there_is_the_devices_error_and_says_how_much(device, message, said):
    def large(value):
        if device.capturing:
            raise torch.OutOfMemoryError(message)
        return value.flatten(1)

    load = graphs.captured(with_step(large), compiled_toy())
    with pytest.raises(DeviceError, match=f"make x resident: .*{said}.*fewer"):
        load("x")
    np.testing.assert_allclose(load("a:0:3").run(images()), logits("a:0:3", 0), atol=1e-5)


def test_an_error_that_explains_itself_is_left_as_it_is(device):
    def steps(topology):
        raise CompileError("the engine is of another version; compile it again")

    with pytest.raises(CompileError, match="the engine is of another version"):
        graphs.captured(steps, compiled_toy())("x")


# --- the backend, and the fake -----------------------------------------------------------------


def test_cudagraph_is_a_backend_that_says_why_it_does_not_work_here():
    found = backends.backend("cudagraph")
    assert found.accelerators == ("cuda",)
    assert found.shares_weights
    reason = found.unavailable()
    assert (reason is None) == torch.cuda.is_available()
    assert reason is None or "use backend eager" in reason


def test_a_pytorch_without_cuda_is_told_apart_from_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in str(cudagraph.BACKEND.unavailable())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "finds no CUDA device" in str(cudagraph.BACKEND.unavailable())


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        (FakeCuda.graph, torch.cuda.graph.__init__),
        (FakeCuda.Stream, torch.cuda.Stream.__new__),
        (FakeCuda.Event, torch.cuda.Event.__new__),
        (FakeCuda.stream, torch.cuda.stream),
        (FakeCuda.current_stream, torch.cuda.current_stream),
        (FakeCuda.graph_pool_handle, torch.cuda.graph_pool_handle),
    ],
)
def test_the_fake_takes_no_argument_that_pytorch_does_not(fake, real):
    assert set(inspect.signature(fake).parameters) <= {"self", *inspect.signature(real).parameters}
