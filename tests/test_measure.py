"""Profiles of simulated devices against their truth: medians, bounds, loads, resumption."""

import errno
import os
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy.stats import binom, norm

from edgestitch.compose import Selection, predict, terms
from edgestitch.energy import EnergySettings, Window
from edgestitch.errors import ArtifactError, DeviceError, MismatchError
from edgestitch.instruments import beside
from edgestitch.journal import Journal
from edgestitch.measure import MeasureSettings, load_samples, measure, save_profile
from edgestitch.profile import Load, Profile
from edgestitch.recipe import load_family
from edgestitch.simulation import SimulatedDevice, Throttling
from edgestitch.timer import Samples, Taken, TimerSettings
from edgestitch.topology import Topology

DEIT = load_family("deit-ti-s-b")
TOPOLOGIES = tuple(topology.name for topology in DEIT.topologies)
# Few samples: the simulated calls are cheap, but not free.
TIMER = TimerSettings(min_samples=60, precision=0.02, min_warmup_s=0.1, time_cap_s=1000)
ENERGY = EnergySettings(window_s=1.0, periods=20, settle_s=0.5, idle_s=1.0, min_windows=2)
LATENCY_ONLY = MeasureSettings(timer=TIMER, energy=None)
BOTH = MeasureSettings(timer=TIMER, energy=ENERGY)


def profiled(
    device: SimulatedDevice, settings: MeasureSettings = LATENCY_ONLY, **timer: Any
) -> Profile:
    changed = msgspec.structs.replace(
        settings, timer=msgspec.structs.replace(settings.timer, **timer)
    )
    profile, _ = measure(device.source(), device.instruments(device.counter(0.02)), changed)
    return profile


def latency_errors(profile: Profile, device: SimulatedDevice) -> np.ndarray:
    """Relative, of each median."""
    return np.array([c.latency_ms / device.latency_ms(c.topology) - 1 for c in profile.costs])


def rough(share: float, size: float) -> Callable[[int], Callable[[str], float]]:
    """By seed, milliseconds that do not add up: some topologies take longer by that much."""
    plain = SimulatedDevice(DEIT)

    def extra_ms(seed: int) -> Callable[[str], float]:
        random = np.random.default_rng(seed)
        slower = {name: size * (random.random() < share) for name in TOPOLOGIES}
        return lambda name: slower[name] * plain.latency_ms(name)

    return extra_ms


# --- the estimates ---------------------------------------------------------------------------


def test_a_quarter_of_the_topologies_in_a_quarter_of_the_time_gives_all_costs():
    settings = MeasureSettings(timer=TimerSettings(min_samples=200, time_cap_s=1e4), energy=None)
    for seed in range(3):
        options: dict[str, Any] = {
            "noise": 0.05,
            "spike_probability": 0.01,
            "cold": 3.0,
            "seed": seed,
        }
        device = SimulatedDevice(DEIT, **options)
        profile = profiled(device, settings, seed=seed)
        everything = profiled(
            SimulatedDevice(DEIT, **options),
            msgspec.structs.replace(settings, compose=False),
            seed=seed,
        )
        errors = np.abs(latency_errors(profile, device))
        assert np.median(errors) <= 0.02
        assert np.quantile(errors, 0.95) <= 0.05
        assert profile.number("measured") <= len(TOPOLOGIES) / 4
        assert profile.number("measured") + profile.number("composed") == len(TOPOLOGIES)
        assert everything.number("measured") == len(TOPOLOGIES)
        assert everything.composition is None
        assert profile.protocol.duration_s <= 0.3 * everything.protocol.duration_s


