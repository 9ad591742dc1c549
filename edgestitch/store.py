"""Compiled segments on their way into a deployment: what is finished is kept through a kill."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .artifact import read, sha256
from .backends import Backend
from .errors import ArtifactError, BusyError, CompileError, MismatchError
from .journal import Journal

KIND = "unfinished deployment"
JOURNAL = "journal"


class Store:
    """A folder of compiled segments, of which it is known which ones are whole."""

    def __init__(self, folder: Path, backend: Backend, journal: Journal | None = None) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, str]] = {}
        """The files of each finished segment, with their digests."""
        self._backend = backend
        self._journal = journal
        for entry in journal.entries("segment", dict[str, dict[str, str]]) if journal else ():
            self.files |= {name: files for name, files in entry.items() if self._whole(files)}
        self._sweep()

    def _sweep(self) -> None:
        """Removes what a segment that was cut short has left."""
        known = {name for files in self.files.values() for name in files} | {JOURNAL}
        for path in self.folder.iterdir():
            if path.name not in known:
                path.unlink()

    def _whole(self, files: Mapping[str, str]) -> bool:
        """Whether the files are what they were: a journal outlives a power cut, a file may not."""
        try:
            return all(sha256(read(self.folder / name)) == digest for name, digest in files.items())
        except ArtifactError:
            return False

    def finished(self, segment: str) -> None:
        """Notes that a segment's files are all there."""
        paths = self._backend.files(self.folder, segment)
        self.files[segment] = {path.name: sha256(read(path)) for path in paths}
        if self._journal:
            self._journal.add("segment", {segment: self.files[segment]})

    def deliver(self, folder: Path) -> None:
        """Puts every segment's files into another folder, as hard links where that can be."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys(name for files in self.files.values() for name in files):
            try:
                os.link(self.folder / name, folder / name)
            except OSError:
                shutil.copyfile(self.folder / name, folder / name)


@contextmanager
def store(out: Path, backend: Backend, key: dict[str, str]) -> Iterator[Store]:
    """The store of a deployment that is to lie at `out`, as an earlier process left it, if one did.

    It lies beside `out` until the deployment is whole, and goes where the backend refuses what it
    was for. What was compiled for another `key`, or is damaged, is thrown away. Where another process
    has it, this one compiles for itself and keeps nothing.
    """
    folder = out.absolute().with_name(f".{out.name}.unfinished")
    try:
        journal = _journal(folder, key)
    except BusyError:
        with tempfile.TemporaryDirectory(prefix="edgestitch-") as temporary:
            yield Store(Path(temporary), backend)
        return
    try:
        yield Store(folder, backend, journal)
    except CompileError:
        _remove(folder)
        raise
    else:
        _remove(folder)
    finally:
        journal.close()


def _journal(folder: Path, key: dict[str, str]) -> Journal:
    path = folder / JOURNAL
    try:
        return Journal(path, key, KIND)
    except BusyError:
        raise
    except (MismatchError, ArtifactError):
        if not path.is_file():
            raise  # it cannot be written at all
        _remove(folder)
        return Journal(path, key, KIND)


def _remove(folder: Path) -> None:
    # The journal last: while it is there, no other process takes the folder for its own.
    for path in sorted(folder.glob("*"), key=lambda path: path.name == JOURNAL):
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()
