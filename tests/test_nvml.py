"""NVML, from modules like NVIDIA's binding on machines that are not here."""

import os
from types import SimpleNamespace

import pytest

from edgestitch import DeviceError
from edgestitch.nvml import GpuProcess, connect
from tests.fakes import FakeNvml, fake_orin, uuid_of


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


def test_a_gpu_says_what_it_is():
    nvml = connect(FakeNvml(names=["NVIDIA H200"]))
    assert nvml.name == "NVIDIA H200"
    assert nvml.uuid == uuid_of(0)
    assert nvml.driver == "570.86"
    assert nvml.pci == "00000000:01:00.0"
    assert nvml.clocks_mhz() == {"sm": 1980, "memory": 3201}
    assert nvml.temperature_c() == 41.0
    assert not nvml.mig()
    assert nvml.reasons == {}


# --- why it does not work --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (12, "libnvidia-ml.so.1 was not found; install the NVIDIA driver"),
        (9, "the NVIDIA driver is not loaded"),
        (18, "the driver was upgraded while the old one was loaded; reboot"),
        (3, "this GPU or its driver does not support it"),
        (4, "no permission; run as root"),
        (15, "the GPU is lost"),
        (999, "NVML error 999"),
    ],
)
def test_a_failure_is_told_in_plain_words(code, words):
    with pytest.raises(DeviceError, match=f"nvmlInit failed: .*{words}"):
        connect(FakeNvml(errors={"nvmlInit": code}))


def test_the_real_binding_fails_without_a_driver_in_the_same_way():
    try:
        nvml = connect()
    except DeviceError as error:
        assert "NVML's nvmlInit failed" in str(error)  # noqa: PT017
    else:
        assert nvml.name


def test_the_unofficial_package_in_the_way_is_told():
    with pytest.raises(DeviceError, match=r"unofficial package 'pynvml'.*pip uninstall pynvml"):
        connect(SimpleNamespace(nvmlInit=lambda: None))


def test_a_binding_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with pytest.raises(DeviceError, match="pip install nvidia-ml-py"):
        connect()


def test_a_function_that_the_binding_lacks_is_a_reason():
    nvml = connect(FakeNvml().without("nvmlDeviceGetPowerUsage"))
    assert nvml.query("nvmlDeviceGetPowerUsage") is None
    assert "upgrade it: pip install -U" in nvml.reasons["nvmlDeviceGetPowerUsage"]


def test_an_orin_is_found_but_every_reading_is_refused_with_its_reason():
    nvml = connect(fake_orin())
    assert nvml.name == "Orin (nvgpu)"
    assert nvml.query("nvmlDeviceGetPowerUsage") is None
    assert "does not support it" in nvml.reasons["nvmlDeviceGetPowerUsage"]
    assert nvml.clocks_mhz() == {}
    assert nvml.temperature_c() is None
    assert nvml.throttle_reasons() is None
    assert nvml.processes() is None
    assert nvml.locked() is None
    assert not nvml.mig()


def test_a_field_has_an_error_of_its_own_though_the_call_succeeds():
    fake = FakeNvml(power_w=lambda s: 70.0, field_errors={(186, 0): 3})
    nvml = connect(fake)
    assert nvml.field(186) is None
    assert "field 186 of scope 0 failed: this GPU" in nvml.reasons["field 186 0"]
    assert nvml.field(186, 1) == 70_000
    del fake.field_errors[186, 0]
    assert nvml.field(186) == 70_000
    assert nvml.reasons == {}


# --- which GPU -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "gpu"),
    [(None, 0), ("1", 1), ("1,0", 1), (uuid_of(1), 1), (uuid_of(1)[:8], 1)],
)
def test_the_first_visible_gpu_is_taken(monkeypatch, visible, gpu):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert connect(FakeNvml(names=["T4", "T4"])).uuid == uuid_of(gpu)


