"""Which settings of OpenVINO keep the least memory, and what they cost in latency.

Every setting runs in fresh processes that load all topologies of a family in the segments that the
backend has, and then time some of them; settings take turns, the default comes twice. See README.md
for definitions.
"""

import argparse
import ctypes
import gc
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pages import QUIET, noise, observed, page, result_path, table

# Torch is imported where segments are compiled: the processes that are measured have none.

MIB = 2**20
WARM_UP = 3
DEFAULT, AGAIN = "default", "default again"
MADV_DONTNEED = 4  # <sys/mman.h>
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to load and keep compiled models."""

    what: str
    core: dict[str, Any] = field(default_factory=dict)
    """Properties of the core."""
    compiling: dict[str, Any] = field(default_factory=dict)
    """Properties given as models are compiled."""
    weights_path: bool = False
    """Whether each model is told where its weights lie."""
    after: tuple[str, ...] = ()
    """What is done once all has run, of `ACTIONS`."""
    shared: bool = False
    """Whether all topologies pass features on in the same few tensors; else each has its own."""
    precision: str = "f32"

    @property
    def cached(self) -> bool:
        return "CACHE_DIR" in self.core


SETTINGS = {
    DEFAULT: Setting(what="as the backend loads them"),
    AGAIN: Setting(what="the same once more (A/A)"),
    "no mmap": Setting(what="ENABLE_MMAP off", core={"ENABLE_MMAP": False}),
    "unmap": Setting(what="clean pages of weight files advised away", after=("unmap",)),
    "shared tensors": Setting(what="all topologies in the same tensors", shared=True),
    "shared tensors, unmap": Setting(
        what="and clean pages advised away", shared=True, after=("unmap",)
    ),
    "release": Setting(
        what="CompiledModel.release_memory of all, then run again", after=("release",)
    ),
    "release, unmap": Setting(what="both", after=("release", "unmap")),
    "blob, size": Setting(
        what="from cached blobs, CACHE_MODE OPTIMIZE_SIZE",
        core={"CACHE_DIR": "size", "CACHE_MODE": "OPTIMIZE_SIZE"},
    ),
    "blob, speed": Setting(
        what="from cached blobs, CACHE_MODE OPTIMIZE_SPEED",
        core={"CACHE_DIR": "speed", "CACHE_MODE": "OPTIMIZE_SPEED"},
    ),
    "blob, speed, unmap": Setting(
        what="and clean pages of files advised away",
        core={"CACHE_DIR": "speed", "CACHE_MODE": "OPTIMIZE_SPEED"},
        after=("unmap",),
    ),
    "weightless": Setting(
        what="blobs without weights: ENABLE_WEIGHTLESS, WEIGHTS_PATH",
        core={"CACHE_DIR": "weightless"},
        compiling={"ENABLE_WEIGHTLESS": True},
        weights_path=True,
    ),
    "no arena": Setting(what="M_ARENA_MAX 1, M_MMAP_THRESHOLD 64 KiB (mallopt)", after=("trim",)),
    "bf16": Setting(what="INFERENCE_PRECISION_HINT bf16", precision="bf16"),
    "bf16, shared tensors, unmap": Setting(
        what="all three", precision="bf16", shared=True, after=("unmap",)
    ),
}


# --- one process -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process is told; JSON on its command line."""

    folder: str
    """Of compiled segments, with `chains.json`."""
    setting: str
    timed: tuple[str, ...]
    calls: int
    threads: int
    once: bool = False
    """Load and end: fills the cache of blobs, or tells about sharing."""


