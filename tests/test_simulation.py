"""The simulated device is what it says: its costs, its clock, its meters."""

from typing import Any

import numpy as np
import pytest

from edgestitch.meters.window import energy, mean_power_w, update_period_s
from edgestitch.recipe import load_family
from edgestitch.simulation import SimulatedDevice, SimulatedMeter, Throttling, roles

DEIT = load_family("deit-ti-s-b")
SMALL, LARGE = "ti:0:12", "b:0:12"


def durations_ms(device: SimulatedDevice, topology: str, number: int) -> np.ndarray:
    found = []
    for _ in range(number):
        start = device.clock()
        device.call(topology)
        found.append((device.clock() - start) / 1e6)
    return np.array(found)


def test_costs_are_the_sum_over_atoms_a_call_and_borders():
    device = SimulatedDevice(
        DEIT,
        costs_ms={"call": 1.0, "border": 0.5, "ti:stage0": 2.0, "ti:stem": 3.0, "ti:head": 4.0},
    )
    borders = len(device.cut.chains[SMALL]) - 1
    assert device.latency_ms(SMALL) == pytest.approx(1 + 3 + 12 * 2 + 4 + 0.5 * borders)


def test_what_does_not_add_up_is_added():
    device = SimulatedDevice(DEIT, extra_ms=lambda name: 7.0 * (name == SMALL))
    plain = SimulatedDevice(DEIT)
    assert device.latency_ms(SMALL) == pytest.approx(plain.latency_ms(SMALL) + 7)
    assert device.latency_ms(LARGE) == plain.latency_ms(LARGE)


def test_the_blocks_of_a_stage_have_one_role_and_its_stitching_layers_another():
    swin = roles(load_family("swin-ti-s-b"))
    assert roles(DEIT)["ti:3"] == roles(DEIT)["ti:7"] == "ti:stage0"
    assert roles(DEIT)["ti:6+s:6"] == roles(DEIT)["ti:2+s:2"] == "ti:stage0+s"
    assert swin["ti:4"] == "ti:stage2"
    assert swin["ti:0"] == "ti:stage0"
    assert swin["ti:stem"] == "ti:stem"


def test_only_work_and_sleep_move_the_clock():
    device = SimulatedDevice(DEIT, noise=0)
    start = device.clock()
    device.instruments().look()
    assert device.clock() == start
    device.sleep(0.25)
    device.source().program([SMALL]).runs[SMALL](np.zeros((1, 3, 224, 224), np.float32))
    assert device.clock() - start == pytest.approx(250e6 + device.latency_ms(SMALL) * 1e6, abs=1)


def test_the_median_and_the_mean_are_those_it_says():
    device = SimulatedDevice(DEIT, noise=0.1, spike_probability=0.01)
    found = durations_ms(device, SMALL, 20_000)
    assert np.median(found) == pytest.approx(device.latency_ms(SMALL), rel=0.005)
    assert np.mean(found) == pytest.approx(device.mean_ms(SMALL), rel=0.005)


