"""Measures which compiled backend edgestitch should use on a CPU: latency, agreement, memory, compile time.

Every candidate runs the same topologies of the Ti->S half of `deit-ti-s-b` with the same random
weights, one image at a time. How each figure is defined: bench/README.md.

    build what is not cached | load all, check against eager | time, interleaved | memory, a process each
"""

import argparse
import datetime
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import platformdirs
import psutil
from measuring import MIB, Memory, Ratio, interleaved, ratio, say, short
from pages import QUIET, Span, observed

from edgestitch.cut import divide, segment_name
from edgestitch.family import Family
from edgestitch.recipe import load_family

if TYPE_CHECKING:
    from edgestitch.network import StitchNetwork

# Torch, OpenVINO and ONNX Runtime are imported where they are used: the memory of a candidate is
# measured in a process that has nothing but that candidate in it.

FAMILY = "deit-ti-s-b"
ANCHORS = ("ti", "s")
TOPOLOGIES = ("ti:0:12", "ti:0:9+s:9:12", "ti:0:6+s:6:12", "ti:0:3+s:3:12", "s:0:12")
SEED = 0
TOUCHES = 20
"""Inferences of every topology before memory is read: what is used is then resident."""

Chain = tuple[str, ...]
Parts = dict[str, tuple[Chain, ...]]
"""For every topology the chains of atoms that are compiled as one model each."""
STEM: Parts = {"stem": (("ti:stem",),)}
"""The smallest model that takes an image; run before memory is counted, to bring in the library."""
Run = Callable[[np.ndarray], np.ndarray]
"""One image [1, C, H, W] in host memory to logits [classes] in host memory."""


@dataclass(frozen=True)
class Job:
    """What is measured; travels to the processes that build and that measure memory."""

    topologies: tuple[str, ...]
    threads: int
    work: Path

    @property
    def weights(self) -> Path:
        return self.work / f"weights-{family().digest[:12]}-{SEED}.safetensors"

    def chains(self) -> dict[str, Chain]:
        return {name: family().atoms(name) for name in self.topologies}


@dataclass
class Loaded:
    """A candidate that is ready to run."""

    runs: dict[str, Run] = field(default_factory=dict)
    load_s: dict[Chain, float] = field(default_factory=dict)
    sources: list[Any] = field(default_factory=list)
    """What was needed to load and is not needed to run."""
    alive: Any = None
    """What the runs need and do not hold themselves."""


# --- the networks ----------------------------------------------------------------------------


def family() -> Family:
    """The Ti->S half of the shipped family."""
    whole = load_family(FAMILY)
    anchors = tuple(anchor for anchor in whole.anchors if anchor.name in ANCHORS)
    return msgspec.structs.replace(whole, anchors=anchors)


def image(seed: int = SEED) -> np.ndarray:
    shape = (1, *family().input_shape)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def write_weights(job: Job) -> None:
    import torch
    from safetensors.torch import save_file

    from edgestitch.network import build_network

    torch.manual_seed(SEED)
    job.work.mkdir(parents=True, exist_ok=True)
    temporary = job.weights.with_suffix(f".{os.getpid()}.tmp")
    save_file(build_network(family()).state_dict(), temporary)
    temporary.replace(job.weights)


def atoms(parts: Parts) -> set[str]:
    return {atom for chains in parts.values() for chain in chains for atom in chain}


def load_tensors(job: Job, wanted: set[str]) -> dict[str, Any]:
    """The tensors of the wanted atoms, in memory of their own (no mapped file behind)."""
    from safetensors import safe_open

    with safe_open(job.weights, framework="pt") as file:
        names = [name for name in file.keys() if name.split(".")[1] in wanted]  # noqa: SIM118
        # By the names that they have in an assembled network.
        return {name.removeprefix("atoms."): file.get_tensor(name).clone() for name in names}


