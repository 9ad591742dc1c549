"""What a long measurement has found so far, on disk as soon as it is final: a killed one goes on.

One JSON value a line, appended. A line that a kill or a full disk cut short is left out when the
journal is read again.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from .artifact import read
from .errors import ArtifactError, BusyError, MismatchError

T = TypeVar("T")


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    key: dict[str, str]


class Journal:
    """Entries by kind, in the order they were added.

    `key` says what is made, of the kind `kind`: an older journal is taken up only where it was of
    just that.

    Raises:
        MismatchError: the file is a journal of something else; the message has both values.
        BusyError: another process writes it.
        ArtifactError: the file is no journal, or cannot be read or written.
    """

    def __init__(self, path: Path, key: dict[str, str], kind: str = "unfinished profile") -> None:
        self.path = path
        self.kind = kind
        self.resumed = 0
        self._entries: list[tuple[str, msgspec.Raw]] = []
        self._file = self._open()
        try:
            whole = self._take_up(key)
            self._file.truncate(whole)
        except BaseException:
            self._file.close()
            raise
        if whole:
            self.add("resumed", True)
            self.resumed = sum(1 for _ in self.entries("resumed", bool))
        else:
            self._append(msgspec.json.encode(_Header(kind, key)))

    def _open(self) -> BinaryIO:
        """The file, to append to, which no other process has until it is closed or we are gone."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("ab")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise BusyError(
                f"another process writes {self.path}: wait for it, or give another --out"
            ) from error
        except OSError as error:
            raise ArtifactError(f"cannot write {self.path}: {error.strerror}") from error
        return file

    def _take_up(self, key: dict[str, str]) -> int:
        """Reads what is there; returns the bytes of its whole lines."""
        lines = read(self.path).splitlines(keepends=True)
        first = lines[0] if lines else b""
        beginning = f'{{"kind":"{self.kind}","key":{{'.encode()
        if not first.endswith(b"\n") and first[: len(beginning)] == beginning[: len(first)]:
            return 0  # killed before the first line was out
        try:
            header = msgspec.json.decode(first, type=_Header)
            if header.kind != self.kind:
                raise msgspec.ValidationError(f"it is an {header.kind!r}")
        except msgspec.MsgspecError as error:
            raise ArtifactError(
                f"{self.path} is no {self.kind} ({error}); give another --out, or remove it"
            ) from error
        for name in header.key.keys() | key.keys():
            found, wanted = header.key.get(name), key.get(name)
            if found != wanted:
                raise MismatchError(
                    f"{self.path} is the {self.kind} of another measurement: {name} is "
                    f"{found} there and {wanted} now; finish that one, give another --out, or "
                    "remove the file"
                )
        whole = len(first)
        for line in lines[1:]:
            try:
                kind, entry = msgspec.json.decode(line, type=tuple[str, msgspec.Raw])
            except msgspec.MsgspecError:
                break
            if not line.endswith(b"\n"):
                break
            self._entries.append((kind, entry))
            whole += len(line)
        return whole

    def entries(self, kind: str, form: type[T]) -> Iterator[T]:
        """The entries of a kind, each as a value of that type.

        Raises:
            ArtifactError: one is no such value; another edgestitch wrote it.
        """
        for name, entry in self._entries:
            if name != kind:
                continue
            try:
                yield msgspec.json.decode(entry, type=form)
            except msgspec.ValidationError as error:
                raise ArtifactError(
                    f"{self.path} has {kind} of another form ({error}); finish it with the "
                    "edgestitch that wrote it, or remove it"
                ) from error

    def add(self, kind: str, entry: object) -> None:
        encoded = msgspec.json.encode(entry)
        self._append(msgspec.json.encode((kind, msgspec.Raw(encoded))))
        self._entries.append((kind, msgspec.Raw(encoded)))

    def _append(self, line: bytes) -> None:
        try:
            self._file.write(line + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ArtifactError(
                f"cannot write {self.path}: {error.strerror}; what was measured before is in it, "
                "and the same command goes on from there"
            ) from error

    def close(self) -> None:
        # What could not be written was said by `add`; closing tries to write it again.
        with suppress(OSError):
            self._file.close()
