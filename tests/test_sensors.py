"""What a device is doing is read where the board has it, or missing with the reason."""

import os
from pathlib import Path
from typing import Any

import pytest

from edgestitch.device import detect, resolve
from edgestitch.nvml import Nvml
from edgestitch.sensors import BoardSensors, State, find_sensors, throttled
from tests.boards import BOARDS, board, hide_gpus, machine, powered_off, put, unreadable
from tests.fakes import FakeNvml, fake_orin


@pytest.fixture(autouse=True)
def _no_real_gpu(monkeypatch):
    hide_gpus(monkeypatch)


def sensors(root: Path, name: str | None = None, nvml: Nvml | None = None) -> BoardSensors:
    """The sensors of a board from `BOARDS`, or of the machine in a tree."""
    if name:
        board(root, name)
    return find_sensors(detect(root, nvml=nvml), root=root, nvml=nvml)


def state(**known: Any) -> State:
    return State(**{"clocks_mhz": {}, "temperatures_c": {}, "throttle": (), "events": {}, **known})


# --- boards ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOARDS)
def test_the_gpus_clock_is_found_under_the_name_that_each_generation_gives_it(tmp_path, name):
    found = sensors(tmp_path, name).read()
    assert found.clocks_mhz["gpu"] == pytest.approx(BOARDS[name].gpu_mhz[0])
    assert found.clocks_mhz["cpu"] == pytest.approx(1510.4)


@pytest.mark.parametrize("name", BOARDS)
def test_clocks_are_pinned_if_the_lowest_allowed_is_the_highest(tmp_path, name):
    _, low, high = BOARDS[name].gpu_mhz
    assert sensors(tmp_path, name).locked is (low == high)


def test_pinning_is_seen_while_it_happens(tmp_path):
    found = sensors(tmp_path, "jetson-orin-nano")
    assert found.locked is False
    put(tmp_path / "sys/class/devfreq/17000000.gpu/min_freq", 1_020_000_000)
    assert found.locked is True


@pytest.mark.parametrize(
    ("name", "temperatures_c"),
    [
        ("jetson-orin-nx", {"cpu": 47.5, "gpu": 46.25, "tj": 47.5}),
        ("jetson-thor", {"cpu": 55.0, "gpu": 57.0, "tj": 58.0}),
        ("jetson-xavier", {"cpu": 40.5, "gpu": 39.0}),
    ],
)
def test_only_the_zones_worth_their_time_are_read(tmp_path, name, temperatures_c):
    assert sensors(tmp_path, name).read().temperatures_c == temperatures_c


def test_a_zone_without_power_is_absent_with_the_reason_and_comes_back(tmp_path):
    found = sensors(tmp_path, "jetson-thor")
    zone = tmp_path / "sys/class/thermal/thermal_zone1/temp"
    with powered_off(zone):
        now = found.read()
        assert now.temperatures_c == {"cpu": 55.0, "tj": 58.0}
        assert "powered off" in now.unread["temperatures_c.gpu"]
    zone.unlink()
    put(zone, 57000)
    now = found.read()
    assert now.temperatures_c["gpu"] == 57.0
    assert "temperatures_c.gpu" not in now.unread


def test_a_zone_without_power_is_asked_once(tmp_path, monkeypatch):
    found = sensors(tmp_path, "jetson-thor")
    zone = tmp_path / "sys/class/thermal/thermal_zone1/temp"
    opened = []
    real = os.open

    def opening(file, *arguments):
        opened.append(file)
        return real(file, *arguments)

    with powered_off(zone):
        monkeypatch.setattr("os.open", opening)
        found.read()
    assert opened.count(zone) == 1


def test_what_may_not_be_read_says_how_it_could(tmp_path, monkeypatch):
    found = sensors(tmp_path, "jetson-orin-nano")
    clock = tmp_path / "sys/class/devfreq/17000000.gpu/cur_freq"
    real = os.open

    def refuse(file, *arguments):
        if file == clock:
            raise PermissionError(13, "Permission denied")
        return real(file, *arguments)

    monkeypatch.setattr("os.open", refuse)
    now = found.read()
    assert "gpu" not in now.clocks_mhz
    assert f"sudo chmod a+r {clock}" in now.unread["clocks_mhz.gpu"]


def test_one_sensor_that_fails_takes_no_other_along(tmp_path):
    found = sensors(tmp_path, "jetson-orin-nano")
    unreadable(tmp_path / "sys/class/devfreq/17000000.gpu/cur_freq")
    put(tmp_path / "sys/class/thermal/thermal_zone0/temp", "hot")
    (tmp_path / "sys/class/thermal/thermal_zone4/temp").unlink()
    now = found.read()
    assert now.temperatures_c == {"gpu": 46.25}
    assert set(now.clocks_mhz) == {"cpu"}
    assert "Is a directory" in now.unread["clocks_mhz.gpu"]
    assert "holds no number" in now.unread["temperatures_c.cpu"]
    assert "No such file" in now.unread["temperatures_c.tj"]


