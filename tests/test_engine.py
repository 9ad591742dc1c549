"""Deployments: whole or not there, checked against eager, refused where they do not belong."""

import time
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from timm.layers import DropPath  # type: ignore[attr-defined]

from edgestitch import CompileError, DeviceError, MismatchError, backends, plan
from edgestitch.artifact import load
from edgestitch.backends import Resident, Run
from edgestitch.backends.inductor import missing
from edgestitch.cut import cut_topologies, part
from edgestitch.deploy import compile_deployment
from edgestitch.device import detect
from edgestitch.engine import build_program, check_program, profile_network
from edgestitch.equality import TOLERANCE
from edgestitch.evaluate import evaluate
from edgestitch.instruments import Instruments, find_instruments
from edgestitch.measure import LoadedSource, MeasureSettings, load_samples, measure, save_profile
from edgestitch.meters import NoMeter
from edgestitch.network import build_network
from edgestitch.profile import Load, Profile
from edgestitch.program import atom_classes, compile_segments, example_images
from edgestitch.progress import Progress, silent
from edgestitch.recipe import load_family
from edgestitch.testing import (
    FEW_SAMPLES,
    FakeTimer,
    null_backend,
    toy_images,
    toy_network,
)
from edgestitch.timer import Samples, Taken, TimerSettings

AVAILABLE = [
    name
    for name in backends.NAMES
    if backends.backend(name).unavailable() is None
    and "cpu" in backends.backend(name).accelerators
    and not (name == "inductor" and missing("cpu"))
]


def here() -> Instruments:
    return find_instruments(detect(), energy=False)


@pytest.fixture(scope="module")
def parts():
    """Network, accuracy and a plan of all that is worth keeping."""
    network = toy_network()
    accuracy = evaluate(network, toy_images(64))
    profile, _ = profile_network(network, here(), FEW_SAMPLES, backend="eager")
    return network, accuracy, plan(profile, accuracy)


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_topology_of_a_backend_equals_eager(tmp_path, backend, batch):
    network = toy_network()
    names = tuple(t.name for t in network.family.topologies)
    _, program = build_program(network, names, tmp_path, detect(), backend=backend, batch=batch)
    images = example_images(network.family, 6)
    assert {c.topology for c in check_program(program, network, images)} == set(names)
    for name in names:
        with torch.inference_mode():
            expected = network.assemble(name)(torch.from_numpy(images[:batch])).numpy()
        np.testing.assert_allclose(program.runs[name](images[:batch]), expected, atol=1e-5)


@pytest.mark.skipif("openvino" not in AVAILABLE, reason="openvino is not installed")
def test_reduced_precision_is_checked_with_its_own_tolerance(tmp_path):
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")
    network = toy_network()
    _, program = build_program(
        network, ("a:0:3",), tmp_path, detect(), backend="openvino", precision="bf16"
    )
    (check,) = check_program(program, network)
    assert 0 < check.max_difference <= 0.25


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_eager_in_half_precision_is_near_and_leaves_the_network_as_it_is(tmp_path, precision):
    network = toy_network()
    before = network.digest
    names = tuple(t.name for t in network.family.topologies)
    _, program = build_program(
        network, names, tmp_path, detect(), backend="eager", precision=precision
    )
    checks = check_program(program, network)  # raises beyond the tolerance
    assert {check.topology for check in checks} == set(names)
    assert all(0 < check.max_difference <= TOLERANCE[precision][0] for check in checks)
    assert network.digest == before
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert program.runs[names[0]](example_images(network.family, 1)).dtype == np.float32


@pytest.mark.parametrize("backend", AVAILABLE)
def test_marks_tell_the_time_of_each_segment_and_change_nothing(tmp_path, backend):
    network = toy_network()
    names = tuple(t.name for t in network.family.topologies)
    cut, program = build_program(network, names, tmp_path, detect(), backend=backend)
    images, others = example_images(network.family, 2, seed=3)[:, None]
    assert set(program.marked) == set(names)
    for name in names:
        expected = program.runs[name](images)
        program.runs[name](others)
        start = time.perf_counter_ns()
        segments_ms = program.marked[name](images)
        whole_ms = (time.perf_counter_ns() - start) / 1e6
        assert len(segments_ms) == len(cut.chains[name])
        assert min(segments_ms) > 0
        assert sum(segments_ms) <= whole_ms
        np.testing.assert_array_equal(program.runs[name](images), expected)


def test_a_null_backend_sets_no_marks(tmp_path):
    network = toy_network()
    _, program = build_program(network, ("a:0:3",), tmp_path, detect(), backend=null_backend(4))
    assert program.marked == {}


@pytest.mark.parametrize("backend", AVAILABLE)
def test_a_profile_says_where_the_time_goes(backend):
    names = ("a:0:3", "a:0:1+b:1:3")
    profile, _ = profile_network(
        toy_network(), here(), FEW_SAMPLES, topologies=names, backend=backend
    )
    assert profile.attribution is not None
    assert set(profile.attribution.segments_ms) == set(profile.segments)
    assert min(profile.attribution.segments_ms.values()) > 0


