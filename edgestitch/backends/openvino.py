"""OpenVINO: the fast compiled backend for CPUs.

Each segment is one model; each topology has its own inference request per segment, and the output
tensor of each request is bound, once, as the input of the next. So a call copies the image in, runs
the requests one after the other in the caller's thread, and copies the logits out. OpenVINO packs
the weights anew for its kernels: it holds more than one copy of them (bench/results has how much).
"""

import importlib.util
import time
import warnings
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from edgestitch.errors import CompileError

from . import Backend, Compiled, Load, Marked, Request, Resident, Run

_HINTS = {"fp32": "f32", "bf16": "bf16"}


def _unavailable() -> str | None:
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed; pip install 'edgestitch[openvino]'"
    return None


def _compile(request: Request) -> None:
    import openvino
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

    @cache
    def model(segment: str) -> Any:
        try:
            return core.compile_model(compiled.folder / f"{segment}.xml", "CPU", settings)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CompileError(f"openvino cannot load {compiled.folder}: {reason}") from error

    def load(topology: str) -> Resident:
        requests = _bound(
            [model(name).create_infer_request() for name in compiled.chains[topology]]
        )
        return Resident(run=_run(requests), marked=_marked(requests))

    return load


def _bound(requests: list[Any]) -> list[Any]:
    for request, following in pairwise(requests):
        following.set_input_tensor(request.get_output_tensor())
    return requests


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
