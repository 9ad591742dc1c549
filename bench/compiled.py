"""What compiled, resident topologies that are switched in place cost, beside what they replace.

Each way to run them, a backend in a precision, against the eager walk over timm's modules, against
one monolithic compilation of each topology, and against `torch.compile`; and what a switch, a start
and the memory of all of them cost. Each part runs in a process of its own and is written as soon as
it is done, so a run that was stopped goes on where it was. See README.md for definitions.
"""

import argparse
import gc
import json
import random
import re
import resource
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import msgspec
import numpy as np
import torch
from measuring import (
    MIB,
    Call,
    Memory,
    has_failed,
    in_own_process,
    interleaved,
    keep,
    kept,
    quantiles,
    short,
    watched,
)
from pages import QUIET, noise, page, result_path, table
from resident import measure_memory
from subjects import chosen, network_of, random_frames
from subjects import deploy as deploy_topologies

from edgestitch import Family, Runtime, backends, load_family
from edgestitch.cut import cut_topologies
from edgestitch.device import Device, detect, resolve
from edgestitch.network import StitchNetwork
from edgestitch.program import Program, compile_segments, example_images, load_program

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PACKAGES = ("edgestitch", "torch", "timm", "openvino", "tensorrt", "torch-tensorrt", "triton")
PACKAGES += ("numpy",)
WALK, AGAIN, TORCH_COMPILE = "eager walk", "eager walk again", "torch.compile"
SECOND_S = 1e9  # nanoseconds

# The design's targets: (largest median, largest 95th percentile over topologies).
CHAIN_TARGET = (1.05, 1.10)
WALK_TARGETS = {("cpu", "fp32"): 0.70, ("cpu", "bf16"): 0.45, ("cuda", "fp16"): 0.35}
COMPILE_TARGET = 1.0
SWITCH_TARGET_US = {"cpu": 20.0, "cuda": 10.0}
FIRST_TARGET = {"cpu": ("median", 1.05), "cuda": ("p99", 1.03)}
MEMORY_TARGET = 1.15
START_TARGET = 1.3


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A backend in a precision."""

    backend: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.backend}:{self.precision}"

    @classmethod
    def of(cls, text: str) -> "Way":
        backend, _, precision = text.partition(":")
        return cls(backend=backend, precision=precision)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes that measure are told."""

    family: str
    device: str
    work: str
    ways: tuple[str, ...]
    topologies: int
    rounds: int
    switch_rounds: int
    monolithic: int | None = None
    """How many topologies the slow compilers compile whole; `None`: all."""
    compile_limit_s: float = 1e9
    """Before the compilation of another topology is begun, since the process began."""
    starts: int = 5

    @property
    def folder(self) -> Path:
        return Path(self.work) / self.family

    @property
    def accelerator(self) -> str:
        return "cpu" if self.device == "cpu" else "cuda"


# --- what is measured ------------------------------------------------------------------------------


