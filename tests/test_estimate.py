"""Ranges of latencies from peaks: laws of the roofline, and what is refused."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestitch import ArtifactError, DeviceError, Family, MismatchError, load_family
from edgestitch.artifact import load, save
from edgestitch.catalog import overview, shipped_accuracy, shipped_complexity
from edgestitch.complexity import AtomComplexity, Complexity
from edgestitch.device import descriptor
from edgestitch.estimate import CALL_MS, Peaks, estimate, peaks, peaks_of, probe_cpu
from edgestitch.nvml import Nvml
from edgestitch.profile import Cost, Profile, require_comparable
from edgestitch.schedule import Budget, candidates, choose
from edgestitch.shipped import shipped
from tests.strategies import profile as measured_profile

TOY = load_family("toy")
ATOMS = sorted({atom for topology in TOY.topologies for atom in TOY.atoms(topology)})
NEAR = 1 + 1e-9  # sums in another order

atom_complexities = st.builds(
    AtomComplexity,
    macs=st.integers(1, 10**11),
    params=st.integers(0, 10**9),
    activations=st.integers(0, 10**8),
    kernels=st.integers(0, 100),
)
complexities = st.fixed_dictionaries(dict.fromkeys(ATOMS, atom_complexities)).map(
    lambda atoms: Complexity(family=TOY.name, family_digest=TOY.digest, atoms=atoms)
)
boards = st.sampled_from(
    ["jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-thor", "jetson-xavier"]
)
precisions = st.sampled_from(["fp32", "fp16"])


def every(**counts: int) -> Complexity:
    """The complexity of a toy family whose atoms are all alike."""
    atom = AtomComplexity(**{"macs": 10**9, "params": 0, "activations": 0, "kernels": 0, **counts})
    return Complexity(family=TOY.name, family_digest=TOY.digest, atoms=dict.fromkeys(ATOMS, atom))


def some_peaks(**changes: object) -> Peaks:
    """A device of 1 TFLOPS and 100 GB/s."""
    plain = Peaks(
        device="cuda",
        hardware="some GPU",
        tflops={"fp32": (1.0, 2.0), "fp16": (4.0, 4.0)},
        share=0.5,
        bandwidth_gbs=100.0,
        cache_mb=0.0,
        launch_us=20.0,
    )
    return msgspec.structs.replace(plain, **changes)


def first(complexity: Complexity, device: Peaks, precision: str = "fp32", batch: int = 1) -> Cost:
    return estimate(TOY, complexity, device, precision=precision, batch=batch).costs[0]


# --- laws ------------------------------------------------------------------------------------


@given(complexities, boards, precisions)
def test_the_middle_lies_between_the_ends_and_the_bound_is_the_upper(complexity, board, precision):
    for cost in estimate(TOY, complexity, peaks(board), precision=precision).costs:
        assert 0 < cost.latency_low_ms <= cost.latency_ms <= cost.latency_high_ms
        assert cost.bound_ms == cost.latency_high_ms
        assert cost.latency_ms**2 == pytest.approx(cost.latency_low_ms * cost.latency_high_ms)


@given(
    complexities,
    boards,
    precisions,
    st.sampled_from(ATOMS),
    st.sampled_from(["macs", "params", "activations", "kernels"]),
)
def test_more_to_do_never_takes_less(complexity, board, precision, atom, what):
    more = msgspec.structs.replace(
        complexity.atoms[atom], **{what: 2 * getattr(complexity.atoms[atom], what)}
    )
    larger = msgspec.structs.replace(complexity, atoms={**complexity.atoms, atom: more})
    device = peaks(board)
    before = estimate(TOY, complexity, device, precision=precision).costs
    after = estimate(TOY, larger, device, precision=precision).costs
    for less, much in zip(before, after, strict=True):
        assert less.latency_low_ms <= much.latency_low_ms * NEAR
        assert less.latency_high_ms <= much.latency_high_ms * NEAR


@given(complexities, boards)
def test_half_precision_never_takes_longer(complexity, board):
    device = peaks(board)
    half = estimate(TOY, complexity, device, precision="fp16").costs
    single = estimate(TOY, complexity, device, precision="fp32").costs
    for small, large in zip(half, single, strict=True):
        assert small.latency_low_ms <= large.latency_low_ms * NEAR
        assert small.latency_high_ms <= large.latency_high_ms * NEAR


@given(complexities, boards, st.integers(1, 16))
def test_twice_the_batch_takes_no_less_and_no_more_than_twice(complexity, board, batch):
    device = peaks(board)
    once = estimate(TOY, complexity, device, precision="fp16", batch=batch).costs
    twice = estimate(TOY, complexity, device, precision="fp16", batch=2 * batch).costs
    for one, two in zip(once, twice, strict=True):
        for end in ("latency_low_ms", "latency_high_ms"):
            assert getattr(one, end) <= getattr(two, end) <= 2 * getattr(one, end) * NEAR


def test_where_arithmetic_is_all_there_is_twice_the_batch_takes_twice_as_long():
    one, two = (first(every(), some_peaks(), batch=batch) for batch in (1, 2))
    low, high = CALL_MS
    assert two.latency_low_ms - low == pytest.approx(2 * (one.latency_low_ms - low))
    assert two.latency_high_ms - high == pytest.approx(2 * (one.latency_high_ms - high))


@given(complexities, st.sampled_from(ATOMS), precisions)
def test_no_topology_is_faster_than_one_of_its_parts(complexity, atom, precision):
    nothing = AtomComplexity(macs=0, params=0, activations=0, kernels=0)
    alone = msgspec.structs.replace(
        complexity, atoms={**dict.fromkeys(ATOMS, nothing), atom: complexity.atoms[atom]}
    )
    whole = estimate(TOY, complexity, some_peaks(), precision=precision).by_topology
    part = estimate(TOY, alone, some_peaks(), precision=precision).by_topology
    for name in whole:
        assert part[name].latency_low_ms <= whole[name].latency_low_ms * NEAR
        assert part[name].latency_high_ms <= whole[name].latency_high_ms * NEAR


# --- by hand ---------------------------------------------------------------------------------


def test_the_ends_are_those_that_one_computes_by_hand():
    family = msgspec.structs.replace(TOY, anchors=TOY.anchors[:1])
    atoms = family.atoms(family.topologies[0])
    # A stem that only computes, a head that only moves, between them nothing.
    nothing = AtomComplexity(macs=0, params=0, activations=0, kernels=0)
    stem = AtomComplexity(macs=10**9, params=0, activations=0, kernels=2)
    head = AtomComplexity(macs=0, params=10**8, activations=10**7, kernels=1)
    complexity = Complexity(
        family=family.name,
        family_digest=family.digest,
        atoms={**dict.fromkeys(atoms, nothing), atoms[0]: stem, atoms[-1]: head},
    )
    (cost,) = estimate(family, complexity, some_peaks(), precision="fp32").costs
    # 2 GFLOP at 2 TFLOPS, 400 MB at 100 GB/s: the larger, and one launch.
    assert cost.latency_low_ms == pytest.approx(0.005 + max(1.0, 4.0))
    # 2 GFLOP at half of 1 TFLOPS; 400 MB and twice 40 MB at 40 GB/s; 3 launches; the call.
    assert cost.latency_high_ms == pytest.approx(4.0 + 12.0 + 3 * 0.02 + 0.1)


def test_a_small_network_waits_for_its_operators_even_when_they_are_fused():
    atoms = len(TOY.atoms(TOY.topologies[0]))
    cost = first(every(macs=1, kernels=40), some_peaks())
    assert cost.latency_low_ms == pytest.approx(CALL_MS[0] + atoms * 10 * 1e-3)
    assert cost.latency_high_ms == pytest.approx(CALL_MS[1] + atoms * 40 * 20e-3)


def test_weights_that_a_cache_may_hold_cost_nothing_at_the_low_end():
    complexity = every(macs=1, params=10**6)
    read = first(complexity, some_peaks()).latency_low_ms
    large, unknown = (first(complexity, some_peaks(cache_mb=size)) for size in (1e3, None))
    assert large == unknown
    assert large.latency_low_ms == pytest.approx(CALL_MS[0])
    assert read > large.latency_low_ms


def test_single_precision_may_run_on_tensor_cores_since_ampere():
    assert peaks("jetson-xavier").tflops["fp32"] == (1.41, 1.41)
    lanes, most = peaks("jetson-agx-orin").tflops["fp32"]
    assert (lanes, most) == (5.32, 21.3)
    assert "bf16" not in peaks("jetson-xavier").tflops


# --- what an estimate says of itself -----------------------------------------------------------


@pytest.fixture(scope="module")
def deit() -> tuple[Family, Complexity]:
    family = load_family("deit-ti-s-b")
    complexity = shipped_complexity(family)
    assert complexity is not None
    return family, complexity


@pytest.fixture(scope="module")
def nano(deit: tuple[Family, Complexity]) -> Profile:
    return estimate(deit[0], deit[1], peaks("jetson-orin-nano"), precision="fp16")


def test_an_estimate_is_a_profile_of_every_topology_that_measured_nothing(deit, nano, tmp_path):
    save(nano, tmp_path / "estimate.json")
    assert load(Profile, tmp_path / "estimate.json") == nano
    assert set(nano.by_topology) == {topology.name for topology in deit[0].topologies}
    assert nano.estimated
    assert nano.number("estimated") == len(nano.costs)
    assert (nano.network, nano.samples_digest, nano.segments) == (None, "", ())
    assert nano.energy_reason
    assert not nano.protocol.steady
    for cost in nano.costs:
        assert cost.samples == 0
        assert (cost.p99_ms, cost.p99_high_ms, cost.max_ms, cost.energy_mj) == (None,) * 4


def test_an_estimate_names_the_module_and_the_clock(nano):
    found = nano.conditions
    assert (found.device, found.module) == ("jetson-orin-nano", "p3767-0003")
    assert found.hardware == "NVIDIA Jetson Orin Nano 8 GB"
    assert found.power_mode == "GPU at 625 MHz"
    text = " ".join(nano.notes)
    assert "For Orin Nano 8 GB; jetson-orin-nano can also be Orin Nano 4 GB." in text
    assert "in the Super modes it has 1020 MHz" in text
    assert "before anything was measured" in text
    assert "10.24 TFLOPS in fp16 and 68 GB/s" in text


def test_an_estimate_is_not_comparable_with_a_measured_profile(nano):
    backend = msgspec.structs.replace(nano.conditions, backend="eager")
    with pytest.raises(MismatchError, match="backend is estimate and eager"):
        require_comparable("estimate and profile", nano.conditions, backend)
    other = measured_profile([], family="deit-ti-s-b").conditions
    with pytest.raises(MismatchError):
        require_comparable("estimate and profile", nano.conditions, other)


def test_a_deadline_is_held_against_the_upper_end(deit, nano):
    published = shipped_accuracy(deit[0])
    assert published is not None
    pool = candidates(nano, published)
    deadline = sorted(cost.latency_high_ms for cost in nano.costs)[20]
    chosen = choose(pool, Budget(latency_ms=deadline))
    assert nano.by_topology[chosen.topology].latency_high_ms <= deadline


def test_an_estimate_goes_into_the_table_of_topologies(deit, nano):
    family, complexity = deit
    for entry in overview(family, complexity=complexity, profile=nano).topologies:
        assert entry.bound_ms == nano.by_topology[entry.topology].latency_high_ms


def test_the_dearer_anchor_takes_longer_on_every_board(deit):
    for board in ("jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-thor"):
        found = estimate(deit[0], deit[1], peaks(board), precision="fp16").by_topology
        order = [found[f"{anchor}:0:12"].latency_ms for anchor in ("ti", "s", "b")]
        assert order == sorted(order)


# --- boards ----------------------------------------------------------------------------------


def test_a_group_of_boards_is_refused_with_its_members():
    with pytest.raises(ValueError, match="is jetson-orin-nano, jetson-orin-nx, jetson-agx-orin, w"):
        peaks("jetson-orin")


def test_a_module_is_taken_by_its_part_number():
    small = peaks("jetson-orin-nano", module="p3767-0004")
    assert small.hardware == "NVIDIA Jetson Orin Nano 4 GB"
    assert small.tflops["fp16"] == (5.12, 5.12)


def test_without_a_part_number_it_is_the_module_with_most_memory():
    for name in ("jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-xavier"):
        most = max(descriptor(name).variants, key=lambda variant: variant.memory_gb)
        assert peaks(name).module == most.module


def test_the_super_modes_have_a_clock_and_a_bandwidth_of_their_own(deit):
    plain, high = (peaks("jetson-orin-nano", super_clocks=on) for on in (False, True))
    assert (plain.clock_mhz, high.clock_mhz) == (625, 1020)
    assert high.bandwidth_gbs > plain.bandwidth_gbs
    found = estimate(deit[0], deit[1], high, precision="fp16")
    assert found.conditions.power_mode == "GPU at 1020 MHz"
    assert "For the Super modes, at 1020 MHz" in " ".join(found.notes)


def test_what_a_device_does_not_have_is_refused_by_name():
    with pytest.raises(ValueError, match="nothing is known of a jetson-orin-nano with module 'p99"):
        peaks("jetson-orin-nano", module="p9999-0000")
    with pytest.raises(ValueError, match="AGX Orin 64 GB has no Super modes"):
        peaks("jetson-agx-orin", super_clocks=True)
    with pytest.raises(ValueError, match="no device 'toaster'"):
        peaks("toaster")
    with pytest.raises(ValueError, match="cpu has no modules"):
        peaks("cpu", module="p3767-0003")


# --- what is refused -------------------------------------------------------------------------


def test_counts_of_the_first_release_are_refused_with_the_command_that_counts_again():
    atoms = dict.fromkeys(ATOMS, AtomComplexity(macs=1, params=1))
    old = Complexity(family=TOY.name, family_digest=TOY.digest, atoms=atoms)
    with pytest.raises(
        ArtifactError, match="count again, `edgestitch show toy --count --out FILE`"
    ):
        estimate(TOY, old, some_peaks(), precision="fp32")


def test_the_complexity_of_another_family_is_refused(deit):
    with pytest.raises(MismatchError, match="counted for deit-ti-s-b"):
        estimate(TOY, deit[1], some_peaks(), precision="fp32")


@pytest.mark.parametrize("precision", ["int8", "fp64", "bf16"])
def test_an_unknown_precision_is_refused_with_the_known_ones(precision):
    with pytest.raises(ValueError, match=f"some GPU in {precision}, only in fp32, fp16"):
        estimate(TOY, every(), some_peaks(), precision=precision)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="one image at least, not 0"):
        estimate(TOY, every(), some_peaks(), precision="fp32", batch=0)


# --- GPUs of which NVML tells ------------------------------------------------------------------


class FakeError(Exception):
    value = 3


def gpu(
    *,
    capability: tuple[int, int] = (8, 0),
    cores: int = 6912,
    clock: int = 1410,
    memory: int = 1215,
    bus: int = 5120,
    mig: bool = False,
    without: str = "",
) -> Nvml:
    """The binding of a machine with one GPU; the facts are an A100's."""

    def refuse(*_: object) -> None:
        raise FakeError

    functions: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda _: "some GPU",
        "nvmlDeviceGetUUID": lambda _: "GPU-0",
        "nvmlSystemGetDriverVersion": lambda: "580.65",
        "nvmlDeviceGetPciInfo": lambda _: SimpleNamespace(busId="0000:00:00.0"),
        "nvmlDeviceGetMigMode": lambda _: (int(mig), int(mig)),
        "nvmlDeviceGetCudaComputeCapability": lambda _: capability,
        "nvmlDeviceGetNumGpuCores": lambda _: cores,
        "nvmlDeviceGetMaxClockInfo": lambda _, kind: {1: clock, 2: memory}[kind],
        "nvmlDeviceGetMemoryBusWidth": lambda _: bus,
    }
    if without:
        functions[without] = refuse
    return Nvml(
        SimpleNamespace(NVMLError=FakeError, _nvmlGetFunctionPointer=None, **functions), "GPU-0"
    )


