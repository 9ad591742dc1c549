"""TensorRT and torch-tensorrt without a GPU: engines that run the exported module on the host.

As strict as TensorRT's: an engine of another version or a cut one is refused with a message to the
logger, a context without memory of its own runs only once it has been given enough of it, its input's
shape, and all addresses, and what was in the workspace is lost with every call.
"""

import ctypes
import enum
import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

__version__ = "10.3.0"
STREAM = 7
MAGIC = b"ftrt"
WORKSPACE_BYTES = 100
"""What an engine needs, times the number of modules in it."""


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity = Severity

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class DataType(enum.Enum):
    FLOAT = torch.float32
    HALF = torch.float16
    BF16 = torch.bfloat16


class TensorIOMode(enum.IntEnum):
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class INetworkDefinition:
    """As of TensorRT 10.3: attention is no layer."""


ENGINES: list["ICudaEngine"] = []
"""Deserialised, in order."""
_MODULES: list[nn.Module] = []


def build(module: nn.Module, example: Tensor) -> bytes:
    """An engine, serialised."""
    _MODULES.append(module)
    with torch.inference_mode():
        output = module(example)
    header = {
        "version": __version__,
        "module": len(_MODULES) - 1,
        "dtype": DataType(example.dtype).name,
        "input": list(example.shape),
        "output": list(output.shape),
        "workspace": WORKSPACE_BYTES * sum(1 for _ in module.modules()),
    }
    return MAGIC + json.dumps(header).encode()


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        assert isinstance(logger, ILogger)
        self.logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> "ICudaEngine | None":
        try:
            header = json.loads(content.removeprefix(MAGIC))
        except ValueError:
            self.logger.log(Severity.ERROR, "Serialization assertion magicTag failed")
            return None
        if header["version"] != __version__:
            message = f"built by {header['version']}, not {__version__}"
            self.logger.log(Severity.ERROR, message)
            return None
        ENGINES.append(ICudaEngine(self.logger, header))
        return ENGINES[-1]


class ICudaEngine:
    def __init__(self, logger: ILogger, header: dict[str, Any]) -> None:
        self.logger, self.header = logger, header
        self.module = _MODULES[header["module"]]
        self.contexts: list[IExecutionContext] = []
        self.device_memory_size_v2 = header["workspace"]
        # The output first: an engine's tensors have no order that can be relied on.
        self.names = ("output0", "input")
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "input" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self.header["dtype"]]

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self.header["input" if name == "input" else "output"])

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> "IExecutionContext":
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        self.contexts.append(IExecutionContext(self))
        return self.contexts[-1]


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.memory: tuple[int, int] | None = None
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.calls: list[dict[str, int]] = []
        """The addresses at each."""

    def set_device_memory(self, memory: int, size: int) -> None:
        self.memory = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return name == "input" and list(shape) == self.engine.get_tensor_shape(name)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self.engine.names and memory != 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        needed = self.engine.device_memory_size_v2
        if self.memory is None or self.memory[1] < needed:
            return self._refuse(f"{needed} bytes of device memory were not given")
        if self.shape is None or set(self.addresses) != set(self.engine.names):
            return self._refuse("a shape or an address was not given")
        self.calls.append(dict(self.addresses))
        value = _at(self.addresses["input"], self.shape, self._dtype).clone()
        ctypes.memset(self.memory[0], 0xAB, needed)
        result = _at(
            self.addresses["output0"], self.engine.get_tensor_shape("output0"), self._dtype
        )
        with torch.inference_mode():
            result.copy_(self.engine.module(value))
        return True

    @property
    def _dtype(self) -> torch.dtype:
        found: torch.dtype = self.engine.get_tensor_dtype("input").value
        return found

    def _refuse(self, reason: str) -> bool:
        self.engine.logger.log(Severity.ERROR, reason)
        return False


def _at(address: int, shape: Any, dtype: torch.dtype) -> Tensor:
    """The tensor that lies at an address."""
    size = torch.Size(shape).numel() * dtype.itemsize
    memory = (ctypes.c_char * size).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)


# --- torch-tensorrt ------------------------------------------------------------------------------