def test_the_memorys_clock_is_read_where_it_can_be(tmp_path):
    orin = sensors(tmp_path / "orin", "jetson-orin-nano").read()
    assert "memory" not in orin.clocks_mhz
    assert "only root may read it" in orin.unread["clocks_mhz.memory"]
    put(tmp_path / "thor/sys/class/devfreq/bwmgr/cur_freq", 4_266_000_000)
    thor = sensors(tmp_path / "thor", "jetson-thor").read()
    assert thor.clocks_mhz["memory"] == 4266
    assert "clocks_mhz.memory" not in thor.unread


def test_a_board_whose_gpu_has_another_name_says_which_were_tried(tmp_path):
    root = board(tmp_path, "jetson-orin-nano")
    (root / "sys/class/devfreq/17000000.gpu").rename(root / "sys/class/devfreq/18000000.gpu")
    found = sensors(root)
    assert found.locked is None
    assert "17000000.gpu, 17000000.ga10b" in found.read().unread["clocks_mhz.gpu"]


# --- throttling ------------------------------------------------------------------------------


def test_an_alert_of_the_kernel_is_a_throttle_and_a_running_fan_is_none(tmp_path):
    found = sensors(tmp_path, "jetson-orin-nano")
    assert found.read().throttle == ()
    put(tmp_path / "sys/class/thermal/cooling_device1/cur_state", 1)
    assert found.read().throttle == ("gpu-throttle-alert",)


def test_a_cap_on_the_gpus_clock_is_a_throttle(tmp_path):
    found = sensors(tmp_path, "jetson-thor")
    put(tmp_path / "sys/class/thermal/cooling_device0/cur_state", 4)
    assert found.read().throttle == ("devfreq-gpu-gpc-0",)


def test_an_alert_is_found_where_the_kernel_of_jetpack_5_has_it(tmp_path):
    board(tmp_path, "jetson-xavier")
    put(tmp_path / "sys/devices/platform/cpu-throttle-alert/thermal_trip_event", 1)
    assert sensors(tmp_path).read().throttle == ("cpu-throttle-alert",)


@pytest.mark.parametrize(
    "place", ["sys/class/hwmon/hwmon5", "sys/devices/platform/soctherm-oc-event/hwmon/hwmon1"]
)
def test_over_current_is_counted_wherever_its_folder_was_numbered_to(tmp_path, place):
    root = board(tmp_path, "jetson-orin-nano")
    moved = root / place
    moved.parent.mkdir(parents=True, exist_ok=True)
    (root / "sys/class/hwmon/hwmon3").rename(moved)
    found = sensors(root)
    before = found.read()
    assert {name: before.events[name] for name in ("oc1", "oc2", "oc3")} == {
        "oc1": 0,
        "oc2": 0,
        "oc3": 7,
    }
    assert throttled(before, found.read()) == ()
    put(moved / "oc3_event_cnt", 9)
    assert throttled(before, found.read()) == ("oc3",)


def test_what_throttled_at_either_moment_did_throttle():
    hot = state(throttle=("tj-throttle-alert",))
    assert throttled(hot, state()) == throttled(state(), hot) == ("tj-throttle-alert",)
    assert throttled(state(), state()) == ()


def test_the_processor_s_own_count_is_a_throttle_and_stolen_ticks_are_none():
    before = state(events={"cpu_throttle": 3, "steal_ticks": 100})
    assert throttled(before, state(events={"cpu_throttle": 3, "steal_ticks": 900})) == ()
    assert throttled(before, state(events={"cpu_throttle": 4})) == ("cpu_throttle",)


def test_a_counter_that_appears_or_vanishes_has_not_grown():
    assert throttled(state(), state(events={"oc3": 7})) == ()
    assert throttled(state(events={"oc3": 7}), state()) == ()


# --- a GPU of its own ------------------------------------------------------------------------


def test_a_gpu_tells_its_state_through_nvml(tmp_path):
    found = sensors(machine(tmp_path), nvml=Nvml(FakeNvml(reasons=0x01 | 0x04 | 0x40)))
    now = found.read()
    assert now.clocks_mhz == {"gpu": 1980, "memory": 3201, "cpu": 2600}
    assert now.temperatures_c == {"gpu": 41}
    assert now.throttle == ("hw-thermal", "sw-power-cap")
    assert "throttle" not in now.unread
    assert found.locked is None