# --- segments and classes --------------------------------------------------------------------


def members(family: str) -> dict[str, list[str]]:
    """The atoms of each class, of a network without weights."""
    with torch.device("meta"):
        classes = atom_classes(build_network(load_family(family)))
    found: dict[str, list[str]] = {}
    for atom, name in classes.items():
        found.setdefault(name, []).append(atom)
    return found


def test_blocks_of_a_plain_transformer_are_one_class_and_the_rest_its_own():
    found = members("toy")
    assert found["a:0"] == ["a:0", "a:1", "a:2"]
    assert found["b:0"] == ["b:0", "b:1", "b:2"]
    alone = [atoms for name, atoms in found.items() if name not in ("a:0", "b:0")]
    assert {atoms[0] for atoms in alone if "+" not in atoms[0]} == {
        "a:stem",
        "a:head",
        "b:stem",
        "b:head",
    }
    assert all(all("+" in atom for atom in atoms) for atoms in alone if "+" in atoms[0])
    assert {name.split(":")[0] for name in found} == {"a", "b"}


def has_mask(block: torch.nn.Module) -> bool:
    return any(name.endswith("attn_mask") for name, _ in block.named_buffers())


@pytest.mark.parametrize("name", ["swin-ti-s-b", "fashion-swin"])
def test_blocks_that_shift_their_windows_are_another_class(name):
    with torch.device("meta"):
        network = build_network(load_family(name))
    classes = atom_classes(network)
    shifts = 0
    for anchor in network.family.anchors:
        for stage in range(anchor.num_stages):
            blocks = [f"{anchor.name}:{index}" for index in range(*anchor.stage(stage))]
            # Where one window is all of the image there is nothing to shift.
            shifted = {b for b in blocks if has_mask(network.atoms[b])}
            shifts += len(shifted)
            assert len({classes[block] for block in shifted}) <= 1
            assert not {classes[b] for b in shifted} & {classes[b] for b in {*blocks} - shifted}
    assert (shifts > 0) == (name == "swin-ti-s-b")


def test_dropping_paths_in_training_makes_no_class():
    network = toy_network()
    before = atom_classes(network)
    for index, block in enumerate(network.atoms[f"a:{number}"] for number in range(3)):
        block.drop_path = DropPath(0.1 * (index + 1))
    for index, block in enumerate(network.atoms[f"b:{number}"] for number in range(3)):
        block.drop_path = DropPath(1e-7 * (index + 1))
    assert atom_classes(network) == before


def test_another_option_makes_another_class():
    network = toy_network()
    network.atoms["a:1"].get_submodule("mlp").act = torch.nn.ReLU()
    classes = atom_classes(network)
    assert (classes["a:0"], classes["a:1"], classes["a:2"]) == ("a:0", "a:1", "a:0")


def test_topologies_compiled_by_and_by_are_those_compiled_at_once(tmp_path):
    network = toy_network()
    names = [t.name for t in network.family.topologies]
    whole = cut_topologies(network.family, names)
    compiled: list[str] = []
    backend = replace(
        null_backend(4),
        compile=lambda request: compiled.append(request.path.name),
    )
    done: set[str] = set()
    for start in range(0, len(names), 2):
        some = part(whole, names[start : start + 2])
        assert some.chains == {name: whole.chains[name] for name in names[start : start + 2]}
        compile_segments(network, some, backend, tmp_path, done=done)
        done |= set(some.atoms)
    assert sorted(compiled) == sorted(whole.atoms)


def test_segments_hold_every_weight_once():
    network = toy_network()
    family = network.family
    segments = cut_topologies(family, (t.name for t in family.topologies))
    atoms = [atom for segment in segments.atoms.values() for atom in segment]
    assert len(atoms) == len(set(atoms))
    assert set(atoms) == set(network.atoms)


def test_not_a_number_is_not_equal_to_eager(tmp_path):
    network = toy_network()
    _, program = build_program(network, ("a:0:3",), tmp_path, detect(), backend="eager")
    nothing = Resident(run=lambda images: np.full((len(images), 4), np.nan, np.float32))
    broken = replace(program, load=lambda name: nothing)
    with pytest.raises(CompileError, match="logits differ by nan"):
        check_program(broken, network)


def test_unknown_backends_and_precisions_are_refused(tmp_path):
    network = toy_network()
    with pytest.raises(ValueError, match="no backend 'tpu'; there are openvino, eager"):
        build_program(network, ("a:0:3",), tmp_path, detect(), backend="tpu")
    with pytest.raises(ValueError, match="backend eager knows fp32, fp16, bf16, not 'int4'"):
        build_program(network, ("a:0:3",), tmp_path, detect(), backend="eager", precision="int4")


def test_a_backend_that_is_not_installed_says_what_to_install(tmp_path):
    absent = replace(null_backend(4), unavailable=lambda: "it is not installed; pip install it")
    with pytest.raises(DeviceError, match=r"backend null does not work here: .* pip install it"):
        build_program(toy_network(), ("a:0:3",), tmp_path, detect(), backend=absent)


# --- measuring -----------------------------------------------------------------------------------