def test_costs_are_unbiased_and_bounds_cover_as_often_as_they_say():
    """All of it: warm-up, samples, windows of a counter, design, fit, bounds."""
    hits: dict[str, list[Any]] = {"latency": [], "p99": [], "energy": []}
    errors: dict[str, list[Any]] = {"latency": [], "energy": []}
    timer = msgspec.structs.replace(TIMER, min_samples=480)  # a 99th percentile needs 473
    energy = msgspec.structs.replace(ENERGY, mixed_windows=0)
    trials = 12
    for seed in range(trials):
        noise = 0.05
        device = SimulatedDevice(DEIT, noise=noise, seed=seed)
        profile = profiled(device, MeasureSettings(timer=timer, energy=energy), seed=seed)
        composed = [cost for cost in profile.costs if cost.origin == "composed"]
        assert len(composed) == 54
        truth_ms = np.array([device.latency_ms(c.topology) for c in composed])
        truth_mj = np.array([device.energy_mj(c.topology) for c in composed])
        p99_ms = truth_ms * exp(noise * norm.ppf(0.99))
        low, mid, high = np.array(
            [(c.latency_low_ms, c.latency_ms, c.latency_high_ms) for c in composed]
        ).T
        low_mj, mid_mj, high_mj = np.array(
            [(c.energy_low_mj, c.energy_mj, c.energy_high_mj) for c in composed], float
        ).T
        hits["latency"].append(np.mean((low <= truth_ms) & (truth_ms <= high)))
        hits["p99"].append(np.mean(p99_ms <= np.array([c.bound_ms for c in composed])))
        hits["energy"].append(np.mean((low_mj <= truth_mj) & (truth_mj <= high_mj)))
        errors["latency"].append(np.mean(mid / truth_ms - 1))
        errors["energy"].append(np.mean(mid_mj / truth_mj - 1))
    for name, shares in hits.items():
        # Topologies of one run share its bound: the runs are the independent trials.
        deviation = np.sqrt(0.9 * 0.1 / trials)
        assert np.mean(shares) >= 0.9 - 2 * deviation, name
    for name, means in errors.items():
        assert abs(np.mean(means)) <= 3.5 * np.std(means) / np.sqrt(trials), name
        assert abs(np.mean(means)) < 0.003, name


@pytest.mark.parametrize(
    ("share", "size", "noise", "confidence"),
    [
        (0.0, 0.0, 0.005, 0.9),
        (0.0, 0.0, 0.005, 0.8),
        (0.0, 0.0, 0.03, 0.9),
        (0.1, 0.1, 0.002, 0.9),
        (0.2, 0.1, 0.002, 0.9),
        (0.5, 0.06, 0.002, 0.9),
    ],
)
def test_bounds_cover_also_where_a_sum_was_only_good_at_the_second_look(
    share, size, noise, confidence
):
    """The fast path, without calls: true costs with noise, and the profiler's own selection."""
    extra_ms = rough(share, size)
    shares, biases = [], []
    atoms = {name: DEIT.atoms(name) for name in TOPOLOGIES}
    plain = SimulatedDevice(DEIT)
    borders = {name: len(segments) - 1 for name, segments in plain.cut.chains.items()}
    found = terms(atoms, plain.classes, borders)
    for run in range(220):
        extra = extra_ms(run)
        truth = {name: plain.latency_ms(name) + extra(name) for name in TOPOLOGIES}
        random = np.random.default_rng(run)
        medians = {name: ms * exp(noise * random.standard_normal()) for name, ms in truth.items()}
        selection = Selection(found, confidence, run)
        while not selection.complete:
            certificate = selection.certify(medians)
            if certificate.p95_error <= 0.05 and certificate.median_error <= 0.02:
                break
            selection.extend()
        left = [name for name in TOPOLOGIES if name not in set(selection.measured)]
        if left:
            predicted = predict(found, certificate.costs, left)
            ratios = np.array([truth[name] for name in left]) / predicted
            assert certificate.confidence >= confidence
            inside = np.abs(ratios - 1) <= certificate.spread
            shares.append((np.mean(inside), np.mean(ratios <= certificate.factor)))
            biases.append(np.mean(1 / ratios - 1))
    assert len(shares) >= 30
    for covered in np.transpose(shares):
        deviation = max(np.std(covered), 0.02) / np.sqrt(len(covered))
        assert np.mean(covered) >= confidence - 3 * deviation
    if not share:
        assert abs(np.mean(biases)) <= 3.5 * np.std(biases) / np.sqrt(len(biases))


