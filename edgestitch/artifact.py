"""Values and tensors on disk: versioned, checked, whole or not there at all.

A value is JSON, `{"kind", "version", "digest", "data"}`; tensors are safetensors with the same
three words in the header's metadata. The digest is SHA-256 of what follows, so that a flipped bit
is an error and two artifacts can say which network or data they are about. Never pickle.
"""

import contextlib
import hashlib
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec

from .errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every immutable value between two stages."""


class Artifact(Value, frozen=True, kw_only=True):
    """A value that `save` and `load` know; each subclass states its kind and version."""

    kind: ClassVar[str]
    version: ClassVar[int]


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    version: int
    digest: str
    data: Any


A = TypeVar("A", bound=Artifact)


def sha256(data: bytes) -> str:
    """The digest that artifacts carry: SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest(value: Artifact) -> str:
    """The digest of an artifact's content, the same in every process."""
    return sha256(_canonical(value))


def save(value: Artifact, path: Path) -> None:
    """Writes an artifact, whole or not at all.

    Raises:
        ArtifactError: the file cannot be written, or a number in it is not finite.
    """
    content = _canonical(value)
    envelope = _Envelope(value.kind, value.version, sha256(content), msgspec.json.decode(content))
    write(path, msgspec.json.format(msgspec.json.encode(envelope), indent=1) + b"\n")


def load(kind: type[A], path: Path) -> A:
    """The artifact of that kind in a file.

    Raises:
        ArtifactError: the file is missing, cut short, altered, of another kind or version.
    """
    try:
        envelope = msgspec.json.decode(read(path), type=_Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is no edgestitch artifact or is cut short ({error}); write it again"
        ) from error
    if envelope.kind != kind.kind:
        raise ArtifactError(
            f"{path} holds {envelope.kind!r}, but {kind.kind!r} was asked for; give that file"
        )
    if envelope.version != kind.version:
        raise ArtifactError(
            f"{path} is a {kind.kind} of version {envelope.version}, this edgestitch reads version "
            f"{kind.version}; make it again, or use the edgestitch that wrote it"
        )
    if sha256(msgspec.json.encode(envelope.data, order="sorted")) != envelope.digest:
        raise ArtifactError(
            f"{path}: field 'digest' does not match 'data': the file was altered after it was "
            "written; make it again"
        )
    try:
        return msgspec.convert(envelope.data, type=kind)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{path} is no valid {kind.kind}: {error}") from error


def save_tensors(
    kind: str,
    version: int,
    metadata: Mapping[str, str],
    tensors: "Mapping[str, np.ndarray]",
    path: Path,
) -> str:
    """Writes tensors as safetensors, whole or not at all, and returns their digest."""
    from safetensors.numpy import save as serialize

    content = tensor_digest(tensors)
    header = {**metadata, "kind": kind, "version": str(version), "digest": content}
    header["header"] = _header_digest(header)
    write(path, serialize(dict(tensors), metadata=header))
    return content


def load_tensors(
    kind: str, version: int, path: Path
) -> "tuple[dict[str, str], dict[str, np.ndarray]]":
    """Metadata and tensors of a safetensors file that `save_tensors` wrote.

    Raises:
        ArtifactError: the file is missing, cut short, altered, of another kind or version.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ArtifactError(f"no {kind} at {path}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            _check_header(metadata, kind, version, path)  # first: NumPy lacks some types of tensors
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path} is no safetensors file or is cut short ({error}); fetch or make it again"
        ) from error
    if tensor_digest(tensors) != metadata.get("digest"):
        raise ArtifactError(
            f"{path}: field 'digest' does not match the tensors: the file was altered after it "
            "was written; fetch or make it again"
        )
    return metadata, tensors


def _check_header(metadata: dict[str, str], kind: str, version: int, path: Path) -> None:
    header = metadata.pop("header", None)
    found = metadata.get("kind")
    if found != kind:
        raise ArtifactError(
            f"{path} holds {found or 'foreign tensors'!r}, but {kind!r} was asked for; give that file"
        )
    if metadata.get("version") != str(version):
        raise ArtifactError(
            f"{path} is a {kind} of version {metadata.get('version')}, this edgestitch reads "
            f"version {version}; make it again, or use the edgestitch that wrote it"
        )
    if header != _header_digest(metadata):
        raise ArtifactError(
            f"{path}: field 'header' does not match its metadata: the file was altered after it "
            "was written; fetch or make it again"
        )


def _header_digest(metadata: Mapping[str, str]) -> str:
    return sha256(msgspec.json.encode(metadata, order="sorted"))


def tensor_digest(tensors: "Mapping[str, np.ndarray]") -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    import numpy as np

    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        hasher.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        hasher.update(tensor.data)
    return hasher.hexdigest()


def read(path: Path) -> bytes:
    """The bytes of a file; a failure is an `ArtifactError` that names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: temporary file, fsync, rename.

    Of two processes that write the same file the last one's content stays, whole.
    """
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` at the end, and vanishes on any failure."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error.strerror or error}; nothing was changed"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # where it could not even be made
            temporary.unlink()


def _canonical(value: Artifact) -> bytes:
    try:  # as it will be loaded: a whole number given for a float is a float
        value = msgspec.convert(msgspec.to_builtins(value), type=type(value))
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{value.kind} cannot be stored: {error}") from error
    data = msgspec.to_builtins(value)
    _refuse_non_finite(data, value.kind)
    return msgspec.json.encode(data, order="sorted")


def _refuse_non_finite(data: object, where: str) -> None:
    # JSON has no NaN, and msgspec would write null: a number that was not measured is null with
    # a reason, so a NaN here is a mistake of ours that must not be stored.
    if isinstance(data, dict):
        for key, item in data.items():
            _refuse_non_finite(item, f"{where}.{key}")
    elif isinstance(data, list | tuple):
        for index, item in enumerate(data):
            _refuse_non_finite(item, f"{where}[{index}]")
    elif isinstance(data, float) and not math.isfinite(data):
        raise ArtifactError(f"{where} is {data}: only finite numbers are stored")
