"""Segments to TensorRT engines, with torch-tensorrt as the compiler; also where there is no GPU.

One call of torch-tensorrt's is used: an exported program goes in, the bytes of an engine come out.
Networks are strongly typed: an engine computes in the types that the module has. Torch-tensorrt's
cache of engines is never used: its keys leave out the operators' arguments and the weights' shapes,
so that a shift by 1 and a shift by 3 are one engine to it.
"""

import inspect
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from edgestitch.artifact import write
from edgestitch.errors import ArtifactError, CompileError, DeviceError

# Settings of torch-tensorrt's.
DECOMPOSED = "decompose_attention"
FP32_ACC = "use_fp32_acc"
VARIANTS = ("", DECOMPOSED, f"{DECOMPOSED}+{FP32_ACC}")
"""Ways to compile attention, the fastest first: TensorRT's fused kernels, some of which have been
wrong in half precision; its parts one by one; the same with float32 inside."""

# Of torch-tensorrt's distributions, and the TensorRT that each imports; where both are installed it
# takes the first.
_PACKAGES = {"torch-tensorrt-rtx": "tensorrt_rtx", "torch-tensorrt": "tensorrt"}
_RTX = "tensorrt_rtx"
_LOGGER = "edgestitch.tensorrt"
_LOGGERS = ("torch_tensorrt", "torch_tensorrt [TensorRT Conversion Context]", _LOGGER)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What became of a module that was converted without a GPU."""

    ops: int
    """Operators after lowering."""
    supported: int
    """Those that have a converter."""
    unsupported: tuple[str, ...]
    """The names of the others."""
    variant: str
    """How attention was converted, of `VARIANTS`."""
    engines: int
    """1 if all of it is one TensorRT network, else 0: a segment is never split."""
    layers: int | None
    """Of the TensorRT network; `None` if there is none."""
    engine_bytes: int | None
    """Of the engine that TensorRT-RTX built; `None` if none was."""
    versions: Mapping[str, str]


@dataclass
class _Seen:
    """What can be seen of a conversion while it runs."""

    variant: str
    graphs: list[Any] = field(default_factory=list)
    """Lowered, as they are converted."""
    layers: int | None = None
    errors: list[str] = field(default_factory=list)
    """Of TensorRT and torch-tensorrt, the first one first."""

    @property
    def operators(self) -> list[Any]:
        calls = ("call_function", "call_method", "call_module")
        return [n for graph in self.graphs for n in graph.graph.nodes if n.op in calls]

    @property
    def without_converter(self) -> list[Any]:
        registry = import_module("torch_tensorrt.dynamo.conversion._ConverterRegistry")
        return [n for n in self.operators if registry.DYNAMO_CONVERTERS.get(n) is None]

    @property
    def unsupported(self) -> tuple[str, ...]:
        return tuple(sorted({str(node.target) for node in self.without_converter}))


# --- what is installed ---------------------------------------------------------------------------


def package() -> str | None:
    """The name of the TensorRT that torch-tensorrt works with; `None`: no torch-tensorrt is here."""
    return next((_PACKAGES[name] for name in _PACKAGES if _installed(name)), None)


def versions() -> dict[str, str]:
    """Of torch-tensorrt and of the TensorRT under it; empty where there is no torch-tensorrt."""
    for distribution, name in _PACKAGES.items():
        if _installed(distribution):
            found = str(import_module(name).__version__)
            return {name: found, distribution: metadata.version(distribution)}
    return {}


def missing() -> str | None:
    """Which package is not here or does not work, and how to install it; `None`: nothing."""
    name = package()
    if name is None:
        return f"torch-tensorrt is not installed; {_advice()}"
    try:
        import_module(name)
    except (ImportError, OSError) as error:  # the package, or the libraries that it loads
        return f"torch-tensorrt is installed, but {name} cannot be loaded ({error}); {_advice()}"
    return None


def _installed(distribution: str) -> bool:
    with suppress(metadata.PackageNotFoundError):
        metadata.version(distribution)
        return True
    return False


def _advice() -> str:
    if Path("/etc/nv_tegra_release").exists():
        return (
            "on JetPack 6.2: apt-get install tensorrt, then pip install torch==2.8.0 "
            "torch-tensorrt==2.8.0 --extra-index-url https://pypi.jetson-ai-lab.io/jp6/cu126; on "
            "JetPack 7: pip install --no-deps the torch-tensorrt that goes with JetPack's TensorRT"
        )
    return (
        "pip install 'edgestitch[tensorrt]', which takes the libraries from https://pypi.nvidia.com; "
        "where only PyPI can be reached, TensorRT-RTX for GeForce and RTX GPUs: "
        "pip install 'edgestitch[tensorrt-rtx]'"
    )


# --- engines -------------------------------------------------------------------------------------


def build_engine(module: nn.Module, example: Tensor, *, name: str, variant: str = "") -> bytes:
    """The engine of a segment for the GPU that the segment is on, in the segment's own types.

    Raises:
        CompileError: an operator has no converter, or TensorRT refuses the network.
    """
    example = example.contiguous()  # as it is when the engine runs
    exported = _export(module, example, name)
    engine, seen = _convert(exported, example, variant, _for_this_gpu)
    if engine is None:
        raise CompileError(f"tensorrt cannot compile {name}: {_reason(seen)}")
    return engine


def build_without_gpu(
    module: nn.Module,
    example: Tensor,
    *,
    decompose_attention: bool = False,
    use_fp32_acc: bool = False,
    build: bool = True,
) -> Conversion:
    """What TensorRT makes of a module in its own types, found out on a machine without a GPU.

    It takes TensorRT-RTX, whose builder needs no GPU: lowering, converters and network are those
    that the GPU's TensorRT gets, the engine is RTX's. That the module converts is thereby shown;
    its speed, its numbers, and whether an older TensorRT takes the same network are not. Without
    `build` it ends with the network.

    Raises:
        DeviceError: torch-tensorrt-rtx is not installed here.
        CompileError: the module cannot be exported, or TensorRT refuses the network for another
            reason than an operator without a converter.
    """
    if package() != _RTX:
        raise DeviceError(
            "building engines without a GPU takes TensorRT-RTX, and it is not installed; "
            "pip install 'edgestitch[tensorrt-rtx]'"
        )
    example = example.contiguous()
    wanted = {DECOMPOSED: decompose_attention, FP32_ACC: use_fp32_acc}
    variant = "+".join(name for name, on in wanted.items() if on)
    exported = _export(module, example, "the module")
    with without_gpu():
        engine, seen = _convert(exported, example, variant, _Unread.of(build))
        operators, unsupported = seen.operators, seen.without_converter
    if engine is None and not unsupported:
        raise CompileError(f"tensorrt cannot convert the module: {_reason(seen)}")
    return Conversion(
        ops=len(operators),
        supported=len(operators) - len(unsupported),
        unsupported=seen.unsupported,
        variant=seen.variant,
        engines=int(engine is not None),
        layers=seen.layers,
        engine_bytes=len(engine) if engine else None,
        versions=versions(),
    )


def settings(
    accepted: Iterable[str],
    variant: str,
    *,
    rtx: bool,
    attention_layer: bool,
    timing_cache: Path,
) -> dict[str, Any]:
    """Those of our settings that a release of torch-tensorrt has, by the names it accepts.

    `attention_layer`: this TensorRT has attention as a layer of its own, as from 10.14.
    """
    words = variant.split("+")
    wanted: dict[str, Any] = {
        "min_block_size": 1,
        "require_full_compilation": True,
        "immutable_weights": True,
        # Strong typing has to be asked for up to 2.9 and is no setting any more from 2.13. Without it
        # TensorRT computes a module in half precision in float32.
        "use_explicit_typing": True,
        "disable_tf32": True,  # it has 10 bits of mantissa: not what fp32 says
        "attn_bias_is_causal": False,  # it takes any mask for a causal one unless told otherwise
        "cache_built_engines": False,
        "reuse_cached_engines": False,
        DECOMPOSED: DECOMPOSED in words or not attention_layer,
        FP32_ACC: FP32_ACC in words,
    }
    if not rtx:  # which chooses its kernels when the engine is loaded
        wanted |= {"optimization_level": 5, "timing_cache_path": str(timing_cache)}
    known = set(accepted)
    return {name: value for name, value in wanted.items() if name in known}


def _export(module: nn.Module, example: Tensor, name: str) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            module.eval()
            return torch.export.export(module, (example,))
    except Exception as error:  # the exporter has no class of its own for its failures
        raise CompileError(f"torch.export cannot export {name}: {_short(error)}") from error
    finally:
        module.eval()  # timm's LeViT has kept tensors of the exporter's; this makes it forget them


Replace = Callable[[Any, _Seen], dict[str, Any]]
"""From TensorRT's package and what is seen to the classes that take the place of TensorRT's."""


def _convert(
    exported: torch.export.ExportedProgram, example: Tensor, variant: str, replace: Replace
) -> tuple[bytes | None, _Seen]:
    """The engine, or `None`, and what was seen."""
    engine, seen = _attempt(exported, example, variant, replace)
    # Some releases of PyTorch export attention as the kernel of the device that they are on.
    only_attention = seen.unsupported and all("attention" in name for name in seen.unsupported)
    if engine is None and only_attention and DECOMPOSED not in variant:
        return _attempt(exported, example, DECOMPOSED, replace)
    return engine, seen


def _attempt(
    exported: torch.export.ExportedProgram, example: Tensor, variant: str, replace: Replace
) -> tuple[bytes | None, _Seen]:
    seen = _Seen(variant)
    with torch.no_grad(), ExitStack() as stack:
        seen.errors = stack.enter_context(listening())
        torch_tensorrt, interpreter = _torch_tensorrt()
        seen.errors.clear()
        observer = interpreter.TRT_INTERPRETER_CALL_PRE_OBSERVER
        stack.enter_context(observer.add(seen.graphs.append))
        # What torch-tensorrt's own modules know as `tensorrt`.
        trt = sys.modules["tensorrt"]
        stack.enter_context(_replaced(trt, **replace(import_module(str(package())), seen)))
        convert = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine
        chosen = settings(
            inspect.signature(convert).parameters,
            variant,
            rtx=package() == _RTX,
            attention_layer=hasattr(trt.INetworkDefinition, "add_attention"),
            timing_cache=stack.enter_context(_timing_cache()),
        )
        device = torch_tensorrt.Device(gpu_id=example.device.index or 0)
        try:
            engine = convert(exported, arg_inputs=[example], device=device, **chosen)
        except Exception as error:  # of any class, and in some releases about something else
            seen.errors.append(str(error))
            return None, seen
        return bytes(engine), seen


def _for_this_gpu(trt: Any, seen: _Seen) -> dict[str, Any]:
    """TensorRT-RTX builds for a list of GPUs unless it is told to build for the one it is on."""
    if trt.__name__ != _RTX:
        return {}

    class Builder(trt.Builder):  # type: ignore[misc]
        def build_serialized_network(self, network: Any, config: Any) -> Any:
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
            return super().build_serialized_network(network, config)

    return {"Builder": Builder}


@dataclass(frozen=True)
class _Unread:
    """An engine as it was built: to deserialise it, as torch-tensorrt does, would take a GPU."""

    plan: Any

    def serialize(self) -> Any:
        return self.plan

    def get_aliased_input_tensor(self, name: str) -> None:
        """No output of ours is an input that is written in place."""

    @classmethod
    def of(cls, build: bool) -> Replace:
        def replace(trt: Any, seen: _Seen) -> dict[str, Any]:
            class Builder(trt.Builder):  # type: ignore[misc]
                def build_serialized_network(self, network: Any, config: Any) -> Any:
                    seen.layers = network.num_layers
                    return super().build_serialized_network(network, config) if build else b""

            class Runtime:
                def __init__(self, logger: Any) -> None:
                    pass

                def deserialize_cuda_engine(self, plan: Any) -> _Unread:
                    return cls(plan)

            return {"Builder": Builder, "Runtime": Runtime}

        return replace


def _reason(seen: _Seen) -> str:
    if seen.unsupported:
        return (
            f"torch-tensorrt has no converter for {', '.join(seen.unsupported)}; use another backend "
            "for this network, or anchors without that operator"
        )
    return f"{said(seen.errors)}; use another precision or backend"


def said(errors: list[str]) -> str:
    """The first of the errors that were reported, in one line: the others follow from it."""
    return _short(errors[0]) if errors else "it does not say why"


def _short(reason: object) -> str:
    return " ".join(str(reason).split())[:500]


# --- torch-tensorrt as it is ----------------------------------------------------------------------


def _torch_tensorrt() -> tuple[Any, Any]:
    """The package and its module that makes TensorRT networks, without what importing them prints."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module("torch_tensorrt.dynamo")
            interpreter = import_module("torch_tensorrt.dynamo.conversion._TRTInterpreter")
    finally:
        logging.disable(disabled)
    return sys.modules["torch_tensorrt"], interpreter


