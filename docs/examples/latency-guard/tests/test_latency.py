"""The robot's latencies: what it promises, and that a change does not make it slower."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline import prepare, prepare_slowly

FRAME = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
BASELINE = "baselines/frame.json"


@pytest.fixture
def runtime(edgestitch_runtime):
    yield edgestitch_runtime
    edgestitch_runtime.budget_ms = None  # lets go of what a test has pinned


def test_what_is_compared_is_equal():
    np.testing.assert_allclose(prepare(FRAME), prepare_slowly(FRAME), atol=1e-5)


def test_a_frame_takes_a_quarter_of_a_second_at_most(latency_contract, runtime):
    """99 of 100 frames, from bytes to logits."""
    latency_contract(lambda: runtime(prepare(FRAME)), budget_ms=250, quantile=0.99)


@pytest.mark.parametrize("which", ["fastest", "slowest"])
def test_half_of_the_frames_are_faster_than_that(latency_contract, runtime, which):
    runtime.switch(runtime.topologies[0 if which == "fastest" else -1])
    latency_contract(lambda: runtime(prepare(FRAME)), budget_ms=250, quantile=0.5)


def test_the_new_preparation_is_not_slower(latency_regression):
    """Both are here, so they are called by turns: nothing is stored, any machine will do."""
    latency_regression(lambda: prepare(FRAME), baseline=lambda: prepare_slowly(FRAME))


def test_a_frame_takes_no_longer_than_it_did(latency_regression, runtime, pytestconfig):
    """The version before is no longer here: it is compared with what was stored on this very device."""
    saving = pytestconfig.getoption("edgestitch_save_baselines")
    if not (saving or (pytestconfig.rootpath / BASELINE).exists()):
        pytest.skip(f"no {BASELINE} yet: pytest --edgestitch-save-baselines, three times at least")
    latency_regression(lambda: runtime(prepare(FRAME)), baseline=BASELINE)
