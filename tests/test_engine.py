"""Deployments: whole or not there, checked against eager, refused where they do not belong."""

import json
import subprocess
import sys
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from edgestitch import ArtifactError, CompileError, DeviceError, MismatchError, backends, plan
from edgestitch.artifact import load, save
from edgestitch.device import detect
from edgestitch.engine import (
    MANIFEST,
    Manifest,
    build_program,
    check_program,
    compile_deployment,
    open_deployment,
    profile_network,
)
from edgestitch.evaluate import evaluate
from edgestitch.measure import load_samples, measure, save_profile
from edgestitch.program import cut_topologies, example_images
from edgestitch.testing import (
    FEW_SAMPLES,
    FakeTimer,
    null_backend,
    toy_deployment,
    toy_images,
    toy_network,
)
from edgestitch.timer import TimerSettings

AVAILABLE = [name for name in backends.NAMES if backends.backend(name).unavailable() is None]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return toy_deployment(tmp_path_factory.mktemp("toy") / "deployment")


@pytest.fixture(scope="module")
def parts():
    """Network, accuracy and a plan of all that is worth keeping."""
    network = toy_network()
    accuracy = evaluate(network, toy_images(64))
    profile, _ = profile_network(network, detect(), FEW_SAMPLES, backend="eager")
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


def test_segments_hold_every_weight_once():
    network = toy_network()
    family = network.family
    segments = cut_topologies(family, (t.name for t in family.topologies))
    atoms = [atom for segment in segments.atoms.values() for atom in segment]
    assert len(atoms) == len(set(atoms))
    assert set(atoms) == set(network.atoms)


def test_a_backend_that_computes_something_else_is_refused(tmp_path, parts):
    network, accuracy, chosen = parts
    with pytest.raises(CompileError, match=r"compiled by null fp32 is not equal to eager"):
        compile_deployment(
            network, chosen, accuracy, tmp_path / "d", detect(), backend=null_backend(4)
        )
    assert list(tmp_path.iterdir()) == []


def test_not_a_number_is_not_equal_to_eager(tmp_path):
    network = toy_network()
    _, program = build_program(network, ("a:0:3",), tmp_path, detect(), backend="eager")
    broken = replace(
        program, runs={"a:0:3": lambda images: np.full((len(images), 4), np.nan, np.float32)}
    )
    with pytest.raises(CompileError, match="logits differ by nan"):
        check_program(broken, network)


def test_a_segment_that_does_not_compile_leaves_nothing(tmp_path, parts):
    network, accuracy, chosen = parts
    failing = null_backend(4, fail=lambda segment: "head" in segment)
    with pytest.raises(CompileError, match="as it was told"):
        compile_deployment(network, chosen, accuracy, tmp_path / "d", detect(), backend=failing)
    assert list(tmp_path.iterdir()) == []


def test_a_deployment_states_its_own_costs(made):
    assert {c.topology for c in made.profile.costs} == set(made.program.runs)
    assert {c.topology for c in made.plan.resident} <= set(made.program.runs)
    assert set(made.manifest.segments) == set(made.profile.segments)


def test_a_deployment_opens_again(made):
    again = open_deployment(made.folder)
    images = example_images(made.manifest.family, 1)
    for name, run in made.program.runs.items():
        np.testing.assert_array_equal(run(images), again.program.runs[name](images))
    assert again.plan == made.plan


@pytest.mark.parametrize(
    "name", ["plan.json", "profile.json", "network.safetensors", "accuracy.json", MANIFEST]
)
def test_an_altered_file_is_refused_by_name(tmp_path, name):
    folder = toy_deployment(tmp_path / "deployment").folder
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name):
        open_deployment(folder)


def test_a_missing_file_is_refused_by_name(tmp_path):
    folder = toy_deployment(tmp_path / "deployment").folder
    (folder / "plan.json").unlink()
    with pytest.raises(ArtifactError, match=r"plan\.json"):
        open_deployment(folder)


def test_no_deployment_is_said(tmp_path):
    with pytest.raises(ArtifactError, match=r"no deployment at .*`edgestitch compile` makes one"):
        open_deployment(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hardware": "Another CPU, 8 cores"}, "hardware is Another CPU, 8 cores there and"),
        ({"device": "jetson-orin"}, "device is jetson-orin there and cpu here"),
        ({"versions": {"eager": "0.1"}}, "eager version is 0.1 there and"),
    ],
)
def test_a_deployment_for_another_machine_is_refused_with_both_values(tmp_path, change, message):
    folder = toy_deployment(tmp_path / "deployment").folder
    manifest = load(Manifest, folder / MANIFEST)
    conditions = msgspec.structs.replace(manifest.conditions, **change)
    save(msgspec.structs.replace(manifest, conditions=conditions), folder / MANIFEST)
    with pytest.raises(MismatchError, match=message):
        open_deployment(folder)