def load_weighted(job: Job, wanted: set[str]) -> "StitchNetwork":
    """The network over the weights on disk; other atoms than the wanted ones stay empty."""
    import torch

    from edgestitch.network import build_network

    torch.set_num_threads(job.threads)  # compiled into what Inductor builds
    with torch.device("meta"):
        network = build_network(family())
    tensors = {f"atoms.{name}": tensor for name, tensor in load_tensors(job, wanted).items()}
    network.load_state_dict(tensors, strict=False, assign=True)
    return network.requires_grad_(False).eval()


# --- artefacts: built once, kept in the work folder ------------------------------------------


@dataclass(frozen=True)
class Kind:
    """How a chain of atoms becomes a file."""

    folder: str
    suffix: str
    packages: tuple[str, ...]
    convert: Callable[[Any, Any, Path], None]
    """Module, example of its input, file to write."""
    tied: bool = False
    """Whether the file holds code for this CPU and this number of threads."""

    def home(self, job: Job) -> Path:
        versions = [package_version(package) for package in self.packages]
        tie = [cpu_slug(), f"{job.threads}-threads"] if self.tied else []
        return job.work / "-".join([self.folder, *versions, *tie, family().digest[:12]])

    def path(self, job: Job, chain: Chain) -> Path:
        return self.home(job) / f"{segment_name(chain)}{self.suffix}"

    def record(self, job: Job, chain: Chain) -> Path:
        """Written last: an artefact without it was interrupted."""
        return self.home(job) / f"{segment_name(chain)}.json"


def convert_openvino(module: Any, example: Any, path: Path) -> None:
    import openvino as ov

    model = ov.convert_model(module, example_input=example)
    model.reshape(list(example.shape))
    ov.save_model(model, path, compress_to_fp16=False)


def convert_inductor(module: Any, example: Any, path: Path) -> None:
    import torch

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(path.parent / "compiler-cache")
    exported = torch.export.export(module, (example,))
    torch._inductor.aoti_compile_and_package(
        exported,
        package_path=str(path),
        # In this process, so that its time counts as ours and not as another process's.
        inductor_configs={"aot_inductor.package_constants_in_so": False, "compile_threads": 1},
    )


def convert_onnx(module: Any, example: Any, path: Path) -> None:
    import torch

    torch.onnx.export(module, (example,), path, dynamo=True, verbose=False)


OPENVINO = Kind("openvino", ".xml", ("openvino", "torch"), convert_openvino)
INDUCTOR = Kind("inductor", ".pt2", ("torch",), convert_inductor, tied=True)
ONNX = Kind("onnx", ".onnx", ("onnx", "onnxscript", "torch"), convert_onnx)


def build(job: Job, kind: Kind, parts: Parts) -> None:
    """Converts what is not there yet; each artefact's record keeps what it took."""
    import torch

    warnings.simplefilter("ignore")  # of tracers and exporters about their own future
    kind.home(job).mkdir(parents=True, exist_ok=True)
    network = load_weighted(job, atoms(parts))
    with torch.no_grad():
        for chains in parts.values():
            tokens = torch.from_numpy(image())
            for chain in chains:
                module = network.chain(chain).eval()
                if not kind.record(job, chain).is_file():
                    build_one(job, kind, chain, module, tokens)
                tokens = module(tokens)


def build_one(job: Job, kind: Kind, chain: Chain, module: Any, example: Any) -> None:
    with observed() as span:
        kind.convert(module, example, kind.path(job, chain))
    kind.record(job, chain).write_text(
        json.dumps({"duration_s": span.duration_s, "others": span.others})
    )
    say(f"  {kind.folder} {segment_name(chain)}: {span.duration_s:.1f} s")


# --- candidates ------------------------------------------------------------------------------


def whole(chains: Sequence[Chain]) -> dict[Chain, tuple[Chain, ...]]:
    return {chain: (chain,) for chain in chains}


def per_atom(chains: Sequence[Chain]) -> dict[Chain, tuple[Chain, ...]]:
    return {chain: tuple((atom,) for atom in chain) for chain in chains}


