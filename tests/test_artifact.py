"""Values and tensors on disk: equal when they load, refused by name when they cannot."""

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestitch.accuracy import Accuracy, TopologyAccuracy
from edgestitch.artifact import (
    Artifact,
    digest,
    load,
    load_tensors,
    replacing,
    save,
    save_tensors,
    tensor_digest,
    write,
)
from edgestitch.complexity import Complexity
from edgestitch.errors import ArtifactError
from edgestitch.profile import Profile
from edgestitch.schedule import Budget, Candidate, Choice, Plan
from tests.strategies import accuracy, artifacts, cost, profile

DATA = Path(__file__).parent / "data"
ROWS = {"a:0:3": 61.2, "a:0:2+b:1:3": 70.0}
TENSORS: dict[str, np.ndarray] = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.zeros(1, np.int64),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "value.json"


@pytest.fixture
def saved(path):
    """The file of a saved accuracy."""
    save(accuracy(ROWS), path)
    return path


@pytest.fixture
def tensor_file(tmp_path):
    """A file of saved tensors of kind `weights`, version 1."""
    path = tmp_path / "value.safetensors"
    save_tensors("weights", 1, {"family": "toy"}, TENSORS, path)
    return path


def load_weights(path: Path) -> tuple[str, str]:
    metadata, tensors = load_tensors("weights", 1, path)
    return metadata["family"], tensor_digest(tensors)


# --- values ----------------------------------------------------------------------------------


@given(artifacts)
def test_what_was_saved_loads_equal(path, value):
    save(value, path)
    assert load(type(value), path) == value


@given(artifacts)
def test_the_digest_of_what_was_loaded_is_that_of_what_was_saved(path, value):
    save(value, path)
    assert digest(load(type(value), path)) == digest(value)


def test_a_whole_number_given_for_a_float_has_the_digest_of_the_float():
    def plan(latency_ms: float) -> Plan:
        choice = Choice(budget=Budget(latency_ms=latency_ms), topology="a:0:3")
        return Plan(
            family="f",
            network="n",
            profile="p",
            accuracy="a",
            resident=(Candidate(topology="a:0:3", top1=50.0, median_ms=1.0, latency_ms=2.0),),
            choices=(choice,),
        )

    assert digest(plan(10)) == digest(plan(10.0)) != digest(plan(11.0))


@pytest.mark.parametrize("kind", [Accuracy, Complexity, Plan, Profile])
def test_a_file_of_an_earlier_release_loads(kind):
    value = load(kind, DATA / f"{kind.kind}.v{kind.version}.json")
    assert value.family == "toy"


def test_an_accuracy_of_an_earlier_release_keeps_its_digest():
    """Plans name accuracies by it."""
    path = DATA / "accuracy.v1.json"
    assert digest(load(Accuracy, path)) == json.loads(path.read_text())["digest"]


def test_a_profile_saves_and_loads_equal(path):
    value = profile([cost("a:0:3", energy=0.1), cost("b:0:3", samples=3)])
    save(value, path)
    assert load(Profile, path) == value


@given(st.data())
def test_a_value_cut_short_anywhere_never_loads(saved, data):
    whole = saved.read_bytes()
    short = saved.with_name("short.json")
    short.write_bytes(whole[: data.draw(st.integers(0, len(whole.rstrip()) - 1))])
    with pytest.raises(ArtifactError, match=r"short\.json is no edgestitch artifact or is cut"):
        load(Accuracy, short)


@given(st.data())
def test_a_value_with_a_flipped_bit_is_refused_or_equal(saved, data):
    flipped = saved.with_name("flipped.json")
    flipped.write_bytes(flip_a_bit(saved.read_bytes(), data))
    assert equal_or_refused(flipped, lambda p: load(Accuracy, p), accuracy(ROWS))


def flip_a_bit(content: bytes, data: st.DataObject) -> bytes:
    place = data.draw(st.integers(0, len(content) - 1), label="byte")
    changed = bytearray(content)
    changed[place] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    return bytes(changed)


def equal_or_refused(path: Path, read: Callable[[Path], object], value: object) -> bool:
    try:
        return read(path) == value
    except ArtifactError as error:
        return str(path) in str(error)


def test_a_value_of_another_kind_is_refused_naming_both(saved):
    with pytest.raises(ArtifactError, match=r"value\.json holds 'accuracy', but 'profile' was"):
        load(Profile, saved)