def test_a_folder_that_is_no_deployment_is_not_replaced(tmp_path, parts):
    network, accuracy, chosen = parts
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="exists and is no deployment"):
        compile_deployment(network, chosen, accuracy, tmp_path / "mine", detect(), backend="eager")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_older_deployment_is_replaced_whole(tmp_path):
    first = toy_deployment(tmp_path / "deployment")
    second = toy_deployment(tmp_path / "deployment")
    assert second.folder == first.folder
    assert [path.name for path in tmp_path.iterdir()] == ["deployment"]
    open_deployment(tmp_path / "deployment")


def test_a_plan_of_another_network_is_refused_with_both_digests(tmp_path, parts):
    _, accuracy, chosen = parts
    other = toy_network(seed=7)
    with pytest.raises(MismatchError, match=f"network is {other.digest} and {chosen.network}"):
        compile_deployment(other, chosen, accuracy, tmp_path / "d", detect(), backend="eager")


def test_unknown_backends_and_precisions_are_refused(tmp_path):
    network = toy_network()
    with pytest.raises(ValueError, match="no backend 'tpu'; there are openvino, eager"):
        build_program(network, ("a:0:3",), tmp_path, detect(), backend="tpu")
    with pytest.raises(ValueError, match="backend eager knows fp32, not 'int4'"):
        build_program(network, ("a:0:3",), tmp_path, detect(), backend="eager", precision="int4")


def test_a_backend_that_is_not_installed_says_what_to_install(tmp_path):
    absent = replace(null_backend(4), unavailable=lambda: "it is not installed; pip install it")
    with pytest.raises(DeviceError, match=r"backend null does not work here: .* pip install it"):
        build_program(toy_network(), ("a:0:3",), tmp_path, detect(), backend=absent)


def test_two_processes_that_compile_into_one_folder_leave_a_whole_deployment(tmp_path):
    script = (
        "import sys; from pathlib import Path; from edgestitch.testing import toy_deployment;"
        "toy_deployment(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "deployment")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    open_deployment(tmp_path / "deployment")
    assert [path.name for path in tmp_path.iterdir()] == ["deployment"]


# --- measuring -----------------------------------------------------------------------------------


def test_a_profile_holds_what_the_clock_said(tmp_path):
    network = toy_network()
    timer = FakeTimer({"a:0:3": 1.0, "b:0:3": lambda call: 4.0 if call % 50 else 9.0})
    _, program = build_program(network, ("a:0:3", "b:0:3"), tmp_path, detect(), backend="eager")
    subjects = timer.subjects
    slow = {name: lambda images, call=call: call() for name, call in subjects.items()}
    profile, samples = measure(
        replace(program, runs=slow),
        network.family,
        network.digest,
        detect(),
        TimerSettings(min_samples=1000),
        clock=timer.clock,
    )
    assert profile.predict("a:0:3").latency_ms == 1.0
    cost = profile.predict("b:0:3")
    assert (cost.latency_ms, cost.p99_ms, cost.bound_ms, cost.max_ms) == (4.0, 9.0, 9.0, 9.0)
    assert cost.energy_mj is None
    assert profile.energy_reason
    save_profile(profile, samples, tmp_path / "p.json")
    kept = load_samples(profile, tmp_path / "p.json")
    np.testing.assert_array_equal(kept["b:0:3"], samples.durations_ns["b:0:3"])


def test_few_samples_bound_a_deadline_by_the_largest(tmp_path):
    profile, _ = profile_network(
        toy_network(), detect(), FEW_SAMPLES, topologies=("a:0:3",), backend="eager"
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
            network, detect(), FEW_SAMPLES, topologies=("a:0:3",), backend="eager"
        )
        save_profile(profile, samples, tmp_path / f"{number}.json")
        profiles.append(profile)
    (tmp_path / "2.samples.safetensors").rename(tmp_path / "1.samples.safetensors")
    with pytest.raises(MismatchError, match="the profile was made from samples with"):
        load_samples(profiles[0], tmp_path / "1.json")


def test_the_manifest_is_plain_json(made):
    content = json.loads((made.folder / MANIFEST).read_text())
    assert content["kind"] == "deployment"
    assert set(content["data"]["chains"]) == set(made.program.runs)