def worker(job: Job) -> dict[str, Any]:
    """Memory and latencies of one setting; MiB and milliseconds."""
    import openvino

    setting, folder = SETTINGS[job.setting], Path(job.folder)
    if job.setting == "no arena":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-8, 1)  # M_ARENA_MAX, <malloc.h>
        libc.mallopt(-3, 64 * 1024)  # M_MMAP_THRESHOLD
    given = json.loads((folder / "chains.json").read_text())
    chains: dict[str, list[str]] = given["chains"]
    image = np.random.default_rng(0).uniform(-2, 2, given["input_shape"]).astype(np.float32)
    core = openvino.Core()
    for name, value in setting.core.items():
        core.set_property({name: str(folder / value) if name == "CACHE_DIR" else value})
    compiling = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": setting.precision,
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": 1,
        **setting.compiling,
    }
    _warm(core, folder, chains, compiling)
    before, start = _memory(), time.perf_counter()
    models = {}
    for segment in dict.fromkeys(s for chain in chains.values() for s in chain):
        path = folder / f"{segment}.xml"
        own = {"WEIGHTS_PATH": str(path.with_suffix(".bin"))} if setting.weights_path else {}
        models[segment] = core.compile_model(path, "CPU", {**compiling, **own})
    load_s = time.perf_counter() - start
    if job.once:
        return {"load_s": load_s}
    loaded = _grown(before)
    bound = _Shared(models).bound if setting.shared else partial(_bound, models)
    runs = {name: _run(bound(chain)) for name, chain in chains.items()}
    for run in runs.values():
        for _ in range(WARM_UP):
            run(image)
    full = _grown(before, trim=False)
    trimmed = _grown(before)
    for action in setting.after:
        ACTIONS[action](models.values())
    if "release" in setting.after:
        acted = _grown(before)
        for run in runs.values():
            run(image)
    else:
        acted = _grown(before)
    final = _grown(before)
    samples = _time([(name, runs[name]) for name in job.timed], image, job.calls)
    return {
        "load_s": load_s,
        "loaded": loaded,
        "untrimmed": full,
        "ran": trimmed,
        "acted": acted,
        "again": final,
        "kept": _grown(before),
        "samples_ms": samples,
        "requests": sum(map(len, chains.values())),
        "models": len(models),
    }


def _warm(core: Any, folder: Path, chains: dict[str, list[str]], compiling: dict[str, Any]) -> None:
    """Brings the library in, by the smallest model."""
    segments = dict.fromkeys(s for chain in chains.values() for s in chain)
    smallest = min(segments, key=lambda s: ((folder / f"{s}.bin").stat().st_size, s))
    compiled = core.compile_model(core.read_model(folder / f"{smallest}.xml"), "CPU", compiling)
    compiled.create_infer_request().infer()


def _bound(models: dict[str, Any], chain: Sequence[str]) -> list[Any]:
    """Requests of a topology's own, each writing where the next one reads."""
    requests = [models[segment].create_infer_request() for segment in chain]
    for request, following in pairwise(requests):
        following.set_input_tensor(request.get_output_tensor())
    return requests


class _Shared:
    """Requests that all topologies share, over two tensors of each shape that they take turns with.

    Only one topology runs at a time, so what one has written no other needs.
    """

    def __init__(self, models: dict[str, Any]) -> None:
        self._models = models
        self._tensors: dict[tuple[tuple[int, ...], int], Any] = {}
        self._requests: dict[tuple[str, int, int], Any] = {}

    def bound(self, chain: Sequence[str]) -> list[Any]:
        requests = []
        for place, segment in enumerate(chain):
            # An even place reads the first and writes the second, whatever the shapes.
            key = (segment, place % 2, 1 - place % 2)
            if key not in self._requests:
                model = self._models[segment]
                request = model.create_infer_request()
                request.set_input_tensor(self._tensor(model.input(0), key[1]))
                request.set_output_tensor(self._tensor(model.output(0), key[2]))
                self._requests[key] = request
            requests.append(self._requests[key])
        return requests

    def _tensor(self, port: Any, turn: int) -> Any:
        import openvino

        key = (tuple(port.shape), turn)
        if key not in self._tensors:
            self._tensors[key] = openvino.Tensor(openvino.Type.f32, port.shape)
        return self._tensors[key]


def _run(requests: list[Any]) -> Run:
    def run(image: np.ndarray) -> np.ndarray:
        # Asked for at each call: releasing a model's memory may move its tensors.
        np.copyto(requests[0].get_input_tensor().data, image)
        for request in requests:
            request.infer(share_outputs=True)
        logits: np.ndarray = requests[-1].get_output_tensor().data.copy()
        return logits

    return run


