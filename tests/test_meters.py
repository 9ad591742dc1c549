"""Meters: from a sensor's readings to the energy of a window, on machines that are not here."""

import errno
import os
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgestitch import ArtifactError
from edgestitch.device import Device, detect
from edgestitch.meters import NoMeter, Quantity, Trace, find_meter, survey
from edgestitch.meters.hwmon import rails
from edgestitch.meters.recorder import PolledMeter, Readings
from edgestitch.meters.replay import ReplayMeter, load_trace, save_trace
from edgestitch.meters.window import Reading, energy, mean_power_w, update_period_s
from edgestitch.nvml import connect
from tests.fakes import (
    FakeClock,
    FakeNvml,
    fake_orin,
    hwmon_tree,
    rapl_tree,
    write_files,
    write_ina3221,
)

ORIN_NANO = [["VDD_IN"]]
AGX_ORIN = [["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]]
THOR = [["VIN"], ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"]]
XAVIER = [["GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"]]


def a_device(name: str) -> Device:
    here = detect()
    return Device(
        **{field: getattr(here, field) for field in here.__struct_fields__} | {"name": name}
    )


CPU, CUDA, JETSON = a_device("cpu"), a_device("cuda"), a_device("jetson-orin")


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def find(clock, tmp_path):
    """`find_meter` below `tmp_path`, where time passes only while it sleeps or works."""

    def call(device=CUDA, *, nvml=None, **options):
        nvml = nvml or connect(fake_orin())
        options = {"root": tmp_path, "clock": clock, "sleep": clock.sleep, **options}
        return find_meter(device, nvml=nvml, **options)

    return call


def counter(times_s: Any, values: Any, **options: Any) -> Trace:
    return trace_of("energy_mj", times_s, values, **options)


def gauge(times_s: Any, values: Any, **options: Any) -> Trace:
    return trace_of("power_w", times_s, values, **options)


def trace_of(
    quantity: Quantity, times_s: Any, values: Any, *, period_s: float = 0.1, **options: Any
) -> Trace:
    return Trace(
        quantity=quantity,
        times_ns=np.round(np.asarray(times_s) * 1e9).astype(np.int64),
        values=np.asarray(values, np.float64),
        period_s=period_s,
        **options,
    )


def millijoules(reading: Reading) -> float:
    assert reading.energy_mj is not None, reading.reason
    return reading.energy_mj


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


# --- the energy of a window: a counter -------------------------------------------------------


@given(
    period_ms=st.integers(10, 200),
    phase=st.floats(0, 1),
    power_w=st.floats(0.5, 700),
    start_s=st.floats(0, 2),
    length_s=st.floats(0.5, 5),
)
def test_a_counter_gives_the_energy_of_the_window_it_returns(
    period_ms, phase, power_w, start_s, length_s
):
    # Read ten times a period, at moments that are updates every tenth time.
    step_s = period_ms / 1e4
    times = np.arange(0, 8, step_s)
    updated = np.floor(np.arange(len(times)) / 10 + phase) * 10 - phase * 10
    true_mj = power_w * 1e3 * np.round(updated) * step_s
    trace = counter(times, np.floor(true_mj), period_s=period_ms / 1e3, resolution=1.0)
    reading = energy(trace, ns(start_s), ns(start_s + length_s))
    assert ns(start_s) <= reading.start_ns < reading.stop_ns <= ns(start_s + length_s)
    assert reading.duration_s >= length_s - 2.2 * period_ms / 1e3
    assert millijoules(reading) == pytest.approx(power_w * 1e3 * reading.duration_s, abs=1.001)


@given(phase=st.floats(0, 1), reads=st.lists(st.floats(0.001, 0.05), min_size=200, max_size=200))
def test_a_counter_read_at_any_moments_is_within_its_stated_error(phase, reads):
    times = np.cumsum(reads)
    updates_s = (np.floor(times / 0.1 + phase) - phase) * 0.1
    trace = counter(times, np.floor(50e3 * (1 + updates_s)), resolution=1.0)
    reading = energy(trace, 0, ns(times[-1]))
    assume(reading.energy_mj is not None and reading.error_mj is not None)
    true_mj = 50e3 * reading.duration_s
    assert abs(millijoules(reading) - true_mj) <= (reading.error_mj or 0) * (1 + 1e-9)


@given(factor=st.floats(0.1, 10), quantity=st.sampled_from([counter, gauge]))
def test_energy_scales_with_the_readings(factor, quantity):
    times = np.linspace(0, 4, 81)
    values = 1 + np.floor(times * 10) ** 2
    plain = energy(quantity(times, values), ns(0.5), ns(3.5))
    scaled = energy(quantity(times, values * factor), ns(0.5), ns(3.5))
    assert scaled.energy_mj == pytest.approx(factor * plain.energy_mj)


def test_no_new_reading_is_not_zero_energy():
    reading = energy(counter(np.arange(0, 3, 0.01), [5e6] * 300), 0, ns(2.9))
    assert reading.energy_mj is None
    assert reading.reason == (
        "the counter was updated 0 times, two are needed: the window is too short for its period of "
        "0.1 s"
    )


def test_a_counter_that_falls_was_reset():
    trace = counter([0, 1, 2, 3, 4], [7e6, 8e6, 9e6, 10, 20])
    assert energy(trace, 0, ns(4)).reason == "the counter was reset (driver reloaded)"
    assert energy(trace, 0, ns(2.5)).energy_mj == 1e6


def test_the_window_shrinks_to_updates():
    times = np.arange(0, 2, 0.01)
    reading = energy(counter(times, np.floor(times * 10 + 1e-9) * 10e3), ns(0.25), ns(1.25))
    assert (reading.start_ns, reading.stop_ns) == (ns(0.3), ns(1.2))
    assert reading.energy_mj == 90e3
    assert reading.readings == 91
    assert mean_power_w(counter(times, times * 10e3), ns(0.25), ns(1.25)) == pytest.approx(10)


def test_the_period_of_a_counter_is_the_median_time_between_updates():
    times = np.arange(0, 2, 0.005)
    assert update_period_s(counter(times, np.floor(times * 10 + 1e-9))) == pytest.approx(0.1)
    assert update_period_s(counter([0, 1, 2], [1, 1, 2])) is None


# --- the energy of a window: a gauge ---------------------------------------------------------

powers = st.lists(st.floats(-5, 500), min_size=41, max_size=41)


@given(powers, st.floats(0, 1.3), st.floats(1.4, 2.6), st.floats(2.7, 4))
def test_energies_of_adjacent_windows_of_a_gauge_add_up(values, first, second, third):
    trace = gauge(np.linspace(0, 4, 41), values)
    parts = [
        millijoules(energy(trace, ns(a), ns(b))) for a, b in [(first, second), (second, third)]
    ]
    whole = energy(trace, ns(first), ns(third)).energy_mj
    assert whole == pytest.approx(sum(parts), abs=1e-3)


def test_a_gauge_is_integrated_over_the_very_window():
    trace = gauge([0, 1, 2], [0, 10, 20], period_s=1, resolution=0.04)
    reading = energy(trace, ns(0.5), ns(1.5))
    assert reading.energy_mj == pytest.approx(10e3)  # 5 W to 15 W
    assert (reading.start_ns, reading.stop_ns, reading.readings) == (ns(0.5), ns(1.5), 1)
    assert reading.error_mj == pytest.approx(40)
    assert mean_power_w(trace, ns(0.5), ns(1.5)) == pytest.approx(10)


def test_a_current_that_flows_back_counts_negative():
    assert energy(gauge([0, 0.1, 0.2], [-0.4, -0.4, -0.4]), 0, ns(0.2)).energy_mj == pytest.approx(
        -80
    )


def test_a_hole_in_the_readings_has_no_energy():
    failures = ("after 1.100 s: the GPU is lost",)
    trace = gauge([0, 0.1, 1.0, 1.1], [9, 9, 9, 9], failures=failures)
    reading = energy(trace, 0, ns(1.1))
    assert reading.energy_mj is None
    assert reading.largest_gap_s == pytest.approx(0.9)
    assert reading.reason == (
        "no reading for 0.9 s, more than 5 periods of 0.1 s; 1 readings failed, the first after "
        "1.100 s: the GPU is lost"
    )
    assert energy(trace, 0, ns(0.1)).energy_mj == pytest.approx(900)


def test_a_window_that_readings_do_not_cover_has_no_energy():
    trace = gauge([1, 1.1, 1.2], [9, 9, 9])
    for start, stop in [(0.9, 1.1), (1.1, 1.3)]:
        assert energy(trace, ns(start), ns(stop)).reason == "the readings do not cover the window"


@pytest.mark.parametrize("quantity", [counter, gauge])
def test_a_clock_that_jumps_back_leaves_no_energy(quantity):
    reading = energy(quantity([0, 1, 0.5, 2], [1, 2, 3, 4], period_s=1), 0, ns(2))
    assert reading.energy_mj is None
    assert reading.reason == "the clock ran backwards while it was recorded"


@pytest.mark.parametrize("quantity", [counter, gauge])
def test_a_window_without_readings_has_no_energy(quantity):
    reading = energy(quantity([], []), 0, 1)
    assert (reading.energy_mj, reading.reason) == (None, "there is no reading")
    with pytest.raises(ValueError, match="stop after the start"):
        energy(quantity([0], [1]), 5, 5)


# --- the recorder ----------------------------------------------------------------------------


def polled(read: Callable[[], float], *, period_s: float = 0.001, **options: Any) -> PolledMeter:
    return PolledMeter(
        name="test",
        scope="test",
        quantity="power_w",
        open=lambda: nullcontext(read),
        poll_s=0.001,
        period_s=period_s,
        **options,
    )


def test_a_recording_reads_before_and_after_what_it_encloses():
    meter = polled(lambda: 4.0, period_s=1)
    with meter.record() as recording:
        start = meter.clock()
        stop = start + 1
        while meter.clock() == start:
            pass
    trace = recording.trace
    assert trace.times_ns[0] <= start
    assert trace.times_ns[-1] >= stop
    assert energy(trace, start, stop).energy_mj == pytest.approx(4e-6)
    assert trace.failures == ()


def test_a_reading_is_stamped_with_its_middle(clock):
    def read() -> float:
        clock.sleep(0.004)
        return 1.0

    readings = Readings(polled(read, clock=clock))
    start = clock()
    readings.take(read)
    assert readings.trace().times_ns.tolist() == [start + ns(0.002)]


def test_the_error_of_one_sample_is_kept_and_no_number_takes_its_place(clock):
    answers: list[float | Exception] = [7.0, OSError(errno.EAGAIN, "try again"), 7.5]

    def read() -> float:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    readings = Readings(polled(read, clock=clock))
    for _ in range(3):
        clock.sleep(0.02)
        readings.take(read)
    trace = readings.trace()
    assert trace.values.tolist() == [7.0, 7.5]
    assert np.diff(trace.times_ns).tolist() == [ns(0.04)]
    assert trace.failures == (f"after 0.040 s: [Errno {errno.EAGAIN}] try again",)


def test_a_sensor_that_disappears_midway_leaves_a_trace_with_failures():
    gone = threading.Event()
    failed = threading.Event()

    def read() -> float:
        if gone.is_set():
            failed.set()
            raise OSError(errno.ENODEV, "no such device")
        return 3.0

    with polled(read).record() as recording:
        gone.set()
        assert failed.wait(5)
    assert len(recording.trace.values) >= 1
    assert "no such device" in recording.trace.failures[0]


def test_a_sensor_that_cannot_be_opened_leaves_an_empty_trace_with_the_failure():
    @contextmanager
    def unplugged():
        raise FileNotFoundError(errno.ENOENT, "no such file", "curr1_input")
        yield

    meter = PolledMeter(
        name="test", scope="test", quantity="power_w", open=unplugged, poll_s=1, period_s=1
    )
    with meter.record() as recording:
        pass
    assert len(recording.trace.values) == 0
    (failure,) = recording.trace.failures
    assert "no such file" in failure


# --- NVML ------------------------------------------------------------------------------------


def test_the_counter_is_preferred_and_its_period_is_measured(find, clock):
    for period_s in (0.02, 0.1):
        meter = find(nvml=connect(FakeNvml(clock=clock, update_period_s=period_s)))
        assert (meter.name, meter.scope, meter.reason) == ("nvml-energy", "GPU", None)
        assert meter.period_s == pytest.approx(period_s, rel=0.11)
        assert meter.poll_s == pytest.approx(period_s / 10, rel=0.11)


def test_the_period_is_measured_without_work_that_hides_updates(find, clock):
    nvml = connect(FakeNvml(clock=clock, update_period_s=0.02))
    meter = find(nvml=nvml, burn=lambda: clock.sleep(0.3))
    assert meter.period_s == pytest.approx(0.02, rel=0.11)
    meter = find(nvml=nvml, burn=lambda: clock.sleep(0.001))
    assert meter.period_s == pytest.approx(0.02, rel=0.11)


def test_a_recording_of_the_counter_gives_the_energy():
    fake = FakeNvml(update_period_s=0.005, energy_mj=lambda s: 1e6 + 200e3 * s)
    meter = find_meter(CUDA, nvml=connect(fake))
    with meter.record() as recording:
        start = time.perf_counter_ns()
        while len(set(recording.trace.values)) < 10:
            time.sleep(0.01)
        stop = time.perf_counter_ns()
    reading = energy(recording.trace, start, stop)
    assert start <= reading.start_ns < reading.stop_ns <= stop
    assert abs(millijoules(reading) - 200e3 * reading.duration_s) <= (reading.error_mj or 0)


def test_an_orin_that_refuses_every_reading_has_no_nvml_meter(find):
    meter = find()
    assert meter.name == "none"
    assert "nvml-energy: NVML's nvmlDeviceGetTotalEnergyConsumption failed" in meter.reason
    assert "nvml-power: NVML's field 186 of scope 0 failed: this GPU or its driver" in meter.reason
    with meter.record() as recording:
        pass
    assert recording.trace.failures == (meter.reason,)
    assert energy(recording.trace, 0, 1).energy_mj is None


@pytest.mark.parametrize("burning", [False, True])
def test_a_thor_that_always_reads_zero_has_no_nvml_meter(find, clock, burning):
    fake = FakeNvml(clock=clock, energy_mj=lambda s: 0, power_w=lambda s: 0)
    meter = find(nvml=connect(fake), burn=(lambda: clock.sleep(0.01)) if burning else None)
    assert meter.name == "none"
    for name in ("nvml-energy", "nvml-power"):
        assert f"{name}: all readings are 0 although they are said to succeed" in meter.reason


def test_a_counter_that_stands_still_is_passed_over(find, clock):
    fake = FakeNvml(clock=clock, energy_mj=lambda s: 1e6)
    assert find(nvml=connect(fake)).name == "nvml-power"
    assert (
        "nvml-energy: the counter stands still"
        in find(nvml=connect(fake), only="nvml-energy").reason
    )


def test_a_gauge_must_change_under_work(find, clock):
    nvml = connect(FakeNvml(clock=clock, power_w=lambda s: 71.0))
    options = {"nvml": nvml, "only": "nvml-power"}
    assert find(**options).reason is None
    meter = find(**options, burn=lambda: clock.sleep(0.01))
    assert "it read 71 W and did not change under 0.5 s of work" in meter.reason


def test_a_superchip_that_refuses_the_scope_of_the_gpu_is_read_as_a_module(find, clock):
    fake = FakeNvml(
        clock=clock,
        errors={"nvmlDeviceGetTotalEnergyConsumption": 3},
        field_errors={(186, 0): 3},
    )
    meter = find(nvml=connect(fake))
    assert (meter.name, meter.scope) == ("nvml-power", "GPU module (CPU + GPU)")
    assert meter.notes == {"field": "instant power, scope 1"}


def test_without_the_field_power_is_said_to_be_averaged(find, clock):
    errors = {"nvmlDeviceGetTotalEnergyConsumption": 3, "nvmlDeviceGetFieldValues": 13}
    meter = find(nvml=connect(FakeNvml(clock=clock, errors=errors)))
    assert (meter.name, meter.scope) == ("nvml-power", "GPU, 1 s average")


def test_a_slice_of_a_gpu_has_no_energy(find, clock):
    meter = find(nvml=connect(FakeNvml(clock=clock, mig=True)))
    assert "nvml-energy: a slice of a GPU (MIG) has no power or energy of its own" in meter.reason


def test_without_a_driver_every_meter_says_why(find, tmp_path, clock, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", FakeNvml(errors={"nvmlInit": 12}))
    options = {"root": tmp_path, "clock": clock, "sleep": clock.sleep}
    tried = survey(CUDA, **options)
    assert [t.name for t in tried] == ["nvml-energy", "nvml-power", "ina3221", "rapl"]
    assert "libnvidia-ml.so.1 was not found" in str(tried[0].reason)
    assert tried[2].reason == "neither an INA3221 nor an INA238 in /sys/class/hwmon"
    assert tried[3].reason == "it covers the CPU, but the device that computes is the GPU"
    assert find_meter(CUDA, **options) == NoMeter("; ".join(f"{t.name}: {t.reason}" for t in tried))


def test_the_cpu_is_not_measured_with_the_meter_of_a_gpu_unless_it_is_named(find, clock):
    nvml = connect(FakeNvml(clock=clock))
    meter = find(CPU, nvml=nvml)
    assert "nvml-energy: it covers the GPU, but the device that computes is the CPU" in meter.reason
    assert find(CPU, nvml=nvml, only="nvml-energy").name == "nvml-energy"


def test_a_forked_child_reads_on(find, clock, monkeypatch):
    fake = FakeNvml(clock=clock)
    meter = find(nvml=connect(fake))
    before = fake.calls.count("nvmlInit")
    monkeypatch.setattr("os.getpid", lambda: 424242)
    with meter.open() as read:
        assert read() > 0
    assert fake.calls.count("nvmlInit") == before + 1


def test_an_unknown_meter_is_refused_with_the_known_ones(find):
    with pytest.raises(ValueError, match="no meter 'watt'; there are nvml-energy, nvml-power, ina"):
        find(only="watt")


# --- rails of a Jetson -----------------------------------------------------------------------


def read_w(meter: Any) -> Any:
    with meter.open() as read:
        return read()


@pytest.mark.parametrize(
    ("board", "totals", "name", "scope", "power_w"),
    [
        ("orin-nano", ORIN_NANO, "ina3221", "module (VDD_IN)", 5.0),
        (
            "agx-orin",
            AGX_ORIN,
            "ina3221",
            "module estimate (VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0)",
            9.6,
        ),
        ("thor", THOR, "ina238", "module (VIN)", 23.0),
        (
            "xavier",
            XAVIER,
            "ina3221",
            "module estimate (GPU + CPU + SOC + CV + VDDRQ + SYS5V)",
            6.92,
        ),
    ],
)
def test_the_total_of_a_board(find, tmp_path, board, totals, name, scope, power_w):
    hwmon_tree(tmp_path, board)
    meter = find(JETSON, totals=totals)
    assert (meter.name, meter.scope, meter.reason) == (name, scope, None)
    assert read_w(meter) == pytest.approx(power_w)


def test_an_agx_orin_resolves_four_tenths_of_a_watt_a_rail(find, tmp_path):
    write_ina3221(
        tmp_path / "sys/class/hwmon/hwmon0", [("VDD_GPU_SOC", 20000, 240)], shunt_uohm=2000
    )
    assert find(JETSON, totals=[["VDD_GPU_SOC"]]).resolution == pytest.approx(0.4)
    assert find(JETSON, totals=[["VDD_GPU_SOC"]]).period_s == 0.02


def test_a_thor_without_the_sensor_of_its_input_is_summed_up(find, tmp_path):
    hwmon_tree(tmp_path, "thor")
    (tmp_path / "sys/class/hwmon/hwmon1/label").unlink()
    meter = find(JETSON, totals=THOR)
    assert meter.scope == "module estimate (VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0)"
    assert read_w(meter) == pytest.approx(2 + 4 + 4.5)


def test_a_total_that_does_not_work_gives_way_to_the_next(find, tmp_path):
    hwmon_tree(tmp_path, "thor")
    write_files(tmp_path / "sys/class/hwmon/hwmon1", {"power1_input": 0})
    assert find(JETSON, totals=THOR).name == "ina3221"
    assert find(JETSON, totals=THOR, only="ina3221").name == "ina3221"
    assert find(JETSON, totals=THOR, only="ina238").reason == (
        "ina238: all readings are 0 although they are said to succeed"
    )


def test_a_chip_that_is_not_on_the_board_is_told(find, tmp_path):
    assert "ina238: neither an INA3221 nor" in find(JETSON, totals=THOR, only="ina238").reason
    hwmon_tree(tmp_path)
    assert find(JETSON, totals=ORIN_NANO, only="ina238").reason == (
        "ina238: the board's total is measured by the ina3221 alone"
    )


def test_rails_are_known_by_content_not_by_number(tmp_path):
    write_files(tmp_path / "sys/class/hwmon/hwmon0", {"name": "tmp451", "in1_label": "VDD_IN"})
    hwmon_tree(tmp_path, "agx-orin", first=9)
    labels = [rail.label for rail in rails(tmp_path)]
    assert labels == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]


def test_unconnected_channels_and_sums_are_no_rails(tmp_path):
    hwmon_tree(tmp_path, "agx-orin")
    labels = {rail.label for rail in rails(tmp_path)}
    assert not {"NC", "sum of shunt voltages"} & labels
    files = {file.name for rail in rails(tmp_path) for file in rail.files}
    assert files <= {f"{kind}{n}_input" for kind in ("in", "curr") for n in (1, 2, 3)}


def test_the_sensors_of_jetpack_4_are_read(find, tmp_path):
    hwmon_tree(tmp_path, "xavier", iio=True)
    meter = find(JETSON, totals=XAVIER)
    assert read_w(meter) == pytest.approx(6.92)


def test_how_a_sensor_converts_is_noted(find, tmp_path):
    hwmon_tree(tmp_path)
    folder = tmp_path / "sys/class/hwmon/hwmon0"
    write_files(folder, {"update_interval": 70, "samples": 16})
    chip = tmp_path / "sys/devices/1-0040"
    chip.mkdir(parents=True)
    (folder / "device").symlink_to(chip)
    meter = find(JETSON, totals=ORIN_NANO)
    assert meter.notes == {
        "1-0040 update_interval_ms": "70",
        "1-0040 samples": "16",
        "rails": "VDD_IN, VDD_CPU_GPU_CV, VDD_SOC",
    }
    assert meter.period_s == 0.07


def test_a_negative_current_is_not_clamped(tmp_path):
    write_ina3221(tmp_path / "sys/class/hwmon/hwmon0", [("VDD_GPU", 19600, -20)])
    (rail,) = rails(tmp_path)
    with rail.open() as read:
        assert read() == pytest.approx(-0.392)


def test_rails_that_make_no_known_total_are_told(find, tmp_path):
    hwmon_tree(tmp_path)
    assert (
        "ina3221: the board's total is VIN or VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0, but its rails "
        "are VDD_IN, VDD_CPU_GPU_CV, VDD_SOC" in find(JETSON, totals=THOR).reason
    )
    assert "is not known for this device" in find(JETSON).reason


def test_a_rail_is_opened_once_and_read_anew(find, tmp_path):
    hwmon_tree(tmp_path)
    meter = find(JETSON, totals=ORIN_NANO)
    with meter.open() as read:
        assert read() == pytest.approx(5.0)
        (tmp_path / "sys/class/hwmon/hwmon0/curr1_input").write_text("1200\n")
        assert read() == pytest.approx(6.0)


def test_a_power_gated_rail_is_missing_not_zero_and_not_tried_again(find, tmp_path, monkeypatch):
    hwmon_tree(tmp_path)
    meter = find(JETSON, totals=ORIN_NANO)
    reads = 0

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        nonlocal reads
        reads += 1
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("os.pread", pread)
    readings = Readings(meter)
    with meter.open() as read:
        readings.take(read)
    assert reads == 1
    assert readings.values == []
    assert (
        "rail VDD_IN: in1_input has no reading while its part is power-gated"
        in readings.failures[0]
    )


def test_a_rail_without_permission_is_a_reason_with_what_to_do(find, tmp_path, monkeypatch):
    hwmon_tree(tmp_path)
    really = os.open

    def refuse(path, *args, **options):
        if str(path).endswith("curr1_input"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path, *args, **options)

    monkeypatch.setattr("os.open", refuse)
    reason = find(JETSON, totals=ORIN_NANO).reason
    assert "ina3221: no permission to read" in reason
    assert "sudo chmod a+r" in reason
    assert "udev" in reason


def test_a_rail_that_is_unplugged_is_said_to_be_gone(find, tmp_path):
    hwmon_tree(tmp_path)
    meter = find(JETSON, totals=ORIN_NANO)
    (tmp_path / "sys/class/hwmon/hwmon0/in1_input").unlink()
    with meter.record() as recording:
        pass
    assert "is gone: the sensor's driver was unloaded" in recording.trace.failures[0]


# --- RAPL ------------------------------------------------------------------------------------


def count_on(root: Path, clock: FakeClock) -> Callable[[float], None]:
    """Sleeping, as which the packages' counters go on by 1 mJ a millisecond."""

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        for file in root.glob("sys/class/powercap/*/energy_uj"):
            limit = int(file.with_name("max_energy_range_uj").read_text())
            file.write_text(f"{(int(file.read_text()) + round(seconds * 1e6)) % limit}\n")

    return sleep


def test_packages_are_summed_without_their_parts_and_psys(find, tmp_path, clock):
    rapl_tree(tmp_path, packages=2)
    meter = find(CPU, sleep=count_on(tmp_path, clock))
    assert (meter.name, meter.scope, meter.reason) == ("rapl", "2 CPU packages", None)
    with meter.open() as read:
        before = read()
        (tmp_path / "sys/class/powercap/intel-rapl:2/energy_uj").write_text("9")
        assert read() == before


def test_a_counter_that_wraps_goes_on(find, tmp_path, clock):
    rapl_tree(tmp_path, range_uj=1_200_000)
    meter = find(CPU, sleep=count_on(tmp_path, clock))
    sleep = count_on(tmp_path, clock)
    with meter.open() as read:
        values = []
        for _ in range(40):
            values.append(read())
            sleep(0.1)
    assert np.diff(values) == pytest.approx([100] * 39)


def test_counters_that_only_root_may_read_are_a_reason_with_what_to_do(find, tmp_path, monkeypatch):
    rapl_tree(tmp_path)
    really = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "energy_uj":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    reason = find(CPU).reason
    assert "is root's alone since CVE-2020-8694; run as root" in reason
    assert "sudo chmod a+r" in reason


def test_a_counter_of_zero_is_no_meter(find, tmp_path):
    rapl_tree(tmp_path)
    write_files(tmp_path / "sys/class/powercap/intel-rapl:0", {"energy_uj": 0})
    assert "rapl: all readings are 0" in find(CPU).reason


def test_this_machine_is_tried_and_every_failure_has_a_reason():
    for tried in survey(detect()):
        assert tried.reason is None or len(tried.reason) > 10


# --- files and replay ------------------------------------------------------------------------


@given(
    quantity=st.sampled_from(["power_w", "energy_mj"]),
    steps=st.lists(st.integers(1, 10**10), min_size=2, max_size=20),
    values=st.lists(st.floats(-1e9, 1e9), min_size=20, max_size=20),
)
def test_a_trace_survives_its_file(tmp_path, quantity, steps, values):
    times = 1_700_000_000_000_000_000 + np.cumsum(np.array(steps, np.int64))
    trace = Trace(
        quantity=quantity,
        times_ns=times,
        values=np.array(values[: len(times)]),
        period_s=1.0,
        failures=("after 1.000 s: gone",),
    )
    save_trace(trace, tmp_path / "trace.csv")
    found = load_trace(tmp_path / "trace.csv")
    assert found.quantity == quantity
    assert found.times_ns.tolist() == times.tolist()
    assert found.values.tolist() == trace.values.tolist()
    assert found.failures == trace.failures


def test_a_file_of_an_external_meter_is_brought_to_the_clock(tmp_path):
    path = tmp_path / "meter.csv"
    path.write_text("time_s,power_w\n0,10\n0.1,10\n\n0.2, 10\n")
    trace = load_trace(path, zero_ns=ns(100))
    assert trace.period_s == pytest.approx(0.1)
    assert energy(trace, ns(100), ns(100.2)).energy_mj == pytest.approx(2000)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "its first line must be time_s,power_w"),
        ("time,watts\n0,1\n", "begins with 'time,watts'"),
        ("time_s,power_w\n0,1\n", "needs two readings or more"),
        ("time_s,power_w\n1,1\n0,1\n", "each later than the one before"),
        ("time_s,power_w\n0,1\n1,nan\n", "line 3: '1,nan' are not two finite numbers"),
        ("time_s,power_w\n0,1\n1\n", "line 3: '1' are not"),
        ("time_s,power_w\n0,1\nx,2\n", "line 3: 'x,2' are not"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path, content, words):
    path = tmp_path / "meter.csv"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=words):
        load_trace(path)


def test_a_replayed_recording_is_the_part_of_the_trace_that_encloses_it(clock):
    start_s = clock() / 1e9
    source = gauge(start_s + np.arange(0, 3, 0.1), np.arange(30))
    meter = ReplayMeter(source, clock)
    clock.sleep(0.45)
    with meter.record() as recording:
        start = clock()
        clock.sleep(0.5)
        stop = clock()
    assert recording.trace.values.tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert energy(recording.trace, start, stop).energy_mj == pytest.approx(7e3 * 0.5)
