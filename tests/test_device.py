"""What a machine is, from trees like those of real ones, and what is known of it beforehand."""

import msgspec
import pytest

from edgestitch import DeviceError
from edgestitch.device import NAMES, Descriptor, descriptor, detect, names, resolve
from edgestitch.errors import ArtifactError
from edgestitch.nvml import Nvml
from tests.boards import BOARDS, board, hide_gpus, machine, put
from tests.fakes import FakeNvml, fake_orin

KINDS = [descriptor(name) for name in names()]
MODULES = [kind for kind in KINDS if kind.variants]


@pytest.fixture(autouse=True)
def _no_real_gpu(monkeypatch):
    hide_gpus(monkeypatch)


# --- descriptors -----------------------------------------------------------------------------


def test_every_device_that_can_be_asked_for_has_a_descriptor_of_its_name():
    assert ("auto", *names()) == NAMES
    assert all(kind.name == name for name, kind in zip(names(), KINDS, strict=True))


def test_an_unknown_descriptor_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="no device 'toaster'; there are cpu, cuda, jetson-agx-orin"
    ):
        descriptor("toaster")


@pytest.mark.parametrize("kind", KINDS, ids=names())
def test_every_group_of_facts_has_its_source(kind):
    facts = {"rails", "variants", "thermal_zones", "gpu_clock", "memory_clock", "memory_cap"}
    default = Descriptor(name="", title="", compile=True, sources={})
    given = {name for name in facts if getattr(kind, name) != getattr(default, name)}
    given |= {"recognition", "compile"} | ({"launch_us"} if kind.launch_us else set())
    assert set(kind.sources) == given
    assert all(kind.sources.values())


@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.name)
def test_peaks_follow_from_multipliers_lanes_and_clock(kind):
    for variant in kind.variants:
        for peak in filter(None, (variant, variant.super)):
            flops_mhz = variant.sms * 2 * peak.clock_mhz / 1e6
            assert peak.fp16_tflops == pytest.approx(
                flops_mhz * kind.tensor_fma_per_clock, abs=0.01
            )
            assert peak.fp32_tflops == pytest.approx(flops_mhz * kind.fp32_lanes, abs=0.01)


def test_peaks_are_those_that_nvidia_publishes():
    """Sparse INT8 is four times dense FP16; Thor's is published dense."""
    agx, nano, thor = (
        descriptor(name).variants[0]
        for name in ("jetson-agx-orin", "jetson-orin-nano", "jetson-thor")
    )
    assert agx.fp16_tflops * 4 == pytest.approx(170, rel=0.01)
    assert nano.super
    assert nano.super.fp16_tflops * 4 == pytest.approx(67, rel=0.01)
    assert thor.fp16_tflops == pytest.approx(258.5, rel=0.01)


@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.name)
def test_a_super_mode_is_never_slower(kind):
    for variant in kind.variants:
        if variant.super:
            assert variant.super.clock_mhz >= variant.clock_mhz
            assert variant.super.bandwidth_gbs >= variant.bandwidth_gbs


@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.name)
def test_no_rail_is_added_to_one_that_it_is_inside_of(kind):
    best = set(kind.rails.totals[0])
    assert not best & set(kind.rails.inside)
    assert kind.rails.note


def test_the_sum_that_is_only_an_estimate_says_so():
    assert [kind.name for kind in KINDS if kind.rails.estimate] == ["jetson-agx-orin"]
    assert "VDDQ_VDD2_1V8AO" in descriptor("jetson-agx-orin").rails.inside


def test_what_no_compiler_runs_on_has_a_reason():
    assert [kind.name for kind in KINDS if not kind.compile] == ["jetson-xavier"]
    assert "JetPack 5" in (descriptor("jetson-xavier").compile_reason or "")


def test_no_descriptor_knows_a_power_mode():
    text = msgspec.json.encode(KINDS).decode()
    assert not any(mode in text for mode in ("MAXN", "15W", "25W", "nvpmodel -m"))


def test_a_module_finds_its_variant_and_of_several_the_nearest_in_memory():
    nano, xavier = descriptor("jetson-orin-nano"), descriptor("jetson-xavier")
    found = [nano.variant(module) for module in ("p3767-0005", "p3767-0004")]
    assert [variant and variant.memory_gb for variant in found] == [8, 4]
    nx = xavier.variant("p3668-0001", memory_mib=15_800)
    assert nx
    assert (nx.memory_gb, nx.sms) == (16, 6)
    assert nano.variant(None) is nano.variant("p3701-0005") is None


def test_members_of_a_group_exist_and_share_its_chip():
    group = descriptor("jetson-orin")
    assert group.members
    assert {descriptor(member).chip for member in group.members} == {group.chip}
    assert not group.variants


@pytest.mark.parametrize(
    ("content", "reason"),
    [("name = ", "is no TOML file"), ("name = 'x'\nmodes = 3", "is no valid descriptor")],
)
def test_a_damaged_descriptor_is_refused_with_its_file(tmp_path, monkeypatch, content, reason):
    put(tmp_path / "devices/x.toml", content)
    monkeypatch.setattr("edgestitch.device.shipped", lambda folder: tmp_path)
    with pytest.raises(ArtifactError, match=rf"x\.toml {reason}"):
        descriptor("x")


