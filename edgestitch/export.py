"""Exports: some topologies of a network, sliced out of it, for other toolchains.

export/
  export.json            what is in the folder, with digests; written last
  network.safetensors    the atoms that these topologies need, once, under their own names
  TOPOLOGY.pt2           each topology as a program of `torch.export`, its weights included
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from .artifact import Artifact, Value, save
from .backends import Resident, Run
from .backends.chain import DTYPES, in_precision
from .backends.trt_compile import Conversion, build_without_gpu
from .engine import check_program
from .equality import Check
from .errors import CompileError
from .folder import digests, replacing_folder
from .network import StitchNetwork, save_network
from .program import Program
from .progress import Progress, silent

EXPORT = "export.json"
NETWORK = "network.safetensors"


class Size(Value, frozen=True, kw_only=True):
    """How large weights are."""

    params: int
    num_bytes: int
    """Of parameters and buffers in memory."""


class Exported(Value, frozen=True, kw_only=True):
    """One topology's program."""

    topology: str
    file: str
    num_bytes: int
    """Of the file."""
    params: int


class Export(Artifact, frozen=True, kw_only=True):
    """What an export holds, and what its programs take."""

    kind: ClassVar[str] = "export"
    version: ClassVar[int] = 1

    family: str
    network: str
    """Digest of the weights of the network that was sliced."""
    weights: str
    """Digest of the weights of the slice."""
    topologies: tuple[Exported, ...]
    checks: tuple[Check, ...]
    """Every program, as it lies in its file, beside eager."""
    input_shape: tuple[int, int, int, int]
    """Of every program's one argument, float32 [B, C, H, W]: pixels in 0..1, minus `mean`, divided by
    `std`, by channel."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whole: Size
    """Of the network."""
    slice: Size
    torch: str
    """The version that wrote the programs."""
    files: dict[str, str]
    """SHA-256 of every other file in the folder."""


def export(
    network: StitchNetwork,
    topologies: Iterable[str],
    out: Path,
    *,
    batch: int = 1,
    images: np.ndarray | None = None,
    progress: Progress = silent,
) -> Export:
    """Writes a slice of the network and a program of each topology to a folder.

    Each program takes exactly `batch` images, as deployment backends want it. As it lies in its file
    it is compared with eager on `images` (normalised, float32 [N, C, H, W]; random ones if not
    given). The folder appears whole or not at all; an older export in its place is replaced.

    Raises:
        ValueError: no topology is given, or one that the network lacks.
        CompileError: torch cannot export a topology, or computes something else than eager.
        ArtifactError: `out` exists and is no export, or cannot be written.
    """
    sliced = network.slice(topologies).eval()
    names = [topology.name for topology in sliced.topologies]
    with replacing_folder(out, EXPORT, "export") as folder:
        for done, name in enumerate(names):
            progress("export", done, len(names))
            _write(sliced, name, batch, folder / _file(name))
        progress("export", len(names), len(names))
        runs = {name: _open(folder / _file(name)) for name in names}
        checks = check_program(_program(runs, batch), sliced, images, progress=progress)
        weights = save_network(sliced, folder / NETWORK, whole=network.digest)
        result = Export(
            family=network.family.name,
            network=network.digest,
            weights=weights,
            topologies=tuple(_exported(sliced, name, folder) for name in names),
            checks=checks,
            input_shape=(batch, *network.family.input_shape),
            mean=network.family.mean,
            std=network.family.std,
            whole=_size(network),
            slice=_size(sliced),
            torch=str(torch.__version__),
            files=digests(folder),
        )
        save(result, folder / EXPORT)
    return result


def conversions(
    network: StitchNetwork,
    topologies: Iterable[str],
    *,
    precision: str = "fp16",
    batch: int = 1,
    progress: Progress = silent,
) -> dict[str, Conversion]:
    """What TensorRT makes of each topology, found out on any machine, with a GPU or without.

    Raises:
        DeviceError: torch-tensorrt-rtx is not installed.
        ValueError: the network lacks a topology.
        CompileError: TensorRT refuses one for another reason than an operator without a converter.
    """
    names, dtype = tuple(topologies), DTYPES[precision]
    shape = (batch, *network.family.input_shape)
    found = {}
    for done, name in enumerate(names):
        progress("convert", done, len(names))
        module = in_precision(network.assemble(name).eval(), torch.device("cpu"), dtype)
        found[name] = build_without_gpu(module, torch.zeros(shape, dtype=dtype))
    progress("convert", len(names), len(names))
    return found


def _exported(network: StitchNetwork, topology: str, folder: Path) -> Exported:
    return Exported(
        topology=topology,
        file=_file(topology),
        num_bytes=(folder / _file(topology)).stat().st_size,
        params=_size(network.assemble(topology)).params,
    )


def _write(network: StitchNetwork, topology: str, batch: int, path: Path) -> None:
    module = network.assemble(topology)
    device = next(module.parameters()).device
    example = torch.zeros(batch, *network.family.input_shape, device=device)
    try:
        with torch.no_grad():
            module(
                example
            )  # LeViT looks its attention biases up once, before and not in the program
            program = torch.export.export(module, (example,), strict=False)
        _forget_sources(program.graph_module)
        torch.export.save(program, path)
    except OSError:
        raise
    except Exception as error:  # torch.export has no base of its own
        reason = " ".join(str(error).split())[:300]
        raise CompileError(f"torch.export cannot export {topology}: {reason}") from error


def _forget_sources(graphs: nn.Module) -> None:
    """Takes out which lines of which files on this machine each step came from."""
    for graph in graphs.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _open(path: Path) -> Run:
    """The program in a file, ready to be called."""
    module = torch.export.load(path).module()
    device = next(module.parameters()).device

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = module(torch.from_numpy(images).to(device)).cpu().numpy()
        return logits

    return run


def _program(runs: Mapping[str, Run], batch: int) -> Program:
    return Program(
        backend="torch.export",
        precision="fp32",
        batch=batch,
        threads=torch.get_num_threads(),
        version=str(torch.__version__),
        segments=(),
        topologies=tuple(runs),
        load=lambda name: Resident(run=runs[name]),
    )


def _file(topology: str) -> str:
    return f"{topology}.pt2"


def _size(module: nn.Module) -> Size:
    return Size(
        params=sum(parameter.numel() for parameter in module.parameters()),
        num_bytes=sum(tensor.nbytes for tensor in module.state_dict().values()),
    )
