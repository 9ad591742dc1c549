"""What the benches measure: networks, a choice of their topologies, and deployments of these."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import torch

from edgestitch import Accuracy, Family, load_family
from edgestitch.accuracy import accuracy_row
from edgestitch.catalog import shipped_complexity, shipped_network
from edgestitch.deploy import compile_deployment
from edgestitch.device import Device
from edgestitch.errors import ArtifactError
from edgestitch.family import normalized_range
from edgestitch.instruments import find_instruments
from edgestitch.measure import MeasureSettings
from edgestitch.network import StitchNetwork, build_network, load_network
from edgestitch.schedule import Candidate, Plan
from edgestitch.timer import TimerSettings


def family_of(name: str, anchors: Sequence[str] = ()) -> Family:
    """A shipped recipe's family, or the part of it that these anchors make."""
    family = load_family(name)
    if not anchors:
        return family
    known = {anchor.name for anchor in family.anchors}
    if unknown := sorted(set(anchors) - known):
        raise ValueError(f"{name} has the anchors {', '.join(sorted(known))}, not {unknown[0]}")
    kept = tuple(anchor for anchor in family.anchors if anchor.name in anchors)
    return msgspec.structs.replace(family, anchors=kept)


def network_of(family: Family | str) -> StitchNetwork:
    """The shipped network of that family, or one with the same random weights every time."""
    family = load_family(family) if isinstance(family, str) else family
    shipped = shipped_network(family.name)
    if shipped.is_file():
        network = load_network(shipped)
        if network.family.anchors == family.anchors:
            return network
    torch.manual_seed(0)
    return build_network(family)


def chosen(family: Family, number: int) -> tuple[str, ...]:
    """That many topologies, all anchors among them, spread over multiply-adds; cheapest first.

    To the anchors, always the one that is farthest from all chosen so far; of equals the first by
    name. Where multiply-adds were never counted, by the number of atoms.
    """
    complexity = shipped_complexity(family)
    if complexity is None:
        with suppress(ArtifactError):  # of no shipped recipe, and so no part of one
            complexity = shipped_complexity(load_family(family.name))
    costs = {
        t.name: complexity.gmacs(family, t.name) if complexity else float(len(family.atoms(t)))
        for t in family.topologies
    }
    taken = [family.whole(anchor.name).name for anchor in family.anchors]
    left = sorted(set(costs) - set(taken))
    while left and len(taken) < number:
        far = {name: min(abs(costs[name] - costs[other]) for other in taken) for name in left}
        taken.append(max(left, key=far.__getitem__))
        left.remove(taken[-1])
    return tuple(sorted(taken, key=lambda name: (costs[name], name)))


def random_frames(family: Family, number: int) -> list[np.ndarray]:
    """Different images, each a batch of its own."""
    low, high = normalized_range(family)
    shape = (number, 1, *family.input_shape)
    return list(np.random.default_rng(0).uniform(low, high, shape).astype(np.float32))


def no_accuracy(network: StitchNetwork, names: Sequence[str]) -> Accuracy:
    """A deployment needs one; what is measured does not depend on it.

    It rises in the order of the names, so that each of them is what some budget chooses.
    """
    return Accuracy(
        family=network.family.name,
        network=network.digest,
        data="none",
        num_images=1000,
        rows=tuple(accuracy_row(name, place, 1000) for place, name in enumerate(names)),
    )


def deploy(
    network: StitchNetwork,
    names: Sequence[str],
    out: Path,
    device: Device,
    *,
    backend: str,
    precision: str,
) -> None:
    """A deployment that keeps these topologies, cheapest first, whatever they are worth."""
    accuracy = no_accuracy(network, names)
    # Costs that only say the order: what is deployed is measured when it is.
    resident = tuple(
        Candidate(topology=name, top1=0.0, median_ms=place + 1.0, latency_ms=place + 1.0)
        for place, name in enumerate(names)
    )
    plan = Plan(
        family=network.family.name,
        network=network.digest,
        profile="none",
        accuracy="none",
        resident=resident,
        choices=(),
    )
    timer = TimerSettings(min_samples=20, precision=1.0, time_cap_s=20, min_warmup_s=0)
    out.parent.mkdir(parents=True, exist_ok=True)
    compile_deployment(
        network,
        plan,
        accuracy,
        out,
        find_instruments(device, energy=False),
        MeasureSettings(timer=timer, energy=None, compose=False),
        backend=backend,
        precision=precision,
        fallback=False,
    )
