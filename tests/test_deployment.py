"""Deployments: whole or not there, made for one machine, equal to eager, and never silently wrong."""

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgestitch import ArtifactError, CompileError, InfeasibleError, MismatchError, Runtime
from edgestitch.artifact import load, save
from edgestitch.backends import (
    Backend,
    Compiled,
    Load,
    Request,
    Resident,
    available,
    backend,
)
from edgestitch.deploy import compile_deployment, made_again
from edgestitch.deployment import (
    MANIFEST,
    SEGMENTS,
    Deployment,
    Manifest,
    open_deployment,
    require_fit,
)
from edgestitch.device import detect
from edgestitch.engine import profile_network
from edgestitch.evaluate import evaluate
from edgestitch.instruments import Instruments, find_instruments
from edgestitch.memory import available_mib, require_room, used_mib
from edgestitch.network import StitchNetwork, load_network
from edgestitch.program import example_images
from edgestitch.testing import (
    FEW_SAMPLES,
    null_backend,
    toy_deployment,
    toy_images,
    toy_network,
    toy_plan,
)

EAGER = backend("eager")
AVAILABLE = [one.name for one in available("cpu")]


def here() -> Instruments:
    return find_instruments(detect(), energy=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return toy_deployment(tmp_path_factory.mktemp("toy") / "deployment")


@pytest.fixture
def copied(made, tmp_path):
    """The folder of a copy of it."""
    return shutil.copytree(made.folder, tmp_path / "deployment")


@pytest.fixture(scope="module")
def parts():
    """Network, accuracy and a plan of four topologies."""
    network = toy_network()
    accuracy = evaluate(network, toy_images(64))
    profile, _ = profile_network(network, here(), FEW_SAMPLES, backend="eager")
    return network, accuracy, toy_plan(profile, accuracy)


def compiled(parts: Any, folder: Path, **options: Any) -> Deployment:
    """Those parts compiled here, measured with few samples."""
    network, accuracy, chosen = parts
    return compile_deployment(network, chosen, accuracy, folder, here(), FEW_SAMPLES, **options)


def varied(right: str, *variants: str) -> Backend:
    """Eager PyTorch as a backend that compiles in several ways, of which only one is right."""

    def compile_segment(request: Request) -> None:
        request.path.with_name(f"{request.path.name}.way").write_text(request.variant)

    def load_topology(compiled: Compiled) -> Load:
        inner = EAGER.load(compiled)

        def one(topology: str) -> Resident:
            first = compiled.chains[topology][0]
            way = (compiled.folder / f"{first}.way").read_text()
            resident = inner(topology)
            if way == right:
                return resident
            return Resident(run=lambda images: resident.run(images) + 1)

        return one

    return replace(EAGER, compile=compile_segment, load=load_topology, variants=variants)


def test_a_backend_that_computes_something_else_is_refused(tmp_path, parts):
    with pytest.raises(CompileError, match=r"compiled by null fp32 is not equal to eager"):
        compiled(parts, tmp_path / "d", backend=null_backend(4), fallback=False)
    assert list(tmp_path.iterdir()) == []


def test_a_segment_that_does_not_compile_leaves_nothing(tmp_path, parts):
    failing = null_backend(4, fail=lambda segment: "head" in segment)
    with pytest.raises(CompileError, match="as it was told"):
        compiled(parts, tmp_path / "d", backend=failing, fallback=False)
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
    "name",
    [
        "plan.json",
        "profile.json",
        "network.safetensors",
        "accuracy.json",
        "selftest.safetensors",
        MANIFEST,
    ],
)
def test_an_altered_file_is_refused_by_name(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name):
        open_deployment(copied)


def test_a_missing_file_is_refused_by_name(copied):
    (copied / "plan.json").unlink()
    with pytest.raises(ArtifactError, match=r"plan\.json"):
        open_deployment(copied)


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
def test_a_deployment_for_another_machine_is_refused_with_both_values(copied, change, message):
    manifest = load(Manifest, copied / MANIFEST)
    conditions = msgspec.structs.replace(manifest.conditions, **change)
    save(msgspec.structs.replace(manifest, conditions=conditions), copied / MANIFEST)
    with pytest.raises(MismatchError, match=message):
        open_deployment(copied)