def test_measured_medians_are_unbiased_and_their_intervals_cover():
    errors, hits, number = [], 0, 0
    for seed in range(20):
        device = SimulatedDevice(DEIT, noise=0.05, seed=seed)
        profile = profiled(device, seed=seed)
        for cost in profile.costs:
            if cost.origin == "measured":
                truth = device.latency_ms(cost.topology)
                errors.append(cost.latency_ms / truth - 1)
                hits += cost.latency_low_ms <= truth <= cost.latency_high_ms
                number += 1
    assert abs(np.mean(errors)) <= 3 * np.std(errors) / np.sqrt(number)
    assert hits >= binom.ppf(0.001, number, 0.95)


# --- devices that do not add up --------------------------------------------------------------


def odd(topology: str) -> bool:
    """Whether the first run has an odd number of blocks: no sum over atoms knows."""
    return Topology.parse(topology).runs[0].stop % 2 == 1


def uneven_ms(topology: str) -> float:
    return 4.0 if odd(topology) else 0.0


def test_a_device_that_does_not_add_up_is_measured_whole():
    device = SimulatedDevice(DEIT, extra_ms=uneven_ms)
    profile = profiled(device)
    assert profile.number("measured") == len(TOPOLOGIES)
    assert profile.composition is None
    assert np.abs(latency_errors(profile, device)).max() < 0.02


def test_a_few_outliers_take_more_measuring_and_wider_bounds():
    extra_ms = rough(0.1, 0.1)
    counts = set()
    for seed in range(6):
        device = SimulatedDevice(DEIT, extra_ms=extra_ms(seed), seed=seed)
        profile = profiled(device, seed=seed)
        counts.add(profile.number("measured"))
        if profile.composition and profile.number("measured") > 17:
            assert profile.composition.latency.spread > 0.05  # it does not forget what it saw
    assert max(counts) > 17


def test_energies_that_do_not_add_up_are_measured_further():
    plain = SimulatedDevice(DEIT)
    device = SimulatedDevice(DEIT, extra_mj=lambda name: plain.work_mj(name) * 0.4 * odd(name))
    profile = profiled(device, BOTH)
    assert profile.number("measured") == len(TOPOLOGIES)
    assert profile.energy is not None
    assert profile.energy.methods_agree is False
    assert any("the two methods disagree about energy" in note for note in profile.notes)
    for cost in profile.costs:
        assert cost.energy_mj == pytest.approx(device.energy_mj(cost.topology), rel=0.02)


def test_a_time_cap_ends_the_measuring_and_the_profile_says_so():
    device = SimulatedDevice(DEIT, extra_ms=uneven_ms)
    profile = profiled(device, time_cap_s=20)
    assert profile.protocol.capped
    assert profile.number("composed") > 0
    assert any("miss the target" in note for note in profile.notes)
    assert profile.protocol.duration_s < 25


# --- what a device does meanwhile ------------------------------------------------------------

OFTEN = [Throttling(start_s=s, stop_s=s + 1.0, slower=2.0) for s in np.arange(0.0, 400.0, 3.0)]


def test_throttled_samples_are_dropped_and_counted_and_the_medians_are_the_cool_devices():
    device = SimulatedDevice(DEIT, throttling=OFTEN)
    profile = profiled(device)
    assert set(profile.protocol.throttled) == {"thermal"}
    dropped = sum(cost.dropped for cost in profile.costs)
    assert dropped == profile.protocol.throttled["thermal"] > 100
    assert np.abs(latency_errors(profile, device)).max() < 0.02
    assert all(c.max_ms < 1.2 * c.latency_ms for c in profile.costs if c.max_ms is not None)
    assert profile.protocol.temperatures_c["gpu"] == (60.0, 60.0, 90.0)


def test_a_device_that_throttles_all_the_time_has_no_profile_and_the_error_says_what_to_do():
    device = SimulatedDevice(DEIT, throttling=[Throttling(start_s=0, stop_s=1e9)])
    with pytest.raises(DeviceError, match=r"thermal.*--keep-throttled"):
        profiled(device, time_cap_s=10)