_ALWAYS = """
exported_program inputs arg_inputs kwarg_inputs device disable_tf32 assume_dynamic_shape_support
sparse_weights engine_capability num_avg_timing_iters workspace_size dla_sram_size
dla_local_dram_size dla_global_dram_size truncate_double require_full_compilation min_block_size
torch_executed_ops pass_through_build_failures max_aux_streams version_compatible optimization_level
use_python_runtime use_fast_partitioner enable_experimental_decompositions timing_cache_path
use_fp32_acc refit_identical_engine_weights strip_engine_weights immutable_weights
enable_weight_streaming tiling_optimization_level l2_limit_for_tiling offload_module_to_cpu
"""
ACCEPTED = {
    "2.8.0": f"{_ALWAYS} enabled_precisions calibrator allow_shape_tensors use_explicit_typing",
    "2.14.0": f"""{_ALWAYS} use_complex_decomposition torch_executed_modules dryrun
    hardware_compatible lazy_engine_init cache_built_engines reuse_cached_engines engine_cache_dir
    engine_cache_size custom_engine_cache use_distributed_mode_trace decompose_attention
    disabled_constant_fold_exclusions attn_bias_is_causal lift_mutable_buffers
    arg_input_binding_names kwarg_input_binding_names output_binding_names""",
}
"""The parameters of `convert_exported_program_to_serialized_trt_engine` of two releases."""


class TorchTensorRT:
    """The modules of a release, and what was asked of them."""

    def __init__(self, release: str) -> None:
        self.release = release
        self.accepted = ACCEPTED[release].split()
        self.calls: list[dict[str, Any]] = []
        """The settings of each conversion."""
        self.unsupported: set[str] = set()
        """Operators without a converter, by their names' beginnings."""
        self.decomposed: set[str] = set()
        """Those of them that `decompose_attention` takes apart."""
        self.refusal: str | None = None
        """Why TensorRT makes no engine of anything."""
        self._observers: list[Callable[[Any], None]] = []

    def modules(self) -> dict[str, Any]:
        """What `sys.modules` has once it is imported."""

        def convert(exported: Any, **settings: Any) -> bytes:
            return self._convert(exported, **settings)

        convert.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in self.accepted]
        )
        dynamo = _module(
            "torch_tensorrt.dynamo", convert_exported_program_to_serialized_trt_engine=convert
        )
        observer = SimpleNamespace(add=self._observe)
        found = (
            _module("torch_tensorrt", dynamo=dynamo, Device=SimpleNamespace),
            dynamo,
            _module("torch_tensorrt.dynamo.conversion"),
            _module(
                "torch_tensorrt.dynamo.conversion._TRTInterpreter",
                TRT_INTERPRETER_CALL_PRE_OBSERVER=observer,
            ),
            _module("torch_tensorrt.dynamo.conversion._ConverterRegistry", DYNAMO_CONVERTERS=self),
        )
        return {"tensorrt": sys.modules[__name__], **{module.__name__: module for module in found}}

    def get(self, node: Any) -> object | None:
        """The converter of an operator."""
        name = str(node.target)
        taken_apart = self.decomposed if self.calls[-1].get("decompose_attention") else set()
        lacking = self.unsupported - taken_apart
        return None if any(name.startswith(each) for each in lacking) else convert_nothing

    def _convert(self, exported: Any, *, arg_inputs: Any, device: Any, **settings: Any) -> bytes:
        unknown = set(settings) - set(self.accepted)
        if unknown:
            raise TypeError(f"unexpected keyword argument {unknown.pop()}")
        self.calls.append(settings)
        module = exported.module()
        for observe in self._observers:
            observe(module)
        lacking = [n for n in module.graph.nodes if n.op == "call_function" and not self.get(n)]
        if lacking:
            raise RuntimeError("Conversion of module not currently fully supported!")
        if self.refusal is not None:
            # Up to 2.9 the function goes on after it has said so, and stumbles.
            logger = logging.getLogger("torch_tensorrt.dynamo._compiler")
            logger.error("While interpreting the module got an error: %s", self.refusal)
            raise (
                UnboundLocalError("interpreter_result")
                if self.release == "2.8.0"
                else (RuntimeError(self.refusal))
            )
        return build(module, arg_inputs[0])

    @contextmanager
    def _observe(self, callback: Callable[[Any], None]) -> Iterator[None]:
        self._observers.append(callback)
        try:
            yield
        finally:
            self._observers.remove(callback)


def convert_nothing() -> None:
    """Stands for a converter."""


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module
