"""What only a CUDA device can show; skipped, with the reason, where there is none."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgestitch.backends import Compiled, Resident, eager, inductor
from edgestitch.backends.graphs import captured
from edgestitch.cut import cut_topologies
from edgestitch.device import resolve
from edgestitch.engine import check_program, network_source
from edgestitch.errors import CompileError
from edgestitch.instruments import find_instruments
from edgestitch.meters import find_meter
from edgestitch.meters.window import mean_power_w
from edgestitch.program import Program, example_images
from edgestitch.recipe import load_family
from edgestitch.sensors import find_sensors
from edgestitch.testing import toy_network

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
]


@pytest.fixture(scope="module")
def device():
    return resolve("auto")


BACKENDS = ("eager", "cudagraph", "inductor")
GRAPHS = ("cudagraph", "inductor")
TOPOLOGIES = ("a:0:3", "b:0:3", "a:0:1+b:1:3", "a:0:2+b:1:3")


@pytest.fixture(
    scope="module", params=[(b, p) for b in BACKENDS for p in ("fp32", "fp16")], ids=str
)
def built(request, device, tmp_path_factory):
    """A network on the CPU, and its program on the device."""
    backend, precision = request.param
    if backend == "inductor" and (reason := inductor.missing("cuda")):
        pytest.skip(f"inductor cannot compile here: {reason}")
    network = toy_network()
    with network_source(
        network.to("cuda"), device, TOPOLOGIES, backend=backend, precision=precision
    ) as source:
        yield network, source.program(TOPOLOGIES)


@pytest.fixture
def graphs(built):
    """Only of the backends that capture."""
    _, program = built
    if program.backend not in GRAPHS:
        pytest.skip(f"{program.backend} captures nothing")
    return program


def images(seed: int = 0) -> np.ndarray:
    return example_images(load_family("toy"), 1, seed=seed)


def residents(program: Program) -> dict[str, Resident]:
    return {name: program.load(name) for name in TOPOLOGIES}


def test_topologies_on_the_gpu_equal_eager_ones_within_the_tolerance(built):
    network, program = built
    assert [check.topology for check in check_program(program, network)] == list(TOPOLOGIES)


def test_topologies_equal_themselves_in_whatever_order_they_are_called(built):
    _, program = built
    loaded = residents(program)
    alone = {(name, seed): loaded[name].run(images(seed)) for name in loaded for seed in (0, 1)}
    random = np.random.default_rng(0)
    for _ in range(100):
        name, seed = TOPOLOGIES[random.integers(len(TOPOLOGIES))], int(random.integers(2))
        np.testing.assert_array_equal(loaded[name].run(images(seed)), alone[name, seed])


def test_images_that_lie_on_the_device_give_the_same_logits(built):
    _, program = built
    for name, resident in residents(program).items():
        assert resident.on_device is not None, name
        found = resident.on_device(torch.from_numpy(images()).cuda())
        assert found.is_cuda
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.cpu().numpy(), resident.run(images()), atol=1e-3)


def test_images_that_are_still_being_made_on_another_stream_are_waited_for(built):
    _, program = built
    resident = program.load("a:0:3")
    assert resident.on_device is not None
    expected, ready = resident.run(images()), torch.from_numpy(images()).cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        batch = torch.zeros_like(ready)
        torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]  # tens of milliseconds
        batch.copy_(ready, non_blocking=True)
        found = resident.on_device(batch)
    np.testing.assert_allclose(found.cpu().numpy(), expected, atol=1e-3)


def test_a_switch_and_a_replay_allocate_nothing_on_the_device(graphs):
    runs = [resident.run for resident in residents(graphs).values()]
    for run in runs:
        run(images())
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(10):
        for run in runs:
            run(images())
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_a_call_after_a_switch_costs_the_host_little_more_than_one_without(graphs):
    runs = [resident.run for resident in residents(graphs).values()]
    image = images()

    def median_ms(order: list[Callable[[np.ndarray], np.ndarray]]) -> float:
        taken = []
        for run in order:
            start = time.perf_counter_ns()
            run(image)
            taken.append((time.perf_counter_ns() - start) / 1e6)
        return float(np.median(taken))

    same = [run for run in runs for _ in range(200)]
    switched = runs * 200
    median_ms(switched)
    assert median_ms(switched) < median_ms(same) + 0.05


def test_topologies_are_captured_while_others_run_in_another_thread(device):
    with network_source(toy_network().to("cuda"), device, backend="cudagraph") as source:
        program = source.program(list(source.segments))
        first, *others = program.topologies
        run = program.load(first).run
        expected, loaded = run(images()), threading.Event()
        failures: list[Exception] = []

        def serve() -> None:
            try:
                while not loaded.is_set():
                    np.testing.assert_array_equal(run(images()), expected)
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            for name in others:
                program.load(name)
        finally:
            loaded.set()
            thread.join()
        assert failures == []


def test_a_capture_that_cuda_breaks_off_leaves_the_others_usable(device):
    network = toy_network().to("cuda")
    cut = cut_topologies(network.family, TOPOLOGIES)
    compiled = Compiled(
        folder=Path(),
        chains=cut.chains,
        atoms=cut.atoms,
        precision="fp32",
        threads=1,
        accelerator="cuda",
        input_shape=(1, *network.family.input_shape),
        network=lambda: network,
    )
    modules = eager.modules(compiled)

    def waits(value):
        return value.flatten(1) * value.sum().item()

    load = captured(lambda topology: [waits] if topology == "x" else modules(topology), compiled)
    before = load("a:0:3")
    expected = before.run(images())
    with pytest.raises(CompileError, match="x cannot be captured"):
        load("x")
    after = load("b:0:3")
    for _ in range(3):
        np.testing.assert_array_equal(before.run(images()), expected)
        assert np.isfinite(after.run(images())).all()


def test_events_between_segments_give_each_ones_time(built):
    _, program = built
    for resident in residents(program).values():
        resident.run(images())
        assert resident.marked is not None
        parts = resident.marked(images())
        assert len(parts) >= 2
        assert all(part >= 0 for part in parts)


def test_the_sensors_read_a_clock_and_a_temperature(device):
    state = find_sensors(device).read()
    assert state.clocks_mhz or state.unread
    assert state.temperatures_c or state.unread


def test_a_meter_that_is_chosen_reads_more_power_under_load_than_none(device):
    instruments = find_instruments(device)
    if instruments.meter.reason is not None:
        pytest.skip(instruments.meter.reason)
    values = torch.ones(4096, 4096, device="cuda", dtype=torch.float16)

    def watts(work: Callable[[], object]) -> float:
        with instruments.meter.record() as recording:
            start = time.perf_counter_ns()
            while time.perf_counter_ns() - start < 3e9:
                work()
            stop = time.perf_counter_ns()
        found = mean_power_w(recording.trace, start, stop)
        assert found is not None
        return found

    def burn() -> None:
        (values @ values).sum().item()

    assert watts(burn) > watts(lambda: time.sleep(0.01))


def test_every_meter_says_whether_it_works(device):
    assert find_meter(device).name
    assert np.isfinite(find_meter(device).period_s)