def test_throttled_samples_are_kept_and_said_where_that_is_asked_for():
    device = SimulatedDevice(DEIT, throttling=[Throttling(start_s=0, stop_s=1e9, slower=1.5)])
    profile = profiled(device, keep_throttled=True)
    assert profile.protocol.throttled["thermal"] > 100
    assert sum(cost.dropped for cost in profile.costs) == 0
    assert latency_errors(profile, device) == pytest.approx(0.5, abs=0.03)
    assert any("while the device throttled (thermal) and kept" in note for note in profile.notes)


def test_a_device_too_hot_for_any_window_has_no_energy_and_the_reason():
    quiet_s = profiled(SimulatedDevice(DEIT)).protocol.duration_s
    device = SimulatedDevice(DEIT, throttling=[Throttling(start_s=quiet_s + 1, stop_s=1e9)])
    energy = msgspec.structs.replace(ENERGY, time_cap_s=30.0)
    profile = profiled(device, msgspec.structs.replace(BOTH, energy=energy))
    assert profile.energy is None
    assert profile.energy_reason is not None
    assert "the time cap of 30 s" in profile.energy_reason
    assert "windows were discarded, throttled: thermal" in profile.energy_reason
    assert np.abs(latency_errors(profile, device)).max() < 0.02


@pytest.mark.parametrize("drift", [0.003, lambda seconds: 1 + 0.1 * np.sin(seconds / 10)])
def test_drift_leaves_the_ratios_of_topologies_right(drift):
    device = SimulatedDevice(DEIT, drift=drift)
    settings = msgspec.structs.replace(LATENCY_ONLY, compose=False)
    profile = profiled(device, settings)
    assert profile.protocol.duration_s > 60  # so that it drifted by 20 %
    errors = 1 + latency_errors(profile, device)
    assert errors / np.median(errors) == pytest.approx(1, abs=0.02)


def test_other_processes_are_told():
    profile = profiled(SimulatedDevice(DEIT, others=("4711 browser",)))
    assert any("4711 browser" in note for note in profile.notes)


# --- loads -----------------------------------------------------------------------------------


def test_a_paced_load_asks_30_times_a_second():
    device = SimulatedDevice(DEIT)
    settings = msgspec.structs.replace(BOTH, load=Load(kind="paced", rate_hz=30))
    profile, samples = measure(device.source(), device.instruments(device.counter(0.02)), settings)
    assert profile.protocol.late == 0
    starts = np.sort(np.concatenate(list(samples.starts_ns.values())))
    assert np.diff(starts).min() >= 1e9 / 30 - 1
    assert np.abs(latency_errors(profile, device)).max() < 0.02
    for cost in profile.costs:
        slot_mj = device.work_mj(cost.topology) + device.idle_w * 1e3 / 30
        assert cost.energy_mj == pytest.approx(slot_mj, rel=0.02)
        assert cost.energy_above_idle_mj == pytest.approx(device.work_mj(cost.topology), rel=0.05)


def test_calls_longer_than_their_slot_are_counted_as_late():
    device = SimulatedDevice(DEIT, noise=0.3)
    settings = msgspec.structs.replace(
        LATENCY_ONLY, load=Load(kind="paced", rate_hz=100), compose=False
    )
    profile = profiled(device, settings, max_samples=60)
    assert any(device.latency_ms(name) > 10 for name in TOPOLOGIES)
    assert profile.protocol.late > 0


def test_after_idle_gaps_a_call_takes_what_waking_up_takes():
    device = SimulatedDevice(DEIT, wake_ms=3.0)
    settings = msgspec.structs.replace(LATENCY_ONLY, load=Load(kind="after-idle", gap_ms=50))
    rested = profiled(device, settings)
    for cost in rested.costs:
        assert cost.latency_ms == pytest.approx(device.latency_ms(cost.topology) + 3, rel=0.02)
    busy = profiled(SimulatedDevice(DEIT, wake_ms=3.0))
    assert np.abs(latency_errors(busy, device)).max() < 0.02


# --- meters ----------------------------------------------------------------------------------


def test_without_a_meter_energy_has_a_reason_and_no_number():
    device = SimulatedDevice(DEIT)
    profile, _ = measure(device.source(), device.instruments(), BOTH)
    assert profile.energy_reason == "this simulated device was given no meter"
    assert profile.energy is None
    assert all(cost.energy_mj is None and cost.energy_origin is None for cost in profile.costs)