def _time(runs: list[tuple[str, Run]], image: np.ndarray, calls: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name, _ in runs}
    order = random.Random(0)
    gc.disable()
    for _ in range(calls):
        order.shuffle(runs)
        for name, run in runs:
            run(image)
            start = time.perf_counter_ns()
            run(image)
            samples[name].append((time.perf_counter_ns() - start) / 1e6)
    gc.enable()
    return samples


def _memory() -> dict[str, float]:
    """MiB that only this process has: all, without clean pages of files, and resident in all."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: float(line.split()[1]) for line in lines}
    return {
        "uss": (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024,
        "anonymous": kib["Anonymous"] / 1024,
        "rss": kib["Rss"] / 1024,
    }


def _grown(before: dict[str, float], *, trim: bool = True) -> dict[str, float]:
    gc.collect()
    if trim:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return {name: value - before[name] for name, value in _memory().items()}


# --- what is done once all has run ---------------------------------------------------------------


def _unmap(models: Iterable[Any]) -> None:
    """Gives back the pages of mapped weight files and blobs; they are read again if touched."""
    libc = ctypes.CDLL("libc.so.6", use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    line = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r--\S* .*\.(?:bin|blob)$")
    for found in map(line.match, Path("/proc/self/maps").read_text().splitlines()):
        if found:
            start, stop = int(found[1], 16), int(found[2], 16)
            if libc.madvise(start, stop - start, MADV_DONTNEED):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _release(models: Iterable[Any]) -> None:
    """Frees the tensors between the layers of each model; the next inference allocates them."""
    for model in models:
        model.release_memory()


ACTIONS: dict[str, Callable[[Iterable[Any]], None]] = {
    "unmap": _unmap,
    "release": _release,
    "trim": lambda models: None,  # every reading trims
}


# --- sharing -------------------------------------------------------------------------------------


def sharing(folder: Path) -> dict[str, float]:
    """MiB that the second and third compilation of one model add, of one core and of two."""
    import openvino

    given = json.loads((folder / "chains.json").read_text())
    segments = dict.fromkeys(s for chain in given["chains"].values() for s in chain)
    largest = max(segments, key=lambda s: ((folder / f"{s}.bin").stat().st_size, s))
    core, options = (
        openvino.Core(),
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"},
    )
    _warm(core, folder, given["chains"], options)
    kept, found = [], {"weights": (folder / f"{largest}.bin").stat().st_size / MIB}
    for number, made in enumerate((core, core, openvino.Core())):
        before = _memory()
        model = made.compile_model(folder / f"{largest}.xml", "CPU", options)
        request = model.create_infer_request()
        request.infer()
        kept += [made, model, request]
        # Not the USS: a file that is mapped twice counts as shared.
        found[("first", "same core", "other core")[number]] = _grown(before)["anonymous"]
    return found


# --- the bench -------------------------------------------------------------------------------------


def compile_family(name: str, topologies: Sequence[str], folder: Path) -> tuple[float, float]:
    """Writes all segments; MiB of the union of the weights, and of a copy for each topology."""
    import torch

    from edgestitch import backends, load_family
    from edgestitch.catalog import shipped_network
    from edgestitch.cut import cut_topologies
    from edgestitch.network import build_network, load_network
    from edgestitch.program import compile_segments

    torch.manual_seed(0)
    shipped = shipped_network(name)
    network = load_network(shipped) if shipped.is_file() else build_network(load_family(name))
    wanted = list(topologies) or [t.name for t in network.family.topologies]
    cut = cut_topologies(network.family, wanted)
    compile_segments(
        network,
        cut,
        backends.backend("openvino"),
        folder,
        done={segment for segment in cut.atoms if (folder / f"{segment}.bin").is_file()},
        progress=lambda what, done, total: print(f"\r{what} {done}/{total}", end="", flush=True),
    )
    print()
    record = {"chains": dict(cut.chains), "input_shape": [1, *network.family.input_shape]}
    (folder / "chains.json").write_text(json.dumps(record))
    atoms = {atom for atoms in cut.atoms.values() for atom in atoms}

    def size(names: Iterable[str]) -> float:
        return sum(p.numel() * 4 for a in names for p in network.atoms[a].parameters()) / MIB

    return size(atoms), sum(size(network.family.atoms(t)) for t in wanted)


def in_fresh_process(job: Job) -> dict[str, Any]:
    text = json.dumps({f: getattr(job, f) for f in job.__dataclass_fields__})
    command = [sys.executable, __file__, "--worker", text]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["it was killed"])[-1]
        return {"failed": re.sub(r"/\S*/", "", last)[:200]}
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def measure(
    settings: Sequence[str], repeats: int, job: Callable[..., Job], record: Path
) -> dict[str, list[dict[str, Any]]]:
    """All settings in turn, in another order each time; what `record` has is not run again."""
    found: dict[str, list[dict[str, Any]]] = (
        json.loads(record.read_text()) if record.is_file() else {}
    )
    for repeat in range(repeats):
        for name in random.Random(repeat).sample(list(settings), len(settings)):
            done = found.setdefault(name, [])
            if len(done) > repeat:
                continue
            setting = SETTINGS[name]
            if setting.cached and not done:
                in_fresh_process(job(setting=name, once=True))  # writes the blobs
            done.append(in_fresh_process(job(setting=name)))
            record.write_text(json.dumps(found))
            last = done[-1]
            grown = last.get("failed") or f"{last['again']['uss']:.0f} MiB"
            print(f"{time.strftime('%H:%M:%S')} {name}: {grown}", flush=True)
    return found


def ratio(name: str, found: dict[str, list[dict[str, Any]]]) -> tuple[float, list[float]] | None:
    """Latency over the default's: geometric mean over topologies, and that of each."""
    ours = [run["samples_ms"] for run in found[name] if "samples_ms" in run]
    base = [run["samples_ms"] for run in found[DEFAULT] if "samples_ms" in run]
    if not ours or not base:
        return None

    def median(runs: list[dict[str, list[float]]], topology: str) -> float:
        return float(np.median([np.median(run[topology]) for run in runs]))

    each = [median(ours, topology) / median(base, topology) for topology in base[0]]
    return float(np.exp(np.mean(np.log(each)))), each


