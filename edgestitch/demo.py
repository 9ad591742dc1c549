"""The demonstration: the shipped network through every stage, on real images, on this machine."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

from .accuracy import Accuracy
from .artifact import save
from .catalog import shipped_complexity
from .data import preprocess, shipped_images
from .default import load_shipped
from .deploy import compile_deployment
from .deployment import Deployment
from .device import detect
from .engine import profile_network
from .instruments import find_instruments
from .measure import QUICK, MeasureSettings, deployed, save_profile
from .profile import Profile
from .progress import Progress, silent
from .report import RunRow, write_report
from .runlog import Recorder
from .runtime import Runtime
from .schedule import Budget, Plan, candidates, pareto_front, plan, staircase
from .session import run_session
from .switches import first_frame, measure_switches


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """What the demonstration made and saw."""

    profile: Profile
    accuracy: Accuracy
    plan: Plan
    deployment: Deployment
    rows: tuple[RunRow, ...]
    report: Path
    duration_s: float


def demonstrate(
    out: Path,
    settings: MeasureSettings = QUICK,
    *,
    backend: str = "auto",
    progress: Progress = silent,
) -> Demonstration:
    """Profiles, schedules, compiles, runs and reports the shipped network; files go to `out`."""
    started = time.monotonic()
    instruments = find_instruments(detect(), energy=settings.energy is not None)
    network, accuracy = load_shipped()
    profile, samples = profile_network(
        network, instruments, settings, backend=backend, progress=progress
    )
    save_profile(profile, samples, out / "profile.json")
    save(accuracy, out / "accuracy.json")

    budgets = spread_budgets(profile, accuracy)
    chosen = plan(profile, accuracy, budgets)
    save(chosen, out / "plan.json")

    images = shipped_images()
    deployment = compile_deployment(
        network,
        chosen,
        accuracy,
        out / "deployment",
        instruments,
        deployed(settings),
        backend=backend,
        images=preprocess(images.images[:64]),
        progress=progress,
    )
    # As deployed the same topologies are faster, so the deadlines that tell them apart are others.
    spread = spread_budgets(deployment.profile, accuracy)
    # By the profile alone: each deadline shows the topology that the plan has for it.
    with Runtime(deployment, budget=spread[-1], miss_rate=None) as runtime:
        with Recorder(runtime).saving(out / "run.json") as recorder:
            # Up and down again, so that every step is also taken from another neighbour.
            up_and_down = [*spread, *spread[-2::-1]]
            rows = run_session(runtime, images, up_and_down, recorder=recorder, progress=progress)
        switches = measure_switches(runtime, first_frame(runtime, images), progress=progress)
        save(switches, out / "switches.json")

    report = out / "report.html"
    write_report(
        report,
        network.family,
        accuracy,
        profile=profile,
        plan=chosen,
        complexity=shipped_complexity(network.family),
        switches=switches,
        logs=(recorder.log(),),
        runs=rows,
    )
    return Demonstration(
        profile=profile,
        accuracy=accuracy,
        plan=chosen,
        deployment=deployment,
        rows=rows,
        report=report,
        duration_s=time.monotonic() - started,
    )


def spread_budgets(profile: Profile, accuracy: Accuracy, number: int = 4) -> tuple[Budget, ...]:
    """Deadlines that this very profile can tell apart: spread over the steps of its Pareto front."""
    latencies, _ = staircase(pareto_front(candidates(profile, accuracy)))
    last = len(latencies) - 1
    steps = sorted({round(index * last / max(number - 1, 1)) for index in range(number)})
    following = [*latencies[1:], math.inf]
    return tuple(Budget(latency_ms=_between(latencies[s], following[s])) for s in steps)


def _between(latency_ms: float, following_ms: float) -> float:
    """A little above a step and below the next; in two digits, as a person would say it, if it can."""
    value = min(1.05 * latency_ms, (latency_ms + following_ms) / 2)
    rounded = float(f"{value:.2g}")
    return rounded if latency_ms <= rounded < following_ms else value