@dataclass(frozen=True)
class Candidate:
    """One way to run all topologies."""

    what: str
    load: Callable[..., Loaded]
    kind: Kind | None = None
    cut: Callable[[Sequence[Chain]], dict[Chain, tuple[Chain, ...]]] = whole
    setup: Callable[[Job], None] = lambda job: None
    """Imports; refuses by an error where the candidate cannot run here."""
    memory: tuple[dict[str, Any], ...] = ({},)
    """Options of `load` under which memory is measured."""

    def parts(self, job: Job) -> Parts:
        chains = job.chains()
        by_chain = self.cut(list(chains.values()))
        return {name: by_chain[chain] for name, chain in chains.items()}

    def missing(self, job: Job) -> set[Chain]:
        """Chains that are not built yet."""
        if self.kind is None:
            return set()
        parts = {**self.parts(job), **STEM}
        wanted = {chain for chains in parts.values() for chain in chains}
        return {chain for chain in wanted if not self.kind.record(job, chain).is_file()}


def setup_torch(job: Job) -> None:
    import torch

    from edgestitch import network  # noqa: F401

    torch.set_num_threads(job.threads)


def load_eager(job: Job, parts: Parts) -> Loaded:
    import torch

    loaded, network = Loaded(), load_weighted(job, atoms(parts))

    def run(module: Any, pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(pixels)).numpy()[0]

    for topology, (chain,) in parts.items():
        loaded.runs[topology] = partial(run, network.chain(chain))
    return loaded


def load_inductor(job: Job, parts: Parts) -> Loaded:
    import torch

    tensors = load_tensors(job, atoms(parts))
    loaded = Loaded(alive=tensors)  # user-managed constants: a package holds their addresses only

    def run(model: Any, pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels)).numpy()[0]

    for topology, (chain,) in parts.items():
        with observed() as span:
            model = torch._inductor.aoti_load_package(str(INDUCTOR.path(job, chain)))
            constants = {name: tensors[name] for name in model.get_constant_fqns()}
            model.load_constants(constants, check_full_update=True, user_managed=True)
        loaded.load_s[chain] = span.duration_s
        loaded.runs[topology] = partial(run, model)
    return loaded


def setup_openvino(job: Job, *, precision: str) -> None:
    import openvino as ov

    offered = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in offered:
        raise RuntimeError(f"the CPU plugin offers no BF16 here, only {', '.join(offered)}")


def load_openvino(job: Job, parts: Parts, *, precision: str, mmap: bool = True) -> Loaded:
    import openvino as ov

    core = ov.Core()
    core.set_property({"ENABLE_MMAP": mmap})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": 1,
    }
    loaded, compiled = Loaded(), {}
    for chain in dict.fromkeys(chain for chains in parts.values() for chain in chains):
        with observed() as span:
            model = core.read_model(OPENVINO.path(job, chain))
            compiled[chain] = core.compile_model(model, "CPU", settings)
        loaded.load_s[chain] = span.duration_s
        loaded.sources.append(model)
    loaded.sources.append(core)
    for topology, chains in parts.items():
        requests = [compiled[chain].create_infer_request() for chain in chains]
        loaded.runs[topology] = bind(requests)
    return loaded


def bind(requests: Sequence[Any]) -> Run:
    """One run of compiled models in a row; each writes where the next one reads."""
    for front, back in pairwise(requests):
        back.set_input_tensor(front.get_output_tensor())
    pixels_in, logits_out = requests[0].get_input_tensor(), requests[-1].get_output_tensor()

    def run(pixels: np.ndarray) -> np.ndarray:
        np.copyto(pixels_in.data, pixels)
        for request in requests:
            request.infer(share_outputs=True)
        return logits_out.data[0].copy()

    return run


def setup_onnx(job: Job) -> None:
    import onnxruntime  # noqa: F401


