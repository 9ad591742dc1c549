"""What a machine is, from trees like those of real ones."""

import pytest

from edgestitch import DeviceError
from edgestitch.device import detect, resolve
from edgestitch.environment import describe
from edgestitch.meter import find_meter


@pytest.fixture
def orin(tmp_path):
    """The files of a Jetson Orin Nano that are read."""
    tree = tmp_path / "proc" / "device-tree"
    tree.mkdir(parents=True)
    (tree / "compatible").write_bytes(
        b"nvidia,p3768-0000+p3767-0005\0nvidia,p3767\0nvidia,tegra234\0"
    )
    (tree / "model").write_bytes(
        b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"
    )
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:        7802136 kB\n")
    (tmp_path / "proc" / "cpuinfo").write_text("processor : 0\n")
    (tmp_path / "var" / "lib" / "nvpmodel").mkdir(parents=True)
    (tmp_path / "var" / "lib" / "nvpmodel" / "status").write_text("pmode:0002 fmode:fanNull\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nvpmodel.conf").write_text(
        "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
    )
    return tmp_path


def test_a_jetson_is_known_by_its_device_tree(orin):
    device = detect(orin)
    assert device.name == "jetson-orin"
    assert device.hardware.startswith("NVIDIA Jetson Orin Nano")
    assert device.power_mode == "MAXN_SUPER"
    assert device.memory_mib == 7619


def test_the_device_asked_for_is_this_one_or_refused_with_both(orin):
    assert resolve("jetson-orin", orin).name == "jetson-orin"
    assert resolve("cpu", orin).name == "cpu"
    with pytest.raises(
        DeviceError, match="jetson-thor was asked for, but this machine is jetson-orin"
    ):
        resolve("jetson-thor", orin)


def test_this_machine_is_described():
    found = describe()
    assert found.device == detect()
    assert {backend.name for backend in found.backends} == {"openvino", "eager"}
    assert found.packages["torch"]


def test_an_unknown_device_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no device 'toaster'; there are auto, cpu, cuda"):
        resolve("toaster")


def test_energy_that_nothing_measures_has_a_reason():
    meter = find_meter(detect())
    assert meter.read_mj() is None
    assert meter.reason
