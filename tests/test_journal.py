"""Journals: what was added reads back after a kill at any moment, and of nothing else."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestitch.energy import Window
from edgestitch.errors import ArtifactError, MismatchError
from edgestitch.journal import Journal
from edgestitch.timer import Taken

KEY = {"family": "toy", "device": "cpu", "settings": '{"seed": 0}'}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "profile.unfinished"


@contextlib.contextmanager
def opened(path: Path, **changes: str) -> Iterator[Journal]:
    journal = Journal(path, {**KEY, **changes})
    try:
        yield journal
    finally:
        journal.close()


def numbers(path: Path) -> list[int]:
    with opened(path) as journal:
        return list(journal.entries("number", int))


def written(path: Path, *entries: int) -> bytes:
    """The bytes of a journal with these entries."""
    with opened(path) as journal:
        for entry in entries:
            journal.add("number", entry)
    return path.read_bytes()


def test_what_was_added_reads_back_by_kind_and_in_order(path):
    taken = {"a:0:3": Taken([0, 10], [3, 4])}
    window = Window(calls={"a:0:3": 2.5}, energy_mj=None, duration_s=1.0, reason="no reading")
    with opened(path) as journal:
        journal.add("samples", taken)
        journal.add("window", window)
        journal.add("samples", {"b:0:3": Taken([20], [5])})
        assert journal.resumed == 0
    with opened(path) as journal:
        samples = list(journal.entries("samples", dict[str, Taken]))
        assert samples == [taken, {"b:0:3": Taken([20], [5])}]
        assert list(journal.entries("window", Window)) == [window]
        assert list(journal.entries("nothing", int)) == []


def test_an_entry_is_on_disk_as_soon_as_it_was_added(path):
    with opened(path) as journal:
        journal.add("number", 7)
        assert path.read_bytes().endswith(b'["number",7]\n')
        assert list(journal.entries("number", int)) == [7]


def test_a_journal_counts_how_often_it_was_taken_up(path):
    for resumed in range(4):
        with opened(path) as journal:
            assert journal.resumed == resumed
            journal.add("number", resumed)
    assert numbers(path) == [0, 1, 2, 3]


@given(st.data(), st.lists(st.integers(), max_size=6))
def test_any_first_part_of_a_journal_reads_back_to_the_first_of_its_entries(path, data, entries):
    path.unlink(missing_ok=True)
    whole = written(path, *entries)
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    lines = path.read_bytes().count(b"\n")
    assert numbers(path) == entries[: max(lines - 1, 0)]


@given(st.data())
def test_a_journal_that_was_cut_short_goes_on_with_whole_lines(path, data):
    path.unlink(missing_ok=True)
    whole = written(path, 1, 22, 333)
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    left = max(path.read_bytes().count(b"\n") - 1, 0)
    written(path, 4444)
    assert numbers(path) == [*[1, 22, 333][:left], 4444]


def test_a_torn_last_line_is_left_out_and_gone_over(path):
    whole = written(path, 1, 22)
    path.write_bytes(whole[:-3])
    assert numbers(path) == [1]
    assert b"22" not in path.read_bytes()


def test_what_follows_a_line_that_is_not_whole_is_left_out(path):
    whole = written(path, 1, 22, 333)
    path.write_bytes(whole.replace(b'["number",22]', b'["num\0\0\0\0\0\0\0'))
    assert numbers(path) == [1]


def test_one_that_was_killed_before_its_first_line_was_whole_begins_anew(path):
    path.write_bytes(b'{"kind":"unfinished pro')
    with opened(path) as journal:
        assert journal.resumed == 0
        journal.add("number", 1)
    assert numbers(path) == [1]


@pytest.mark.parametrize(
    "content",
    [b"my notes\n", b"{}\n", b'{"kind":"profile","version":1}\n', b"\xff\xfe\n", b"\n", b"[1]\n"],
)
def test_a_foreign_file_is_refused_by_name_and_stays_as_it_is(path, content):
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"profile\.unfinished is no unfinished profile"):
        Journal(path, KEY)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"my notes", b"years of work"])
def test_a_foreign_file_without_a_line_end_is_refused_as_well(path, content):
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"profile\.unfinished is no unfinished profile"):
        Journal(path, KEY)
    assert path.read_bytes() == content


def test_a_header_of_another_kind_is_refused(path):
    path.write_bytes(written(path, 1).replace(b"unfinished profile", b"unfinished plan"))
    with pytest.raises(ArtifactError, match=r"profile\.unfinished is no unfinished profile"):
        Journal(path, KEY)


def test_a_journal_of_another_measurement_is_refused_with_both_values(path):
    before = written(path, 1)
    message = r"profile\.unfinished .* device is cpu there and jetson-orin now; finish that one"
    with pytest.raises(MismatchError, match=message):
        Journal(path, {**KEY, "device": "jetson-orin"})
    with pytest.raises(MismatchError, match="batch is None there and 1 now"):
        Journal(path, {**KEY, "batch": "1"})
    assert path.read_bytes() == before


def test_entries_of_another_form_are_refused_by_name(path):
    written(path, 1)
    with opened(path) as journal:
        entries = journal.entries("number", str)
        with pytest.raises(ArtifactError, match=r"profile\.unfinished has number of another form"):
            next(entries)


def test_a_journal_makes_its_folder(tmp_path):
    path = tmp_path / "profiles" / "deit" / "cpu.unfinished"
    written(path, 1)
    assert numbers(path) == [1]


def test_a_journal_that_cannot_be_written_says_where(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot write .*file.x: "):
        Journal(tmp_path / "file" / "x", KEY)
    with pytest.raises(ArtifactError, match=r"cannot write .*: Is a directory"):
        Journal(tmp_path, KEY)


def test_a_full_disk_is_said_with_what_to_do(path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(path) as journal:
        journal.add("number", 1)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactError, match=r"cannot write .*: No space .* goes on from there"):
            journal.add("number", 2)
    monkeypatch.undo()
    assert numbers(path)[:1] == [1]


def test_two_processes_do_not_write_the_same_journal(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path, {"what": "a"})
    journal.add("kind", 1)
    with pytest.raises(ArtifactError, match="another process writes"):
        Journal(path, {"what": "a"})
    journal.close()
    with contextlib.closing(Journal(path, {"what": "a"})) as again:
        assert list(again.entries("kind", int)) == [1]