def test_an_unknown_version_is_refused_naming_both(saved):
    saved.write_text(saved.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(ArtifactError, match=r"value\.json is .* version 99, .* reads version 1"):
        load(Accuracy, saved)


def test_an_edited_value_is_refused_naming_the_field(saved):
    saved.write_text(saved.read_text().replace("70.0", "99.0"))
    with pytest.raises(ArtifactError, match=r"value\.json: field 'digest' does not match"):
        load(Accuracy, saved)


def test_data_of_other_fields_are_refused_naming_one(path):
    class Other(Artifact, frozen=True, kw_only=True):
        kind = "accuracy"
        version = 1
        surprise: int

    save(Other(surprise=1), path)
    with pytest.raises(ArtifactError, match=r"value\.json is no valid accuracy: .*`surprise`"):
        load(Accuracy, path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"family": "toy"}',
        b'{"kind": 1, "version": 1, "digest": "", "data": {}}',
        b'{"kind": "accuracy", "version": "1", "digest": "", "data": {}}',
        b'{"kind": "accuracy", "version": 1, "digest": "", "data": {}, "more": 1}',
        b'{"kind": "accuracy", "version": 1, "digest": "", "data": 1e999}',
        b'{"kind": "accuracy", "version": 1, "digest": "", "data": ' + b"[" * 100_000,
        b'{"kind": "accuracy", "version": 1, "digest": "\xff", "data": {}}',
        pickle.dumps({"kind": "accuracy"}),
        bytes(range(256)),
    ],
    ids=range(13),
)
def test_a_foreign_file_is_refused_by_name(path, content):
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"value\.json is no edgestitch artifact"):
        load(Accuracy, path)


@given(st.binary(max_size=64))
def test_random_bytes_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"value\.json is no edgestitch artifact"):
        load(Accuracy, path)


def test_a_missing_file_is_refused_by_name(path):
    with pytest.raises(ArtifactError, match=r"cannot read .*value\.json: No such file"):
        load(Accuracy, path)


def test_a_folder_is_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot read .*: Is a directory"):
        load(Accuracy, tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused_naming_its_place(path, number):
    with pytest.raises(ArtifactError, match=r"accuracy\.rows\[0\]\.top1 is -?(nan|inf)"):
        save(msgspec.structs.replace(accuracy(ROWS), rows=_rows(number)), path)
    assert not path.exists()


def _rows(top1: float) -> tuple[TopologyAccuracy, ...]:
    return (msgspec.structs.replace(accuracy(ROWS).rows[0], top1=top1),)


def test_a_value_of_the_wrong_type_is_not_stored(path):
    with pytest.raises(ArtifactError, match=r"accuracy cannot be stored: .*`\$\.num_images`"):
        save(msgspec.structs.replace(accuracy(ROWS), num_images="many"), path)
    assert not path.exists()


# --- tensors ---------------------------------------------------------------------------------


def test_saved_tensors_load_equal_with_their_metadata(tensor_file):
    metadata, tensors = load_tensors("weights", 1, tensor_file)
    assert metadata["family"] == "toy"
    assert metadata["digest"] == tensor_digest(tensors) == tensor_digest(TENSORS)
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        name: tensor.tolist() for name, tensor in TENSORS.items()
    }


@given(st.data())
def test_tensors_cut_short_anywhere_never_load(tensor_file, data):
    whole = tensor_file.read_bytes()
    short = tensor_file.with_name("short.safetensors")
    short.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ArtifactError, match=r"short\.safetensors is no safetensors file or is cut"):
        load_weights(short)


@given(st.data())
def test_tensors_with_a_flipped_bit_are_refused_or_equal(tensor_file, data):
    flipped = tensor_file.with_name("flipped.safetensors")
    flipped.write_bytes(flip_a_bit(tensor_file.read_bytes(), data))
    assert equal_or_refused(flipped, load_weights, ("toy", tensor_digest(TENSORS)))


def test_an_edited_header_is_refused_naming_the_field(tensor_file):
    tensor_file.write_bytes(tensor_file.read_bytes().replace(b'"toy"', b'"tox"'))
    with pytest.raises(ArtifactError, match=r"value\.safetensors: field 'header' does not match"):
        load_weights(tensor_file)


def test_a_header_without_its_digest_is_refused(tensor_file):
    tensor_file.write_bytes(tensor_file.read_bytes().replace(b'"header"', b'"before"'))
    with pytest.raises(ArtifactError, match="field 'header' does not match"):
        load_weights(tensor_file)


def test_tensors_of_another_kind_are_refused_naming_both(tensor_file):
    with pytest.raises(ArtifactError, match=r"holds 'weights', but 'checkpoint' was asked for"):
        load_tensors("checkpoint", 1, tensor_file)


def test_tensors_of_an_unknown_version_are_refused_naming_both(tensor_file):
    with pytest.raises(ArtifactError, match=r"weights of version 1, .* reads version 2"):
        load_tensors("weights", 2, tensor_file)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, pickle.dumps(TENSORS), b'{"kind": "weights"}']
)
def test_what_is_no_safetensors_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"foreign\.safetensors is no safetensors file"):
        load_weights(path)


@pytest.mark.parametrize("dtype", ["I32", "BF16"])  # NumPy has no bfloat16
def test_foreign_tensors_are_refused_by_name(tmp_path, dtype):
    size = 4 if dtype == "I32" else 2
    header = json.dumps({"a": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}).encode()
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(
        ArtifactError, match=r"foreign\.safetensors holds 'foreign tensors', but 'w"
    ):
        load_weights(path)


