"""The run log: every frame counted, the last ones kept, and nothing that a device does holds it up."""

import gc
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestitch import Runtime
from edgestitch.artifact import digest
from edgestitch.errors import ArtifactError
from edgestitch.meters import NoMeter, Trace
from edgestitch.runlog import Recorder, load_run_log
from edgestitch.runtime import Result
from edgestitch.sensors import State
from edgestitch.testing import ReplayMeter, fake_deployment

COSTS = {"a:0:3": 1.0, "a:0:1+b:1:3": 2.0, "b:0:3": 4.0}
IMAGE = np.zeros((1, 1, 8, 8), np.float32)
STATE = State(clocks_mhz={"cpu": 2000.0}, temperatures_c={"cpu": 51.0}, throttle=(), events={})


@pytest.fixture(scope="module")
def runtime():
    with Runtime(fake_deployment(COSTS), budget_ms=3.0) as runtime:
        yield runtime


def result(latency_ms: float, budget_ms: float | None = 3.0, topology: str = "a:0:3") -> Result:
    return Result(
        output=None,
        topology=topology,
        latency_ms=latency_ms,
        budget_ms=budget_ms,
        met=None if budget_ms is None else latency_ms <= budget_ms,
        margin_ms=None if budget_ms is None else budget_ms - latency_ms,
        feasible=True,
    )


results = st.builds(
    result,
    st.floats(0.01, 100),
    st.none() | st.floats(0.5, 50),
    st.sampled_from(list(COSTS)),
)


class Sensors:
    """A device in one state, or one that nobody can read."""

    locked = None

    def __init__(self, *states: State | Exception) -> None:
        self._states = list(states)

    def read(self) -> State:
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        if isinstance(state, Exception):
            raise state
        return State(
            clocks_mhz=state.clocks_mhz,
            temperatures_c=state.temperatures_c,
            throttle=state.throttle,
            events=state.events,
        )


def gauge(power_w: float) -> ReplayMeter:
    """A meter that has always shown that power."""
    now = time.perf_counter_ns()
    times = now + np.arange(-200, 2000, dtype=np.int64) * 50_000_000
    values = np.full(len(times), power_w)
    return ReplayMeter(Trace(quantity="power_w", times_ns=times, values=values, period_s=0.05))


def soon(condition: Callable[[], bool]) -> None:
    """Waits for what another thread does; ten seconds are more than any machine needs."""
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


# --- frames ----------------------------------------------------------------------------------


@given(st.lists(results, max_size=40), st.integers(1, 50))
def test_every_frame_is_counted_and_the_last_ones_are_kept(runtime, given_results, keep):
    recorder = Recorder(runtime, keep=keep)
    for one in given_results:
        recorder.frame(one)
    log = recorder.log()
    assert recorder.count == len(given_results) == log.lost + len(log.frames)
    assert len(log.frames) == min(keep, len(given_results))
    assert recorder.missed == sum(one.met is False for one in given_results)
    # They began in another order than they ended in, where one took longer than came between.
    kept = given_results[-keep:]
    assert sorted(f.latency_ms for f in log.frames) == sorted(r.latency_ms for r in kept)
    assert all(before.time_s <= after.time_s for before, after in pairwise(log.frames))


@given(st.lists(st.lists(results, max_size=6), max_size=8))
def test_who_follows_sees_every_frame_once(runtime, bursts):
    recorder = Recorder(runtime)
    seen, number = [], 0
    for burst in bursts:
        for one in burst:
            recorder.frame(one)
        number, new = recorder.since(number)
        seen += new
    assert [f.latency_ms for f in seen] == [r.latency_ms for burst in bursts for r in burst]
    assert recorder.since(number) == (number, [])


def test_who_follows_too_slowly_goes_on_with_what_is_kept(runtime):
    recorder = Recorder(runtime, keep=3)
    for latency_ms in range(1, 11):
        recorder.frame(result(latency_ms))
    number, frames = recorder.since(2)
    assert (number, [frame.latency_ms for frame in frames]) == (10, [8, 9, 10])


def test_a_frame_says_what_was_asked_for_and_when_it_began(runtime):
    recorder = Recorder(runtime)
    before_s = recorder.now_s
    answered = runtime.infer(IMAGE)
    after_s = recorder.now_s
    recorder.frame(answered)
    (frame,) = recorder.log().frames
    assert (frame.topology, frame.latency_ms) == (answered.topology, answered.latency_ms)
    assert (frame.budget_ms, frame.budget_w, frame.met) == (3.0, None, answered.met)
    assert before_s - 0.001 <= frame.time_s <= after_s


def test_a_frame_costs_a_few_calls_however_many_are_kept(runtime):
    recorder, one = Recorder(runtime, keep=1000), result(2.0)

    def calls() -> int:
        """Calls of Python functions that one frame makes."""
        made = 0

        def count(frame, event, argument):
            nonlocal made
            made += event == "call"

        sys.setprofile(count)
        try:
            recorder.frame(one)
        finally:
            sys.setprofile(None)
        return made

    first = calls()
    for _ in range(5000):
        recorder.frame(one)
    # `frame` itself, and what finds the runtime's budget.
    assert first == calls() <= 5


def test_kept_frames_are_nothing_to_the_garbage_collector(runtime):
    recorder = Recorder(runtime)
    recorder.frame(result(2.0))
    assert not any(gc.is_tracked(frame) for frame in recorder.since(0)[1])


