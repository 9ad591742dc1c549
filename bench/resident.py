"""What it costs to keep every topology resident, and to switch between them.

Memory: the growth of a fresh process that loads all topologies of a family, over one copy of the
union of their weights. Switch: the host's cost of choosing another topology, and the first
inference after it beside the steady state, over all ordered pairs. See README.md for definitions.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from measuring import MIB, Memory
from pages import result_path, table
from subjects import network_of, no_accuracy, random_frames

from edgestitch import Accuracy, Family, Runtime, __version__, backends, load_family
from edgestitch.artifact import digest
from edgestitch.cut import Cut, cut_topologies
from edgestitch.deploy import compile_deployment
from edgestitch.device import Device, detect, resolve
from edgestitch.engine import profile_network
from edgestitch.instruments import find_instruments
from edgestitch.measure import MeasureSettings
from edgestitch.network import StitchNetwork, build_network, load_network, save_network
from edgestitch.profile import Profile
from edgestitch.program import compile_segments, example_images, load_program
from edgestitch.schedule import Plan, candidates
from edgestitch.timer import TimerSettings

# --- memory ------------------------------------------------------------------------------------


def measure_memory(
    family: Family, backend: str, folder: Path, device: str = "cpu", precision: str = "fp32"
) -> dict[str, float]:
    """In a fresh process: MiB that it grows by when every topology is loaded and has run.

    Of a graphics card it is the card's memory that grows.

    Raises:
        RuntimeError: the process failed; the message is the last line that it wrote.
    """
    told = ["--worker", family.name, backend, str(folder), device, precision]
    finished = subprocess.run(
        [sys.executable, __file__, *told], capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise RuntimeError((finished.stderr.strip().splitlines() or ["it was killed"])[-1])
    found: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return found


def memory_worker(
    family_name: str, backend_name: str, folder: Path, device_name: str, precision: str
) -> None:
    """The process that is measured; prints one line of JSON."""
    device = resolve(device_name)
    family, backend = load_family(family_name), backends.backend(backend_name)
    segments = cut_topologies(family, (t.name for t in family.topologies))
    images = example_images(family, 1)
    # The libraries first, with a network that is not the subject.
    toy = load_family("toy")
    _warm(build_network(toy), backend, cut_topologies(toy, ["a:0:3"]), device, precision)
    before = _held_mib(device)
    program = load_program(
        segments,
        backend,
        folder,
        family,
        lambda: load_network(folder / "network.safetensors"),
        device,
        precision=precision,
        batch=1,
    )
    runs = program.runs
    loaded = _held_mib(device)
    for run in runs.values():
        for _ in range(3):
            run(images)
    found = {"loaded_mib": loaded - before, "grown_mib": _held_mib(device) - before}
    print(json.dumps({**found, "reserved_mib": _reserved_mib(device)}))


def _warm(
    network: StitchNetwork,
    backend: backends.Backend,
    segments: Cut,
    device: Device,
    precision: str,
) -> None:
    network = network.to(device.accelerator)
    with tempfile.TemporaryDirectory() as folder:
        compile_segments(network, segments, backend, Path(folder), precision=precision)
        program = load_program(
            segments,
            backend,
            Path(folder),
            network.family,
            lambda: network,
            device,
            precision=precision,
            batch=1,
        )
        for run in program.runs.values():
            run(example_images(network.family, 1))


def _held_mib(device: Device) -> float:
    """What the device's memory holds: of a graphics card all that is in use, else this process's."""
    if device.accelerator == "cpu" or device.shares_memory:
        return Memory.now().uss / MIB
    import torch

    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # what PyTorch keeps for later is not what the topologies need
    free, total = torch.cuda.mem_get_info()
    return (total - free) / MIB


def _reserved_mib(device: Device) -> float:
    """What PyTorch's allocator has of a GPU's memory; 0 on a CPU, where it has none."""
    import torch

    return torch.cuda.memory_reserved() / MIB if device.accelerator == "cuda" else 0.0


def memory_rows(family_name: str, work: Path) -> list[list[str]]:
    family = load_family(family_name)
    network = network_of(family_name)
    used = {atom for topology in family.topologies for atom in family.atoms(topology)}
    union = sum(p.numel() * 4 for atom in used for p in network.atoms[atom].parameters()) / MIB
    apart = sum(
        sum(p.numel() * 4 for p in network.assemble(t).parameters()) for t in family.topologies
    )
    segments = cut_topologies(family, (t.name for t in family.topologies))
    rows = []
    for name in backends.NAMES:
        backend = backends.backend(name)
        if (reason := _left_out(backend)) is not None:
            rows.append([family_name, name, "not measured", reason, "", "", ""])
            continue
        folder = work / family_name / name
        compile_segments(network, segments, backend, folder)
        save_network(network, folder / "network.safetensors")
        found = measure_memory(family, name, folder)
        rows.append(
            [
                family_name,
                name,
                str(len(family.topologies)),
                f"{union:.1f}",
                f"{found['grown_mib']:.1f}",
                f"**{found['grown_mib'] / union:.2f}**",
                f"{apart / MIB / union:.1f}",
            ]
        )
    return rows


def _left_out(backend: backends.Backend) -> str | None:
    if "cpu" not in backend.accelerators:
        return f"it computes on {', '.join(backend.accelerators)}"
    return backend.unavailable()


# --- switching ---------------------------------------------------------------------------------


# Large enough that a call is long against what a cache holds; as in cpu_backends.py.
DEIT = ("ti:0:12", "ti:0:9+s:9:12", "ti:0:6+s:6:12", "ti:0:3+s:3:12", "s:0:12")


def switch_row(
    family: str, backend: str, rounds: int, work: Path, log: Callable[[str], None]
) -> list[str]:
    """One table row: host cost of a switch, first inference after it over the steady state."""
    network = network_of(family)
    names = DEIT if family == "deit-ti-s-b" else tuple(t.name for t in network.family.topologies)
    accuracy = no_accuracy(network, names)
    instruments = find_instruments(detect(), energy=False)
    timer = TimerSettings(min_samples=20, precision=1.0, time_cap_s=20)
    settings = MeasureSettings(timer=timer, energy=None, compose=False)
    profile, _ = profile_network(network, instruments, settings, topologies=names, backend=backend)
    deployment = compile_deployment(
        network,
        _everything(profile, accuracy),
        accuracy,
        work / f"switch-{family}-{backend}",
        instruments,
        settings,
        backend=backend,
    )
    frames = random_frames(network.family, 64)
    with Runtime(deployment) as runtime:
        names = runtime.topologies
        host, budget, first, steady = _switch(runtime, names, frames, rounds, log)
    ratios = [np.median(first[name]) / np.median(steady[name]) for name in names]
    every_first = np.concatenate([np.asarray(first[n]) / np.median(steady[n]) for n in names])
    every_steady = np.concatenate([np.asarray(steady[n]) / np.median(steady[n]) for n in names])
    return [
        family,
        backend,
        f"{len(runtime.topologies)}",
        f"{np.median(host) / 1e3:.2f}",
        f"**{np.quantile(host, 0.99) / 1e3:.2f}**",
        f"{np.quantile(budget, 0.99) / 1e3:.2f}",
        f"**{np.median(every_first):.3f}**",
        f"{min(ratios):.3f} to {max(ratios):.3f}",
        f"{np.quantile(every_first, 0.99):.2f}",
        f"{np.quantile(every_steady, 0.99):.2f}",
    ]


def _everything(profile: Profile, accuracy: Accuracy) -> Plan:
    """A plan that keeps every topology, not only the front."""
    pool = candidates(profile, accuracy)
    return Plan(
        family=profile.family,
        network=profile.network,
        profile=digest(profile),
        accuracy=digest(accuracy),
        resident=tuple(sorted(pool, key=lambda c: c.latency_ms)),
        choices=(),
    )


def _switch(
    runtime: Runtime,
    names: tuple[str, ...],
    frames: list[np.ndarray],
    rounds: int,
    log: Callable[[str], None],
) -> tuple[list[int], list[int], dict[str, list[int]], dict[str, list[int]]]:
    """Nanoseconds over all ordered pairs in random order, each `rounds` times."""
    pairs = [(a, b) for a in names for b in names if a != b]
    random = np.random.default_rng(0)
    host: list[int] = []
    budget: list[int] = []
    first: dict[str, list[int]] = {name: [] for name in names}
    steady: dict[str, list[int]] = {name: [] for name in names}
    clock = time.perf_counter_ns
    bounds = [candidate.latency_ms for candidate in runtime.deployment.plan.resident]
    gc.collect()
    gc.disable()
    for number in range(rounds):
        log(f"round {number + 1} of {rounds}: {len(pairs)} pairs")
        for index in random.permutation(len(pairs)):
            before, after = pairs[index]
            frame = frames[index % len(frames)]
            start = clock()
            runtime.budget_ms = bounds[index % len(bounds)]
            budget.append(clock() - start)
            runtime.switch(before)
            for _ in range(4):
                runtime(frame)
            start = clock()
            runtime.switch(after)
            host.append(clock() - start)
            start = clock()
            runtime(frame)
            first[after].append(clock() - start)
            for _ in range(4):
                start = clock()
                runtime(frame)
                steady[after].append(clock() - start)
    gc.enable()
    return host, budget, first, steady


# --- page --------------------------------------------------------------------------------------


def page(memory: list[list[str]], switches: list[list[str]], command: str) -> str:
    device = detect()
    found = [backend for name in backends.NAMES if not _left_out(backend := backends.backend(name))]
    versions = {backend.name: backend.version() for backend in found}
    lines = [
        "# What does it cost to keep every topology resident, and to switch?",
        "",
        f"{datetime.now(timezone.utc).date().isoformat()}, batch 1, fp32.",
        "",
        "## Machine",
        "",
        f"{device.hardware}, {device.memory_mib} MiB.",
        "",
        "## Versions",
        "",
        f"edgestitch {__version__}, " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".",
        "",
        "## Command",
        "",
        f"    {command}",
        "",
        "## Memory",
        "",
        *table(
            [
                "family",
                "backend",
                "topologies",
                "union of weights, MiB",
                "growth, MiB",
                "growth / union",
                "a copy each / union",
            ],
            memory,
        ),
        "",
        "## Switch",
        "",
        "All ordered pairs of the resident topologies, in random order: all of `fashion-vit`, five of "
        "`deit-ti-s-b` between Ti and S (random weights).",
        "",
        *table(
            [
                "family",
                "backend",
                "resident",
                "switch, us, median",
                "switch, us, p99",
                "setting a budget, us, p99",
                "first / steady, median",
                "by topology",
                "first / steady, p99",
                "steady / steady, p99",
            ],
            switches,
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--families", default="deit-ti-s-b,fashion-vit")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        family, backend, folder, device, precision = options.worker
        memory_worker(family, backend, Path(folder), device, precision)
        return
    with tempfile.TemporaryDirectory(prefix="edgestitch-bench-") as name:
        work = Path(name)
        switches = [
            switch_row(family, backend, options.rounds, work, print)
            for family in options.families.split(",")
            for backend in backends.NAMES
            if _left_out(backends.backend(backend)) is None
        ]
        memory = [row for f in options.families.split(",") for row in memory_rows(f, work)]
    given = f"python bench/resident.py --families {options.families} --rounds {options.rounds}"
    text = page(memory, switches, given)
    out = options.out or result_path("resident", detect().hardware)
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