@pytest.mark.parametrize("name", ["none.safetensors", "."])
def test_missing_tensors_are_refused_by_name(tmp_path, name):
    with pytest.raises(ArtifactError, match=rf"no weights at {tmp_path}"):
        load_weights(tmp_path / name)


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.zeros((2, 3), np.float32)},
        {"b": np.zeros((3, 2), np.float32)},
        {"b": np.zeros((2, 3), np.int32)},
        {"b": np.ones((2, 3), np.float32)},
    ],
    ids=["name", "shape", "type", "content"],
)
def test_the_digest_of_tensors_covers(other):
    assert tensor_digest(other) != tensor_digest({"b": np.zeros((2, 3), np.float32)})


# --- writing ---------------------------------------------------------------------------------


def test_folders_on_the_way_are_made(tmp_path):
    save(accuracy(ROWS), tmp_path / "some" / "where" / "value.json")
    assert load(Accuracy, tmp_path / "some" / "where" / "value.json") == accuracy(ROWS)


def test_a_folder_in_the_place_of_the_file_is_refused_by_name(tmp_path):
    (tmp_path / "value.json").mkdir()
    with pytest.raises(ArtifactError, match=r"cannot write .*value\.json: Is a directory"):
        save(accuracy(ROWS), tmp_path / "value.json")
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]


# The tests run as root, whom no permission stops; a file in the place of a folder stops anybody.
def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"cannot write .*value\.json: .*; nothing was changed"):
        save(accuracy(ROWS), tmp_path / "file" / "value.json")


def test_a_name_that_is_too_long_is_refused_by_name(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write .*: File name too long"):
        save(accuracy(ROWS), tmp_path / ("x" * 300))


@pytest.mark.parametrize("path", [".", "/"])
def test_a_path_that_names_no_file_is_refused(path):
    with pytest.raises(ArtifactError, match="cannot write"):
        save(accuracy(ROWS), Path(path))


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_on_a_full_disk_the_old_content_stays(saved, monkeypatch, call):
    monkeypatch.setattr(os, call, _full)
    with pytest.raises(ArtifactError, match=r"cannot write .*value\.json: No space left"):
        save(accuracy({"a:0:3": 1.0}), saved)
    monkeypatch.undo()
    assert load(Accuracy, saved) == accuracy(ROWS)
    assert os.listdir(saved.parent) == ["value.json"]


def test_a_disk_that_fills_while_writing_keeps_the_old_content(saved):
    def half_way() -> None:
        with replacing(saved) as temporary:
            temporary.write_bytes(b"half")
            _full()

    with pytest.raises(ArtifactError, match=r"cannot write .*value\.json: No space left"):
        half_way()
    assert load(Accuracy, saved) == accuracy(ROWS)
    assert os.listdir(saved.parent) == ["value.json"]


def test_an_interrupt_while_writing_keeps_the_old_content(saved):
    def interrupted() -> None:
        with replacing(saved) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert load(Accuracy, saved) == accuracy(ROWS)
    assert os.listdir(saved.parent) == ["value.json"]


def test_a_written_file_has_the_content_and_nothing_beside_it(path):
    write(path, b"one")
    write(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["value.json"]


# --- several processes -----------------------------------------------------------------------


def python(code: str, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


WRITER = """
import sys
from pathlib import Path
from edgestitch.accuracy import Accuracy
from edgestitch.artifact import save

path, name, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
value = Accuracy(family=name * 5000, network="", data="", num_images=0, rows=())
for _ in range(rounds):
    save(value, path)
"""


def test_readers_see_one_of_two_writers_whole(path):
    save(Accuracy(family="a" * 5000, network="", data="", num_images=0, rows=()), path)
    writers = [python(WRITER, path, name, 100) for name in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        seen.add(load(Accuracy, path).family)
    assert [writer.communicate()[0] for writer in writers] == ["", ""]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {"a" * 5000, "b" * 5000}
    assert os.listdir(path.parent) == ["value.json"]


DIGEST = """
import sys
from pathlib import Path
from edgestitch.artifact import digest, load
from edgestitch.complexity import Complexity
from edgestitch.profile import Profile

folder = Path(sys.argv[1])
print(digest(load(Complexity, folder / "complexity.v1.json")))
print(digest(load(Profile, folder / "profile.v1.json")))
"""


def test_the_digest_is_the_same_in_every_process():
    processes = [python(DIGEST, DATA, PYTHONHASHSEED=seed) for seed in ("1", "2")]
    digests = [process.communicate()[0].split() for process in processes]
    here = [
        json.loads((DATA / f"{kind}.v1.json").read_text())["digest"]
        for kind in ("complexity", "profile")
    ]
    assert digests == [here, here]