# Cores and clocks as NVIDIA's data sheets have them, and the dense FP16 peak and the bandwidth that
# they print.
@pytest.mark.parametrize(
    ("facts", "tflops", "bandwidth_gbs"),
    [
        (
            {"capability": (7, 0), "cores": 5120, "clock": 1530, "memory": 877, "bus": 4096},
            125,
            900,
        ),
        ({"capability": (7, 5), "cores": 2560, "clock": 1590, "memory": 5001, "bus": 256}, 65, 320),
        ({}, 312, 1555),
        (
            {"capability": (8, 6), "cores": 9216, "clock": 1695, "memory": 6251, "bus": 384},
            125,
            600,
        ),
        (
            {"capability": (8, 9), "cores": 16384, "clock": 2520, "memory": 10501, "bus": 384},
            330,
            1008,
        ),
        (
            {"capability": (9, 0), "cores": 16896, "clock": 1830, "memory": 2619, "bus": 5120},
            989,
            3350,
        ),
    ],
    ids=["V100", "T4", "A100", "A10", "RTX 4090", "H100"],
)
def test_the_peaks_of_a_gpu_are_those_that_its_maker_prints(facts, tflops, bandwidth_gbs):
    found = peaks_of(gpu(**facts))
    assert found.tflops["fp16"][1] == pytest.approx(tflops, rel=0.01)
    assert found.bandwidth_gbs == pytest.approx(bandwidth_gbs, rel=0.01)


