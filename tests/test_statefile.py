"""State dicts of others: read whole, in order, and without running what is in them."""

import argparse
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgestitch.errors import ArtifactError
from edgestitch.network import save_network
from edgestitch.statefile import load_state

STATE = {"b.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


class CfgNode(dict):  # type: ignore[type-arg]
    """A dict with attributes, as yacs has it."""


@pytest.fixture
def yacs(monkeypatch):
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    monkeypatch.setattr(CfgNode, "__module__", "yacs.config")
    node = CfgNode(size=224, inner=CfgNode(depth=12))
    node.__dict__["_immutable"] = True
    return node


def torch_file(folder: Path, content: object, *, zipped: bool = True) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = STATE) -> bool:
    return list(found) == list(expected) and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


# --- what is read ----------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bare_state_dict_in_either_format_of_torch_keeps_its_order(tmp_path, zipped):
    assert same(load_state(torch_file(tmp_path, STATE, zipped=zipped)))


def test_safetensors_are_known_by_content_and_come_in_the_order_of_names(tmp_path):
    save_file(STATE, tmp_path / "w.bin")
    assert same(load_state(tmp_path / "w.bin"), dict(sorted(STATE.items())))


def test_the_prefix_of_parallel_training_is_taken_off(tmp_path):
    path = torch_file(tmp_path, {f"module.{name}": tensor for name, tensor in STATE.items()})
    assert same(load_state(path))


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_a_wrapped_state_dict_is_found(tmp_path, key):
    assert same(load_state(torch_file(tmp_path, {"epoch": 3, key: STATE})))


def test_parameters_come_back_as_plain_tensors(tmp_path):
    state = dict(nn.Linear(2, 2).named_parameters())
    assert not any(t.requires_grad for t in load_state(torch_file(tmp_path, state)).values())


def test_options_and_figures_beside_the_weights_are_passed_over(tmp_path, yacs):
    content = {
        "model": STATE,
        "args": argparse.Namespace(lr=np.float64(0.1), output=Path("runs"), sizes=[1, 2]),
        "config": yacs,
        "max_accuracy": np.float64(81.5),
        "history": np.arange(3.0),
    }
    assert same(load_state(torch_file(tmp_path, content)))


# --- what is refused -------------------------------------------------------------------------


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_hostile_file_is_refused_by_name_and_runs_nothing(tmp_path, wrapped):
    mark = tmp_path / "was-run"
    hostile = Hostile(mark)
    path = torch_file(tmp_path, {"model": STATE, "args": hostile} if wrapped else hostile)
    with pytest.raises(ArtifactError, match=r"weights\.pth asks for \S*mkdir"):
        load_state(path)
    assert not mark.exists()


def test_a_hostile_plain_pickle_is_refused(tmp_path):
    mark, path = tmp_path / "was-run", tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(Hostile(mark)))
    with pytest.raises(ArtifactError, match=r"w\.pth"):
        load_state(path)
    assert not mark.exists()


def test_a_whole_model_is_refused_with_what_to_save_instead(tmp_path):
    with pytest.raises(ArtifactError, match=r"Linear.*model\.state_dict\(\)"):
        load_state(torch_file(tmp_path, nn.Linear(2, 2)))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path, zipped, kept):
    path = torch_file(tmp_path, {"w": torch.zeros(1000)}, zipped=zipped)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ArtifactError, match=r"weights\.pth .*cut short"):
        load_state(path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", bytes(range(256))])
def test_other_bytes_are_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name) as caught:
        load_state(tmp_path / name)
    assert "weights_only" not in str(caught.value)  # torch's advice is to run the file


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot read .*gone\.pth"):
        load_state(tmp_path / "gone.pth")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param([torch.zeros(1)], "it is a list", id="list"),
        pytest.param({}, "it is empty", id="empty"),
        pytest.param({"epoch": 3, "weights": STATE}, "'epoch' is a int", id="no-tensor"),
        pytest.param({"model": {"w": 3}}, "'w' is a int", id="wrapped-no-tensor"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path, content, reason):
    with pytest.raises(ArtifactError, match=reason):
        load_state(torch_file(tmp_path, content))


def test_a_sparse_tensor_is_no_weight(tmp_path):
    with pytest.raises(ArtifactError, match="'w' is no plain tensor"):
        load_state(torch_file(tmp_path, {"w": torch.eye(3).to_sparse()}))


def test_a_network_of_edgestitch_is_told_from_weights(tmp_path, toy_network):
    save_network(toy_network, tmp_path / "toy.safetensors")
    with pytest.raises(ArtifactError, match="is a stitch network of edgestitch already"):
        load_state(tmp_path / "toy.safetensors")