def load_onnx(job: Job, parts: Parts) -> Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    # Its threads would otherwise spin on into the next candidate's sample.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    loaded = Loaded()

    def run(session: Any, entry: str, pixels: np.ndarray) -> np.ndarray:
        return session.run(None, {entry: pixels})[0][0]

    for topology, (chain,) in parts.items():
        with observed() as span:
            path = str(ONNX.path(job, chain))
            session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        loaded.load_s[chain] = span.duration_s
        loaded.runs[topology] = partial(run, session, session.get_inputs()[0].name)
    return loaded


def openvino(what: str, precision: str, how: Callable[..., Any] = whole) -> Candidate:
    return Candidate(
        what=f"OpenVINO {precision}, {what}",
        setup=partial(setup_openvino, precision=precision),
        load=partial(load_openvino, precision=precision),
        kind=OPENVINO,
        cut=how,
        memory=({"mmap": True}, {"mmap": False}),
    )


CANDIDATES = {
    "eager": Candidate("PyTorch as it is", load_eager, setup=setup_torch),
    "eager-again": Candidate("the same once more (A/A)", load_eager, setup=setup_torch, memory=()),
    "openvino-f32": openvino("one model a topology", "f32"),
    "openvino-f32-segments": openvino("segments in a chain", "f32", divide),
    "openvino-f32-blocks": openvino("every block a model (worst case)", "f32", per_atom),
    "openvino-bf16": openvino("one model a topology", "bf16"),
    "openvino-bf16-segments": openvino("segments in a chain", "bf16", divide),
    "inductor": Candidate(
        "AOTInductor, one package a topology, one set of tensors",
        load_inductor,
        kind=INDUCTOR,
        setup=setup_torch,
    ),
    "onnxruntime": Candidate(
        "ONNX Runtime, one session a topology", load_onnx, kind=ONNX, setup=setup_onnx
    ),
}
REFERENCE, AGAIN = "eager", "eager-again"


# --- latency and agreement -------------------------------------------------------------------


def load_candidates(job: Job, names: Sequence[str], failed: dict[str, str]) -> dict[str, Loaded]:
    """Every candidate that loads and runs; the reason of each of the others goes into `failed`."""
    ready = {}
    for name in names:
        if name in failed:
            continue
        say(f"load {name}")
        try:
            CANDIDATES[name].setup(job)
            loaded = CANDIDATES[name].load(job, CANDIDATES[name].parts(job))
            for run in loaded.runs.values():
                run(image())
        except Exception as error:
            failed[name] = short(error)
        else:
            ready[name] = loaded
    return ready


def disagreement(ready: dict[str, Loaded], job: Job) -> dict[str, list[float]]:
    """Largest difference of a logit to eager over the largest logit, for every topology.

    The worst of four images.
    """
    images = [image(seed) for seed in range(4)]
    worst: dict[str, list[float]] = {name: [] for name in ready}
    for topology in job.topologies:
        expected = np.stack([ready[REFERENCE].runs[topology](pixels) for pixels in images])
        largest = np.abs(expected).max(axis=1)
        for name, loaded in ready.items():
            found = np.stack([loaded.runs[topology](pixels) for pixels in images])
            worst[name].append(float((np.abs(found - expected).max(axis=1) / largest).max()))
    return worst