def test_the_same_seed_gives_the_same_device():
    first, again, other = (
        durations_ms(SimulatedDevice(DEIT, seed=seed), SMALL, 5).tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_the_first_calls_are_slow():
    device = SimulatedDevice(DEIT, noise=0, cold=3.0, cold_calls=20)
    found = durations_ms(device, SMALL, 200) / device.latency_ms(SMALL)
    assert found[0] == pytest.approx(3.0)
    assert (np.diff(found) <= 0).all()
    assert found[-1] == pytest.approx(1.0, abs=1e-3)


def test_it_drifts_by_seconds():
    device = SimulatedDevice(DEIT, noise=0, drift=0.01)
    device.sleep(20)
    assert durations_ms(device, SMALL, 1)[0] == pytest.approx(1.2 * device.latency_ms(SMALL))


def test_while_it_throttles_it_is_slower_and_its_sensors_say_so():
    device = SimulatedDevice(DEIT, noise=0, throttling=[Throttling(start_s=1, stop_s=2, slower=2)])
    sensors = device.instruments().sensors
    assert sensors is not None
    for slept_s, factor, reasons in [(0, 1, ()), (1, 2, ("thermal",)), (1.5, 1, ())]:
        device.sleep(slept_s)
        assert sensors.read().throttle == reasons
        assert sensors.read().clocks_mhz["gpu"] == 1000 // factor
        assert durations_ms(device, SMALL, 1)[0] == pytest.approx(factor * device.latency_ms(SMALL))


def test_after_a_rest_it_wakes_up():
    device = SimulatedDevice(DEIT, noise=0, wake_ms=5.0)
    device.sleep(0.02)
    first, second = durations_ms(device, SMALL, 2) - device.latency_ms(SMALL)
    assert (first, second) == (pytest.approx(5.0), pytest.approx(0.0, abs=1e-6))


# --- its meters ------------------------------------------------------------------------------


def recorded(device: SimulatedDevice, meter: SimulatedMeter, calls: int) -> tuple[Any, int, int]:
    with meter.record() as recording:
        start = device.clock()
        for _ in range(calls):
            device.call(LARGE)
        stop = device.clock()
    return recording.trace, start, stop


def test_energy_is_work_beside_what_the_idle_device_uses():
    device = SimulatedDevice(DEIT, noise=0, idle_w=4.0)
    start = device.clock()
    device.sleep(1.0)
    for _ in range(10):
        device.call(LARGE)
    used = np.diff(device.used_mj(np.array([start, start + 10**9, device.clock()])))
    assert used == pytest.approx([4000.0, 10 * device.energy_mj(LARGE)])
    work_mj = device.energy_mj(LARGE) - 4.0 * device.latency_ms(LARGE)
    assert work_mj == pytest.approx(device.work_mj(LARGE))


@pytest.mark.parametrize("phase", [0.0, 0.4])
def test_a_counter_is_updated_once_a_period_in_steps(phase):
    device = SimulatedDevice(DEIT)
    meter = device.counter(0.05, resolution_mj=10.0, phase=phase)
    trace, start, stop = recorded(device, meter, 200)
    assert update_period_s(trace) == pytest.approx(0.05, rel=0.05)
    assert (trace.values % 10 == 0).all()
    reading = energy(trace, start, stop)
    true_mj = np.diff(device.used_mj(np.array([reading.start_ns, reading.stop_ns])))[0]
    assert reading.error_mj is not None
    assert reading.energy_mj == pytest.approx(true_mj, abs=reading.error_mj)


def test_a_counter_that_is_reset_falls():
    device = SimulatedDevice(DEIT)
    trace, start, stop = recorded(device, device.counter(reset_at_s=1.0), 200)
    assert (np.diff(trace.values) < 0).sum() == 1
    assert energy(trace, start, stop).reason == "the counter was reset (driver reloaded)"


def test_a_meter_that_died_says_so_and_gives_no_number():
    device = SimulatedDevice(DEIT)
    trace, start, stop = recorded(device, device.gauge(dies_at_s=0.5), 200)
    assert len(trace.failures) > 10
    assert trace.times_ns[-1] < start + 0.6e9
    reason = energy(trace, start, stop).reason
    assert reason is not None
    assert "the meter does not answer any more" in reason


def test_a_gauge_that_looks_a_part_of_the_time_sees_that_part():
    device = SimulatedDevice(DEIT, noise=0, idle_w=2.0)
    meter = device.gauge(0.1, window_s=0.025, poll_s=0.01)
    with meter.record() as recording:
        for _ in range(20):  # work in the first half of each period, where it does not look
            for _ in range(3):
                device.call(LARGE)
            device.sleep(0.1 - (device.clock() / 1e9) % 0.1)
    assert recording.trace.values[20:].max() == pytest.approx(2.0, abs=0.001)


def test_a_gauge_that_looks_all_the_time_has_the_mean_power():
    device = SimulatedDevice(DEIT, noise=0.02)
    trace, start, stop = recorded(device, device.gauge(0.1, noise_w=0.5), 2000)
    power_w = device.energy_mj(LARGE) / device.mean_ms(LARGE)
    found = mean_power_w(trace, start + 200_000_000, stop)
    assert found == pytest.approx(power_w, rel=0.01)