def test_a_folder_that_is_no_deployment_is_not_replaced(tmp_path, parts):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="exists and is no deployment"):
        compiled(parts, tmp_path / "mine", backend="eager")
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
        compile_deployment(other, chosen, accuracy, tmp_path / "d", here(), backend="eager")


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


def test_the_manifest_is_plain_json(made):
    content = json.loads((made.folder / MANIFEST).read_text())
    assert content["kind"] == "deployment"
    assert set(content["data"]["chains"]) == set(made.program.runs)


# --- what is tried where a backend fails ---------------------------------------------------------


def test_the_next_variant_is_tried_where_one_computes_something_else(tmp_path, parts):
    made = compiled(parts, tmp_path / "d", backend=varied("exact", "fast", "exact"))
    first, second = made.manifest.attempts
    assert (first.backend, first.variant, second.variant) == ("eager", "fast", "exact")
    assert first.failure is not None
    assert "is not equal to eager" in first.failure
    assert second.failure is None
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_wider_precision_is_tried_and_then_another_backend(tmp_path, parts, caplog):
    hopeless = replace(varied("never", "only"), name="hopeless", precisions=("bf16", "fp32"))
    made = compiled(parts, tmp_path / "d", backend=hopeless, precision="bf16")
    tried = [(attempt.backend, attempt.precision) for attempt in made.manifest.attempts]
    assert tried[:2] == [("hopeless", "bf16"), ("hopeless", "fp32")]
    assert tried[2][0] == made.manifest.conditions.backend != "hopeless"
    assert made.manifest.conditions.precision == tried[2][1]
    assert "the next way to compile is tried" in caplog.text


def test_the_memory_that_is_stated_is_one_copy_at_least(made):
    memory = made.manifest.memory
    assert memory.weights_mib > 0
    assert memory.total_mib >= memory.weights_mib
    assert sum(memory.segments_mib.values()) == pytest.approx(memory.total_mib)
    assert set(memory.segments_mib) == set(made.manifest.segments)


# --- a compilation that is killed ----------------------------------------------------------------

COUNTED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from edgestitch.backends import backend
from edgestitch.deploy import compile_deployment
from edgestitch import plan
from edgestitch.engine import profile_network
from edgestitch.evaluate import evaluate
from edgestitch.device import detect
from edgestitch.instruments import find_instruments
from edgestitch.testing import FEW_SAMPLES, toy_images, toy_network

out, log, kill_at, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
eager = backend("eager")

def compile_segment(request):
    with log.open("a") as file:
        print(request.path.name, file=file)
    if len(log.read_text().splitlines()) == kill_at:
        request.path.with_name(request.path.name + ".half").write_text("ha")
        os.kill(os.getpid(), signal.SIGKILL)
    request.path.with_name(request.path.name + ".whole").write_text(request.path.name)