def test_frames_of_several_threads_are_all_counted(runtime):
    recorder = Recorder(runtime, keep=100)

    def work():
        for _ in range(500):
            recorder.frame(result(4.0))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (recorder.count, recorder.missed, recorder.log().lost) == (2000, 2000, 1900)


def test_a_recorder_that_keeps_nothing_is_refused(runtime):
    with pytest.raises(ValueError, match="one frame at least, not 0"):
        Recorder(runtime, keep=0)


# --- the file --------------------------------------------------------------------------------


def test_a_log_is_what_was_saved(runtime, tmp_path):
    recorder = Recorder(runtime)
    for latency_ms in (1.0, 5.0, 2.0):
        recorder.frame(result(latency_ms))
    recorder.save(tmp_path / "run.json")
    log = load_run_log(tmp_path / "run.json")
    assert log == recorder.log()
    assert log.plan == digest(runtime.deployment.plan)
    assert (log.family, log.network) == ("toy", "fake")


def test_a_log_is_written_whole_or_not_at_all(runtime, tmp_path):
    recorder, path = Recorder(runtime), tmp_path / "run.json"
    recorder.frame(result(float("nan")))
    with pytest.raises(ArtifactError, match="is nan: only finite numbers"):
        recorder.save(path)
    assert list(tmp_path.iterdir()) == []
    Recorder(runtime).save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match="cut short"):
        load_run_log(path)


@pytest.mark.parametrize("ended_by", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_log_is_written_whatever_ends_the_run(runtime, tmp_path, ended_by):
    path = tmp_path / "run.json"
    ending = pytest.raises(ended_by) if ended_by else nullcontext()
    with ending, Recorder(runtime, meter=NoMeter("none here")).saving(path) as recorder:
        recorder.frame(result(2.0))
        if ended_by:
            raise ended_by
    assert len(load_run_log(path).frames) == 1


# --- readings --------------------------------------------------------------------------------


def test_readings_say_what_sensors_and_meter_said(runtime):
    sensors, meter = Sensors(STATE), gauge(7.5)
    with Recorder(runtime, sensors=sensors, meter=meter, look_s=0.6) as recorder:
        soon(lambda: recorder.power_reason is None)
    log = recorder.log()
    assert log.power_reason is None
    powers = [reading.power_w for reading in log.readings if reading.power_w is not None]
    assert powers == pytest.approx([7.5] * len(powers))
    assert powers
    last = log.readings[-1]
    assert (last.clocks_mhz, last.temperatures_c) == ({"cpu": 2000.0}, {"cpu": 51.0})
    assert last.slowdown == pytest.approx(1.0, abs=0.5)
    assert recorder.reading == last


def test_without_a_meter_the_log_says_why(runtime):
    meter = NoMeter("no counter here")
    with Recorder(runtime, sensors=Sensors(STATE), meter=meter, look_s=0.01) as recorder:
        soon(lambda: len(recorder.log().readings) >= 2)
    assert recorder.log().power_reason == "no counter here"
    assert {reading.power_w for reading in recorder.log().readings} == {None}


def test_a_meter_that_stalls_holds_up_neither_frames_nor_sensors(runtime):
    stalled, go_on = threading.Event(), threading.Event()

    class Stalling:
        name, scope, reason, period_s, lag_s, notes = "stalling", "all", None, 0.1, 0.0, {}

        @contextmanager
        def record(self):
            stalled.set()
            go_on.wait(30)
            with NoMeter("it went away").record() as recording:
                yield recording

    try:
        with Recorder(runtime, sensors=Sensors(STATE), meter=Stalling(), look_s=0.01) as recorder:
            assert stalled.wait(10)
            for _ in range(100):
                recorder.frame(runtime.infer(IMAGE))
            soon(lambda: len(recorder.log().readings) >= 3)
            log = recorder.log()
            go_on.set()
    finally:
        go_on.set()
    assert len(log.frames) == 100
    assert log.power_reason == "the meter stalling did not answer"
    assert all(reading.temperatures_c == {"cpu": 51.0} for reading in log.readings)


def test_sensors_that_fail_are_missing_not_repeated(runtime):
    sensors = Sensors(STATE, OSError("gone"), OSError("gone"), OSError("gone"), STATE)
    with Recorder(runtime, sensors=sensors, meter=NoMeter("none"), look_s=0.01) as recorder:
        soon(lambda: len(recorder.log().readings) >= 6)
    clocks = [bool(reading.clocks_mhz) for reading in recorder.log().readings]
    assert clocks[:5] == [True, False, False, False, True]


def test_throttling_is_what_was_counted_since_the_last_look(runtime):
    def counted(number: int) -> State:
        return State(clocks_mhz={}, temperatures_c={}, throttle=(), events={"oc1": number})

    sensors = Sensors(counted(7), counted(7), counted(8), counted(8))
    with Recorder(runtime, sensors=sensors, meter=NoMeter("none"), look_s=0.01) as recorder:
        soon(lambda: len(recorder.log().readings) >= 4)
    throttle = [reading.throttle for reading in recorder.log().readings]
    assert throttle[:4] == [(), (), ("oc1",), ()]


def test_no_thread_is_left(runtime):
    before = set(threading.enumerate())
    with Recorder(runtime, sensors=Sensors(STATE), meter=gauge(5.0)):
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) == before
