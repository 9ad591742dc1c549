"""State dicts in files that others wrote: safetensors or torch files, read without running code."""

import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import ArtifactError

WRAPPERS = ("model", "state_dict")
"""Keys under which training scripts keep the state dict, among other things."""


class _Nothing:
    """Takes the place of an object that is not read: whatever it was made from is dropped."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


STAND_INS: list[Any] = [
    (_Nothing, "argparse.Namespace"),
    (_Nothing, "pathlib.PosixPath"),
    (_Nothing, "pathlib._local.PosixPath"),
    (_Nothing, "numpy.dtype"),
    (_Nothing, "numpy.ndarray"),
    (_Nothing, "numpy.core.multiarray.scalar"),
    (_Nothing, "numpy._core.multiarray.scalar"),
    (_Nothing, "numpy.core.multiarray._reconstruct"),
    (_Nothing, "numpy._core.multiarray._reconstruct"),
    (OrderedDict, "yacs.config.CfgNode"),  # torch puts items into its own kinds of dict only
]
"""What training scripts keep beside the weights: options and figures, named as pickle names them."""


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name, in the order of the file, on the CPU.

    The file is safetensors (which has no order but the names'), or was written by `torch.save`: a
    bare state dict, or one under `model` or `state_dict`. Nothing in it is run.

    Raises:
        ArtifactError: the file is missing, cut short, holds no state dict, or would run code.
    """
    content: Any = _safetensors(path) if is_safetensors(path) else _torch_file(path)
    if isinstance(content, dict):
        content = next(
            (content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content
        )
    wrong = _why_no_state(content)
    if wrong:
        raise ArtifactError(
            f"{path} holds no state dict, neither as 'model' nor as 'state_dict' nor as a whole: "
            f"{wrong}"
        )
    parallel = all(name.startswith("module.") for name in content)  # of torch's DataParallel
    prefix = "module." if parallel else ""
    return {name.removeprefix(prefix): tensor.detach() for name, tensor in content.items()}


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: eight bytes of length, then JSON."""
    return _head(path)[8:] == b"{"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("kind")
            if kind is None:
                return {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path} is no safetensors file or is cut short ({error}); fetch it again"
        ) from error
    raise ArtifactError(
        f"{path} is a {kind} of edgestitch already; use it as it is, where a network is asked for"
    )


def _torch_file(path: Path) -> Any:
    zipped = _head(path).startswith(b"PK")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(STAND_INS):
            warnings.simplefilter("ignore")  # about the pickle of others
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # damaged bytes fail in whichever way they happen to
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise ArtifactError(
                f"{path} asks for {refused[1]}, which weights do not need: loading stopped and "
                "nothing of it was run; save its state dict alone, as "
                "torch.save(model.state_dict(), path) does"
            ) from error
        reason = " ".join(str(error).split(". ")[0].split()) or type(error).__name__
        raise ArtifactError(
            f"{path} is no file of weights or is cut short ({reason[:200]}); fetch it again"
        ) from error


def _why_no_state(content: object) -> str | None:
    if not isinstance(content, dict):
        return f"it is a {type(content).__name__}"
    if not content:
        return "it is empty"
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            return f"{str(name)[:40]!r} is a {type(value).__name__}"
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            return f"{name!r} is no plain tensor"
    return None