def time_interleaved(ready: dict[str, Loaded], job: Job, rounds: int) -> dict[str, np.ndarray]:
    """Latencies in ms, [topologies, rounds] of each candidate."""
    pixels, start = image(), time.perf_counter()
    calls = {
        (name, topology): partial(loaded.runs[topology], pixels)
        for name, loaded in ready.items()
        for topology in job.topologies
    }

    def progress(number: int) -> None:
        if number % max(1, rounds // 10) == 0:
            left_s = (time.perf_counter() - start) / (number + 1) * (rounds - number - 1)
            say(f"  round {number + 1} of {rounds}, {left_s:.0f} s left")

    samples = interleaved(calls, rounds, seed=SEED, progress=progress)
    return {
        name: np.array([samples[name, topology] for topology in job.topologies]) for name in ready
    }


# --- memory: a process for each candidate -----------------------------------------------------


@dataclass(frozen=True)
class Growth:
    """Growth of a process since it had its library loaded and `STEM` run."""

    kept: Memory
    """With everything alive that loading used."""
    dropped: Memory
    """After references to what only loading needed are gone."""
    total: Memory
    """The whole process in the end, the libraries included."""


def grow(job: Job, name: str, options: dict[str, Any]) -> Growth:
    """Runs in a fresh process."""
    candidate, pixels = CANDIDATES[name], image()
    candidate.setup(job)
    first = candidate.load(job, STEM, **options)
    first.runs["stem"](pixels)
    before = Memory.now()
    loaded = candidate.load(job, candidate.parts(job), **options)
    for run in loaded.runs.values():
        for _ in range(TOUCHES):
            run(pixels)
    kept = Memory.now()
    loaded.sources.clear()
    dropped = Memory.now()
    return Growth(kept - before, dropped - before, dropped)


def lower_bound(job: Job) -> int:
    """Bytes of the union of the weights of all measured topologies."""
    wanted = {atom for chain in job.chains().values() for atom in chain}
    return sum(tensor.nbytes for tensor in load_tensors(job, wanted).values())


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# --- the machine -----------------------------------------------------------------------------


def cpu_field(names: str) -> str | None:
    """What /proc/cpuinfo says under one of the names, separated by `|`; None on other systems."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    match = re.search(rf"^(?:{names})\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def cpu_model() -> str:
    return cpu_field("model name") or platform.processor() or platform.machine()


def cpu_slug() -> str:
    name = re.sub(r"\((r|tm)\)|@.*|\bcpu\b", " ", cpu_model().lower())
    return "-".join([*re.findall(r"[a-z0-9]+", name), f"{os.cpu_count()}core"])


def cpu_extensions() -> str:
    """The instruction sets that decide which kernels a backend picks."""
    present = (cpu_field("flags|Features") or "").split()
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")
    arm = ("asimd", "asimddp", "sve", "bf16", "i8mm")
    return ", ".join(flag for flag in known + arm if flag in present) or "extensions not known"


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def versions() -> dict[str, str]:
    packages = "edgestitch torch timm openvino onnxruntime onnx onnxscript numpy"
    found = {package: package_version(package) for package in packages.split()}
    with suppress(OSError, subprocess.SubprocessError):
        command = ["g++", "-dumpfullversion"]
        found["g++"] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return {"Python": platform.python_version(), **found, "Linux": platform.release()}


# --- the result ------------------------------------------------------------------------------


@dataclass
class Result:
    """Everything that the page says."""

    job: Job
    names: tuple[str, ...]
    rounds: int
    command: str
    failed: dict[str, str] = field(default_factory=dict)
    samples: dict[str, np.ndarray] = field(default_factory=dict)
    disagreement: dict[str, list[float]] = field(default_factory=dict)
    load_s: dict[str, dict[Chain, float]] = field(default_factory=dict)
    memory: dict[str, Growth | str] = field(default_factory=dict)
    bound: int = 0
    others: float = 0.0

    @property
    def timed(self) -> list[str]:
        return list(self.samples)

    def against_eager(self, name: str) -> Ratio:
        return ratio(self.samples[name], self.samples[REFERENCE])

    def built(self, name: str) -> dict[Chain, Span]:
        kind, parts = CANDIDATES[name].kind, CANDIDATES[name].parts(self.job)
        chains = {chain for chains in parts.values() for chain in chains}
        if kind is None:
            return {}
        return {
            chain: Span(**json.loads(kind.record(self.job, chain).read_text())) for chain in chains
        }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latency_tables(result: Result) -> str:
    topologies = result.job.topologies
    milliseconds, ratios = [], []
    for name in result.names:
        if name in result.failed:
            row = [f"`{name}`", f"not measured: {result.failed[name]}"]
            milliseconds.append(row + [""] * len(topologies))
            continue
        samples = result.samples[name]
        medians = [f"{np.median(row):.2f}" for row in samples]
        milliseconds.append([f"`{name}`", CANDIDATES[name].what, *medians])
        if name != REFERENCE:
            each = zip(samples, result.samples[REFERENCE], strict=True)
            cells = [str(ratio(ours, theirs)) for ours, theirs in each]
            ratios.append([f"`{name}`", *cells, str(result.against_eager(name))])
    return "\n\n".join(
        [
            f"Median latency in ms over {result.rounds} rounds.",
            table(["candidate", "what", *topologies], milliseconds),
            "Ratio of medians to `eager`, with its 95 % interval; below 1 is faster.",
            table(["candidate", *topologies, "geometric mean"], ratios),
        ]
    )


def agreement_table(result: Result) -> str:
    rows = [
        [f"`{name}`", *(f"{value:.1e}" for value in result.disagreement[name])]
        for name in result.timed
        if name != REFERENCE
    ]
    return table(["candidate", *result.job.topologies], rows)


def compile_table(result: Result) -> str:
    rows = []
    for name in result.timed:
        built = {chain: span.duration_s for chain, span in result.built(name).items()}
        if built:
            rows.append([f"`{name}`", "build", *_seconds(result, name, built)])
            rows.append([f"`{name}`", "load", *_seconds(result, name, result.load_s[name])])
    return table(["candidate", "step", *result.job.topologies, "all", "models"], rows)


def _seconds(result: Result, name: str, spent_s: dict[Chain, float]) -> list[str]:
    parts = CANDIDATES[name].parts(result.job)
    alone = [sum(spent_s[chain] for chain in chains) for chains in parts.values()]
    return [*(f"{s:.2f}" for s in [*alone, sum(spent_s.values())]), str(len(spent_s))]


def memory_table(result: Result) -> str:
    head = ["candidate", "USS, sources kept", "USS", "USS over bound", "USS / bound", "RSS"]
    head += ["anonymous", "anonymous / bound", "USS of the process"]
    rows = []
    for label, growth in result.memory.items():
        if isinstance(growth, str):
            rows.append([f"`{label}`", f"not measured: {growth}", *[""] * (len(head) - 2)])
            continue
        uss, anonymous = growth.dropped.uss, growth.dropped.anonymous
        cells = [_mib(growth.kept.uss), _mib(uss), _mib(uss - result.bound)]
        cells += [f"{uss / result.bound:.2f}", _mib(growth.dropped.rss)]
        cells += [_mib(anonymous), f"{anonymous / result.bound:.2f}", _mib(growth.total.uss)]
        rows.append([f"`{label}`", *cells])
    return table(head, rows)


def _mib(size: int) -> str:
    return f"{size / MIB:.0f}"


def reading(result: Result) -> str:
    """One paragraph; a sentence a line."""
    parts = (_noise, _fastest, _borders, _sharing, _builds)
    return "\n".join(sentence for part in parts for sentence in part(result))


def _noise(result: Result) -> Iterator[str]:
    if result.others > QUIET:
        yield (
            "**Noisy, not to be quoted**: other processes had "
            f"{result.others:.0%} of the machine while latencies were taken."
        )
    else:
        yield f"Other processes had {result.others:.1%} of the machine while latencies were taken."
    if AGAIN in result.samples:
        again = result.against_eager(AGAIN)
        widest = max(
            abs(math.log(ratio(ours, theirs).value))
            for ours, theirs in zip(result.samples[AGAIN], result.samples[REFERENCE], strict=True)
        )
        yield (
            f"Eager against itself gives {again} (of one topology at worst {math.exp(widest):.2f}): "
            "a difference smaller than that is none."
        )


def _fastest(result: Result) -> Iterator[str]:
    rivals = [name for name in result.timed if name not in (REFERENCE, AGAIN)]
    ranked = sorted(rivals, key=lambda name: result.against_eager(name).value)
    if not ranked:
        return
    first, exact = ranked[0], [name for name in ranked if "bf16" not in name]
    yield f"Fastest is `{first}`, at {result.against_eager(first)} of eager's latency."
    if exact and exact[0] != first:
        yield (
            f"In single precision it is `{exact[0]}`, at {result.against_eager(exact[0])}; `{first}` "
            f"pays for its lead with a difference to eager of {max(result.disagreement[first]):.1e}."
        )
    rest = [
        f"`{name}` {result.against_eager(name)}"
        for name in ranked
        if name not in (first, *exact[:1])
    ]
    if rest:
        yield f"The others: {', '.join(rest)}."


def _borders(result: Result) -> Iterator[str]:
    for name in ("openvino-f32-segments", "openvino-f32-blocks", "openvino-bf16-segments"):
        single = name.rsplit("-", 1)[0]
        if {name, single} <= set(result.timed):
            price = ratio(result.samples[name], result.samples[single])
            yield f"`{name}` takes {price} times `{single}`: {price.verdict}."


def _sharing(result: Result) -> Iterator[str]:
    grown = {label: g for label, g in result.memory.items() if isinstance(g, Growth)}
    if not grown:
        return
    share = {label: growth.dropped.uss / result.bound for label, growth in grown.items()}
    ranked = sorted(share, key=lambda label: share[label])
    near = [f"`{label}` {share[label]:.2f}" for label in ranked if share[label] <= 1.25]
    far = [f"`{label}` {share[label]:.2f}" for label in ranked if share[label] > 1.25]
    yield f"The union of the weights is {_mib(result.bound)} MiB in single precision; memory over it:"
    yield f"{', '.join(near) or 'none'} (at the union); {', '.join(far) or 'none'} (above)."
    freed = max(growth.kept.uss - growth.dropped.uss for growth in grown.values())
    yield f"Letting go of what only loading needed frees at most {_mib(freed)} MiB."
    mapped = [label for label in ranked if label.endswith(", mmap")]
    if mapped:
        shares = (f"`{k}` {grown[k].dropped.anonymous / result.bound:.2f}" for k in mapped)
        yield f"Without the clean pages of mapped files, which the kernel can take: {', '.join(shares)}."


def _builds(result: Result) -> Iterator[str]:
    disturbed = [
        f"`{name}`"
        for name in result.timed
        if any(span.others > QUIET for span in result.built(name).values())
    ]
    if disturbed:
        yield (
            f"The build times of {', '.join(disturbed)} were taken while other processes ran: "
            "they are upper bounds (`--rebuild` takes them again)."
        )


def page(result: Result) -> str:
    memory_gib = psutil.virtual_memory().total / 2**30
    skipped = [f"- `{name}`: {why}" for name, why in result.failed.items()]
    sections = {
        "Reading": reading(result),
        "Machine": f"{cpu_model()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB of memory; "
        f"{cpu_extensions()}; {result.job.threads} threads for every candidate.",
        "Versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "Command": f"    {result.command}",
        "Latency": latency_tables(result),
        "Agreement": "Largest difference of a logit to `eager` over the largest logit.\n\n"
        + agreement_table(result),
        "Compile time": "Seconds. `build` is done once, `load` at every start; a topology's column "
        "counts all of its models, `all` counts each model once.\n\n" + compile_table(result),
        "Memory": f"MiB, all topologies of a candidate loaded and run {TOUCHES} times. The bound, one "
        f"copy of the union of the weights in single precision, is {result.bound / MIB:.1f} MiB.\n\n"
        + memory_table(result),
        "Not measured": "\n".join(skipped) or "Nothing that was asked for.",
    }
    date = datetime.date.today().isoformat()
    head = (
        f"# Which compiled backend on a CPU\n\n{date}. Ti->S half of `{FAMILY}`, random weights, "
        f"batch 1, {' x '.join(map(str, family().input_shape[1:]))}. Definitions: bench/README.md."
    )
    return "\n\n".join([head, *(f"## {name}\n\n{text}" for name, text in sections.items())]) + "\n"


# --- the command -----------------------------------------------------------------------------


def build_all(result: Result, rebuild: bool) -> None:
    job, kinds = result.job, {CANDIDATES[name].kind for name in result.names}
    if not job.weights.is_file():
        say("weights")
        in_fresh_process(write_weights, job)
    for kind in kinds if rebuild else ():
        if kind is not None:
            shutil.rmtree(kind.home(job), ignore_errors=True)
    for name in result.names:
        if not CANDIDATES[name].missing(job):
            continue
        say(f"build {name}")
        try:
            in_fresh_process(build_candidate, job, name)
        except Exception as error:
            result.failed[name] = short(error)
            say(f"  failed: {result.failed[name]}")


def build_candidate(job: Job, name: str) -> None:
    """Runs in a fresh process."""
    candidate = CANDIDATES[name]
    assert candidate.kind is not None
    candidate.setup(job)
    build(job, candidate.kind, {**candidate.parts(job), **STEM})


def measure_latency(result: Result) -> None:
    ready = load_candidates(result.job, result.names, result.failed)
    if REFERENCE not in ready:
        sys.exit(f"nothing to compare with: {REFERENCE} failed: {result.failed[REFERENCE]}")
    result.load_s = {name: loaded.load_s for name, loaded in ready.items()}
    say("compare with eager")
    result.disagreement = disagreement(ready, result.job)
    say(f"time {len(ready)} candidates, {len(result.job.topologies)} topologies")
    with observed() as span:
        result.samples = time_interleaved(ready, result.job, result.rounds)
    result.others = span.others


def measure_memory(result: Result) -> None:
    result.bound = lower_bound(result.job)
    for name in result.names:
        for options in () if name in result.failed else CANDIDATES[name].memory:
            words = [option if on else f"no {option}" for option, on in options.items()]
            label = ", ".join([name, *words])
            say(f"memory {label}")
            try:
                result.memory[label] = in_fresh_process(grow, result.job, name, options)
            except Exception as error:
                result.memory[label] = short(error)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=positive, default=100, help="samples of each pair")
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES, metavar="NAME")
    parser.add_argument(
        "--candidates",
        nargs="+",
        default=tuple(CANDIDATES),
        choices=CANDIDATES,
        metavar="NAME",
        help=f"of {', '.join(CANDIDATES)}; eager and eager-again always run",
    )
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1)
    parser.add_argument("--rebuild", action="store_true", help="build cached artefacts again")
    parser.add_argument(
        "--work",
        type=Path,
        default=platformdirs.user_cache_path("edgestitch") / "bench-cpu-backends",
        help="folder of cached artefacts",
    )
    parser.add_argument("--out", type=Path, default=default_out(), help="markdown file to write")
    arguments = parser.parse_args()
    try:
        Job(tuple(arguments.topologies), arguments.threads, arguments.work).chains()
    except ValueError as error:
        parser.error(str(error))
    return arguments


def default_out() -> Path:
    month = datetime.date.today().strftime("%Y%m")
    return Path(__file__).parent / "results" / f"cpu_backends_{cpu_slug()}_{month}.md"


def command(arguments: argparse.Namespace) -> str:
    """The command that gives this result on another machine: what names a folder is left out."""
    words = [f"python bench/cpu_backends.py --rounds {arguments.rounds}"]
    words.append(f"--threads {arguments.threads}")
    if tuple(arguments.topologies) != TOPOLOGIES:
        words.append(f"--topologies {' '.join(arguments.topologies)}")
    if tuple(arguments.candidates) != tuple(CANDIDATES):
        words.append(f"--candidates {' '.join(arguments.candidates)}")
    return " ".join(words + ["--rebuild"] * arguments.rebuild)


def main() -> int:
    arguments = parse()
    asked = {REFERENCE, AGAIN, *arguments.candidates}
    result = Result(
        job=Job(tuple(arguments.topologies), arguments.threads, arguments.work),
        names=tuple(name for name in CANDIDATES if name in asked),
        rounds=arguments.rounds,
        command=command(arguments),
    )
    build_all(result, arguments.rebuild)
    measure_memory(result)
    measure_latency(result)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page(result))
    say(f"wrote {arguments.out.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
