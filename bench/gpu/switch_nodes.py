"""Two ways to switch between captured topologies: a graph each, or one graph with a SWITCH node.

A graph each is what the backends do: to switch is to launch another one. The other way is one graph
whose first node reads a number from pinned memory, and whose second is a conditional node of type
SWITCH with one topology as the body of each case: to switch is to write the number. CUDA has it from
12.8 on, and `cuda.bindings` its driver functions. Prints JSON; without a GPU or the bindings, the
reason.
"""

import argparse
import ctypes
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from edgestitch import load_family
from edgestitch.network import build_network

CUDA_12_8 = 12080
SOURCE = b"""
extern "C" __device__ __cudart_builtin__ void CUDARTAPI
cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned int value);

extern "C" __global__ void choose(cudaGraphConditionalHandle handle, const volatile int *chosen) {
    cudaGraphSetConditional(handle, (unsigned int)*chosen);
}
"""


def unavailable() -> str | None:
    """Why a SWITCH node cannot be made here, and what to do about it."""
    if importlib.util.find_spec("cuda") is None or not importlib.util.find_spec("cuda.bindings"):
        return "cuda.bindings is not installed; pip install cuda-bindings"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    from cuda.bindings import driver

    if not hasattr(driver.CUgraphConditionalNodeType, "CU_GRAPH_COND_TYPE_SWITCH"):
        return "this cuda.bindings has no SWITCH node; pip install 'cuda-bindings>=12.8'"
    version = checked(driver.cuDriverGetVersion())
    if version < CUDA_12_8:
        return f"the driver is for CUDA {version / 1000:g}, SWITCH nodes need 12.8; update it"
    if not hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph"):
        return f"PyTorch {torch.__version__} does not hand out its graphs; a newer one does"
    return None


def checked(result: tuple[Any, ...]) -> Any:
    """What a function of the bindings returns after its status, which must be success."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"{type(status).__name__}: {status.name}")
    return values[0] if len(values) == 1 else values


class Captured:
    """Topologies of a family with random weights, a graph each, in one pool and stream."""

    def __init__(self, family: str, number: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        network = build_network(load_family(family)).eval().to("cuda", dtype)
        spread = np.linspace(0, len(network.topologies) - 1, number).round().astype(int)
        self.names = [network.topologies[i].name for i in dict.fromkeys(spread.tolist())]
        self.stream = torch.cuda.Stream()
        pool = torch.cuda.graph_pool_handle()
        shape = (1, *network.family.input_shape)
        self.input = torch.randn(shape, device="cuda", dtype=dtype)
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.logits: list[torch.Tensor] = []
        self.expected: list[torch.Tensor] = []
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(self.stream):
            for name in self.names:
                module = network.assemble(name)
                for _ in range(3):
                    expected = module(self.input)
                graph = torch.cuda.CUDAGraph(keep_graph=True)
                with torch.cuda.graph(graph, pool=pool, stream=self.stream):
                    logits = module(self.input)
                self.graphs.append(graph)
                self.logits.append(logits)
                self.expected.append(expected)
        self.stream.synchronize()
        self.network = network  # the graphs know its tensors by address alone

    def check(self, launch: Callable[[int], None]) -> float:
        """Largest difference of a logit to the topology that was not captured."""
        differences = []
        for index, (logits, expected) in enumerate(zip(self.logits, self.expected, strict=True)):
            with torch.inference_mode():
                logits.zero_()
            torch.cuda.synchronize()
            launch(index)
            self.stream.synchronize()
            differences.append(float((logits - expected).abs().max()))
        return max(differences)


def graph_each(captured: Captured) -> Callable[[int], None]:
    for graph in captured.graphs:
        graph.instantiate()

    def launch(index: int) -> None:
        with torch.cuda.stream(captured.stream):
            captured.graphs[index].replay()

    return launch


def switch_node(captured: Captured) -> Callable[[int], None]:
    """One executable graph: a kernel that sets the condition, then a case for each topology."""
    from cuda.bindings import driver

    function = choosing_kernel()
    chosen = torch.zeros(1, dtype=torch.int32, pin_memory=True)
    array = chosen.numpy()
    context = checked(driver.cuCtxGetCurrent())
    graph = checked(driver.cuGraphCreate(0))
    handle = checked(driver.cuGraphConditionalHandleCreate(graph, context, 0, 0))

    kernel = driver.CUDA_KERNEL_NODE_PARAMS()
    kernel.func = function
    kernel.gridDimX = kernel.gridDimY = kernel.gridDimZ = 1
    kernel.blockDimX = kernel.blockDimY = kernel.blockDimZ = 1
    arguments = (int(handle), chosen.data_ptr())
    kernel.kernelParams = (arguments, (ctypes.c_uint64, ctypes.c_void_p))
    first = checked(driver.cuGraphAddKernelNode(graph, [], 0, kernel))

    node = driver.CUgraphNodeParams()
    node.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
    node.conditional.handle = handle
    node.conditional.type = driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_SWITCH
    node.conditional.size = len(captured.graphs)
    node.conditional.ctx = context
    add_node(graph, first, node)
    bodies = [node.conditional.phGraph_out[index] for index in range(len(captured.graphs))]
    for body, each in zip(bodies, captured.graphs, strict=True):
        child = driver.CUgraph(each.raw_cuda_graph())
        checked(driver.cuGraphAddChildGraphNode(body, [], 0, child))
    executable = checked(driver.cuGraphInstantiate(graph, 0))
    stream = driver.CUstream(captured.stream.cuda_stream)
    checked(driver.cuGraphUpload(executable, stream))
    captured.stream.synchronize()

    def launch(index: int, keep: object = (chosen, function)) -> None:
        array[0] = index  # the last launch has read it: its caller waited
        checked(driver.cuGraphLaunch(executable, stream))

    return launch


def choosing_kernel() -> Any:
    from cuda.bindings import driver

    major, minor = torch.cuda.get_device_capability()
    module = checked(driver.cuModuleLoadData(compiled(major, minor)))
    return checked(driver.cuModuleGetFunction(module, b"choose"))


def compiled(major: int, minor: int) -> bytes:
    """The kernel's machine code for a compute capability; takes no GPU."""
    from cuda.bindings import nvrtc

    program = checked(nvrtc.nvrtcCreateProgram(SOURCE, b"choose.cu", 0, [], []))
    options = [f"--gpu-architecture=sm_{major}{minor}".encode()]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(status) != 0:
        log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"nvrtc cannot compile the choosing kernel: {log.decode()}")
    code = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
    nvrtc.nvrtcGetCUBIN(program, code)
    return code