counting = replace(eager, compile=compile_segment)
network, instruments = toy_network(seed=seed), find_instruments(detect(), energy=False)
accuracy = evaluate(network, toy_images(64))
profile, _ = profile_network(network, instruments, FEW_SAMPLES, backend="eager")
front = plan(profile, accuracy)
everything = type(front)(**{
    **{name: getattr(front, name) for name in front.__struct_fields__},
    "resident": tuple(sorted(__import__("edgestitch.schedule", fromlist=["x"]).candidates(profile, accuracy),
                             key=lambda c: c.topology)),
})
compile_deployment(network, everything, accuracy, out, instruments, FEW_SAMPLES, backend=counting)
"""


def compiled_in_a_process(out: Path, log: Path, *, kill_at: int = 0, seed: int = 0) -> int:
    command = [sys.executable, "-c", COUNTED, str(out), str(log), str(kill_at), str(seed)]
    return subprocess.run(command, check=False, timeout=120).returncode


def test_a_killed_compilation_goes_on_with_what_was_finished(tmp_path):
    out, log = tmp_path / "d", tmp_path / "log"
    assert compiled_in_a_process(out, log, kill_at=4) == -signal.SIGKILL
    assert not out.exists()
    before = log.read_text().splitlines()
    assert compiled_in_a_process(out, log) == 0
    after = log.read_text().splitlines()[len(before) :]
    assert before[:3] == list(dict.fromkeys(before[:3]))
    assert not set(before[:3]) & set(after)  # finished ones are not compiled again
    assert before[3] in after  # the one that was cut short is
    names = {path.name.split(".")[0] for path in (out / SEGMENTS).iterdir()}
    assert names == set(before) | set(after) == set(open_deployment(out).manifest.segments)
    assert not list((out / SEGMENTS).glob("*.half"))
    assert {path.name for path in tmp_path.iterdir()} == {"d", "log"}


def test_what_was_compiled_for_another_network_is_not_used(tmp_path):
    out, log = tmp_path / "d", tmp_path / "log"
    assert compiled_in_a_process(out, log, kill_at=4) == -signal.SIGKILL
    assert compiled_in_a_process(out, log, seed=1) == 0
    lines = log.read_text().splitlines()
    assert set(lines[:3]) <= set(lines[4:])
    assert not [path.name for path in tmp_path.iterdir() if "unfinished" in path.name]


def test_a_finished_segment_that_was_damaged_is_compiled_again(tmp_path):
    out, log = tmp_path / "d", tmp_path / "log"
    assert compiled_in_a_process(out, log, kill_at=4) == -signal.SIGKILL
    first = log.read_text().splitlines()[0]
    (tmp_path / ".d.unfinished" / f"{first}.whole").write_text("damaged")
    assert compiled_in_a_process(out, log) == 0
    assert log.read_text().splitlines().count(first) == 2


# --- opened elsewhere, or damaged ----------------------------------------------------------------


def moved_from(folder: Path, **change: object) -> None:
    """Makes a deployment one that another machine made."""
    manifest = load(Manifest, folder / MANIFEST)
    conditions = msgspec.structs.replace(manifest.conditions, **change)
    save(msgspec.structs.replace(manifest, conditions=conditions), folder / MANIFEST)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"hardware": "Another CPU, 8 cores"}, {"versions": {"eager": "0.1"}}]
)
def test_what_was_made_elsewhere_is_made_again_and_says_so(copied, change, caplog):
    moved_from(copied, **change)
    with caplog.at_level(logging.WARNING):
        again = made_again(copied)
    assert "that is being done now" in caplog.text
    assert again.manifest.conditions.hardware == detect().hardware
    assert again.profile.conditions == again.manifest.conditions
    assert open_deployment(copied).manifest == again.manifest
    assert set(again.program.topologies) == {c.topology for c in again.plan.resident}


def test_what_was_made_elsewhere_is_refused_where_it_must_not_be_made_again(copied):
    moved_from(copied, hardware="Another CPU, 8 cores")
    before = (copied / MANIFEST).read_bytes()
    with pytest.raises(MismatchError, match="hardware is Another CPU"):
        Runtime(copied, rebuild=False)
    assert (copied / MANIFEST).read_bytes() == before


def test_an_altered_segment_is_refused_when_opened_or_when_loaded(tmp_path, parts):
    made = compiled(parts, tmp_path / "d", backend=varied("only", "only"))
    first = made.plan.safety.topology
    segment = made.manifest.chains[first][0]
    path = made.folder / SEGMENTS / f"{segment}.way"
    path.write_text("altered")
    with pytest.raises(ArtifactError, match=re.escape(f"{segment}.way was altered")):
        open_deployment(made.folder)
    quick = open_deployment(made.folder, whole=False)
    with pytest.raises(ArtifactError, match=re.escape(f"{segment}.way was altered")):
        quick.ready(first)


def test_a_topology_that_computes_something_else_when_it_is_loaded_is_refused(made):
    name = made.plan.safety.topology
    wrong = Resident(run=lambda images: made.program.load(name).run(images) + 1)
    other = replace(made, program=replace(made.program, load=lambda _: wrong))
    with pytest.raises(
        CompileError, match=re.escape(f"{name} compiled by eager fp32 is not equal")
    ):
        other.ready(name)


def test_eager_takes_over_with_the_same_logits(made):
    images = example_images(made.manifest.family, 1)
    for name in made.program.topologies:
        np.testing.assert_allclose(
            made.eager(name)(images), made.program.load(name).run(images), atol=1e-5
        )


# --- memory ---------------------------------------------------------------------------------------


def test_memory_is_what_the_kernel_says_less_where_a_container_has_less(tmp_path):
    device = detect()
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 4096000 kB\nMemAvailable: 2048000 kB\n")
    (tmp_path / "proc/self/status").write_text("Name: x\nVmRSS:\t  51200 kB\n")
    assert available_mib(device, tmp_path) == 2000
    assert used_mib(device, tmp_path) == 50
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text(f"{900 << 20}\n")
    assert available_mib(device, tmp_path) == 2000
    (group / "memory.max").write_text(f"{1000 << 20}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {300 << 20}\n")
    assert available_mib(device, tmp_path) == 400
    with pytest.raises(InfeasibleError, match=r"a network needs 401 MiB, and .* has 400 MiB left"):
        require_room("a network", 401, device, "use half precision", tmp_path)
    require_room("a network", 399, device, "use half precision", tmp_path)


def test_a_resident_set_that_does_not_fit_is_refused_with_the_largest_that_would(made, monkeypatch):
    names = tuple(candidate.topology for candidate in made.plan.resident)
    require_fit([(made, names)])
    sizes = made.manifest.memory.segments_mib
    safety = sum(sizes[segment] for segment in made.manifest.chains[names[0]])
    monkeypatch.setattr("edgestitch.deployment.available_mib", lambda device: safety + 1e-3)
    require_fit([(made, names[:1])])
    with pytest.raises(
        InfeasibleError, match=r"MiB left; the largest set that fits .*" + re.escape(names[0])
    ):
        require_fit([(made, names)])
    monkeypatch.setattr("edgestitch.deployment.available_mib", lambda device: 1e-6)
    with pytest.raises(InfeasibleError):
        require_fit([(made, names)])


def compiled_within(out: Path, parts: tuple[Any, ...], memory_mib: float | None) -> Manifest:
    made = compiled(parts, out, backend=replace(EAGER, shares_weights=False), memory_mib=memory_mib)
    return made.manifest


def test_more_memory_buys_longer_segments(tmp_path, parts, monkeypatch):
    monkeypatch.setattr("edgestitch.deploy.used_mib", lambda device: 0.0)
    plain = compiled_within(tmp_path / "plain", parts, None)
    roomy = compiled_within(tmp_path / "roomy", parts, 100.0)
    assert all(len(chain) == 1 for chain in roomy.chains.values())
    assert roomy.memory.weights_mib > plain.memory.weights_mib
    tight = compiled_within(tmp_path / "tight", parts, plain.memory.weights_mib * 1.001)
    assert tight.chains == plain.chains


def test_a_backend_that_keeps_more_copies_is_divided_anew_or_refused(tmp_path, parts, monkeypatch):
    """Of a backend that takes 3 MiB for what are 0.05 MiB of weights."""
    taken = [0.0]

    def used(device: object) -> float:
        taken[0] += 3.0
        return taken[0]

    monkeypatch.setattr("edgestitch.deploy.used_mib", used)
    with pytest.raises(InfeasibleError, match=r"2 MiB"):
        compiled_within(tmp_path / "d", parts, 2.0)
    assert not (tmp_path / "d").exists()


@pytest.mark.skipif("openvino" not in AVAILABLE, reason="openvino is not installed")
def test_what_was_just_compiled_runs_as_what_is_opened_later_does(tmp_path, parts):
    network, _, _ = parts
    made = compiled(parts, tmp_path / "d", backend="openvino", other_batches=(2,))
    images = example_images(network.family, 2)
    for deployment in (made, open_deployment(made.folder)):
        with Runtime(deployment) as runtime:
            assert runtime.diagnostics().values["failed"] == ""
            for name in runtime.topologies:
                runtime.switch(name)
                expected = made.eager(name)(images)
                np.testing.assert_allclose(runtime(images), expected, atol=1e-4)
                np.testing.assert_allclose(runtime(images[:1]), expected[:1], atol=1e-4)


@pytest.mark.skipif("openvino" not in AVAILABLE, reason="openvino is not installed")
def test_what_openvino_compiled_runs_without_torch(tmp_path):
    """Which takes longer to import than all the rest, and more memory than most networks."""
    made = toy_deployment(tmp_path / "d", backend="openvino")
    code = (
        "import sys, numpy as np; from edgestitch import Runtime\n"
        f"with Runtime({str(made.folder)!r}, budget_ms=1000) as runtime:\n"
        "    result = runtime.infer(np.zeros(runtime.input_shape, np.float32))\n"
        "assert result.met and runtime.diagnostics().level\n"
        "print([name for name in ('torch', 'timm', 'scipy.optimize') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- batch sizes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batched(tmp_path_factory, parts):
    """For one image, and for three."""
    return compiled(
        parts, tmp_path_factory.mktemp("batched") / "d", backend="eager", other_batches=(3, 3, 1)
    )


def test_each_batch_size_has_costs_of_its_own_and_the_same_topologies(batched):
    (other,) = batched.others
    assert (batched.input_shape[0], other.input_shape[0]) == (1, 3)
    assert other.profile.conditions.batch == 3
    assert {c.topology for c in other.plan.resident} == {c.topology for c in batched.plan.resident}
    assert not (other.folder / "network.safetensors").exists()


def test_a_call_takes_any_batch_size_that_was_compiled(batched):
    images = example_images(batched.manifest.family, 3)
    with Runtime(open_deployment(batched.folder)) as runtime:
        assert runtime.batches == (1, 3)
        # Each batch size has costs of its own, so that its most accurate on the front may be another.
        runtime.switch(runtime.topologies[0])
        one_by_one = np.concatenate([runtime(images[i : i + 1]) for i in range(3)])
        np.testing.assert_allclose(runtime(images), one_by_one, atol=1e-5)
        runtime.budget_ms = 1e-6
        assert not runtime.infer(images).feasible
        name = runtime.topologies[-1]
        runtime.switch(name)
        assert runtime.infer(images).topology == runtime.infer(images[:1]).topology == name
        with pytest.raises(
            ValueError, match=r"got float32 \[2, 1, 8, 8\]; edgestitch compile --batch 2"
        ):
            runtime(images[:2])


def test_batch_sizes_share_one_copy_of_the_weights(batched, monkeypatch):
    loaded: list[StitchNetwork] = []

    def stored(folder: Path, manifest: Manifest) -> StitchNetwork:
        loaded.append(load_network(batched.folder / "network.safetensors"))
        return loaded[-1]

    monkeypatch.setattr("edgestitch.deployment.stored_network", stored)
    with Runtime(open_deployment(batched.folder)) as runtime:
        for images in (example_images(batched.manifest.family, n) for n in runtime.batches):
            runtime(images)
    assert len(loaded) == 1


@pytest.mark.slow
def test_all_batch_sizes_are_made_again_elsewhere(batched, tmp_path):
    folder = shutil.copytree(batched.folder, tmp_path / "d")
    moved_from(folder, hardware="Another CPU, 8 cores")
    again = made_again(folder)
    assert [one.input_shape[0] for one in again.others] == [3]
