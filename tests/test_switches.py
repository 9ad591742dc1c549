"""The switch matrix: every ordered pair of a runtime's topologies, measured on its own clock."""

import gc
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner

from edgestitch.artifact import load, save
from edgestitch.cli import cli
from edgestitch.data import save_images, toy_images
from edgestitch.errors import ArtifactError, DeviceError
from edgestitch.runtime import Runtime
from edgestitch.switches import STEADY, SwitchMatrix, first_frame, measure_switches
from edgestitch.testing import fake_deployment, toy_deployment

COSTS_MS = {"a:0:3": 1.0, "a:0:1+b:0:3": 2.0, "b:0:3": 4.0}
IMAGE = np.zeros((1, 1, 8, 8), np.float32)


class Device:
    """Takes `COSTS_MS` of a time of its own, and half as long again for the first after a switch."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.last = ""
        self.order: list[str] = []

    def clock(self) -> int:
        self.now_ns += 1000  # a look at the clock takes a microsecond
        return self.now_ns

    def run(self, topology: str, images: np.ndarray) -> np.ndarray:
        cold = 1.5 if topology != self.last else 1.0
        self.now_ns += round(1e6 * COSTS_MS[topology] * cold)
        self.last = topology
        self.order.append(topology)
        return np.zeros((len(images), 4), np.float32)


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def runtime(device):
    with Runtime(fake_deployment(COSTS_MS, run=device.run), miss_rate=None) as runtime:
        yield runtime


def test_every_ordered_pair_is_measured(runtime, device):
    matrix = measure_switches(runtime, IMAGE, repeats=6, clock=device.clock)
    assert matrix.topologies == tuple(COSTS_MS)
    names = list(COSTS_MS)
    assert set(matrix.by_pair) == {(a, b) for a in names for b in names if a != b}
    assert matrix.repeats == 6


def test_the_first_inference_is_told_from_the_steady_state(runtime, device):
    matrix = measure_switches(runtime, IMAGE, repeats=6, clock=device.clock)
    for (_, after), one in matrix.by_pair.items():
        assert one.first_ms.median == pytest.approx(1.5 * COSTS_MS[after], rel=0.01)
        assert one.steady_ms.median == pytest.approx(COSTS_MS[after], rel=0.01)
        assert one.ratio.median == pytest.approx(1.5, rel=0.01)
        assert one.switch_us.median == pytest.approx(1.0)
        assert one.ratio.low <= one.ratio.median <= one.ratio.high


def test_pairs_come_in_random_order_the_same_every_time(device):
    def order(seed: int) -> list[str]:
        device = Device()
        with Runtime(fake_deployment(COSTS_MS, run=device.run), miss_rate=None) as runtime:
            measure_switches(runtime, IMAGE, repeats=2, seed=seed, clock=device.clock)
        return device.order

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_each_pair_has_as_many_repeats(runtime, device):
    measure_switches(runtime, IMAGE, repeats=4, clock=device.clock)
    # Of a topology: as the one before three calls, as the one after ten; two partners each.
    calls = Counter(device.order[-4 * 6 * (3 + STEADY) :])
    assert set(calls.values()) == {4 * 2 * (3 + STEADY)}


def test_budgets_hold_again_afterwards(runtime, device):
    runtime.budget_ms = 2.5
    before = runtime.topology
    measure_switches(runtime, IMAGE, repeats=1, clock=device.clock)
    assert (runtime.budget_ms, runtime.topology) == (2.5, before)
    assert gc.isenabled()


def test_budgets_hold_again_after_an_error(runtime, device):
    runtime.budget_ms = 2.5
    before = runtime.topology
    with pytest.raises(ValueError, match="the network takes"):
        measure_switches(runtime, IMAGE[:, :, :4], clock=device.clock)
    assert runtime.topology == before
    assert gc.isenabled()


@pytest.mark.parametrize("healthy", range(3, 16))
def test_a_topology_that_fails_is_named_whenever_that_is(device: Device, healthy: int) -> None:
    calls = Counter[str]()

    def run(topology: str, images: np.ndarray) -> np.ndarray:
        calls[topology] += 1
        if topology == "b:0:3" and calls[topology] > healthy:
            raise RuntimeError("out of memory")
        return device.run(topology, images)

    names = ["a:0:3", "b:0:3"]
    deployment = fake_deployment({name: COSTS_MS[name] for name in names}, run=run)
    with Runtime(deployment, miss_rate=None) as runtime:
        calls.clear()
        with pytest.raises(DeviceError, match=r"b:0:3 was switched to, and a:0:3 ran"):
            measure_switches(runtime, IMAGE, repeats=2, clock=device.clock)


def test_one_topology_has_nothing_to_switch(device):
    deployment = fake_deployment({"a:0:3": 1.0}, run=device.run)
    with Runtime(deployment, miss_rate=None) as runtime:
        assert measure_switches(runtime, IMAGE, clock=device.clock).transitions == ()


def test_no_repeat_is_refused(runtime):
    with pytest.raises(ValueError, match="once at least, not 0"):
        measure_switches(runtime, IMAGE, repeats=0)


def test_progress_is_told(runtime, device):
    told = []
    measure_switches(
        runtime, IMAGE, repeats=3, clock=device.clock, progress=lambda *step: told.append(step)
    )
    assert told == [("switches", 1, 3), ("switches", 2, 3), ("switches", 3, 3)]


def test_a_matrix_is_an_artifact(runtime, device, tmp_path):
    matrix = measure_switches(runtime, IMAGE, repeats=1, clock=device.clock)
    save(matrix, tmp_path / "switches.json")
    assert load(SwitchMatrix, tmp_path / "switches.json") == matrix
    assert matrix.network == runtime.deployment.manifest.network
    (tmp_path / "switches.json").write_text("{}")
    with pytest.raises(ArtifactError):
        load(SwitchMatrix, tmp_path / "switches.json")


def test_the_first_frame_fits_a_call(runtime, device):
    image = first_frame(runtime, toy_images(3))
    assert image.shape == runtime.input_shape
    measure_switches(runtime, image, repeats=1, clock=device.clock)


def test_on_the_real_clock_a_switch_takes_some_time():
    with Runtime(fake_deployment(COSTS_MS), miss_rate=None) as runtime:
        matrix = measure_switches(runtime, IMAGE, repeats=1)
    assert all(one.switch_us.median > 0 and one.first_ms.median > 0 for one in matrix.transitions)


# --- from the command line --------------------------------------------------------------------


def test_run_measures_switches_and_the_report_shows_them(tmp_path):
    toy_deployment(tmp_path / "deployment")
    save_images(toy_images(8), tmp_path / "images.safetensors", "toy")
    runner = CliRunner()
    line = f"run {tmp_path}/deployment --images {tmp_path}/images.safetensors --budget-ms 100"
    done = runner.invoke(cli, [*line.split(), "--switches", f"{tmp_path}/switches.json"])
    assert done.exit_code == 0, done.output
    matrix = load(SwitchMatrix, tmp_path / "switches.json")
    number = len(matrix.topologies)
    assert number > 1
    assert len(matrix.transitions) == number * (number - 1)
    line = f"report {tmp_path}/switches.json --out {tmp_path}/report.html"
    assert runner.invoke(cli, line.split()).exit_code == 0
    assert "First over tenth" in (tmp_path / "report.html").read_text()


def test_a_live_run_measures_no_switches():
    done = CliRunner().invoke(cli, ["run", "--live", "--switches", "switches.json"])
    assert done.exit_code == 2
    assert "not --live" in done.stderr
