"""TensorRT: the fast compiled backend for NVIDIA GPUs.

Each segment is one engine, whose weights are on the device once. Each topology has an execution
context of its own per segment, since a captured CUDA graph holds the addresses that its context had;
contexts of one engine share its weights, and all contexts share one workspace, because one topology
runs at a time. The steps of a topology are captured into one CUDA graph.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgestitch.artifact import Artifact, load, read, save, sha256, write
from edgestitch.errors import ArtifactError, CompileError

from . import Backend, Compiled, Load, Request
from .chain import DTYPES, Step, in_precision
from .cudagraph import BACKEND as CUDAGRAPH
from .graphs import captured
from .trt_compile import (
    VARIANTS,
    build_engine,
    listening,
    logger,
    missing,
    package,
    said,
    versions,
)

_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}


class EngineFile(Artifact, frozen=True, kw_only=True):
    """What there is to know of an engine before it is on the device."""

    kind: ClassVar[str] = "tensorrt engine"
    version: ClassVar[int] = 1

    engine: str
    """SHA-256 of the file: TensorRT trusts what it reads."""
    software: str
    """That built it, and that alone can load it."""
    workspace_bytes: int
    """What a call takes of the device's memory beside weights, input and output."""


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """A deserialised engine of one input and one output, both of fixed shape."""

    engine: Any
    source: str
    target: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


def _unavailable() -> str | None:
    return CUDAGRAPH.unavailable() or missing()


def _version() -> str:
    return ", ".join(f"{name} {version}" for name, version in versions().items())


# --- compiling -----------------------------------------------------------------------------------


def _compile(request: Request) -> None:
    name, dtype = request.path.name, DTYPES[request.precision]
    module = in_precision(request.module, request.example.device, dtype)
    content = build_engine(module, request.example.to(dtype), name=name, variant=request.variant)
    # Read back for its need of memory: with that in a file, a topology is ready before the engines
    # of the others are loaded, although they all share one workspace.
    engine = _Runtime().read(content, name, request.precision)
    about = EngineFile(
        engine=sha256(content),
        software=_version(),
        workspace_bytes=engine.engine.device_memory_size_v2,
    )
    file, side_file = _files(request.path.parent, name)
    write(file, content)
    save(about, side_file)


def _files(folder: Path, segment: str) -> tuple[Path, Path]:
    return folder / f"{segment}.engine", folder / f"{segment}.json"


# --- loading -------------------------------------------------------------------------------------


def _load(compiled: Compiled) -> Load:
    about = _about(compiled)
    size = max(each.workspace_bytes for each in about.values())
    device, dtype = torch.device(compiled.accelerator), DTYPES[compiled.precision]
    runtime = _Runtime()

    @cache
    def workspace() -> Tensor:
        # For the neediest of all from the start: a captured graph holds its address.
        return torch.empty(max(size, 1), dtype=torch.uint8, device=device)

    @cache
    def engine(segment: str) -> _Engine:
        file, _ = _files(compiled.folder, segment)
        content = read(file)
        if sha256(content) != about[segment].engine:
            raise ArtifactError(f"{file} is damaged or cut short; compile it again")
        found = runtime.read(content, segment, compiled.precision)
        if found.engine.device_memory_size_v2 > size:
            raise CompileError(
                f"tensorrt wants {found.engine.device_memory_size_v2} bytes of workspace for "
                f"{segment}, and {about[segment].workspace_bytes} when it was compiled; compile it "
                "again on this device"
            )
        return found

    def steps(topology: str) -> list[Step]:
        return [
            _step(runtime, engine(segment), segment, workspace(), dtype)
            for segment in compiled.chains[topology]
        ]

    return captured(steps, compiled)


def _about(compiled: Compiled) -> dict[str, EngineFile]:
    here = _version()
    found = {}
    for segment in compiled.atoms:
        _, side_file = _files(compiled.folder, segment)
        found[segment] = load(EngineFile, side_file)
        if found[segment].software != here:
            raise CompileError(
                f"{segment} was compiled with {found[segment].software}, and here is {here}: "
                "engines are for the release that built them; compile it again on this device"
            )
    return found


class _Runtime:
    """TensorRT's, with what it says when it refuses something."""

    def __init__(self) -> None:
        self.trt = import_module(str(package()))
        self._runtime = self.trt.Runtime(logger(self.trt))

    def read(self, content: bytes, segment: str, precision: str) -> _Engine:
        """The engine on the device."""
        with listening() as errors:
            engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise _refusal(f"load the engine of {segment}", errors)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {engine.get_tensor_mode(name): name for name in names}
        kinds = [engine.get_tensor_dtype(name) for name in names]
        mode, wanted = self.trt.TensorIOMode, getattr(self.trt.DataType, _TYPES[precision])
        if set(modes) != {mode.INPUT, mode.OUTPUT} or kinds != [wanted, wanted]:
            raise CompileError(
                f"the engine of {segment} has the tensors {names} of {kinds}, and should have one "
                f"input and one output of {wanted}; compile it again"
            )
        source, target = modes[mode.INPUT], modes[mode.OUTPUT]
        return _Engine(
            engine=engine,
            source=source,
            target=target,
            input_shape=tuple(engine.get_tensor_shape(source)),
            output_shape=tuple(engine.get_tensor_shape(target)),
        )

    def context(self, engine: _Engine, segment: str, workspace: Tensor) -> Any:
        """One that has no memory of its own but the workspace."""
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with listening() as errors:
            context = engine.engine.create_execution_context(strategy)
            if context is None or not context.set_input_shape(engine.source, engine.input_shape):
                raise _refusal(f"prepare {segment}", errors)
        context.set_device_memory(workspace.data_ptr(), workspace.numel())
        return context


def _refusal(what: str, errors: list[str]) -> CompileError:
    return CompileError(
        f"tensorrt cannot {what}: {said(errors)}; compile it again on this device, or free memory "
        "of it if that is what is short"
    )


def _step(
    runtime: _Runtime, engine: _Engine, segment: str, workspace: Tensor, dtype: torch.dtype
) -> Step:
    context = runtime.context(engine, segment, workspace)

    def step(value: Tensor, kept: object = workspace) -> Tensor:
        if value.dtype != dtype or tuple(value.shape) != engine.input_shape:
            raise ValueError(
                f"{segment} takes {dtype} {list(engine.input_shape)}, not {value.dtype} "
                f"{list(value.shape)}"
            )
        value = value.contiguous()
        result = torch.empty(engine.output_shape, dtype=dtype, device=value.device)
        stream = torch.cuda.current_stream(value.device).cuda_stream
        accepted = (
            context.set_tensor_address(engine.source, value.data_ptr())
            and context.set_tensor_address(engine.target, result.data_ptr())
            and context.execute_async_v3(stream)
        )
        if not accepted:
            with listening() as errors:  # a second time, to hear why
                context.execute_async_v3(stream)
            raise _refusal(f"run {segment}", errors)
        return result

    return step


BACKEND = Backend(
    name="tensorrt",
    accelerators=("cuda",),
    precisions=tuple(DTYPES),
    unavailable=_unavailable,
    compile=_compile,
    load=_load,
    version=_version,
    variants=VARIANTS,
)
