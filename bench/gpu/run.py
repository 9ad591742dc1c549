"""Everything that only a GPU can tell about measuring, in one call of under nine minutes.

    python bench/gpu/run.py --out gpu            # all parts, the second time what is left
    python bench/gpu/run.py --part closure       # one of them
    python bench/gpu/run.py --device cpu --quick # the same code where there is no GPU

Each part writes its result as soon as it has one, JSON in `--out`, and is left out when that is
there already; a part that fails says why and does not stop the others. `--page` makes the page of
bench/results from what is there.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the benches that this extends

import compiled as compiled_bench
from profiler import judge, measure_twice, network_of

from edgestitch import environment
from edgestitch.artifact import load, save
from edgestitch.compose import Selection, predict
from edgestitch.device import Device, resolve
from edgestitch.energy import EnergySettings, Wattmeter, energies, measure_energies
from edgestitch.engine import network_source, profile_network
from edgestitch.instruments import Instruments, find_instruments
from edgestitch.measure import MeasureSettings, save_profile, terms_of
from edgestitch.profile import Load, Profile
from edgestitch.program import example_images
from edgestitch.timer import Pacer, TimerSettings
from edgestitch.zoo_run import SETTINGS as ZOO_SETTINGS
from edgestitch.zoo_run import is_complete, measure_zoo

FAMILIES = ("deit-ti-s-b", "swin-ti-s-b", "resnet18-50", "resnet18-swin-ti", "levit-192-256")


class Context:
    """What the parts share."""

    def __init__(self, device: Device, out: Path, *, quick: bool, backend: str) -> None:
        self.device = device
        self.out = out
        self.quick = quick
        self.backend = backend
        self.deadline = float("inf")
        """When no more is begun, by the monotonic clock."""
        self.families = ("fashion-vit",) if quick else FAMILIES
        self.precisions = ("fp32",) if device.accelerator == "cpu" else ("fp16", "fp32")
        self.main = self.families[0]

    def instruments(self, *, energy: bool) -> Instruments:
        return find_instruments(self.device, energy=energy)

    def timer(self, time_cap_s: float) -> TimerSettings:
        if self.quick:
            return TimerSettings(min_samples=20, time_cap_s=2, min_warmup_s=0)
        return TimerSettings(min_samples=473, time_cap_s=time_cap_s)

    def energy(self, *, brief: bool = False) -> EnergySettings:
        if brief and not self.quick:
            return EnergySettings(periods=20, max_windows=2, mixed_windows=0, idle_s=5)
        if self.quick:
            return EnergySettings(window_s=0.2, periods=1, settle_s=0, idle_s=0.2, mixed_windows=2)
        return EnergySettings(max_windows=4, time_cap_s=150)


# --- parts: each gives what is written as JSON ---------------------------------------------------


def machine(context: Context) -> Any:
    """What this machine is, and which meters and backends work here."""
    meter = context.instruments(energy=True).meter
    return {
        "environment": msgspec.to_builtins(environment.describe()),
        "meter": meter.name,
        "scope": meter.scope,
        "reason": meter.reason,
        "period_s": meter.period_s,
        "notes": dict(meter.notes),
    }


def composing(context: Context) -> Any:
    """Composed latencies of the main family against measured ones, and the noise of both."""
    found = {}
    for precision in context.precisions:
        with network_source(
            network_of(context.main), context.device, backend=context.backend, precision=precision
        ) as source:
            twice = measure_twice(source, context.instruments(energy=False), context.timer(80))
            with contextlib.suppress(SystemExit):  # a family so small that all are measured
                found[precision] = msgspec.to_builtins(judge(source, twice))
    return found


def profiles(context: Context) -> Any:
    """A profile of each family in each precision, with energy; as measured, to be shipped."""
    found = {}
    for family in context.families:
        for precision in context.precisions:
            path = (
                context.out / family / f"{context.device.name}.{context.backend}-{precision}.json"
            )
            if path.exists():
                continue
            if time.monotonic() > context.deadline:
                return {**found, "left": "the time is up: call again for the rest"}
            found[str(path)] = _profile(context, family, precision, path)
    return found


def _profile(context: Context, family: str, precision: str, path: Path) -> Any:
    started = time.monotonic()
    # The main family's energy with all that belongs to it, the others' in a minute each.
    energy = context.energy(brief=family != context.main)
    settings = MeasureSettings(timer=context.timer(60), energy=energy)
    profile, samples = profile_network(
        network_of(family),
        context.instruments(energy=True),
        settings,
        backend=context.backend,
        precision=precision,
        random_weights=True,
    )
    save_profile(profile, samples, path)
    return {"duration_s": time.monotonic() - started, "notes": list(profile.notes)}


def closure(context: Context) -> Any:
    """A random sequence of topologies, 60 s long: its energy predicted, and by the meter."""
    instruments, settings = context.instruments(energy=True), context.energy()
    if instruments.meter.reason is not None:
        return {"reason": instruments.meter.reason}
    runs = []
    with network_source(
        network_of(context.main), context.device, backend=context.backend
    ) as source:
        found = terms_of(source)
        names = list(source.segments)
        program = source.program(names)
        images = example_images(source.family, 1)
        calls = {name: partial(program.runs[name], images) for name in names}
        selection = Selection(found, 0.9)
        for _ in range(2):
            wattmeter = _wattmeter(instruments, calls, settings)
            ended = measure_energies(wattmeter, selection.measured)
            measured = energies(wattmeter, found, ended).energies_mj
            costs = selection.certify(measured).costs if not selection.complete else None
            every = (
                dict(zip(names, map(float, predict(found, costs, names)), strict=True))
                if costs
                else dict(measured)
            )
            runs.append(every)
        long = _wattmeter(
            instruments,
            calls,
            msgspec.structs.replace(settings, window_s=1 if context.quick else 60),
        )
        window = long.window(names, [1.0] * len(names))
    predicted = sum(count * runs[0][name] for name, count in window.calls.items())
    values = [[run[name] for name in names] for run in runs]
    return {
        "meter": instruments.meter.name,
        "measured_mj": window.energy_mj,
        "reason": window.reason,
        "predicted_mj": predicted,
        "duration_s": window.duration_s,
        "kendall_tau": float(kendalltau(*values).statistic),
    }


def _wattmeter(
    instruments: Instruments, calls: dict[str, Callable[[], object]], settings: EnergySettings
) -> Wattmeter:
    return Wattmeter(
        meter=instruments.meter,
        calls=calls,
        settings=settings,
        pacer=Pacer(Load(), instruments.clock, instruments.sleep),
        look=instruments.reader,
    )


def loads(context: Context) -> Any:
    """The same topology back to back, paced at 30 Hz, and after idle gaps."""
    found = {}
    for kind in (Load(), Load(kind="paced", rate_hz=30), Load(kind="after-idle", gap_ms=200)):
        name = network_of(context.main).family.topologies[0].name
        timer = msgspec.structs.replace(context.timer(12), min_samples=60)
        profile, _ = profile_network(
            network_of(context.main),
            context.instruments(energy=False),
            MeasureSettings(timer=timer, energy=None, load=kind),
            topologies=(name,),
            backend=context.backend,
        )
        cost = profile.costs[0]
        found[str(kind)] = {"median_ms": cost.latency_ms, "max_ms": cost.max_ms}
    return found


def compiled(context: Context) -> Any:
    """Every figure of compiled, resident, switched topologies, for each backend that works here."""
    return _compiled(context, [part for part in compiled_bench.PARTS if part != "prefix"])


def prefix_reuse(context: Context) -> Any:
    """What it costs, and tells, to decide at the stitch which topology runs on."""
    return _compiled(context, ["prefix"])


def _compiled(context: Context, parts: list[str]) -> Any:
    job = _job(context)
    left = compiled_bench.run(job, parts, context.deadline)
    found = {"missing": compiled_bench.missing([job], parts)}
    return {**found, "left": f"call again for {', '.join(left)}"} if left else found


def _job(context: Context) -> compiled_bench.Job:
    family = "toy" if context.quick else context.main
    found = compiled_bench.default_ways(context.device)
    ways = [w for w in found if not (context.quick and w.startswith("inductor"))]
    return compiled_bench.make_job(
        family, context.device, context.out / "compiled", quick=context.quick, ways=ways
    )


def switch_nodes(context: Context) -> Any:
    """Topologies switched inside of a captured graph, where there is a script for it."""
    script = Path(__file__).with_name("switch_nodes.py")
    if not script.is_file():
        return {"reason": f"there is no {script.name}"}
    if context.device.accelerator != "cuda":
        return {"reason": "it takes a CUDA device"}
    remaining_s = context.deadline - time.monotonic()
    try:
        finished = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            check=False,
            timeout=max(30.0, remaining_s),
        )
    except subprocess.TimeoutExpired:
        return {"left": f"it was not done within {max(30.0, remaining_s):.0f} s"}
    return {
        "exit": finished.returncode,
        "output": finished.stdout[-8000:],
        "errors": finished.stderr[-2000:] if finished.returncode else "",
    }


def zoo(context: Context) -> Any:
    """The networks of the project page on this device, all that the time allows."""
    models = ["levit_*", "*lite0*"] if context.quick else []
    found = {}
    for precision in context.precisions:
        path = context.out / f"zoo.{context.device.name}.{context.backend}-{precision}.json"
        unfinished = path.with_suffix(".unfinished")
        if path.exists() and not unfinished.exists():
            continue
        if time.monotonic() > context.deadline:
            return {**found, "left": "the time is up: call again for the rest"}
        energy = context.energy(brief=True)
        result = measure_zoo(
            context.instruments(energy=True),
            msgspec.structs.replace(ZOO_SETTINGS, timer=context.timer(0.0), energy=energy),
            models=models,
            backend=context.backend,
            precision=precision,
            time_cap_s=20 if context.quick else context.deadline - time.monotonic(),
            # A card has memory for many, and each group has idle times for energy of its own.
            group=6 if context.device.accelerator == "cpu" else 24,
            unfinished=unfinished,
        )
        save(result, path)
        found[path.name] = {
            "measured": len(result.measured),
            "of": len(result.rows),
            "drift": result.drift,
            "notes": list(result.notes),
        }
        if not is_complete(result):
            return {**found, "left": "the time is up: call again for the rest"}
        shutil.rmtree(unfinished)
    return found


def checks(context: Context) -> Any:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"exit": finished.returncode, "output": finished.stdout[-4000:]}


PARTS: dict[str, Callable[[Context], Any]] = {
    "machine": machine,
    "checks": checks,
    "composing": composing,
    "closure": closure,
    "loads": loads,
    "compiled": compiled,
    "switch-nodes": switch_nodes,
    "prefix-reuse": prefix_reuse,
    "profiles": profiles,
    "zoo": zoo,
}
UNFINISHED = "left"
"""A field of what a part gives when it is to be called again."""


def run(context: Context, parts: list[str], limit_s: float) -> None:
    context.deadline = time.monotonic() + limit_s
    for name in parts:
        path = context.out / f"{name}.json"
        if path.exists() and UNFINISHED not in json.loads(path.read_text()):
            continue
        if time.monotonic() > context.deadline:
            print(f"{name}: left for the next call, {limit_s:g} s are over", flush=True)
            continue
        with _timed(name):
            try:
                result = PARTS[name](context)
            except Exception:  # the other parts are worth having without this one
                result = {"failed": traceback.format_exc()}
                path = path.with_suffix(".failed.json")
            path.write_text(json.dumps(result, indent=1))
            print(json.dumps(result, indent=1)[:3000], flush=True)


@contextlib.contextmanager
def _timed(name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


def page(out: Path) -> str:
    """The page of bench/results from what the parts wrote."""
    parts = {n: json.loads(p.read_text()) for n in PARTS if (p := out / f"{n}.json").is_file()}
    device = parts["machine"]["environment"]["device"]
    lines = [
        f"# Profiles on {device['hardware']}",
        "",
        f"{datetime.now(timezone.utc).date().isoformat()}, batch 1, random weights.",
        "",
        "## Command",
        "",
        "    python bench/gpu/run.py --out gpu",
        "",
        "## Profiles",
        "",
        "| profile | measured | median, ms | energy, mJ | held-out error, median / p95 | meter |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_profile_row(load(Profile, path)) for path in sorted(out.glob("*/*-fp*.json"))),
        "",
        "## The rest, as it was measured",
        "",
    ]
    for family in sorted(path.name for path in out.glob("compiled/*") if path.is_dir()):
        job = _found_job(out, family, device["name"])
        lines += [f"### What compiled topologies of {family} cost", ""]
        for title, content in compiled_bench.sections([job]).items():
            lines += [f"#### {title}", "", *content, ""]
    for name, found in parts.items():
        if name not in ("profiles", "machine"):
            lines += [f"### {name}", "", "```json", json.dumps(found, indent=1), "```", ""]
    return "\n".join(lines)


def _found_job(out: Path, family: str, device: str) -> compiled_bench.Job:
    """As it was measured, which may have been on another machine."""
    ways = (path.name for path in (out / "compiled" / family).iterdir() if path.is_dir())
    return compiled_bench.Job(
        family=family,
        device=device,
        work=str(out / "compiled"),
        ways=tuple(sorted(":".join(way.rsplit("-", 1)) for way in ways)),
        topologies=0,
        rounds=0,
        switch_rounds=0,
    )


def _profile_row(profile: Profile) -> str:
    latencies = [cost.latency_ms for cost in profile.costs]
    known = [cost.energy_mj for cost in profile.costs if cost.energy_mj is not None]
    latency = profile.composition.latency if profile.composition else None
    cells = [
        f"`{profile.family}` {profile.conditions.precision}",
        f"{profile.number('measured')} of {len(profile.costs)}",
        f"{min(latencies):.3g} to {max(latencies):.3g}",
        f"{min(known):.3g} to {max(known):.3g}" if known else profile.energy_reason or "",
        f"{100 * latency.median_error:.2f} / {100 * latency.p95_error:.2f} %" if latency else "",
        profile.meter,
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--limit-s", type=float, default=420, help="No part begins after that.")
    parser.add_argument("--quick", action="store_true", help="Tiny: to try the script itself.")
    parser.add_argument("--page", type=Path, help="Write the page there and measure nothing.")
    options = parser.parse_args()
    if options.page:
        options.page.write_text(page(options.out))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    context = Context(
        resolve(options.device), options.out, quick=options.quick, backend=options.backend
    )
    run(context, options.part or list(PARTS), options.limit_s)


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