def add_node(graph: Any, after: Any, params: Any) -> None:
    """Bindings of CUDA 13 take the kind of each dependency as well."""
    import cuda.bindings
    from cuda.bindings import driver

    kinds = (None,) if int(cuda.bindings.__version__.split(".")[0]) >= 13 else ()
    checked(driver.cuGraphAddNode(graph, [after], *kinds, 1, params))


def costs(
    captured: Captured, launch: Callable[[int], None], order: Sequence[int]
) -> dict[str, list[float]]:
    """Of each call in order: the host's part and the whole until the device is done, in us."""
    host, whole = [], []
    for index in order:
        start = time.perf_counter_ns()
        launch(index)
        launched = time.perf_counter_ns()
        captured.stream.synchronize()
        host.append((launched - start) / 1e3)
        whole.append((time.perf_counter_ns() - start) / 1e3)
    return {"host_us": host, "whole_us": whole}


def measured(captured: Captured, launch: Callable[[int], None], calls: int) -> dict[str, Any]:
    """Costs of a call when the topology stays the same, and when it changes from call to call.

    Every topology is called equally often in both, so that the difference is the switch.
    """
    number = len(captured.graphs)
    random = np.random.default_rng(0)
    each = max(1, calls // number)
    blocks = [index for index in range(number) for _ in range(each)]
    switched = [int(i) for _ in range(each) for i in random.permutation(number)]
    found: dict[str, Any] = {"largest_difference": captured.check(launch)}
    for name, order in {"same": blocks, "switched": switched}.items():
        costs(captured, launch, order[: 10 * number])
        taken = costs(captured, launch, order)
        found[name] = {
            unit: {"mean": float(np.mean(v)), "median": float(np.median(v))}
            for unit, v in taken.items()
        }
    return found


def experiment(family: str, number: int, calls: int, dtype: torch.dtype) -> dict[str, Any]:
    captured = Captured(family, number, dtype)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "family": family,
        "dtype": str(dtype),
        "topologies": captured.names,
        "calls": calls,
    }
    for name, make in {"graph each": graph_each, "switch node": switch_node}.items():
        before, _ = torch.cuda.mem_get_info()
        launch = make(captured)
        after, _ = torch.cuda.mem_get_info()
        found[name] = {"memory_mib": (before - after) / 2**20, **measured(captured, launch, calls)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="deit-ti-s-b")
    parser.add_argument("--topologies", type=int, default=8)
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--dtype", default="float16", choices=("float32", "float16", "bfloat16"))
    options = parser.parse_args()
    reason = unavailable()
    if reason is not None:
        print(json.dumps({"unavailable": reason}))
        return
    dtype = getattr(torch, options.dtype)
    found = experiment(options.family, options.topologies, options.calls, dtype)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