def test_a_meter_that_dies_leaves_the_latencies_and_the_reason():
    device = SimulatedDevice(DEIT)
    # After the latencies and the idle device, in the first windows.
    quiet = profiled(SimulatedDevice(DEIT))
    meter = device.counter(0.02, dies_at_s=quiet.protocol.duration_s + 5)
    profile, _ = measure(device.source(), device.instruments(meter), BOTH)
    assert profile.energy_reason is not None
    assert "the meter does not answer any more" in profile.energy_reason
    assert all(cost.energy_mj is None for cost in profile.costs)
    assert np.abs(latency_errors(profile, device)).max() < 0.02


def test_energy_is_left_out_where_it_is_not_asked_for():
    profile = profiled(SimulatedDevice(DEIT))
    assert profile.energy_reason == "not asked for"


def test_samples_beside_a_profile_are_those_it_was_made_from(tmp_path):
    device = SimulatedDevice(DEIT, throttling=OFTEN)
    profile, samples = measure(device.source(), device.instruments(), LATENCY_ONLY)
    save_profile(profile, samples, tmp_path / "p.json")
    tensors = load_samples(profile, tmp_path / "p.json")
    for cost in profile.costs:
        if cost.origin == "measured":
            durations = tensors[cost.topology]
            assert np.median(durations) / 1e6 == pytest.approx(cost.latency_ms)
            assert len(tensors[f"start {cost.topology}"]) == len(durations) == cost.samples
    assert tensors["state throttled"].any()
    other, _ = measure(device.source(), device.instruments(), LATENCY_ONLY)
    with pytest.raises(MismatchError, match="digest"):
        load_samples(other, tmp_path / "p.json")


# --- interrupted and taken up again ----------------------------------------------------------


class Interrupted(SimulatedDevice):
    """A device whose user presses Ctrl-C at that call; what was called is counted."""

    def __init__(self, at_call: int, **options: Any) -> None:
        super().__init__(DEIT, **options)
        self.at_call = at_call
        self.made: Counter[str] = Counter()

    def call(self, topology: str) -> None:
        self.made[topology] += 1
        if self.made.total() == self.at_call:
            raise KeyboardInterrupt
        super().call(topology)


def resume(
    path: Path, device: SimulatedDevice, settings: MeasureSettings = BOTH
) -> tuple[Profile, Samples]:
    journal = Journal(path, {"settings": msgspec.json.encode(settings).decode()})
    try:
        return measure(
            device.source(), device.instruments(device.counter(0.02)), settings, journal=journal
        )
    finally:
        journal.close()


def entries(path: Path) -> tuple[dict[str, list[int]], list[Window]]:
    """Samples and windows that a journal has."""
    journal = Journal(path, {"settings": msgspec.json.encode(BOTH).decode()})
    durations: dict[str, list[int]] = {}
    for entry in journal.entries("samples", dict[str, Taken]):
        for name, taken in entry.items():
            durations.setdefault(name, []).extend(taken.durations_ns)
    windows = list(journal.entries("window", Window))
    journal.close()
    return durations, windows


@pytest.fixture(scope="module")
def undisturbed() -> tuple[Profile, int]:
    """A profile that nobody interrupted, and how many calls it took."""
    device = SimulatedDevice(DEIT)
    return profiled(device, BOTH), device.calls


@pytest.mark.parametrize("share", [0.01, 0.08, 0.15, 0.3, 0.55, 0.8, 0.97])
def test_an_interrupted_profile_goes_on_and_measures_nothing_twice(share, undisturbed, tmp_path):
    whole, calls = undisturbed
    path = tmp_path / "p.unfinished"
    device = Interrupted(at_call=round(share * calls))
    with pytest.raises(KeyboardInterrupt):
        resume(path, device)
    durations, windows = entries(path)
    before = device.calls
    profile, samples = resume(path, device)
    # One more time it was taken up by `entries`.
    assert profile.protocol.resumed == 2
    for name, kept in durations.items():
        assert samples.durations_ns[name][: len(kept)].tolist() == kept
    assert entries(path)[1][: len(windows)] == windows
    assert [c.origin for c in profile.costs] == [c.origin for c in whole.costs]
    assert profile.energy is not None
    assert whole.energy is not None
    assert profile.energy.windows == whole.energy.windows
    assert profile.energy.mixed == whole.energy.mixed
    assert np.abs(latency_errors(profile, device)).max() < 0.02
    # Beyond what an undisturbed one takes: warming up again, and what was in flight.
    assert before + (device.calls - before) <= 1.15 * calls + 600