def few(names: Sequence[str], number: int | None) -> tuple[str, ...]:
    """Some of the cheaper half, for compilers that take minutes each; all without a number."""
    if number is None or number >= len(names):
        return tuple(names)
    half = names[: max(number, len(names) // 2)]
    places = np.linspace(0, len(half) - 1, number).round().astype(int)
    return tuple(half[i] for i in dict.fromkeys(places.tolist()))


def default_ways(device: Device) -> tuple[str, ...]:
    """Half precision where that is what runs on the device, on a CPU beside single precision."""
    fitting = [name for name in backends.NAMES if _computes_on(name, device.accelerator)]
    if device.accelerator == "cuda":
        return tuple(f"{name}:fp16" for name in fitting)
    return (*(f"{name}:fp32" for name in fitting), *(["openvino:bf16"] if _bf16() else []))


def _computes_on(name: str, accelerator: str) -> bool:
    """Also where the backend cannot be imported: the page then has the reason."""
    try:
        return accelerator in backends.backend(name).accelerators
    except ImportError:
        return name in backends.PREFERENCE[accelerator]


def _bf16() -> bool:
    with suppress(ImportError):
        import openvino

        return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return False


def reason(way: Way, device: Device) -> str | None:
    """Why a way is left out; `None`: it is not."""
    try:
        backend = backends.backend(way.backend)
    except ImportError as error:
        return short(error)
    if device.accelerator not in backend.accelerators:
        return f"it computes on {', '.join(backend.accelerators)}"
    if way.precision not in backend.precisions:
        return f"it knows {', '.join(backend.precisions)}"
    return backend.unavailable()


# --- compiling, kept in the work folder ------------------------------------------------------------


def compiled_program(
    job: Job, network: StitchNetwork, way: Way, topologies: Iterable[str], folder: Path
) -> tuple[Program, float]:
    """Topologies cut together, compiled as far as they are not yet; and seconds that took."""
    backend, device = backends.backend(way.backend), resolve(job.device)
    cut = cut_topologies(network.family, topologies)
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "finished.json"
    spent: dict[str, float] = json.loads(record.read_text()) if record.is_file() else {}
    start = time.perf_counter()

    def finished(segment: str) -> None:
        nonlocal start
        spent[segment] = time.perf_counter() - start
        record.write_text(json.dumps(spent))
        start = time.perf_counter()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compile_segments(
            network,
            cut,
            backend,
            folder,
            precision=way.precision,
            done=spent,
            finished=finished,
        )
    program = load_program(
        cut,
        backend,
        folder,
        network.family,
        lambda: network,
        device,
        precision=way.precision,
        batch=1,
    )
    return program, sum(spent.values())


def on_device(job: Job) -> StitchNetwork:
    network = network_of(job.family)
    torch.set_num_threads(resolve(job.device).cores)
    return network.to(torch.device(job.accelerator)).requires_grad_(False).eval()


# --- latency ---------------------------------------------------------------------------------------


class Candidates:
    """Everything that is timed, by (name, topology)."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.started = time.monotonic()
        self.network = on_device(job)
        self.names = chosen(self.network.family, job.topologies)
        self.device = torch.device(job.accelerator)
        self.image = example_images(self.network.family, 1)
        self.tensor = torch.from_numpy(self.image).to(self.device)
        self.calls: dict[tuple[str, str], Call] = {}
        self.compile_s: dict[str, dict[str, float]] = {}
        self.grown_mib: dict[str, dict[str, float]] = {}
        self.failed: dict[str, str] = {}

    def late(self) -> bool:
        return time.monotonic() - self.started > self.job.compile_limit_s

    def add_walks(self, precision: str) -> None:
        """The modules one after the other, in a precision, as whoever has no engine runs them."""
        from edgestitch.backends.chain import in_precision

        network = in_precision(self.network, self.device, DTYPES[precision])
        for topology in self.names:
            self._add(topology, WALK, AGAIN, module=network.assemble(topology), precision=precision)

    def _add(self, topology: str, *labels: str, module: Any, precision: str) -> None:
        dtype = DTYPES[precision]
        for label in labels:
            self.calls[label, topology] = partial(_walk, module, self.image, self.device, dtype)
            if self.device.type == "cuda":
                self.calls[f"{label}, on device", topology] = partial(
                    _walk_on_device, module, self.tensor, dtype
                )

    def add(self, way: Way) -> None:
        """The chains of segments of a way, and the monolithic compilation of each topology."""
        folder = self.job.folder / way.name.replace(":", "-")
        slow = way.backend in ("inductor", "tensorrt")
        whole = few(self.names, self.job.monolithic) if slow else self.names
        program, spent_s = compiled_program(
            self.job, self.network, way, self.names, folder / "chain"
        )
        self.compile_s[f"{way.name} chain"] = {"all": spent_s}
        self._add_program(f"{way.name} chain", program, self.names)
        label = f"{way.name} whole"
        for index, topology in enumerate(whole):
            if self.late():
                self.failed[f"{label} {topology}"] = "the time for compiling was up"
                continue
            single, spent_s = compiled_program(
                self.job, self.network, way, [topology], folder / f"whole-{index}"
            )
            self.compile_s.setdefault(label, {})[topology] = spent_s
            self._add_program(label, single, [topology])

    def _add_program(self, label: str, program: Program, topologies: Iterable[str]) -> None:
        for topology in topologies:
            resident = program.load(topology)
            self.calls[label, topology] = partial(resident.run, self.image)
            if self.device.type == "cuda" and resident.on_device:
                self.calls[f"{label}, on device", topology] = partial(
                    resident.on_device, self.tensor
                )

    def add_torch_compile(self, precision: str) -> None:
        import torch._dynamo

        from edgestitch.backends.chain import in_precision

        # Every topology is the same class with other children: more than the eight kept by default.
        for limit in ("recompile_limit", "cache_size_limit"):
            if hasattr(torch._dynamo.config, limit):
                setattr(torch._dynamo.config, limit, 4 * len(self.names))
        network = in_precision(self.network, self.device, DTYPES[precision])
        for topology in few(self.names, self.job.monolithic):
            if self.late():
                self.failed[f"{TORCH_COMPILE} {topology}"] = "the time for compiling was up"
                continue
            before, start = _used_mib(self.device), time.perf_counter()
            module = torch.compile(network.assemble(topology), mode="reduce-overhead")
            self._add(topology, TORCH_COMPILE, module=module, precision=precision)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for _ in range(3):  # a graph is captured in the second
                    self.calls[TORCH_COMPILE, topology]()
            spent = time.perf_counter() - start
            self.compile_s.setdefault(TORCH_COMPILE, {})[topology] = spent
            self.grown_mib.setdefault(TORCH_COMPILE, {})[topology] = _used_mib(self.device) - before

    def agreement(self) -> dict[str, float]:
        """The largest difference of a logit to the eager walk, over the largest logit."""
        with torch.inference_mode():
            expected = {
                name: self.network.assemble(name)(self.tensor).float().cpu().numpy()
                for name in self.names
            }
        worst: dict[str, float] = {}
        for (label, topology), call in self.calls.items():
            found, right = _host(call()), expected[topology]
            away = float(np.abs(found - right).max() / np.abs(right).max())
            worst[label] = max(worst.get(label, 0.0), away)
        return worst


def _host(logits: Any) -> np.ndarray:
    array: np.ndarray = logits if isinstance(logits, np.ndarray) else logits.float().cpu().numpy()
    return array


def _walk(module: Any, image: np.ndarray, device: torch.device, dtype: torch.dtype) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = module(torch.from_numpy(image).to(device, dtype)).float().cpu().numpy()
    return logits


def _walk_on_device(module: Any, image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = module(image.to(dtype)).float()
    torch.cuda.current_stream(logits.device).synchronize()
    return logits


def _used_mib(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        free, total = torch.cuda.mem_get_info(device)
        return float(total - free) / MIB
    return Memory.now().uss / MIB


def latency(job: Job) -> dict[str, Any]:
    """Every candidate on every topology, interleaved in random order; milliseconds."""
    candidates = Candidates(job)
    base = "fp16" if job.accelerator == "cuda" else "fp32"
    candidates.add_walks(base)
    for name in job.ways:
        way = Way.of(name)
        why = reason(way, resolve(job.device))
        if why is None:
            try:
                candidates.add(way)
            except Exception as error:  # whatever a compiler raises: the others go on
                why = short(error)
        if why is not None:
            candidates.failed[name] = why
        print(f"{time.strftime('%H:%M:%S')} {name}: {why or 'ready'}", file=sys.stderr, flush=True)
    try:
        candidates.add_torch_compile(base)
    except Exception as error:
        candidates.failed[TORCH_COMPILE] = short(error)
    agreement = candidates.agreement()
    with watched() as span:
        samples = interleaved(candidates.calls, job.rounds)
    return {
        "names": candidates.names,
        "base": base,
        "samples_ms": _nested(samples),
        "agreement": agreement,
        "compile_s": candidates.compile_s,
        "grown_mib": candidates.grown_mib,
        "failed": candidates.failed,
        "others": span.others,
        "duration_s": span.duration_s,
        "roofline": roofline(candidates, samples) if job.accelerator == "cuda" else None,
    }


def _nested(samples: Mapping[tuple[str, str], list[float]]) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {}
    for (label, topology), values in samples.items():
        found.setdefault(label, {})[topology] = values
    return found


def roofline(
    candidates: Candidates, samples: Mapping[tuple[str, str], list[float]]
) -> dict[str, Any]:
    """How much of its latency the largest topology needs to read its weights once."""
    size = 2**30
    source = torch.empty(size, dtype=torch.uint8, device=candidates.device)
    target = torch.empty_like(source)
    times = []
    for _ in range(20):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    bandwidth = 2 * size / float(np.median(times))  # read and written
    largest = candidates.names[-1]
    weights = 2 * sum(p.numel() for p in candidates.network.assemble(largest).parameters())
    share = {
        label: weights / bandwidth / (float(np.median(values)) / 1e3)
        for (label, topology), values in samples.items()
        if topology == largest
    }
    return {
        "topology": largest,
        "bandwidth_gbs": bandwidth / 1e9,
        "weights_mib": weights / MIB,
        "share": share,
    }


# --- deployments: switch and start -----------------------------------------------------------------


def deploy(job: Job, name: str) -> dict[str, Any]:
    """Makes the deployment of all topologies, and that of the cheapest alone; seconds."""
    way, found = Way.of(name), {}
    family = load_family(job.family)
    names = chosen(family, job.topologies)
    for label, resident in (("all", names), ("alone", names[:1])):
        start = time.perf_counter()
        out = deployment_folder(job, way, label)
        if not (out / "manifest.json").is_file():
            deploy_topologies(
                on_device(job),
                resident,
                out,
                resolve(job.device),
                backend=way.backend,
                precision=way.precision,
            )
        found[label] = time.perf_counter() - start
    return {"topologies": names, "compile_s": found}


def deployment_folder(job: Job, way: Way, label: str) -> Path:
    return job.folder / way.name.replace(":", "-") / f"deployment-{label}"


CALLS = 10
"""Inferences after a switch; the last one is what the first is compared with."""


def switch(job: Job, name: str) -> dict[str, Any]:
    """The host's cost of a switch, and the inferences after it, over all ordered pairs."""
    folder = deployment_folder(job, Way.of(name), "all")
    with Runtime(folder) as runtime:
        frames: list[Any] = random_frames(runtime.deployment.manifest.family, 16)
        if job.accelerator == "cuda":
            frames = [torch.from_numpy(frame).cuda() for frame in frames]
        names = runtime.topologies
        pairs = [(a, b) for a in names for b in names if a != b]
        for topology in names:
            runtime.switch(topology)
            runtime(frames[0])
        with watched() as span:
            host, after = _switches(runtime, pairs, frames, job.switch_rounds)
        moved = _moved(runtime, names, job.accelerator)
    medians = np.median(after, axis=0)  # pair, call
    first, again = medians[:, 0] / medians[:, -1], medians[:, -2] / medians[:, -1]
    events = after[:, :, 0] / medians[:, -1]
    return {
        "topologies": len(names),
        "pairs": len(pairs),
        "rounds": job.switch_rounds,
        "host_us": quantiles(np.asarray(host) / 1e3),
        "first": quantiles(first),
        "again": quantiles(again),
        "events": quantiles(events.ravel()),
        "events_again": quantiles((after[:, :, -2] / medians[:, -1]).ravel()),
        "moved": moved,
        "others": span.others,
    }


def _switches(
    runtime: Runtime, pairs: list[tuple[str, str]], frames: list[Any], rounds: int
) -> tuple[list[int], np.ndarray]:
    """Nanoseconds of each switch, and of the inferences after it [round, pair, call]."""
    host: list[int] = []
    after = np.zeros((rounds, len(pairs), CALLS))
    clock, order = time.perf_counter_ns, np.random.default_rng(0)
    gc.collect()
    gc.disable()
    for number in range(rounds):
        for index in order.permutation(len(pairs)):
            before, then = pairs[index]
            frame = frames[index % len(frames)]
            runtime.switch(before)
            for _ in range(3):
                runtime(frame)
            start = clock()
            runtime.switch(then)
            host.append(clock() - start)
            for call in range(CALLS):
                start = clock()
                _finished(runtime(frame))
                after[number, index, call] = clock() - start
    gc.enable()
    return host, after


def _finished(logits: Any) -> None:
    if not isinstance(logits, np.ndarray) and logits.is_cuda:
        torch.cuda.current_stream(logits.device).synchronize()


def _moved(runtime: Runtime, names: tuple[str, ...], accelerator: str) -> dict[str, Any]:
    """What a thousand rounds of switches allocate, fault in and copy; counts and bytes."""

    def switches(rounds: int = 1000) -> None:
        for _ in range(rounds):
            for name in names:
                runtime.switch(name)

    switches(2)
    gc.collect()
    gc.disable()
    rss = _rss_kib()
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    switches()
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - usage.ru_minflt
    found: dict[str, Any] = {
        "switches": 1000 * len(names),
        "minor_faults": faults,
        "rss_kib": _rss_kib() - rss,
    }
    tracemalloc.start()
    switches(1)
    kept = tracemalloc.get_traced_memory()[0]
    switches(100)
    found["python_kept_bytes"] = tracemalloc.get_traced_memory()[0] - kept
    tracemalloc.stop()
    gc.enable()
    if accelerator == "cuda":
        found |= _moved_on_device(switches)
    return found


def _rss_kib() -> float:
    status = Path("/proc/self/status").read_text()
    return float(re.findall(r"VmRSS:\s+(\d+)", status)[0])


COUNTERS = (
    "allocation.all.allocated",
    "segment.all.allocated",
    "allocated_bytes.all.allocated",
)


def _moved_on_device(switches: Callable[[int], None]) -> dict[str, Any]:
    """PyTorch's counters of allocations, the driver's free memory, and what CUPTI sees run."""
    torch.cuda.synchronize()
    before, free = torch.cuda.memory_stats(), torch.cuda.mem_get_info()[0]
    nvml = _nvml_used()
    switches(1000)
    torch.cuda.synchronize()
    stats = torch.cuda.memory_stats()
    found: dict[str, Any] = {name: stats.get(name, 0) - before.get(name, 0) for name in COUNTERS}
    found["device_bytes"] = free - torch.cuda.mem_get_info()[0]
    after = _nvml_used()
    found["nvml_bytes"] = after - nvml if nvml is not None and after is not None else None
    try:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            switches(10)
        found["device_events"] = len(seen.events() or ())
    except Exception as error:
        found["device_events"] = None
        found["device_events_reason"] = short(error)
    return found


def _nvml_used() -> int | None:
    with suppress(Exception):  # without NVML there is the driver's own count
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    return None


# In a process of its own; the time is of a clock that all processes share.
START = """
import os, sys, time
import numpy as np
from edgestitch import Runtime
runtime = Runtime(sys.argv[1], wait=sys.argv[2] == "all ready")
runtime(np.zeros(runtime.input_shape, np.float32))
print(time.monotonic_ns(), flush=True)
os._exit(0)
"""
IMPORTS = """
import time
import numpy, torch
from edgestitch import Runtime
print(time.monotonic_ns(), flush=True)
"""


def start(job: Job, name: str) -> dict[str, Any]:
    """Seconds from the start of a process to its first result, in turns."""
    way = Way.of(name)
    entire, alone = (str(deployment_folder(job, way, label)) for label in ("all", "alone"))
    commands = {
        "imports alone": [IMPORTS],
        "safety alone": [START, alone, "all ready"],
        "first result": [START, entire, "background"],
        "all ready": [START, entire, "all ready"],
    }
    samples: dict[str, list[float]] = {label: [] for label in commands}
    shuffle = random.Random(0)
    with watched() as span:
        for number in range(job.starts + 1):
            for label in shuffle.sample(list(commands), len(commands)):
                begun = time.monotonic_ns()
                finished = subprocess.run(
                    [sys.executable, "-c", *commands[label]],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if finished.returncode:
                    raise RuntimeError((finished.stderr.strip().splitlines() or ["killed"])[-1])
                if number:  # the first one fills the file cache
                    ended = int(finished.stdout.split()[-1])
                    samples[label].append((ended - begun) / SECOND_S)
    return {"samples_s": samples, "others": span.others}


# --- memory ------------------------------------------------------------------------------------------


def memory(job: Job, name: str) -> dict[str, Any]:
    """Growth of a fresh process that loads every topology of the family; MiB."""
    way, family = Way.of(name), load_family(job.family)
    network = on_device(job)
    names = [t.name for t in family.topologies]
    folder = job.folder / way.name.replace(":", "-") / "every"
    program, spent_s = compiled_program(job, network, way, names, folder)
    segments = len(program.segments)
    del program
    if not (folder / "network.safetensors").is_file():
        from edgestitch.network import save_network

        save_network(network, folder / "network.safetensors")
    width = torch.finfo(DTYPES[way.precision]).bits // 8

    def size(atoms: Iterable[str]) -> float:
        return sum(p.numel() for a in atoms for p in network.atoms[a].parameters()) * width / MIB

    union = size({atom for t in names for atom in family.atoms(t)})
    found = measure_memory(family, way.backend, folder, job.device, way.precision)
    return {
        **found,
        "union_mib": union,
        "apart_mib": sum(size(family.atoms(t)) for t in names),
        "topologies": len(names),
        "segments": segments,
        "compile_s": spent_s,
    }


# --- prefix reuse --------------------------------------------------------------------------------------


QUANTILE_ROUNDS = 200
"""Fewer do not tell a 99th percentile."""


def prefix(job: Job, name: str) -> dict[str, Any]:
    """A call in two, with the decision between: what the border costs, and what it tells.

    The shared part runs first; then the time that is left decides whether the front anchor goes on
    or the stitch is taken. Beside it the same topologies in one call.
    """
    way, network = Way.of(name), on_device(job)
    family = network.family
    plain, stitched = _alternatives(family)
    cut = cut_topologies(family, [plain, stitched])
    shared = _common(cut.chains[plain], cut.chains[stitched])
    tails = {t: cut.chains[t][len(shared) :] for t in (plain, stitched)}
    folder = job.folder / way.name.replace(":", "-") / "prefix"
    backend, device = backends.backend(way.backend), resolve(job.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compile_segments(network, cut, backend, folder, precision=way.precision)

    def loaded(chains: Mapping[str, tuple[str, ...]], shape: tuple[int, ...]) -> Any:
        return backend.load(
            backends.Compiled(
                folder=folder,
                chains=chains,
                atoms=cut.atoms,
                precision=way.precision,
                threads=device.cores,
                accelerator=device.accelerator,
                input_shape=shape,  # type: ignore[arg-type]  # features have fewer dimensions
                network=lambda: network,
            )
        )

    image = example_images(family, 1)
    whole = loaded(cut.chains, image.shape)
    head = loaded({"head": shared}, image.shape)("head").run
    features = head(image)
    rest = loaded(tails, features.shape)
    ends = {t: rest(t).run for t in tails}
    one = {t: whole(t).run for t in tails}
    heads, totals = {t: [] for t in tails}, {t: [] for t in tails}  # type: ignore[var-annotated]

    def split(topology: str) -> None:
        start = time.perf_counter_ns()
        value = head(image)
        middle = time.perf_counter_ns()
        # Decided here, by what is left of the deadline; both outcomes are prepared.
        left = deadline_ns - (middle - start)
        ends[topology if left >= 0 else plain](value)
        heads[topology].append((middle - start) / 1e6)
        totals[topology].append((time.perf_counter_ns() - start) / 1e6)

    deadline_ns = 10**12
    calls: dict[Any, Call] = {}
    for topology in tails:
        calls["one", topology] = partial(one[topology], image)
        calls["again", topology] = partial(one[topology], image)
        calls["split", topology] = partial(split, topology)
    for call in calls.values():
        call()
    rounds = max(QUANTILE_ROUNDS, 5 * job.rounds)
    for values in (*heads.values(), *totals.values()):
        values.clear()
    with watched() as span:
        samples = interleaved(calls, rounds)
    found = {}
    for topology in tails:
        base = np.asarray(samples["one", topology])
        ratios = {
            label: float(np.median(samples[label, topology]) / np.median(base))
            for label in ("again", "split")
        }
        found[topology] = ratios | _resolved(
            np.asarray(heads[topology][1::2]), np.asarray(totals[topology][1::2])
        )
    return {
        "plain": plain,
        "stitched": stitched,
        "shared": list(shared),
        "features": list(features.shape),
        "rounds": rounds,
        "found": found,
        "others": span.others,
    }


def _alternatives(family: Family) -> tuple[str, str]:
    """The cheapest anchor, and a topology that leaves it half way."""
    front = family.anchors[0].name
    plain = family.whole(front)
    leaving = [t for t in family.topologies if len(t.runs) == 2 and t.runs[0].anchor == front]
    middle = plain.runs[0].stop / 2
    taken = min(leaving, key=lambda t: (abs(t.runs[0].stop - middle), t.name))
    return plain.name, taken.name


def _common(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    shared = []
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        shared.append(one)
    return tuple(shared)


def _resolved(head_ms: np.ndarray, total_ms: np.ndarray) -> dict[str, float]:
    """How much of a call's uncertainty is over at the stitch."""
    tail_ms = total_ms - head_ms
    early = float(np.quantile(total_ms, 0.99) - np.median(total_ms))
    late = float(np.quantile(tail_ms, 0.99) - np.median(tail_ms))
    return {
        "total_ms": float(np.median(total_ms)),
        "head_ms": float(np.median(head_ms)),
        "early_ms": early,
        "late_ms": late,
        "gain": (early - late) / float(np.median(total_ms)),
        "correlation": float(np.corrcoef(head_ms, tail_ms)[0, 1]),
        "head_variance": float(np.var(head_ms) / np.var(total_ms)),
    }


# --- parts, each in a process of its own -----------------------------------------------------------------

WHOLE: dict[str, Callable[[Job], dict[str, Any]]] = {"latency": latency}
BY_WAY: dict[str, Callable[[Job, str], dict[str, Any]]] = {
    "deploy": deploy,
    "switch": switch,
    "start": start,
    "memory": memory,
    "prefix": prefix,
}
PARTS = ("latency", "deploy", "switch", "start", "memory", "prefix")


def steps(job: Job, parts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(part, way) in order; a part of all ways has none."""
    for part in PARTS:
        if part in parts:
            for way in ("",) if part in WHOLE else job.ways:
                yield part, way


def record(job: Job, part: str, way: str) -> Path:
    return job.folder / f"{'-'.join(filter(None, (part, way.replace(':', '-'))))}.json"


def run(job: Job, parts: Sequence[str] = PARTS, until: float = float("inf")) -> list[str]:
    """Measures what is not there yet; what was left since the time is up, by the monotonic clock."""
    job.folder.mkdir(parents=True, exist_ok=True)
    left, device = [], resolve(job.device)
    for part, way in steps(job, parts):
        path = record(job, part, way)
        if path.is_file():
            continue
        remaining = until - time.monotonic()
        if remaining < 5:
            left.append(path.stem)
            continue
        why = reason(Way.of(way), device) if way else None
        begun = time.perf_counter()
        found = {"failed": why} if why else _in_process(job, part, way, remaining)
        keep(path, found)
        took = f"{time.perf_counter() - begun:.0f} s"
        print(
            f"{time.strftime('%H:%M:%S')} {job.family} {part} {way}: "
            f"{found['failed'] if has_failed(found) else took}",
            flush=True,
        )
    return left


def _in_process(job: Job, part: str, way: str, remaining_s: float) -> dict[str, Any]:
    if remaining_s < 1e6:  # compiling may have half of it
        limit = min(job.compile_limit_s, remaining_s / 2)
        job = msgspec.structs.replace(job, compile_limit_s=limit)
    told = msgspec.json.encode(job).decode()
    arguments = ["--job", told, "--part", part, "--way", way]
    return in_own_process(__file__, arguments, min(remaining_s, 1e6))


# --- the page ------------------------------------------------------------------------------------------


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A number beside its target."""

    figure: str
    family: str
    subject: str
    value: str
    target: str = ""
    met: bool | None = None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "short", None: ""}[self.met]

    @property
    def row(self) -> list[str]:
        return [
            self.figure,
            self.family,
            f"`{self.subject}`",
            self.value,
            self.target,
            self.verdict,
        ]


def ratios(found: Mapping[str, Any], ours: str, base: str) -> dict[str, float]:
    """Of medians, by topology, where both were measured."""
    samples = found["samples_ms"]
    one, other = samples.get(ours, {}), samples.get(base, {})
    return {t: float(np.median(one[t]) / np.median(other[t])) for t in one if t in other}


def interval(found: Mapping[str, Any], ours: str, base: str) -> tuple[float, float]:
    """95 % interval of the median ratio, by a bootstrap over rounds."""
    samples = found["samples_ms"]
    names = list(ratios(found, ours, base))
    one, other = (np.array([samples[label][t] for t in names]) for label in (ours, base))
    picks = np.random.default_rng(0)
    values = []
    for _ in range(500):
        rounds = picks.integers(0, one.shape[1], one.shape[1])
        each = np.median(one[:, rounds], axis=1) / np.median(other[:, rounds], axis=1)
        values.append(np.median(each))
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def read(job: Job, part: str, way: str = "") -> dict[str, Any]:
    """What a part has found; `failed` where it has not."""
    return kept(record(job, part, way))


def figures(job: Job) -> list[Figure]:
    made = []
    found = read(job, "latency")
    if "failed" not in found or "samples_ms" in found:
        made += _latency_figures(job, found)
    for name in job.ways:
        made += _way_figures(job, Way.of(name))
    return made


def _latency_figures(job: Job, found: Mapping[str, Any]) -> Iterator[Figure]:
    suffixes = ("", ", on device") if job.accelerator == "cuda" else ("",)
    for suffix in suffixes:
        yield _ratio_figure(job, found, "A/A", AGAIN + suffix, WALK + suffix)
        for name in job.ways:
            way = Way.of(name)
            chain, whole = f"{name} chain{suffix}", f"{name} whole{suffix}"
            target = WALK_TARGETS.get((job.accelerator, way.precision))
            # Eager is its own walk: it is no candidate of its target.
            yield _ratio_figure(
                job,
                found,
                "chain / eager walk",
                chain,
                WALK + suffix,
                target if way.backend != "eager" else None,
            )
            yield _ratio_figure(job, found, "chain / whole", chain, whole, *CHAIN_TARGET)
            if way.precision == found["base"]:
                compiled = TORCH_COMPILE + suffix
                best = COMPILE_TARGET if way.backend != "eager" else None
                yield _ratio_figure(job, found, "chain / torch.compile", chain, compiled, best)
    for label, share in ((found.get("roofline") or {}).get("share") or {}).items():
        yield Figure(
            figure="share of the roofline",
            family=job.family,
            subject=label,
            value=f"{share:.2f} ({found['roofline']['topology']})",
        )


def _ratio_figure(
    job: Job,
    found: Mapping[str, Any],
    figure: str,
    ours: str,
    base: str,
    median: float | None = None,
    p95: float | None = None,
) -> Figure:
    each = list(ratios(found, ours, base).values())
    if not each:
        failed = found["failed"]
        why = next((w for k, w in failed.items() if ours.startswith(k) or base.startswith(k)), "")
        why = why or "one of the two was not compiled"
        return Figure(figure=figure, family=job.family, subject=ours, value=f"not measured: {why}")
    middle, tail = float(np.median(each)), float(np.quantile(each, 0.95))
    low, high = interval(found, ours, base)
    wanted = [f"<= {median:g}"] if median else []
    wanted += [f"p95 <= {p95:g}"] if p95 else []
    return Figure(
        figure=figure,
        family=job.family,
        subject=ours,
        value=f"{middle:.3f} [{low:.3f}, {high:.3f}], p95 {tail:.3f}, {len(each)} topologies",
        target=", ".join(wanted),
        met=(middle <= median and (p95 is None or tail <= p95)) if median else None,
    )


def _way_figures(job: Job, way: Way) -> Iterator[Figure]:
    def missing(figure: str, found: Mapping[str, Any]) -> Figure:
        return Figure(
            figure=figure,
            family=job.family,
            subject=way.name,
            value=f"not measured: {found['failed']}",
        )

    def figure(what: str, value: str, target: str = "", met: bool | None = None) -> Figure:
        return Figure(
            figure=what,
            family=job.family,
            subject=way.name,
            value=value,
            target=target,
            met=met,
        )

    found = read(job, "memory", way.name)
    if "failed" in found:
        yield missing("memory / union", found)
    else:
        share = found["grown_mib"] / found["union_mib"]
        target = MEMORY_TARGET if backends.backend(way.backend).shares_weights else None
        yield figure(
            "memory / union",
            f"{share:.2f} (one engine each {found['apart_mib'] / found['union_mib']:.1f})",
            f"<= {target:g}" if target else "",
            share <= target if target else None,
        )
    found = read(job, "switch", way.name)
    if "failed" in found:
        yield missing("switch, us", found)
    else:
        limit = SWITCH_TARGET_US[job.accelerator]
        host = found["host_us"]
        yield figure(
            "switch, us",
            f"p99 {host['p99']:.2f}, median {host['median']:.2f}",
            f"p99 <= {limit:g}",
            host["p99"] <= limit,
        )
        kind, most = FIRST_TARGET[job.accelerator]
        first, again = found["first"], found["again"]
        yield figure(
            "first / 10th inference",
            f"median {first['median']:.3f}, p99 {first['p99']:.3f}; "
            f"9th / 10th {again['median']:.3f}, {again['p99']:.3f}",
            f"{kind} <= {most:g}",
            first[kind] <= most,
        )
        moved = {k: v for k, v in found["moved"].items() if k != "switches"}
        zero = not any(v for v in moved.values() if isinstance(v, int | float))
        yield figure(
            f"moved by {found['moved']['switches']} switches",
            ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in moved.items() if _is_number(v)),
            "0",
            zero,
        )
    found = read(job, "start", way.name)
    if "failed" in found:
        yield missing("first result / safety alone", found)
        return
    medians = {label: float(np.median(v)) for label, v in found["samples_s"].items()}
    share = medians["first result"] / medians["safety alone"]
    yield figure(
        "first result / safety alone",
        f"{share:.2f} ("
        + ", ".join(f"{label} {value:.2f} s" for label, value in medians.items())
        + ")",
        f"<= {START_TARGET:g}",
        share <= START_TARGET,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def sections(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """The tables, by heading."""
    every = [figure for job in jobs for figure in figures(job)]
    head = ["figure", "family", "subject", "value", "target", "verdict"]
    made = {"Figures": table(head, [figure.row for figure in every])}
    for job in jobs:
        found = read(job, "latency")
        if "samples_ms" in found:
            made[f"Latency of {job.family}"] = _latency_table(found)
            made[f"Compiling {job.family}"] = _compile_table(found)
    made["Memory"] = _memory_table(jobs)
    made["Deciding at the stitch"] = _prefix_lines(jobs)
    return made


def _latency_table(found: Mapping[str, Any]) -> list[str]:
    names, rows = found["names"], []
    for label, by_topology in found["samples_ms"].items():
        cells = [
            f"{np.median(by_topology[name]):.3g}" if name in by_topology else "" for name in names
        ]
        rows.append([f"`{label}`", *cells, f"{found['agreement'][label]:.0e}"])
    return [
        "Medians in ms; the last column is the largest difference of a logit to eager in fp32, over "
        "the largest logit.",
        "",
        *table(["candidate", *names, "difference"], rows),
    ]


def _compile_table(found: Mapping[str, Any]) -> list[str]:
    rows = []
    for label, spent in found["compile_s"].items():
        grown = found["grown_mib"].get(label, {})
        rows.append(
            [
                f"`{label}`",
                str(len(spent)) if "all" not in spent else "all",
                f"{sum(spent.values()):.1f}",
                f"{max(spent.values()):.1f}",
                f"{sum(grown.values()):.0f}" if grown else "",
            ]
        )
    columns = ["candidate", "topologies", "compiling, s", "the longest, s", "growth, MiB"]
    return table(columns, rows)


def _memory_table(jobs: Sequence[Job]) -> list[str]:
    rows = []
    for job in jobs:
        for name in job.ways:
            found = read(job, "memory", name)
            if "failed" in found:
                continue
            cells = [f"{found[key]:.1f}" for key in ("union_mib", "grown_mib", "reserved_mib")]
            rows.append(
                [
                    job.family,
                    f"`{name}`",
                    str(found["topologies"]),
                    str(found["segments"]),
                    *cells,
                    f"**{found['grown_mib'] / found['union_mib']:.2f}**",
                    f"{found['apart_mib'] / found['union_mib']:.1f}",
                ]
            )
    columns = ["family", "way", "topologies", "segments", "union, MiB", "growth, MiB"]
    columns += ["PyTorch's allocator, MiB", "growth / union", "a copy each / union"]
    return table(columns, rows)


def _prefix_lines(jobs: Sequence[Job]) -> list[str]:
    rows = []
    gains, prices, quiet = [], [], True
    for job in jobs:
        for name in job.ways:
            found = read(job, "prefix", name)
            if "failed" in found:
                continue
            quiet &= not found["others"] > QUIET
            for topology, each in found["found"].items():
                gains.append(each["gain"])
                prices.append(each["split"])
                rows.append(
                    [
                        job.family,
                        f"`{name}`",
                        topology,
                        f"{each['again']:.3f}",
                        f"{each['split']:.3f}",
                        f"{each['head_ms']:.3g} of {each['total_ms']:.3g}",
                        f"{each['early_ms']:.3g}",
                        f"{each['late_ms']:.3g}",
                        f"{100 * each['gain']:.1f} %",
                        f"{each['correlation']:.2f}",
                    ]
                )
    if not rows:
        return ["Not measured."]
    columns = ["family", "way", "topology", "one call again / one call", "two calls / one call"]
    columns += ["shared part, ms", "p99 - median, whole, ms", "p99 - median, rest, ms"]
    columns += ["margin gained / latency", "correlation"]
    price, gain = float(np.median(prices)) - 1, float(np.median(gains))
    if quiet:
        word = f"deciding at the stitch {'pays' if gain > price else 'does not pay'} here"
    else:
        word = "others had so much of the machine that this says nothing"
    return [
        *table(columns, rows),
        "",
        f"In the median a call in two costs {100 * price:+.1f} %, and the margin that a deadline "
        f"needs shrinks by {100 * gain:.1f} % of the latency: {word}.",
    ]


def reading(jobs: Sequence[Job]) -> list[str]:
    """What the numbers say, noise first."""
    found = {job.family: read(job, "latency") for job in jobs}
    shares = [f["others"] for f in found.values() if f.get("others") is not None]
    lines = []
    if any(s != s for s in shares) or not shares:  # not a number: it could not be told
        lines.append("What other processes had of the machine was not measured.")
    else:
        lines.append(noise(max(shares)))
    every = [figure for job in jobs for figure in figures(job)]
    lines += [f"Eager against itself on {f.family}: {f.value}." for f in every if f.figure == "A/A"]
    met = [f for f in every if f.met]
    short = [f for f in every if f.met is False]
    lines.append(f"Of {len(met) + len(short)} figures with a target {len(met)} meet it.")
    lines += [
        f"Short: {f.figure} of `{f.subject}` on {f.family}: {f.value}, target {f.target}."
        for f in short
    ]
    return lines


def missing(jobs: Sequence[Job], parts: Sequence[str] = PARTS) -> list[str]:
    lines = []
    for job in jobs:
        for part, way in steps(job, parts):
            found = read(job, part, way)
            if "failed" in found and not isinstance(found["failed"], dict):
                lines.append(f"{job.family}, {part} {way}: {found['failed']}")
            elif part == "latency":
                lines += [f"{job.family}, {k}: {why}" for k, why in found["failed"].items()]
    return lines or ["Nothing that was asked for."]


def whole_page(jobs: Sequence[Job], command: str) -> str:
    device = resolve(jobs[0].device)
    sets = "; ".join(
        f"{len(names)} topologies of `{job.family}`: {', '.join(names)}"
        for job in jobs
        for names in [chosen(load_family(job.family), job.topologies)]
    )
    return page(
        "What do compiled, resident, switched topologies cost?",
        f"Batch 1, random weights but for shipped networks; {sets}. Definitions: bench/README.md.",
        reading=reading(jobs),
        machine=f"{device.hardware}, {device.cores} cores, {device.memory_mib} MiB.",
        versions=measuring.versions(PACKAGES),
        command=command,
        sections=sections(jobs),
        missing=missing(jobs),
    )


# --- the command ---------------------------------------------------------------------------------------


def make_job(
    family: str,
    device: Device,
    work: Path,
    *,
    quick: bool = False,
    ways: Sequence[str] = (),
    topologies: int = 12,
    rounds: int = 40,
    switch_rounds: int | None = None,
    monolithic: int | None = None,
) -> Job:
    gpu = device.accelerator == "cuda"
    if monolithic is None and not gpu:
        monolithic = 4
    return Job(
        family=family,
        device=device.name,
        work=str(work),
        ways=tuple(ways or default_ways(device)),
        topologies=4 if quick else topologies,
        rounds=3 if quick else rounds,
        switch_rounds=2 if quick else switch_rounds or (20 if gpu else 5),
        monolithic=1 if quick else monolithic,
        starts=1 if quick else 5,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--families", nargs="+", default=["deit-ti-s-b", "fashion-vit"])
    parser.add_argument("--backends", nargs="+", default=[], metavar="BACKEND:PRECISION")
    parser.add_argument("--precision", help="In place of the device's own, for all backends.")
    parser.add_argument("--topologies", type=int, default=12, help="How many are switched among.")
    parser.add_argument("--rounds", type=int, default=40, help="Samples of each candidate.")
    parser.add_argument("--switch-rounds", type=int)
    parser.add_argument("--monolithic", type=int, help="Topologies that slow compilers compile.")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--limit-s", type=float, default=float("inf"))
    parser.add_argument("--quick", action="store_true", help="The toy family: tries the script.")
    parser.add_argument("--work", type=Path, default=Path("compiled"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job = msgspec.json.decode(options.job, type=Job)
        part = WHOLE.get(options.part) or partial(BY_WAY[options.part], name=options.way)
        print(json.dumps(part(job)))
        return
    device = detect() if options.device == "auto" else resolve(options.device)
    ways = options.backends or default_ways(device)
    if options.quick and not options.backends:  # Inductor takes minutes even for the toy family
        ways = [way for way in ways if not way.startswith("inductor")]
    if options.precision:
        ways = tuple(dict.fromkeys(f"{w.split(':')[0]}:{options.precision}" for w in ways))
    families = ["toy"] if options.quick else options.families
    jobs = [
        make_job(
            family,
            device,
            options.work,
            quick=options.quick,
            ways=ways,
            topologies=options.topologies,
            rounds=options.rounds,
            switch_rounds=options.switch_rounds,
            monolithic=options.monolithic,
        )
        for family in families
    ]
    until = time.monotonic() + options.limit_s
    for job in jobs:
        if left := run(job, options.parts, until):
            print(f"left for the next call: {', '.join(left)}")
    text = whole_page(jobs, _command(options, families))
    out = options.out or result_path("compiled", device.hardware)
    out.write_text(text)
    print(text)
    if any((read(job, "latency").get("others") or 0) > QUIET for job in jobs):
        print("noisy: not to be quoted")


def _command(options: argparse.Namespace, families: Sequence[str]) -> str:
    words = ["python bench/compiled.py", f"--families {' '.join(families)}"]
    words += [f"--topologies {options.topologies}", f"--rounds {options.rounds}"]
    words += [f"--backends {' '.join(options.backends)}"] if options.backends else []
    words += [f"--precision {options.precision}"] if options.precision else []
    words += ["--quick"] * options.quick
    return " ".join(words)


if __name__ == "__main__":
    main()