def test_a_gpu_whose_clock_somebody_set_is_pinned_and_not_throttled(tmp_path):
    found = sensors(machine(tmp_path), nvml=Nvml(FakeNvml(reasons=0x02)))
    assert found.locked is True
    assert found.read().throttle == ()


def test_readings_that_nvml_refuses_are_absent_with_its_reason(tmp_path):
    now = sensors(machine(tmp_path), nvml=Nvml(fake_orin())).read()
    assert (now.clocks_mhz, now.temperatures_c, now.throttle) == ({"cpu": 2600}, {}, ())
    for name in ("clocks_mhz.gpu", "clocks_mhz.memory", "temperatures_c.gpu", "throttle", "others"):
        assert "does not support it" in now.unread[name]


def test_others_on_the_gpu_are_named(tmp_path):
    (machine(tmp_path) / "proc/4242").mkdir()
    nvml = Nvml(FakeNvml(processes={4242: "/usr/bin/python3", os.getpid(): "this one"}))
    now = sensors(tmp_path, nvml=nvml).read()
    assert now.others == ("4242 /usr/bin/python3",)
    assert "others" not in now.unread


def test_in_a_container_a_number_of_the_host_may_be_this_very_process(tmp_path):
    nvml = Nvml(FakeNvml(processes={1234567: "python3"}))
    now = sensors(machine(tmp_path), nvml=nvml).read()
    assert now.others == ()
    assert "1234567 of the host cannot be seen from this container" in now.unread["others"]


def test_a_gpu_that_says_nothing_is_absent_with_nvmls_reasons(tmp_path):
    gone = detect(machine(tmp_path), nvml=Nvml(FakeNvml()))
    found = find_sensors(gone, root=tmp_path)
    now = found.read()
    assert found.locked is None
    assert set(now.clocks_mhz) == {"cpu"}
    assert {now.unread[name] for name in ("clocks_mhz.gpu", "throttle", "others")} == {
        "the NVIDIA driver is not loaded"
    }


# --- a processor -----------------------------------------------------------------------------


def cpufreq(
    root: Path, governor: str = "performance", low: int = 2_000_000, high: int = 2_000_000
) -> Path:
    for number, current in enumerate((1_000_000, 2_000_000)):
        policy = root / f"sys/devices/system/cpu/cpufreq/policy{number}"
        put(policy / "scaling_governor", governor)
        for name, khz in (("cur", current), ("min", low), ("max", high)):
            put(policy / f"scaling_{name}_freq", khz)
    return root


def test_a_processors_clock_is_the_mean_of_its_cores(tmp_path):
    found = sensors(cpufreq(machine(tmp_path)))
    assert found.read().clocks_mhz == {"cpu": 1500}


def test_a_processor_is_pinned_if_its_governor_and_its_limits_say_so(tmp_path):
    assert sensors(cpufreq(machine(tmp_path / "a"))).locked is True
    assert sensors(cpufreq(machine(tmp_path / "b"), governor="schedutil")).locked is False
    assert sensors(cpufreq(machine(tmp_path / "c"), low=800_000)).locked is False


def test_a_processors_throttling_is_counted_over_its_cores(tmp_path):
    root = machine(tmp_path)
    for core, count in enumerate((2, 3)):
        put(root / f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count", count)
    put(root / "sys/class/thermal/thermal_zone0/type", "x86_pkg_temp")
    put(root / "sys/class/thermal/thermal_zone0/temp", 61000)
    now = sensors(root).read()
    assert now.events["cpu_throttle"] == 5
    assert now.temperatures_c == {"x86_pkg_temp": 61.0}
    assert "throttle" not in now.unread


def test_a_jetson_as_a_processor_keeps_what_the_board_says(tmp_path):
    root = board(tmp_path, "jetson-orin-nano")
    found = find_sensors(resolve("cpu", root), root=root)
    now = found.read()
    assert now.events["oc3"] == 7
    assert now.temperatures_c == {"cpu": 47.5, "tj": 47.5}
    assert found.locked is False  # of the processor, whose limits differ


def test_a_bare_virtual_machine_says_what_it_cannot_know(tmp_path):
    found = sensors(machine(tmp_path, steal_ticks=42))
    now = found.read()
    assert found.locked is None
    assert now.clocks_mhz == {"cpu": 2600}
    assert now.events == {"steal_ticks": 42}
    assert now.memory_available_mib == 3906
    assert set(now.unread) == {"temperatures_c", "throttle"}


def test_a_tree_with_nothing_has_only_reasons(tmp_path):
    now = sensors(tmp_path).read()
    assert (now.clocks_mhz, now.temperatures_c, now.events) == ({}, {}, {})
    assert now.memory_available_mib is None
    assert {"clocks_mhz.cpu", "events.steal_ticks", "memory_available_mib"} <= set(now.unread)