def test_many_interruptions_still_come_to_an_end(undisturbed, tmp_path):
    whole, calls = undisturbed
    path = tmp_path / "p.unfinished"
    device = Interrupted(at_call=0)
    random = np.random.default_rng(0)
    times = 0
    profile = None
    while profile is None:
        device.at_call = device.made.total() + int(random.integers(calls // 4, calls // 2))
        try:
            profile, _ = resume(path, device)
        except KeyboardInterrupt:
            times += 1
    assert times >= 2
    assert profile.protocol.resumed == times
    assert [c.origin for c in profile.costs] == [c.origin for c in whole.costs]


def test_a_journal_of_other_settings_is_refused_with_both(tmp_path):
    path = tmp_path / "p.unfinished"
    with pytest.raises(KeyboardInterrupt):
        resume(path, Interrupted(at_call=2000))
    with pytest.raises(MismatchError, match=r'"confidence":0\.9.*"confidence":0\.8'):
        resume(path, Interrupted(0), msgspec.structs.replace(BOTH, confidence=0.8))


def test_a_torn_last_line_costs_only_itself(tmp_path):
    path = tmp_path / "p.unfinished"
    with pytest.raises(KeyboardInterrupt):
        resume(path, Interrupted(at_call=2500))
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:-1]) + whole[-1][: len(whole[-1]) // 2])
    device = SimulatedDevice(DEIT)
    profile, _ = resume(path, device)
    assert np.abs(latency_errors(profile, device)).max() < 0.02


def test_a_full_disk_is_an_error_that_leaves_what_was_measured(tmp_path, monkeypatch):
    path = tmp_path / "p.unfinished"
    device = SimulatedDevice(DEIT)
    real = os.fsync
    writes = iter(range(1000))

    def full(descriptor: int) -> None:
        if next(writes) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        resume(path, device)
    monkeypatch.setattr(os, "fsync", real)
    durations, _ = entries(path)
    assert len(durations) == 17
    profile, samples = resume(path, device)
    assert profile.energy is not None
    for name, kept in durations.items():
        assert samples.durations_ns[name][: len(kept)].tolist() == kept


def test_a_file_that_cannot_grow_is_the_same_error_and_its_torn_line_is_left_out(tmp_path):
    path = tmp_path / "p.unfinished"
    device = SimulatedDevice(DEIT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, limits[1]))
    try:
        with pytest.raises(
            ArtifactError, match="File too large; what was measured before is in it"
        ):
            resume(path, device)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == 15_000
    assert not path.read_bytes().endswith(b"\n")
    durations, _ = entries(path)
    assert len(durations) == 17
    profile, _ = resume(path, device)
    assert profile.energy is not None


# --- beside ----------------------------------------------------------------------------------


def test_a_command_beside_is_ended_with_all_that_it_started(tmp_path):
    pids = tmp_path / "pids"
    command = f"sleep 100 & echo $! > {pids}; sleep 100"
    with beside(command):
        deadline = time.monotonic() + 10
        while not (pids.exists() and pids.read_text().strip()) and time.monotonic() < deadline:
            time.sleep(0.01)
        child = int(pids.read_text())
        os.kill(child, 0)  # it runs
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_command_beside_that_ends_by_itself_is_an_error():
    with pytest.raises(DeviceError, match="ended with exit code 3"), beside("exit 3"):
        time.sleep(0.5)


def test_an_error_is_not_hidden_by_the_command_beside():
    with pytest.raises(subprocess.SubprocessError), beside("sleep 100"):
        raise subprocess.SubprocessError
