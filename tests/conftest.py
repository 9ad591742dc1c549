"""Fixtures that several test files share; nothing here needs a GPU, a network or weights."""

import os
import signal

# Toy networks gain nothing from threads, and OpenMP's wait for each other where the machine is busy:
# that made this suite ten times slower. Before torch is imported, and for subprocesses as well.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A suite that a script starts in the background ignores Ctrl-C, and so would the programs that it
# starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import HealthCheck, settings

from edgestitch.family import Family
from edgestitch.recipe import load_family

pytest_plugins = ["pytester"]  # runs pytest inside a test

settings.register_profile(
    "edgestitch",
    deadline=None,  # the first example pays for imports
    max_examples=40,
    print_blob=True,
    # Fixtures used with @given are not changed by the examples; a busy machine draws slowly.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("edgestitch")


@pytest.fixture(scope="session")
def toy_family() -> Family:
    """Two anchors of three blocks: 2 + 7 topologies."""
    return load_family("toy")


@pytest.fixture
def toy_network(toy_family):
    """The toy family with random weights, the same every time."""
    import torch

    from edgestitch.network import build_network

    torch.manual_seed(0)
    return build_network(toy_family)


@pytest.fixture(scope="session")
def toy_images():
    """64 labelled images of the toy family's shape."""
    from edgestitch import data

    return data.toy_images(64)