@pytest.mark.parametrize("uuid", [uuid_of(1), uuid_of(1).removeprefix("GPU-")])
def test_a_uuid_is_taken_whatever_is_visible(monkeypatch, uuid):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert connect(FakeNvml(names=["T4", "A2"]), uuid=uuid).uuid == uuid_of(1)


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_a_hidden_gpu_is_not_used(monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(DeviceError, match="hides every GPU"):
        connect(FakeNvml())


def test_a_gpu_that_is_not_there_is_told_with_what_is(monkeypatch):
    with pytest.raises(DeviceError, match=f"GPU-beef was asked for.*{uuid_of(0)}"):
        connect(FakeNvml(), uuid="GPU-beef")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(DeviceError, match=r"GPU 3 was asked for .* but NVML has 1"):
        connect(FakeNvml())


def test_which_of_two_different_gpus_cuda_counts_first_is_not_guessed(monkeypatch):
    fake = FakeNvml(names=["Quadro P400", "RTX 4090"])
    with pytest.raises(DeviceError, match="Quadro P400, RTX 4090; set CUDA_DEVICE_ORDER"):
        connect(fake)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert connect(fake).name == "Quadro P400"


def test_a_slice_of_a_gpu_is_known(monkeypatch):
    assert connect(FakeNvml(mig=True)).mig()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-7bb04f5c")
    assert connect(FakeNvml()).mig()


# --- what it is doing ------------------------------------------------------------------------


def test_only_what_slows_a_gpu_down_is_throttling():
    assert connect(FakeNvml(reasons=0x01 | 0x02 | 0x10 | 0x100)).throttle_reasons() == ()
    assert connect(FakeNvml(reasons=0x04 | 0x08 | 0x20 | 0x40 | 0x80)).throttle_reasons() == (
        "sw-power-cap",
        "hw-slowdown",
        "sw-thermal",
        "hw-thermal",
        "hw-power-brake",
    )


def test_an_old_driver_knows_the_reasons_by_their_old_name():
    fake = FakeNvml(reasons=0x40, errors={"nvmlDeviceGetCurrentClocksEventReasons": 13})
    assert connect(fake).throttle_reasons() == ("hw-thermal",)
    fake = FakeNvml(reasons=0x04).without("nvmlDeviceGetCurrentClocksEventReasons")
    assert connect(fake).throttle_reasons() == ("sw-power-cap",)


def test_that_clocks_are_locked_can_be_known_but_not_that_they_are_free():
    assert connect(FakeNvml(reasons=0x02)).locked() is True
    assert connect(FakeNvml(reasons=0x01)).locked() is None


def test_the_temperature_has_an_old_name_too():
    assert connect(FakeNvml().without("nvmlDeviceGetTemperatureV")).temperature_c() == 42.0


def test_processes_are_the_others():
    fake = FakeNvml(processes={os.getpid(): "python", 7: "Xorg"})
    assert connect(fake).processes() == (GpuProcess(7, "Xorg"),)
    fake.errors["nvmlSystemGetProcessName"] = 4
    assert connect(fake).processes() == (GpuProcess(7, None),)


def test_a_forked_child_connects_anew_to_the_same_gpu(monkeypatch):
    fake = FakeNvml(names=["T4", "T4"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    nvml = connect(fake)
    nvml.query("nvmlDeviceGetPowerUsage")
    assert fake.calls.count("nvmlInit") == 1
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("os.getpid", lambda: 424242)
    nvml.query("nvmlDeviceGetPowerUsage")
    nvml.query("nvmlDeviceGetPowerUsage")
    assert fake.calls.count("nvmlInit") == 2
    assert nvml.handle == 1


def test_a_child_that_cannot_connect_says_why(monkeypatch):
    fake = FakeNvml()
    nvml = connect(fake)
    fake.errors["nvmlInit"] = 4
    monkeypatch.setattr("os.getpid", lambda: 424242)
    assert nvml.temperature_c() is None
    assert "no permission" in nvml.reasons["nvmlDeviceGetTemperatureV"]
