"""Folders on disk: whole or not there at all."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .artifact import read, sha256
from .errors import ArtifactError


@contextmanager
def replacing_folder(out: Path, mark: str, what: str) -> Iterator[Path]:
    """A folder that takes the place of `out` at the end, and vanishes on any failure.

    Only what is such a folder already, with a file named `mark` in it, is replaced.
    """
    if out.exists() and not (out / mark).is_file():
        raise ArtifactError(f"{out} exists and is no {what}; give another folder")
    out = out.absolute()
    _sweep(out)
    new = out.with_name(f".{out.name}.{secrets.token_hex(4)}.new")
    temporary = new.with_suffix(".tmp")
    try:
        new.mkdir(parents=True)
        with _held(new):
            os.replace(new, temporary)  # under a name that is swept, only now that it is held
            yield temporary
            _replace(temporary, out)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {out}: {error.strerror or error}; nothing was changed"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Marks a folder as that of a process that lives; the kernel takes the mark away if it dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _sweep(out: Path) -> None:
    """Removes what processes that were killed have left beside `out`."""
    for path in out.parent.glob(f".{out.name}.*.tmp"):
        with suppress(OSError), _held(path):  # one that lives has its own
            shutil.rmtree(path, ignore_errors=True)


def _replace(new: Path, out: Path) -> None:
    """Puts `new` in the place of `out`; of two processes that do so at once the last one's stays."""
    while True:
        try:
            os.replace(new, out)  # fails where a folder with something in it is
        except OSError:
            if not out.exists():
                raise
        else:
            return
        old = new.with_suffix(f".{secrets.token_hex(4)}.old")
        with suppress(FileNotFoundError):  # the other process was faster
            os.replace(out, old)
            shutil.rmtree(old, ignore_errors=True)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(read(path)) for path in files}
