"""Energies against the truth of a simulated device: unbiased, honest about their errors."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from edgestitch.compose import Terms, predict, terms
from edgestitch.energy import (
    Energies,
    EnergySettings,
    Wattmeter,
    energies,
    measure_energies,
    measure_mixed,
)
from edgestitch.measure import MeasureSettings, measure
from edgestitch.meters import Meter
from edgestitch.profile import Load
from edgestitch.recipe import load_family
from edgestitch.simulation import (
    SimulatedDevice,
    SimulatedSensors,
    Throttling,
    default_costs,
    roles,
)
from edgestitch.timer import Pacer, TimerSettings

TOY = load_family("toy")
TOPOLOGIES = tuple(topology.name for topology in TOY.topologies)
FOUR = TOPOLOGIES[:4]
# Calls of 4 to 9 ms: enough of them in a window, and not too many to simulate.
MILLISECONDS = {name: 4 * ms for name, ms in default_costs(TOY, roles(TOY)).items()}
FAST = EnergySettings(window_s=1.0, settle_s=0.5, idle_s=1.0, mixed_windows=0)


def toy_device(**options: Any) -> SimulatedDevice:
    return SimulatedDevice(TOY, **{"costs_ms": MILLISECONDS, "noise": 0.03, **options})


def toy_terms(device: SimulatedDevice) -> Terms:
    borders = {name: len(segments) - 1 for name, segments in device.cut.chains.items()}
    return terms({name: TOY.atoms(name) for name in TOPOLOGIES}, device.classes, borders)


def wattmeter(
    device: SimulatedDevice,
    meter: Meter,
    settings: EnergySettings = FAST,
    *,
    load: Load | None = None,
    keep_throttled: bool = False,
) -> Wattmeter:
    return Wattmeter(
        meter=meter,
        calls={name: partial(device.call, name) for name in TOPOLOGIES},
        settings=settings,
        pacer=Pacer(load or Load(), device.clock, device.sleep),
        look=SimulatedSensors(device).read,
        keep_throttled=keep_throttled,
    )


def measured(meter: Wattmeter, device: SimulatedDevice, names: Sequence[str] = FOUR) -> Energies:
    meter.idle()
    ended = measure_energies(meter, names)
    measure_mixed(meter, names)
    meter.idle()
    return energies(meter, toy_terms(device), ended)


def errors(found: Energies, device: SimulatedDevice) -> np.ndarray:
    """Relative, of each topology."""
    return np.array([mj / device.energy_mj(name) - 1 for name, mj in found.energies_mj.items()])


def with_seed(seed: int, **changes: Any) -> EnergySettings:
    given = {name: getattr(FAST, name) for name in FAST.__struct_fields__}
    return EnergySettings(**{**given, "seed": seed, **changes})


METERS: dict[str, Callable[[SimulatedDevice, float], Meter]] = {
    "counter of 20 ms": lambda device, phase: device.counter(0.02, phase=phase),
    "counter of 100 ms": lambda device, phase: device.counter(0.1, phase=phase),
    "gauge": lambda device, phase: device.gauge(0.1, phase=phase),
    "gauge that looks a quarter of the time": lambda device, phase: device.gauge(
        0.1, window_s=0.025, phase=phase
    ),
    "gauge with noise": lambda device, phase: device.gauge(
        0.1, window_s=0.025, noise_w=2.0, phase=phase
    ),
}


@pytest.mark.parametrize("kind", METERS)
def test_energies_are_unbiased_and_their_intervals_cover(kind):
    means, hits, trials = [], 0, 80
    for seed in range(trials):
        device = toy_device(seed=seed)
        phase = np.random.default_rng(seed).random()
        found = measured(
            wattmeter(device, METERS[kind](device, phase), with_seed(seed, periods=20)), device
        )
        assert found.reason is None
        assert found.half_width is not None
        assert found.half_width <= 0.02
        means.append(errors(found, device).mean())
        hits += int((np.abs(errors(found, device)) <= found.half_width).sum())
    assert abs(np.mean(means)) <= 3 * np.std(means) / np.sqrt(trials)
    # The four of one run share their half-width, so that their hits come together; hence four
    # binomial deviations rather than three.
    number = trials * len(FOUR)
    assert hits / number >= 0.95 - 4 * np.sqrt(0.95 * 0.05 / number)


def test_the_idle_device_is_measured_before_and_after():
    device = toy_device(idle_w=7.0)
    found = measured(wattmeter(device, device.counter(0.02)), device)
    assert found.protocol.idle_before_w == pytest.approx(7.0, rel=0.01)
    assert found.protocol.idle_after_w == pytest.approx(7.0, rel=0.01)
    for name, mj in found.energies_mj.items():
        above = mj - 7.0 * found.durations_ms[name]
        assert above == pytest.approx(device.work_mj(name), rel=0.02)


def test_the_mean_time_of_a_call_is_that_of_the_windows():
    device = toy_device(noise=0.3)
    found = measured(wattmeter(device, device.counter(0.02), with_seed(0, window_s=8.0)), device)
    for name, duration_ms in found.durations_ms.items():
        assert duration_ms == pytest.approx(device.mean_ms(name), rel=0.02)
        assert device.mean_ms(name) > 1.04 * device.latency_ms(name)


def test_a_paced_load_has_the_energy_of_the_whole_slot():
    device = toy_device(idle_w=7.0)
    paced = wattmeter(device, device.counter(0.02), load=Load(kind="paced", rate_hz=50))
    found = measured(paced, device)
    for name, mj in found.energies_mj.items():
        assert mj == pytest.approx(device.work_mj(name) + 7.0 * 20, rel=0.02)
        assert found.durations_ms[name] == pytest.approx(20, rel=0.02)


def test_sampling_goes_on_until_the_precision_is_reached():
    device = toy_device()
    few = measured(wattmeter(device, device.gauge(noise_w=4.0)), device)
    assert few.protocol.windows > FAST.min_windows
    assert few.half_width is not None
    assert few.half_width <= FAST.precision


def test_noise_that_no_window_ends_is_said_by_the_half_width():
    device = toy_device()
    found = measured(wattmeter(device, device.gauge(noise_w=400.0)), device)
    assert found.protocol.windows == FAST.max_windows
    assert found.half_width is not None
    assert found.half_width > FAST.precision


# --- what goes wrong -------------------------------------------------------------------------


def test_a_window_in_which_the_counter_is_reset_is_discarded_with_the_reason():
    device = toy_device()
    found = measured(wattmeter(device, device.counter(0.02, reset_at_s=6.3)), device)
    assert found.reason is None
    assert found.protocol.discarded == {"the counter was reset (driver reloaded)": 1}
    assert np.abs(errors(found, device)).max() < 0.01
    assert found.protocol.windows >= FAST.min_windows


def test_a_meter_that_dies_at_once_leaves_no_energy_and_the_reason():
    device = toy_device()
    found = measured(wattmeter(device, device.counter(0.02, dies_at_s=1.7)), device)
    assert found.energies_mj == {}
    assert found.half_width is None
    assert found.reason is not None
    assert "the meter does not answer any more" in found.reason
    assert device.seconds < 60  # it is given up, not tried for ten minutes


def test_a_meter_that_dies_in_the_second_round_leaves_what_it_said_and_the_reason():
    device = toy_device()
    found = measured(wattmeter(device, device.counter(0.02, dies_at_s=8.0)), device)
    assert len(found.energies_mj) == len(FOUR)
    assert found.protocol.windows == 1
    assert np.abs(errors(found, device)).max() < 0.02
    assert found.reason is not None
    assert "stopped" in found.reason
    assert sum(found.protocol.discarded.values()) >= 5


def test_a_window_that_the_meter_saw_little_of_is_discarded():
    device = toy_device()
    meter = wattmeter(device, device.counter(0.02, dies_at_s=0.3))
    window = meter.window(["a:0:3"], [1.0])
    assert window.energy_mj is None
    assert window.reason is not None
    assert window.reason.endswith("of 1 s")


def test_the_time_cap_is_kept_and_said():
    device = toy_device()
    found = measured(wattmeter(device, device.counter(0.02), with_seed(0, time_cap_s=3.0)), device)
    assert found.reason == "the time cap of 3 s ended the measuring of energy"
    assert device.seconds < 3 + 2 * 1.5 + 2


def test_throttling_in_the_middle_of_a_window_is_seen():
    device = toy_device(throttling=[Throttling(start_s=5.0, stop_s=5.6, slower=3.0)])
    meter = wattmeter(device, device.counter(0.02), with_seed(0, window_s=4.0))
    found = measured(meter, device)
    assert found.protocol.discarded == {"throttled: thermal": 1}
    assert np.abs(errors(found, device)).max() < 0.01


def test_windows_count_in_which_it_throttled_where_that_is_asked_for():
    device = toy_device(throttling=[Throttling(start_s=0, stop_s=1e6, slower=2.0)])
    found = measured(wattmeter(device, device.counter(0.02), keep_throttled=True), device)
    assert found.protocol.discarded == {}
    for name, mj in found.energies_mj.items():
        slow_mj = device.work_mj(name) + 2 * device.idle_w * device.mean_ms(name)
        assert mj == pytest.approx(slow_mj, rel=0.02)


# --- the second method -----------------------------------------------------------------------

# A watt of one class is not one of another, as it is on a GPU: else mixtures would tell nothing.
CONTRAST = {
    name: ms * (12.0 if name.startswith("a") else 30.0) for name, ms in MILLISECONDS.items()
}


@pytest.mark.parametrize("kind", METERS)
def test_mixtures_agree_with_windows_of_one_topology(kind):
    agreed = []
    for seed in range(20):
        device = toy_device(seed=seed, energies_mj=CONTRAST)
        meter = METERS[kind](device, seed / 20)
        settings = with_seed(seed, periods=20, mixed_windows=12)
        found = measured(wattmeter(device, meter, settings), device, TOPOLOGIES)
        assert found.protocol.mixed == 12
        agreed.append(found.protocol.methods_agree)
    assert agreed.count(True) >= 18
    assert None not in agreed


def test_energies_that_do_not_add_up_make_the_methods_disagree():
    plain = toy_device()

    def extra_mj(topology: str) -> float:
        return 0.3 * plain.work_mj(topology) * (topology == TOPOLOGIES[4])

    for seed in range(5):
        device = toy_device(seed=seed, extra_mj=extra_mj)
        settings = with_seed(seed, mixed_windows=12)
        found = measured(wattmeter(device, device.counter(0.02), settings), device, TOPOLOGIES)
        assert np.abs(errors(found, device)).max() < 0.02  # each energy is right nevertheless
        assert found.protocol.methods_agree is False


def test_too_few_mixtures_compare_nothing():
    device = toy_device()
    settings = with_seed(0, mixed_windows=3)
    found = measured(wattmeter(device, device.counter(0.02), settings), device, TOPOLOGIES)
    assert found.protocol.mixed == 3
    assert found.protocol.methods_agree is None


def test_predicted_energy_of_a_long_random_sequence_is_the_counters():
    deit = load_family("deit-ti-s-b")
    for seed in range(3):
        device = SimulatedDevice(deit, noise=0.03, spike_probability=0.002, seed=seed)
        profile, _ = measure(
            device.source(),
            device.instruments(device.counter(0.1)),
            MeasureSettings(
                timer=TimerSettings(min_samples=40, precision=0.1, min_warmup_s=0.1),
                energy=EnergySettings(window_s=1.0, periods=20, settle_s=0.5, idle_s=1.0),
            ),
        )
        assert profile.number("composed") > 50
        random = np.random.default_rng(seed)
        names = [cost.topology for cost in profile.costs]
        start_ns, predicted_mj = device.now_ns, 0.0
        while device.now_ns < start_ns + 60_000_000_000:
            name = names[random.integers(len(names))]
            device.call(name)
            energy_mj = profile.by_topology[name].energy_mj
            assert energy_mj is not None
            predicted_mj += energy_mj
        before_mj, after_mj = device.used_mj(np.array([start_ns, device.now_ns]))
        assert predicted_mj == pytest.approx(after_mj - before_mj, rel=0.02)


def test_composed_energies_are_those_of_the_sum():
    device = toy_device()
    found = toy_terms(device)
    truth = [device.work_mj(name) for name in TOPOLOGIES]
    assert predict(found, device.energies_mj, TOPOLOGIES) == pytest.approx(truth)