# --- recognition -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module", "mode", "jetpack", "memory_gb"),
    [
        ("jetson-orin-nano", "p3767-0005", "MAXN_SUPER", "R36.4.3", 8),
        ("jetson-orin-nx", "p3767-0000", "40W", "R36.4.3", 16),
        ("jetson-agx-orin", "p3701-0005", "MAXN", "R35.5.0", 64),
        ("jetson-thor", "p3834-0008", "120W", "R38.2.0", 128),
        ("jetson-xavier", "p2888-0004", "MODE_30W_ALL", "R35.6.5", 32),
    ],
)
def test_a_jetson_is_known_by_its_device_tree(tmp_path, name, module, mode, jetpack, memory_gb):
    device = detect(board(tmp_path, name))
    assert (device.name, device.module, device.jetpack) == (name, module, jetpack)
    assert (device.hardware, device.power_mode) == (BOARDS[name].model, mode)
    assert device.accelerator == "cuda"
    variant = descriptor(name).variant(device.module, device.memory_mib)
    assert variant
    assert variant.memory_gb == memory_gb


def test_an_orin_with_an_unknown_module_is_the_group_which_has_no_peaks(tmp_path):
    board(tmp_path, "jetson-orin-nano")
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"acme,robot\0nvidia,tegra234\0")
    device = detect(tmp_path)
    assert (device.name, device.module) == ("jetson-orin", None)
    assert descriptor(device.name).variant(device.module) is None


def test_a_chip_that_one_name_has_is_known_without_its_module(tmp_path):
    board(tmp_path, "jetson-thor")
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"acme,robot\0nvidia,tegra264\0")
    assert detect(tmp_path).name == "jetson-thor"


def test_a_carrier_board_is_not_taken_for_the_module(tmp_path):
    board(tmp_path, "jetson-orin-nx")
    tree = tmp_path / "proc/device-tree"
    (tree / "compatible").write_bytes(b"nvidia,p3768-0000+p3767-0001\0nvidia,tegra234\0")
    assert detect(tmp_path).module == "p3767-0001"


def test_a_gpu_is_known_by_nvml(tmp_path):
    nvml = Nvml(FakeNvml(names=["NVIDIA GeForce RTX 4090"]))
    device = detect(machine(tmp_path), nvml=nvml)
    assert (device.name, device.hardware) == ("cuda", "NVIDIA GeForce RTX 4090")
    assert device.driver == "570.86"
    assert (device.module, device.jetpack, device.power_mode) == (None, None, None)


def test_the_device_tree_wins_over_nvml_which_lists_an_orin_as_well(tmp_path):
    nvml = Nvml(fake_orin())
    device = detect(board(tmp_path, "jetson-orin-nano"), nvml=nvml)
    assert device.name == "jetson-orin-nano"
    assert device.hardware.startswith("NVIDIA Jetson Orin Nano")
    assert device.driver == nvml.driver


def test_a_bare_machine_is_its_cpu(tmp_path):
    device = detect(machine(tmp_path))
    assert (device.name, device.accelerator) == ("cpu", "cpu")
    assert device.hardware == f"Some CPU, {device.cores} cores"
    assert device.memory_mib == 7812
    assert device.driver is device.jetpack is device.module is None


def test_a_machine_without_any_of_the_files_is_a_cpu_as_well(tmp_path):
    assert detect(tmp_path).name == "cpu"


# --- what was asked for ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin"])
def test_the_family_stands_for_each_of_its_boards(tmp_path, name):
    root = board(tmp_path, name)
    assert resolve("jetson-orin", root) == resolve(name, root) == resolve("auto", root)
    assert resolve("jetson-orin", root).name == name


def test_every_machine_serves_as_a_cpu(tmp_path):
    device = resolve("cpu", board(tmp_path / "jetson", "jetson-thor"))
    assert (device.name, device.accelerator, device.power_mode) == ("cpu", "cpu", "120W")
    assert "cores" in device.hardware
    assert resolve("cpu", machine(tmp_path / "desktop")).name == "cpu"


@pytest.mark.parametrize("asked", ["jetson-thor", "jetson-orin-nx"])
def test_another_device_is_refused_with_the_three_ways_on(tmp_path, asked):
    root = board(tmp_path, "jetson-orin-nano")
    with pytest.raises(DeviceError) as refused:
        resolve(asked, root)
    message = str(refused.value)
    assert message.startswith(
        f"{asked} was asked for, but this machine is jetson-orin-nano (NVIDIA"
    )
    assert f"on the {asked} itself" in message
    assert "--host user@jetson" in message
    assert "--device auto" in message


def test_a_gpu_that_is_not_here_is_refused_with_nvmls_reason(tmp_path):
    with pytest.raises(DeviceError, match=r"is cpu \(.*; the NVIDIA driver is not loaded\)"):
        resolve("cuda", machine(tmp_path))


def test_an_unknown_device_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no device 'toaster'; there are auto, cpu, cuda"):
        resolve("toaster")