def test_cuda_is_the_gpu_of_this_machine():
    found = peaks("cuda", nvml=gpu())
    assert (found.device, found.hardware, found.clock_mhz) == ("cuda", "some GPU", 1410)
    assert found.launch_us == (descriptor("cuda").launch_us or (0, 0))[1]
    assert estimate(TOY, every(), found, precision="bf16").conditions.hardware == "some GPU"


def test_a_gpu_that_does_not_say_enough_is_refused_with_what_is_missing():
    with pytest.raises(DeviceError, match="unknown is its width of the memory's bus; measure it"):
        peaks_of(gpu(without="nvmlDeviceGetMemoryBusWidth"))
    with pytest.raises(DeviceError, match=r"capability \(99, 0\)\) cannot .* compute capability;"):
        peaks_of(gpu(capability=(99, 0)))
    with pytest.raises(DeviceError, match="unknown is its compute capability"):
        peaks_of(gpu(without="nvmlDeviceGetCudaComputeCapability"))


def test_a_slice_of_a_gpu_is_refused():
    with pytest.raises(DeviceError, match="cut into MIG slices"):
        peaks_of(gpu(mig=True))


# --- the CPU ---------------------------------------------------------------------------------


def test_the_cpu_of_this_machine_is_probed_and_says_so():
    found = probe_cpu()
    gflops = 1e3 * found.tflops["fp32"][0]
    assert 0.1 < gflops < 1e5
    assert 0.1 < found.bandwidth_gbs < 1e4
    assert found.threads >= 1
    profile = estimate(TOY, every(), found, precision="fp32")
    assert "Probed on this machine with NumPy" in profile.notes[0]
    assert profile.conditions.device == "cpu"
    with pytest.raises(ValueError, match="in bf16, only in fp32"):
        estimate(TOY, every(), found, precision="bf16")


# --- every family ----------------------------------------------------------------------------


COUNTED = sorted(path.name for path in shipped("calibrate").glob("*.complexity.json"))


@pytest.mark.parametrize("file", COUNTED)
def test_every_complexity_that_ships_is_enough_for_an_estimate(file):
    name, *mode, _, _ = file.split(".")
    family = load_family(name).in_mode("reference" if mode else "corrected")
    complexity = shipped_complexity(family)
    assert complexity is not None
    profile = estimate(family, complexity, peaks("jetson-orin-nx"), precision="fp16")
    assert len(profile.costs) == len(family.topologies)