def test_a_profile_holds_what_the_clock_said(tmp_path):
    network = toy_network()
    timer = FakeTimer({"a:0:3": 1.0, "b:0:3": lambda call: 4.0 if call % 49 else 9.0})
    cut, program = build_program(network, ("a:0:3", "b:0:3"), tmp_path, detect(), backend="eager")
    slow = {name: Resident(run=calling(call)) for name, call in timer.subjects.items()}
    source = LoadedSource(
        network.family, network.digest, cut.chains, replace(program, load=slow.__getitem__)
    )
    instruments = Instruments(
        device=detect(), meter=NoMeter("no meter"), clock=timer.clock, sleep=timer.sleep
    )
    profile, samples = measure(source, instruments)
    assert profile.predict("a:0:3").latency_ms == 1.0
    cost = profile.predict("b:0:3")
    assert (cost.latency_ms, cost.p99_ms, cost.bound_ms, cost.max_ms) == (4.0, 9.0, 9.0, 9.0)
    assert (cost.origin, cost.energy_mj, profile.energy_reason) == ("measured", None, "no meter")
    save_profile(profile, samples, tmp_path / "p.json")
    kept = load_samples(profile, tmp_path / "p.json")
    np.testing.assert_array_equal(kept["b:0:3"], samples.durations_ns["b:0:3"])
    np.testing.assert_array_equal(kept["start b:0:3"], samples.starts_ns["b:0:3"])
    assert load(Profile, tmp_path / "p.json") == profile


def calling(call: Callable[[], None]) -> Run:
    """An inference that only takes the time of a call."""

    def run(images: np.ndarray) -> np.ndarray:
        call()
        return images

    return run


def test_few_samples_bound_a_deadline_by_the_largest():
    profile, _ = profile_network(
        toy_network(), here(), FEW_SAMPLES, topologies=("a:0:3",), backend="eager"
    )
    cost = profile.predict("a:0:3")
    if cost.samples < 473:
        assert cost.p99_high_ms is None
        assert cost.bound_ms == cost.max_ms
    with pytest.raises(MismatchError, match="has not measured b:0:3"):
        profile.predict("b:0:3")


def test_samples_of_another_profile_are_refused(tmp_path):
    network = toy_network()
    profiles = []
    for number in (1, 2):
        profile, samples = profile_network(
            network, here(), FEW_SAMPLES, topologies=("a:0:3",), backend="eager"
        )
        save_profile(profile, samples, tmp_path / f"{number}.json")
        profiles.append(profile)
    (tmp_path / "2.samples.safetensors").rename(tmp_path / "1.samples.safetensors")
    with pytest.raises(MismatchError, match="the profile was made from samples with"):
        load_samples(profiles[0], tmp_path / "1.json")


def test_random_weights_are_profiled_for_any_network(tmp_path, parts):
    network, accuracy, _ = parts
    profile, _ = profile_network(
        toy_network(seed=7), here(), FEW_SAMPLES, backend="eager", random_weights=True
    )
    assert profile.network is None
    chosen = plan(profile, accuracy)
    assert chosen.network == network.digest
    made = compile_deployment(
        network, chosen, accuracy, tmp_path / "d", here(), FEW_SAMPLES, backend="eager"
    )
    assert made.profile.network == made.manifest.network == network.digest


class KilledError(Exception):
    pass


def killed_after(windows: int) -> Progress:
    """Shows nothing, and kills the measuring when so many windows of samples are in."""
    left = [windows]

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "measure":
            left[0] -= 1
            if left[0] == 0:
                raise KilledError

    return progress


def test_a_profile_that_was_killed_goes_on_where_it_was(tmp_path):
    network, path = toy_network(), tmp_path / "p.unfinished"
    # On a machine that is busy or hot as well: three windows of twenty samples.
    timer = TimerSettings(
        min_samples=60, precision=1.0, time_cap_s=60.0, min_warmup_s=0.0, keep_throttled=True
    )
    settings = msgspec.structs.replace(FEW_SAMPLES, timer=timer)

    def profiled(settings: MeasureSettings, progress: Progress = silent) -> tuple[Profile, Samples]:
        return profile_network(
            network,
            here(),
            settings,
            topologies=("a:0:3", "b:0:3"),
            backend="eager",
            unfinished=path,
            progress=progress,
        )

    with pytest.raises(KilledError):
        profiled(settings, killed_after(2))
    kept = [
        msgspec.json.decode(line, type=tuple[str, dict[str, Taken]])[1]
        for line in path.read_bytes().splitlines()[1:]
    ]
    assert len(kept) == 2
    paced = msgspec.structs.replace(settings, load=Load(kind="paced", rate_hz=1000.0))
    with pytest.raises(MismatchError, match="another measurement: load is back-to-back there and"):
        profiled(paced)
    profile, samples = profiled(settings)
    assert profile.protocol.resumed == 1
    for name, durations in samples.durations_ns.items():
        before = [d for taken in kept for d in taken[name].durations_ns]
        assert len(durations) == 60 > len(before) > 0
        assert durations[: len(before)].tolist() == before
    assert path.exists()  # whoever saves the profile removes it
