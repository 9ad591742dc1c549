"""What edgestitch costs beside what one would use instead, in one interleaved run.

Latency against eager timm, `torch.compile`, ONNX Runtime and one engine a topology; switching against
separate engines, reloading from disk and restarting the process; and the memory of each of them. Each
part runs in a process of its own and is written as soon as it is done, so a run that was stopped goes
on where it was. See README.md for definitions; `summary.py` makes the page.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from measuring import (
    MIB,
    Memory,
    has_failed,
    in_own_process,
    interleaved,
    keep,
    kept,
    say,
    short,
    watched,
)
from rivals import (
    ONNX_RUNTIME,
    TITLES,
    WARM_UP,
    Job,
    Run,
    Switcher,
    build_deployment,
    build_engines,
    build_onnx,
    build_weights,
    engine_loader,
    image_of,
    loaded,
    module_of,
    ours,
    placed,
    resident,
    session_loader,
    switchers,
    torch_compiled,
    walk,
    ways,
)

EAGER, AGAIN, TORCH_COMPILE = "PyTorch, eager", "PyTorch, eager, again", "torch.compile"


# --- latency -----------------------------------------------------------------------------------


class Candidates:
    """Everything whose latency is taken, by (label, topology)."""

    def __init__(self, job: Job) -> None:
        self.job, self.image = job, image_of(job)
        self.calls: dict[tuple[str, str], Callable[[], np.ndarray]] = {}
        self.ready_s: dict[str, float] = {}
        self.failed: dict[str, str] = {}

    def add(
        self, label: str, topologies: Sequence[str], loader: Callable[[], Callable[[str], Run]]
    ) -> None:
        """Those topologies by what `loader` gives; compiled, loaded and warm."""
        start = time.perf_counter()
        try:
            load = loader()
            runs = {name: load(name) for name in topologies}
            for run in runs.values():
                for _ in range(WARM_UP):
                    run(self.image)
        except Exception as error:  # whatever a compiler raises: the others go on
            self.failed[label] = short(error)
        else:
            self.calls |= {(label, name): partial(run, self.image) for name, run in runs.items()}
            self.ready_s[label] = time.perf_counter() - start
        say(f"{label}: {self.failed.get(label, 'ready')}")

    def agreement(self, expected: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The largest difference of a logit to eager PyTorch in fp32, over the largest logit."""
        worst: dict[str, float] = {}
        for (label, name), call in self.calls.items():
            away = float(np.abs(call() - expected[name]).max() / np.abs(expected[name]).max())
            worst[label] = max(worst.get(label, 0.0), away)
        return worst


def latency(job: Job) -> dict[str, Any]:
    """Every candidate on every topology that it has, interleaved; milliseconds."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(job.folder / "inductor-cache")
    job.torch_device()
    models, network = loaded(job)
    modules = {name: module_of(job, models, network, name) for name in job.names}
    candidates = Candidates(job)
    expected = {n: walk(module, candidates.image) for n, module in modules.items()}
    modules = placed(job, modules)
    wholes = [job.subject.whole(anchor).name for anchor in job.anchors]
    walks: dict[str, Run] = {name: partial(walk, module) for name, module in modules.items()}
    for label in (EAGER, AGAIN):
        candidates.add(label, job.names, lambda: walks.__getitem__)
    candidates.add(TORCH_COMPILE, wholes, lambda: partial(torch_compiled, job, modules))
    engines = f"{TITLES[job.engine]}, an engine each"
    candidates.add(engines, job.names, partial(engine_loader, job))
    candidates.add(ONNX_RUNTIME, job.names, partial(session_loader, job))
    for backend in job.ours:
        candidates.add(ours(backend), job.names, partial(resident, job, backend))
    agreement = candidates.agreement(expected)
    with watched() as span:
        samples = interleaved(candidates.calls, job.rounds)
    nested: dict[str, dict[str, list[float]]] = {}
    for (label, name), values in samples.items():
        nested.setdefault(label, {})[name] = values
    return {
        "names": job.names,
        "samples_ms": nested,
        "agreement": agreement,
        "ready_s": candidates.ready_s,
        "failed": candidates.failed,
        "others": span.others,
        "duration_s": span.duration_s,
    }


# --- switching ---------------------------------------------------------------------------------


def switching(job: Job) -> dict[str, Any]:
    """Every switcher between the same two topologies in each round, in random order."""
    image, shuffle = image_of(job), random.Random(0)
    pairs = [(a, b) for a in job.names for b in job.names if a != b]
    shuffle.shuffle(pairs)
    ready: dict[str, Switcher] = {}
    failed: dict[str, str] = {}
    for label, make in switchers(job).items():
        try:
            switcher = make()
            switcher.first_result(*pairs[0], image)  # files are in memory from then on
        except Exception as error:
            failed[label] = short(error)
        else:
            ready[label] = switcher
        say(f"{label}: {failed.get(label, 'ready')}")
    samples: dict[str, dict[str, list[float]]] = {label: {} for label in ready}
    taken = [pairs[number % len(pairs)] for number in range(job.switch_rounds)]
    with watched() as span:
        for before, after in taken:
            for label in shuffle.sample(list(ready), len(ready)):
                for what, value in ready[label].first_result(before, after, image).items():
                    samples[label].setdefault(what, []).append(value)
    return {
        "pairs": taken,
        "samples": samples,
        "failed": failed,
        "others": span.others,
        "duration_s": span.duration_s,
    }


# --- memory: a fresh process each --------------------------------------------------------------


def memory(job: Job, label: str) -> dict[str, Any]:
    """What a way of having all topologies keeps, beside libraries that have run something small."""
    bring_in, load = ways(job)[label]
    bring_in()
    before, card_before = Memory.now(), _card_mib(job)
    held = load()
    after, card_after = Memory.now(), _card_mib(job)
    del held
    grown = after - before
    return {
        "uss_mib": grown.uss / MIB,
        "pss_mib": grown.pss / MIB,
        "anonymous_mib": grown.anonymous / MIB,
        "process_mib": after.pss / MIB,
        "device_mib": card_after - card_before if job.accelerator == "cuda" else None,
    }


def _card_mib(job: Job) -> float:
    """What is in use of a graphics card; 0 on a CPU, which has none."""
    if job.accelerator == "cpu":
        return 0.0
    import torch

    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # what PyTorch keeps for later is not what the topologies need
    free, total = torch.cuda.mem_get_info()
    return float(total - free) / MIB


# --- parts, each in a process of its own -------------------------------------------------------


def parts(job: Job) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is built and measured, in order."""
    deployments = {
        f"build deployment {backend}": partial(build_deployment, job, backend)
        for backend in job.ours
    }
    return {
        "build weights": partial(build_weights, job),
        "build engines": partial(build_engines, job),
        "build onnx": partial(build_onnx, job),
        **deployments,
        "latency": partial(latency, job),
        "switching": partial(switching, job),
        **{f"memory {label}": partial(memory, job, label) for label in _labels(job)},
    }


