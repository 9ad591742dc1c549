"""OpenVINO: the fast compiled backend for CPUs.

Each segment is one model. All topologies write what passes between their segments into the same two
tensors of a shape, which they take turns with: one topology runs at a time. So a segment needs two
inference requests at most, one for an even and one for an odd place in a chain, however many
topologies it is part of. A call copies the image in, runs the requests one after the other in the
caller's thread, and copies the logits out. OpenVINO packs the weights anew for its kernels: it holds
more than one copy of them (bench/results has how much).
"""

import ctypes
import importlib.util
import mmap
import time
import warnings
from contextlib import suppress
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from edgestitch.errors import CompileError

from . import Backend, Compiled, Load, Marked, Request, Resident, Run

_HINTS = {"fp32": "f32", "bf16": "bf16"}


def _unavailable() -> str | None:
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed; pip install 'edgestitch[openvino]'"
    return None


def _compile(request: Request) -> None:
    import openvino
    import torch  # for this alone: what runs a deployment does without
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # The front end itself rather than `openvino.convert_model`: that one reports each conversion
    # to its vendor over the network unless the user has opted out, and takes four times as long.
    frontend = FrontEndManager().load_by_framework("pytorch")
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is OpenVINO's way in
            warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)  # shapes are fixed
            traced = torch.jit.trace(request.module, request.example, check_trace=False)  # type: ignore[no-untyped-call]
            decoder = TorchScriptPythonDecoder(traced)  # must outlive the model: C++ calls back
            model = frontend.convert(frontend.load(decoder))
        model.reshape(list(request.example.shape))
        path = request.path.with_name(f"{request.path.name}.xml")
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CompileError(f"openvino cannot compile {request.path.name}: {reason}") from error


def _load(compiled: Compiled) -> Load:
    import openvino

    core = openvino.Core()
    if compiled.precision == "bf16" and "BF16" not in core.get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    ):
        raise CompileError("this CPU has no bfloat16 arithmetic; use --precision fp32")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _HINTS[compiled.precision],
        "INFERENCE_NUM_THREADS": compiled.threads,
        "NUM_STREAMS": 1,
    }

    first = {chain[0] for chain in compiled.chains.values()}
    last = {chain[-1] for chain in compiled.chains.values()}

    @cache
    def model(segment: str) -> Any:
        path = compiled.folder / f"{segment}.xml"
        try:
            read = core.read_model(path)
            if compiled.precision == "bf16":
                read = _in_bf16(read, takes=segment not in first, gives=segment not in last)
            found = core.compile_model(read, "CPU", settings)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CompileError(f"openvino cannot load {compiled.folder}: {reason}") from error
        _give_back(path.with_suffix(".bin"))
        return found

    @cache
    def tensor(kind: Any, shape: tuple[int, ...], turn: int) -> Any:
        return openvino.Tensor(kind, openvino.Shape(shape))

    def place(port: Any, turn: int) -> Any:
        return tensor(port.element_type, tuple(port.shape), turn)

    @cache
    def request(segment: str, turn: int) -> Any:
        found = model(segment)
        one = found.create_infer_request()
        one.set_input_tensor(place(found.input(0), turn))
        one.set_output_tensor(place(found.output(0), 1 - turn))
        return one

    def load(topology: str) -> Resident:
        chain = compiled.chains[topology]
        requests = [request(segment, place % 2) for place, segment in enumerate(chain)]
        return Resident(run=_run(requests), marked=_marked(requests))

    return load


def _in_bf16(model: Any, *, takes: bool, gives: bool) -> Any:
    """The model with input, output or both in bfloat16, as it computes: a border converts nothing."""
    from openvino import Type
    from openvino.preprocess import PrePostProcessor

    types = PrePostProcessor(model)
    if takes:
        types.input().tensor().set_element_type(Type.bf16)
    if gives:
        types.output().tensor().set_element_type(Type.bf16)
    return types.build()


def _give_back(weights: Path) -> None:
    """Takes the pages of a mapped file out of memory: the kernels have their own, packed weights.

    What is still read of it comes back page by page. Where that cannot be done nothing is lost but
    memory.
    """
    with suppress(OSError, AttributeError):  # no Linux
        maps = Path("/proc/self/maps").read_text().splitlines()
        libc = ctypes.CDLL(None)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for line in maps:
            if line.endswith(f" {weights}"):
                start, stop = (int(end, 16) for end in line.split()[0].split("-"))
                libc.madvise(start, stop - start, mmap.MADV_DONTNEED)


def _run(requests: list[Any]) -> Run:
    entry: np.ndarray = requests[0].get_input_tensor().data
    result: np.ndarray = requests[-1].get_output_tensor().data
    # `infer` stays in this thread; starting and awaiting a request costs 0.03 ms each more. Without
    # shared outputs it would return a copy of every output.
    calls = [partial(request.infer, share_outputs=True) for request in requests]

    def run(images: np.ndarray) -> np.ndarray:
        np.copyto(entry, images)
        for call in calls:
            call()
        return result.copy()

    return run


def _marked(requests: list[Any]) -> Marked:
    entry: np.ndarray = requests[0].get_input_tensor().data
    calls = [partial(request.infer, share_outputs=True) for request in requests]

    def run(images: np.ndarray) -> list[float]:
        np.copyto(entry, images)
        marks = [time.perf_counter_ns()]
        for call in calls:
            call()
            marks.append(time.perf_counter_ns())
        return [(stop - start) / 1e6 for start, stop in pairwise(marks)]

    return run


def _version() -> str:
    import openvino

    return str(openvino.__version__)


BACKEND = Backend(
    name="openvino",
    accelerators=("cpu",),
    precisions=("fp32", "bf16"),
    unavailable=_unavailable,
    compile=_compile,
    load=_load,
    version=_version,
)
