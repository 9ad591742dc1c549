"""What `Runtime` opens when nothing else is named: the shipped network, compiled for this machine."""

import shutil

from .accuracy import Accuracy
from .artifact import sha256
from .backends import backend as find_backend
from .catalog import shipped_accuracy, shipped_network
from .data import preprocess, shipped_images
from .deploy import compile_deployment
from .deployment import Deployment, open_deployment
from .device import Device, detect
from .engine import profile_network
from .errors import ArtifactError, MismatchError
from .instruments import find_instruments
from .measure import QUICK, MeasureSettings, deployed
from .network import StitchNetwork, load_network
from .progress import Progress, silent
from .schedule import plan

NETWORK = "fashion-vit"


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


def shipped_deployment(
    settings: MeasureSettings = QUICK, *, progress: Progress = silent
) -> Deployment:
    """The shipped network compiled for this machine, from the user's cache or made for it.

    The whole Pareto front is resident. What it takes, some seconds, is taken once for each version
    of the weights, the backend and the machine.
    """
    from platformdirs import user_cache_path

    device = detect()
    folder = user_cache_path("edgestitch") / "deployments" / _cache_key(device)
    if folder.exists():
        try:
            return open_deployment(folder)
        except (ArtifactError, MismatchError):
            shutil.rmtree(folder, ignore_errors=True)  # a damaged cache is made anew
    network, accuracy = load_shipped()
    instruments = find_instruments(device, energy=settings.energy is not None)
    profile, _ = profile_network(network, instruments, settings, progress=progress)
    return compile_deployment(
        network,
        plan(profile, accuracy),
        accuracy,
        folder,
        instruments,
        deployed(settings),
        images=preprocess(shipped_images().images[:64]),
        progress=progress,
    )


def _cache_key(device: Device) -> str:
    chosen = find_backend("auto", device.accelerator)
    weights = sha256(shipped_network(NETWORK).read_bytes())
    parts = (weights, chosen.name, chosen.version(), device.name, device.hardware)
    return f"{NETWORK}-{sha256(' '.join(parts).encode())[:16]}"