@cache
def logger(trt: Any) -> Any:
    """What TensorRT is to report errors to: one object, for it keeps the first that it is given."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                logging.getLogger(_LOGGER).error("%s", message)

    return Logger()


class _Collect(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def listening() -> Iterator[list[str]]:
    """The errors that TensorRT and torch-tensorrt report inside, which then go nowhere else.

    Whichever of the two gave TensorRT a logger first, its messages pass here.
    """
    collect = _Collect()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for each in map(logging.getLogger, _LOGGERS):
            stack.enter_context(_replaced(each, propagate=False, handlers=[collect]))
        yield collect.messages


@contextmanager
def _timing_cache() -> Iterator[Path]:
    """A private copy of the timings of this GPU's kernels, which replaces the original afterwards.

    Most segments are alike, so that their kernels are timed once. Torch-tensorrt writes the file in
    place: two processes that compile would read each other's halves.
    """
    from platformdirs import user_cache_path

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    words = "-".join([gpu, *(f"{name}-{version}" for name, version in versions().items())])
    name = re.sub(r"[^\w.]+", "-", words)
    kept = user_cache_path("edgestitch") / "tensorrt" / f"{name}.timing"
    with tempfile.TemporaryDirectory(prefix="edgestitch-") as folder:
        private = Path(folder) / "timing"
        with suppress(OSError):
            shutil.copyfile(kept, private)
        yield private
        if private.exists():
            with suppress(ArtifactError):  # where nothing can be kept, compiling takes longer
                write(kept, private.read_bytes())


@contextmanager
def without_gpu() -> Iterator[None]:
    """Inside, torch-tensorrt imports and converts although there is no GPU; then all is as it was."""
    if torch.cuda.is_available():
        yield
        return
    memory = 8 << 30
    properties = SimpleNamespace(
        major=8, minor=9, name="none", total_memory=memory, multi_processor_count=1, warp_size=32
    )
    with ExitStack() as stack:
        stack.enter_context(
            _replaced(
                torch.cuda,
                device_count=lambda: 1,
                current_device=lambda: 0,
                get_device_capability=lambda device=None: (8, 9),
                get_device_properties=lambda device=None: properties,
                mem_get_info=lambda device=None: (memory, memory),
            )
        )
        # Its C++ libraries want PyTorch's for CUDA and a driver; it does without if it finds none.
        stack.enter_context(_replaced(os.path, isfile=_isfile_but("libtorchtrt")))
        if not hasattr(torch._C, "_CudaDeviceProperties"):  # an annotation names it
            stack.enter_context(_replaced(torch._C, _CudaDeviceProperties=SimpleNamespace))
        yield


def _isfile_but(hidden: str) -> Callable[[Any], bool]:
    isfile = os.path.isfile
    return lambda path: hidden not in str(path) and isfile(path)


@contextmanager
def _replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of something have other values inside, and their own again afterwards."""
    before = {name: vars(owner)[name] for name in values if name in vars(owner)}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in values:
            if name in before:
                setattr(owner, name, before[name])
            else:
                delattr(owner, name)