def _labels(job: Job) -> Iterator[str]:
    """Of the ways whose memory is measured."""
    title = TITLES[job.engine]
    yield from map(ours, job.ours)
    yield from (f"{title}, an engine each", f"{ONNX_RUNTIME}, a session each")
    yield "PyTorch, a model each"
    yield from (f"reload or restart, {of}: one at a time" for of in ("PyTorch", title))


def record(job: Job, part: str) -> Path:
    folder = job.folder if part.startswith("build") else job.records
    name = "".join(c if c.isalnum() else " " for c in part)
    return folder / f"{'-'.join(name.split())}.json"


def run(job: Job, *, here: bool = False, only: Sequence[str] = ()) -> None:
    """Builds and measures what is not there yet, each part in a process of its own or all `here`."""
    told = msgspec.json.encode(job).decode()
    for part, measure in parts(job).items():
        path = record(job, part)
        if path.is_file() or (only and part not in only):
            continue
        begun = time.perf_counter()
        found = (
            _tried(measure) if here else in_own_process(__file__, ["--job", told, "--part", part])
        )
        keep(path, found)
        took = f"{time.perf_counter() - begun:.0f} s"
        say(f"{part}: {found['failed'] if has_failed(found) else took}")


def _tried(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return measure()
    except Exception as error:
        return {"failed": short(error)}


def found(job: Job, part: str) -> dict[str, Any]:
    return kept(record(job, part))


# --- the command ---------------------------------------------------------------------------------


def make_job(
    work: Path,
    *,
    family: str = "deit-ti-s-b",
    anchors: Sequence[str] = (),
    device: str = "auto",
    quick: bool = False,
    topologies: int = 5,
    rounds: int = 40,
    switch_rounds: int = 10,
) -> Job:
    """`quick` is the toy family in as few rounds as there can be."""
    from subjects import chosen, family_of

    from edgestitch.device import detect, resolve

    here = detect() if device == "auto" else resolve(device)
    family = "toy" if quick else family
    anchors = tuple(anchors) or tuple(a.name for a in family_of(family).anchors[:2])
    return Job(
        family=family,
        anchors=anchors,
        device=here.name,
        accelerator=here.accelerator,
        precision="fp16" if here.accelerator == "cuda" else "fp32",
        threads=here.cores,
        work=str(work.resolve()),
        names=chosen(family_of(family, anchors), 3 if quick else topologies),
        rounds=3 if quick else rounds,
        switch_rounds=1 if quick else switch_rounds,
    )


def options() -> argparse.ArgumentParser:
    """What chooses a job; `summary.py` takes the same."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--family", default="deit-ti-s-b")
    parser.add_argument("--anchors", nargs="+", default=[], help="By default the first two.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--topologies", type=int, default=5, help="How many are resident.")
    parser.add_argument("--rounds", type=int, default=40, help="Samples of each candidate.")
    parser.add_argument("--switch-rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="The toy family: tries the script.")
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    return parser


def job_of(given: argparse.Namespace) -> Job:
    return make_job(
        given.work,
        family=given.family,
        anchors=given.anchors,
        device=given.device,
        quick=given.quick,
        topologies=given.topologies,
        rounds=given.rounds,
        switch_rounds=given.switch_rounds,
    )


def main() -> None:
    about = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(description=about, parents=[options()])
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        job = msgspec.json.decode(given.job, type=Job)
        print(json.dumps(parts(job)[given.part]()))
        return
    run(job_of(given), here=given.quick)


if __name__ == "__main__":
    main()
