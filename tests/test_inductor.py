"""The AOTInductor backend: really compiled here, equal to eager, on the network's own weights."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgestitch.backends import Request, backend, inductor
from edgestitch.device import detect
from edgestitch.engine import build_program, check_program
from edgestitch.errors import CompileError
from edgestitch.program import example_images, load_program
from edgestitch.testing import toy_network

INDUCTOR = backend("inductor")
LACKING = inductor.missing("cpu")
TOPOLOGIES = ("a:0:3", "a:0:1+b:1:3", "a:0:2+b:1:3", "a:0:3+b:1:3")
compiles = pytest.mark.skipif(LACKING is not None, reason=str(LACKING))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The network, its segments, its program, and the folder with what was compiled."""
    folder = tmp_path_factory.mktemp("inductor")
    if LACKING is not None:
        pytest.skip(LACKING)
    network = toy_network()
    segments, program = build_program(network, TOPOLOGIES, folder, detect(), backend="inductor")
    return network, segments, program, folder


def test_every_topology_equals_eager(built):
    network, _, program, _ = built
    checks = check_program(program, network)
    assert [check.topology for check in checks] == list(TOPOLOGIES)
    assert max(check.max_difference for check in checks) < 1e-5


def test_segments_that_compute_the_same_thing_share_a_package(built):
    _, segments, _, folder = built
    keys = {name: (folder / f"{name}.package").read_text() for name in segments.atoms}
    assert keys["a:1"] == keys["a:2"] != keys["a:head"]
    assert {f"{key}.pt2" for key in keys.values()} == {p.name for p in folder.glob("*.pt2")}


def test_a_segments_files_are_its_name_and_the_package_that_it_may_share(built):
    _, _, _, folder = built
    name, package = INDUCTOR.files(folder, "a:1")
    assert (name.name, package) == ("a:1.package", INDUCTOR.files(folder, "a:2")[1])
    assert package.suffix == ".pt2"
    assert INDUCTOR.files(folder, "a:9") == []


def test_what_was_compiled_runs_where_there_is_no_compiler(built, monkeypatch):
    network, segments, program, folder = built
    without_compiler(monkeypatch)
    assert INDUCTOR.unavailable() is None
    loaded = load_program(
        segments,
        INDUCTOR,
        folder,
        network.family,
        lambda: network,
        detect(),
        precision="fp32",
        batch=1,
    )
    images = example_images(network.family, 1)
    run = loaded.load("a:0:3").run
    assert np.array_equal(run(images), program.load("a:0:3").run(images))


def test_without_a_compiler_compiling_is_an_error_that_says_what_to_install(tmp_path, monkeypatch):
    without_compiler(monkeypatch)
    with pytest.raises(CompileError, match=r"compile x:0: .*apt-get install g\+\+.*backend"):
        compile_(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2), tmp_path / "x:0")


def test_on_cuda_compiling_takes_triton_as_well(monkeypatch):
    monkeypatch.setenv("CXX", "c++")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert inductor.missing("cpu") is None
    assert "pip install triton" in str(inductor.missing("cuda"))


def test_the_weights_are_the_networks_own(built):
    network, _, program, _ = built
    images = example_images(network.family, 1)
    before = program.runs["a:0:3"](images).copy()
    weight = dict(network.named_parameters())["atoms.a:head.model.head.weight"]
    with torch.no_grad():
        weight.mul_(2)
        doubled = program.runs["a:0:3"](images).copy()
        weight.mul_(0.5)
    assert not np.allclose(before, doubled)
    assert np.array_equal(program.runs["a:0:3"](images), before)


def test_marks_give_each_segments_time(built):
    network, segments, program, _ = built
    parts = program.marked["a:0:3"](example_images(network.family, 1))
    assert len(parts) == len(segments.chains["a:0:3"])
    assert min(parts) > 0


@compiles
def test_what_cannot_be_compiled_is_an_error_that_names_the_segment(tmp_path):
    class Undecided(nn.Module):
        def forward(self, value):
            return value if value.sum().item() > 0 else -value

    segment = nn.Sequential(nn.Linear(2, 2), Undecided())
    with pytest.raises(CompileError, match="inductor cannot compile x:0"):
        compile_(segment, torch.zeros(1, 2), tmp_path / "x:0")
    assert list(tmp_path.iterdir()) == []


@compiles
@pytest.mark.parametrize(("features", "shared"), [(8, False), (16, True)])
def test_weights_that_are_written_into_the_code_are_those_of_the_segment(
    tmp_path, features, shared
):
    segments = {f"x:{seed}": nn.Sequential(linear(features, seed)) for seed in (0, 1)}
    for name, segment in segments.items():
        compile_(segment, torch.zeros(1, 4), tmp_path / name)
    keys = {(tmp_path / f"{name}.package").read_text() for name in segments}
    assert (len(keys) == 1) == shared


def compile_(segment: nn.Module, example: torch.Tensor, path: Path) -> None:
    INDUCTOR.compile(Request(module=segment, example=example, path=path, precision="fp32"))


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)


def linear(features: int, seed: int) -> nn.Linear:
    layer = nn.Linear(4, features)
    nn.init.constant_(layer.bias, seed)
    return layer
