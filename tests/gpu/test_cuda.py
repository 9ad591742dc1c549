"""What only a CUDA device can show; skipped, with the reason, where there is none."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from edgestitch.device import resolve
from edgestitch.engine import check_program, network_source
from edgestitch.instruments import find_instruments
from edgestitch.meters import find_meter
from edgestitch.meters.window import mean_power_w
from edgestitch.program import example_images
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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_topologies_on_the_gpu_equal_eager_ones_within_the_tolerance(device, precision):
    network = toy_network()
    with network_source(network, device, backend="eager", precision=precision) as source:
        program = source.program(list(source.segments))
        for check in check_program(program, network):
            assert check.top1_agreement > 0.5


def test_events_between_segments_add_up_to_no_more_than_the_call(device):
    network = toy_network()
    with network_source(network, device, backend="eager") as source:
        program = source.program(["b:0:3"])
        images = example_images(load_family("toy"), 1)
        program.runs["b:0:3"](images)
        parts = program.marked["b:0:3"](images)
        assert len(parts) == len(source.segments["b:0:3"])
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