def rows(found: dict[str, list[dict[str, Any]]], union_mib: float) -> list[list[str]]:
    made = []
    for name, runs in found.items():
        good = [run for run in runs if "failed" not in run]
        if not good:
            why = runs[0]["failed"] if runs else "it did not run"
            made.append([f"`{name}`", SETTINGS[name].what, f"not measured: {why}", *[""] * 8])
            continue

        def mib(stage: str, kind: str, good: list[dict[str, Any]] = good) -> float:
            return float(np.median([run[stage][kind] for run in good]))

        latency = ratio(name, found)
        made.append(
            [
                f"`{name}`",
                SETTINGS[name].what,
                f"{mib('loaded', 'uss'):.0f}",
                f"{mib('untrimmed', 'uss'):.0f}",
                f"{mib('ran', 'uss'):.0f}",
                f"{mib('acted', 'uss'):.0f}",
                f"{mib('kept', 'uss'):.0f}",
                f"**{mib('kept', 'uss') / union_mib:.2f}**",
                f"{mib('kept', 'anonymous') / union_mib:.2f}",
                f"{np.median([run['load_s'] for run in good]):.1f}",
                f"{latency[0]:.3f} ({min(latency[1]):.3f} to {max(latency[1]):.3f})"
                if latency
                else "",
            ]
        )
    return made


COLUMNS = (
    "setting",
    "what",
    "loaded",
    "run, untrimmed",
    "run",
    "acted",
    "kept",
    "kept / union",
    "anonymous / union",
    "load, s",
    "latency / default",
)


