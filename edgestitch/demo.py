"""The demonstration: the shipped network through every stage, on real images, on this machine."""

import time
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from .accuracy import Accuracy
from .artifact import save, sha256
from .backends import backend as find_backend
from .catalog import shipped_accuracy, shipped_complexity, shipped_network
from .data import preprocess, shipped_images
from .device import Device, detect
from .engine import MANIFEST, Deployment, compile_deployment, open_deployment, profile_network
from .errors import ArtifactError, MismatchError
from .measure import save_profile
from .network import StitchNetwork, load_network
from .profile import Profile
from .progress import Progress, silent
from .report import RunRow, write_report
from .runtime import Runtime
from .schedule import Budget, Plan, candidates, pareto_front, plan, staircase
from .session import run_session
from .timer import TimerSettings

NETWORK = "fashion-vit"

# Enough for a bound on every topology's 99th percentile; the caps are for slow machines.
QUICK = TimerSettings(min_samples=500, precision=0.05, time_cap_s=60)


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


def load_shipped() -> tuple[StitchNetwork, Accuracy]:
    """The shipped network and what its topologies are worth."""
    path = shipped_network(NETWORK)
    network = load_network(path)
    accuracy = shipped_accuracy(network.family)
    if accuracy is None:
        raise ArtifactError(
            f"{path.with_suffix('.accuracy.json')} is missing; reinstall edgestitch"
        )
    return network, accuracy


def demonstrate(out: Path, *, backend: str = "auto", progress: Progress = silent) -> Demonstration:
    """Profiles, schedules, compiles, runs and reports the shipped network; files go to `out`."""
    started = time.monotonic()
    device = detect()
    network, accuracy = load_shipped()
    profile, samples = profile_network(network, device, QUICK, backend=backend, progress=progress)
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
        device,
        QUICK,
        backend=backend,
        images=preprocess(images.images[:64]),
        progress=progress,
    )
    deadlines = [budget.latency_ms for budget in budgets if budget.latency_ms is not None]
    with Runtime(deployment, budget_ms=deadlines[-1]) as runtime:
        # Up and down again, so that every step is also taken from another neighbour.
        rows = run_session(runtime, images, [*deadlines, *deadlines[-2::-1]], progress=progress)

    report = out / "report.html"
    write_report(
        report,
        network.family,
        accuracy,
        profile=profile,
        plan=deployment.plan,
        complexity=shipped_complexity(network.family),
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
    # A little above each step, as two significant digits allow: a budget that a person would name.
    return tuple(Budget(latency_ms=float(f"{1.05 * latencies[step]:.2g}")) for step in steps)


def shipped_deployment(*, progress: Progress = silent) -> Deployment:
    """The shipped network compiled for this machine, from the user's cache or made for it.

    The whole Pareto front is resident. What it takes, some seconds, is taken once for each version
    of the weights, the backend and the machine.
    """
    device = detect()
    folder = user_cache_path("edgestitch") / "deployments" / _cache_key(device)
    if (folder / MANIFEST).is_file():
        try:
            return open_deployment(folder, device)
        except (ArtifactError, MismatchError):
            pass  # a damaged cache is made anew
    network, accuracy = load_shipped()
    profile, _ = profile_network(network, device, QUICK, progress=progress)
    return compile_deployment(
        network,
        plan(profile, accuracy),
        accuracy,
        folder,
        device,
        QUICK,
        images=preprocess(shipped_images().images[:64]),
        progress=progress,
    )


def _cache_key(device: Device) -> str:
    chosen = find_backend("auto")
    weights = sha256(shipped_network(NETWORK).read_bytes())
    parts = (weights, chosen.name, chosen.version(), device.name, device.hardware)
    return f"{NETWORK}-{sha256(' '.join(parts).encode())[:16]}"