def reading(found: dict[str, list[dict[str, Any]]], union_mib: float, others: float) -> list[str]:
    """The paragraph made from the numbers."""
    lines = [noise(others)]
    again = ratio(AGAIN, found) if AGAIN in found else None
    if again:
        lines.append(f"The default against itself gives a latency of {again[0]:.3f}.")
    cheap = {}
    for name, runs in found.items():
        latency = ratio(name, found)
        good = [run for run in runs if "failed" not in run]
        if latency and latency[0] <= 1.02 and SETTINGS[name].precision == "f32":
            cheap[name] = float(np.median([run["kept"]["uss"] for run in good])) / union_mib
    if cheap:
        best = min(cheap, key=cheap.__getitem__)
        lines.append(
            f"Least memory at a latency of at most 1.02 of the default's, in fp32: `{best}`, "
            f"{cheap[best]:.2f} copies of the union"
            + (f" where the default has {cheap[DEFAULT]:.2f}." if DEFAULT in cheap else ".")
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--family", default="deit-ti-s-b")
    parser.add_argument("--topologies", nargs="*", default=[], help="All of the family without.")
    parser.add_argument("--timed", nargs="*", help="Those that are timed; without, four of them.")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=3, help="Processes of each setting.")
    parser.add_argument("--calls", type=int, default=15, help="Samples of each topology in each.")
    parser.add_argument("--quick", action="store_true", help="The toy family: tries the script.")
    parser.add_argument("--work", type=Path, default=Path("openvino-memory"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--sharing", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(Job(**json.loads(options.worker)))))
        return
    if options.sharing:
        print(json.dumps(sharing(Path(options.sharing))))
        return
    if options.quick:
        options.family, options.repeats, options.calls = "toy", 1, 3
    _bench(options)


def _bench(options: argparse.Namespace) -> None:
    from edgestitch import __version__, backends
    from edgestitch.device import resolve

    device = resolve("cpu")
    folder = options.work / options.family
    union_mib, apart_mib = compile_family(options.family, options.topologies, folder)
    names = list(json.loads((folder / "chains.json").read_text())["chains"])
    timed = tuple(options.timed or names[:: max(1, len(names) // 4)][:4])
    asked = {DEFAULT, AGAIN, *options.settings}
    settings = [name for name in SETTINGS if name in asked]
    job = partial(Job, folder=str(folder), timed=timed, calls=options.calls, threads=device.cores)
    with observed() as span:
        found = measure(settings, options.repeats, job, folder / "found.json")
    command = [sys.executable, __file__, "--sharing", str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    twice = json.loads(told.splitlines()[-1])
    given = f"python bench/openvino_memory.py --family {options.family} --repeats {options.repeats}"
    text = page(
        "Which settings of OpenVINO keep the least memory?",
        f"All {len(names)} topologies of `{options.family}`, batch 1. "
        "Definitions: bench/README.md.",
        reading=reading(found, union_mib, span.others),
        machine=f"{device.hardware}, {device.memory_mib} MiB.",
        versions={
            "edgestitch": __version__,
            "openvino": backends.backend("openvino").version(),
            "numpy": np.__version__,
        },
        command=f"{given} --calls {options.calls}",
        sections={
            "Memory": [
                f"Growth of the process in MiB; the union of the weights is {union_mib:.1f} MiB, a "
                f"copy for each topology {apart_mib / union_mib:.1f} times that. Timed: "
                f"{', '.join(timed)}.",
                "",
                *table(COLUMNS, rows(found, union_mib)),
            ],
            "One model compiled again": [
                f"The largest segment has {twice['weights']:.1f} MiB of weights. Compiled and run, it "
                f"takes {twice['first']:.1f} MiB of anonymous memory, beside the mapped file; again in "
                f"the same core {twice['same core']:.1f} MiB more, in another core "
                f"{twice['other core']:.1f} MiB more.",
            ],
        },
        missing=["Other operating systems than Linux."],
    )
    out = options.out or result_path("openvino_memory", device.hardware)
    out.write_text(text)
    print(text)
    if span.others > QUIET:
        print("noisy: not to be quoted")


if __name__ == "__main__":
    main()
