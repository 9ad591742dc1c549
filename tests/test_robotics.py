"""Around a runtime on a robot: the worker, its mailbox and rule, the watchdog, pixels, the ROS 2 node."""

import importlib
import itertools
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgestitch import EdgestitchError, Runtime
from edgestitch.data import preprocess
from edgestitch.images import open_source
from edgestitch.robotics import (
    Answer,
    Mailbox,
    Watchdog,
    Worker,
    network_input,
    notify,
    ros2,
    unpack,
)
from edgestitch.testing import fake_deployment, toy_deployment

from . import fake_rclpy

COSTS = {"a:0:3": 1.0, "a:0:1+b:1:3": 2.0, "b:0:3": 4.0}
IMAGE = np.zeros((1, 1, 8, 8), np.float32)
ZEROS = np.zeros((1, 4), np.float32)
SOON_S = 20.0
"""Longer than anything here takes on a machine that does other things as well."""


def until(condition: Callable[[], Any]) -> None:
    """Waits for what another thread is about to do."""
    end_s = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end_s, "it did not come"
        time.sleep(0.001)


def exceeds(answers: list[Answer], number: int) -> bool:
    return len(answers) > number


def answered_to(worker: Worker, number: int) -> bool:
    latest = worker.latest()
    return latest is not None and latest.number == number


class Gate:
    """A network that stands still until it is told to go on, image by image."""

    def __init__(self, *, opened: bool = False) -> None:
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(10**6 if opened else 0)

    def run(self, topology: str, images: np.ndarray) -> np.ndarray:
        if images.any():  # what the runtime warms up with is zeros
            self.entered.release()
            assert self.gate.acquire(timeout=SOON_S)
        return np.repeat(images.reshape(1, -1)[:, :1], 4, axis=1)

    def runtime(self, **options: Any) -> Runtime:
        return Runtime(fake_deployment(COSTS, run=self.run), **options)

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=SOON_S)


def image(number: float) -> np.ndarray:
    """An image that its answer can be told by."""
    return np.full_like(IMAGE, number / 100)


def opened(**options: Any) -> Callable[[], Runtime]:
    return lambda: Runtime(fake_deployment(COSTS), **options)


# --- the mailbox -------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["put", "take", "close"])))
def test_no_order_of_calls_loses_the_newest_item_or_gives_an_older_one_after_it(calls):
    mailbox: Mailbox[int] = Mailbox()
    put: list[int] = []
    taken: list[int] = []
    closed = False
    for call in calls:
        if call == "put":
            accepted = mailbox.put(len(put))
            assert accepted is not closed
            if accepted:
                put.append(len(put))
        elif call == "take":
            item = mailbox.take(timeout_s=0)
            newest_waits = bool(put) and (not taken or taken[-1] != put[-1])
            assert item == (put[-1] if newest_waits else None)
            if item is not None:
                taken.append(item)
        else:
            mailbox.close()
            closed = True
    last = mailbox.take(timeout_s=0)
    taken += [] if last is None else [last]
    assert taken == sorted(set(taken))
    assert taken[-1:] == put[-1:]
    assert len(taken) + mailbox.dropped == len(put)


def test_the_same_holds_between_threads():
    mailbox: Mailbox[tuple[int, int]] = Mailbox()
    taken: list[tuple[int, int]] = []

    def take() -> None:
        while (item := mailbox.take()) is not None:
            taken.append(item)

    def put(producer: int) -> None:
        for number in range(500):
            mailbox.put((producer, number))

    taker = threading.Thread(target=take)
    producers = [threading.Thread(target=put, args=(producer,)) for producer in range(3)]
    for thread in (taker, *producers):
        thread.start()
    for thread in producers:
        thread.join()
    mailbox.close()
    taker.join(timeout=SOON_S)
    assert not taker.is_alive()
    assert len(taken) + mailbox.dropped == 1500
    assert taken[-1][1] == 499
    for producer in range(3):
        numbers = [number for source, number in taken if source == producer]
        assert numbers == sorted(set(numbers))


# --- the worker's states -----------------------------------------------------------------------

MOVES = {
    "configure": ("unconfigured", "inactive"),
    "activate": ("inactive", "active"),
    "deactivate": ("active", "inactive"),
    "cleanup": ("inactive", "unconfigured"),
}


@given(st.lists(st.sampled_from([*MOVES, "shutdown", "put"]), max_size=12))
def test_every_order_of_transitions_is_done_ignored_or_refused_as_the_state_says(calls):
    answers: list[Answer] = []
    runtimes: list[Runtime] = []

    def open_runtime() -> Runtime:
        runtimes.append(Runtime(DEPLOYMENT))
        return runtimes[-1]

    worker, state = Worker(open_runtime, answers.append), "unconfigured"
    for call in calls:
        if call == "put":
            assert worker.put(IMAGE) is (state == "active")
        elif call == "shutdown":
            worker.shutdown()
            state = "finalized"
        elif state in MOVES[call]:
            getattr(worker, call)()
            state = MOVES[call][1]
        else:
            with pytest.raises(RuntimeError, match=f"a worker that is {state}, only one that is"):
                getattr(worker, call)()
        assert worker.state == state
    worker.shutdown()
    assert all(runtime.diagnostics().message == "closed" for runtime in runtimes)
    assert [answer.number for answer in answers] == sorted(answer.number for answer in answers)


DEPLOYMENT = fake_deployment(COSTS)


def test_a_runtime_that_cannot_be_opened_leaves_the_worker_unconfigured():
    attempts = iter([EdgestitchError("no deployment"), None])

    def open_runtime() -> Runtime:
        if error := next(attempts):
            raise error
        return Runtime(DEPLOYMENT)

    worker = Worker(open_runtime, print)
    with pytest.raises(EdgestitchError, match="no deployment"):
        worker.configure()
    assert worker.state == "unconfigured"
    with pytest.raises(RuntimeError, match="is unconfigured and has no runtime"):
        _ = worker.runtime
    worker.configure()
    assert worker.runtime.topologies
    worker.shutdown()


def test_as_a_context_manager_a_worker_that_cannot_start_is_finalized():
    def open_runtime() -> Runtime:
        raise EdgestitchError("no deployment")

    worker = Worker(open_runtime, print)
    with pytest.raises(EdgestitchError), worker:
        pass
    assert worker.state == "finalized"


def test_shutdown_waits_for_the_inference_that_is_under_way():
    gate, answers = Gate(), queue.Queue[Answer]()
    worker = Worker(gate.runtime, answers.put)
    worker.configure()
    worker.activate()
    runtime = worker.runtime
    worker.put(image(1))
    gate.wait_until_entered()
    stopping = threading.Thread(target=worker.shutdown)
    stopping.start()
    stopping.join(timeout=0.05)
    assert stopping.is_alive()
    gate.gate.release()
    stopping.join(timeout=SOON_S)
    assert not stopping.is_alive()
    assert answers.get_nowait().number == 0
    assert runtime.diagnostics().message == "closed"


def test_a_worker_does_not_wait_for_itself():
    refused: list[str] = []

    def answered(answer: Answer) -> None:
        try:
            worker.shutdown()
        except RuntimeError as error:
            refused.append(str(error))

    with Worker(opened(), answered) as worker:
        worker.put(IMAGE)
        until(lambda: refused)
    assert "it would wait for itself" in refused[0]


def test_a_process_that_forgets_to_stop_its_worker_ends_in_order(tmp_path):
    code = """
from edgestitch import Runtime
from edgestitch.robotics import Worker
from edgestitch.testing import fake_deployment
worker = Worker(lambda: Runtime(fake_deployment({"a:0:3": 1.0})), print)
worker.configure()
worker.activate()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- images ------------------------------------------------------------------------------------


def test_a_newer_image_replaces_one_that_waits_and_answers_keep_the_order():
    gate, answers = Gate(), queue.Queue[Answer]()
    with Worker(gate.runtime, answers.put) as worker:
        worker.put(image(1))
        gate.wait_until_entered()
        for number in range(2, 6):
            assert worker.put(image(number))
        gate.gate.release(2)
        worker.deactivate()
        values = worker.diagnostics().values
    assert [answers.get_nowait().number for _ in range(2)] == [0, 4]
    assert answers.empty()
    assert (values["images"], values["answered"], values["dropped"]) == ("5", "2", "3")


def test_a_slow_consumer_gets_fewer_answers_and_never_an_older_one():
    answers: list[Answer] = []
    go_on = threading.Semaphore(0)

    def answered(answer: Answer) -> None:
        answers.append(answer)
        assert go_on.acquire(timeout=SOON_S)

    with Worker(opened(), answered) as worker:
        for _ in range(4):
            seen = len(answers)
            for _ in range(10):
                worker.put(IMAGE)
            go_on.release()
            until(partial(exceeds, answers, seen))
        go_on.release(100)
    numbers = [answer.number for answer in answers]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 39
    assert len(numbers) < 20


def test_a_queue_that_is_full_costs_the_answer_and_not_the_worker():
    answers: queue.Queue[Answer] = queue.Queue(1)
    with Worker(opened(), answers.put_nowait) as worker:
        for number in range(3):
            worker.put(IMAGE)
            until(partial(answered_to, worker, number))
        worker.deactivate()
        found = worker.diagnostics()
    assert answers.get_nowait().number == 0
    assert (found.level, found.values["not_delivered"]) == ("WARN", "2")
    assert "2 answers not delivered (Full)" in found.message


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_whatever_order_images_arrive_in_answers_are_in_the_order_of_their_stamps(stamps):
    stamps_ns = [(10 + stamp) * 10**10 for stamp in stamps]  # so far apart that no delay matters
    answers: list[Answer] = []
    worker = Worker(
        lambda: Runtime(DEPLOYMENT), answers.append, stale_after_ms=1e9, clock=lambda: 10**12
    )
    with worker:
        for stamp_ns in stamps_ns:
            worker.put(IMAGE, stamp_ns=stamp_ns)
    answered = [answer.stamp_ns for answer in answers if answer.stamp_ns is not None]
    assert answered == sorted(answered)
    assert answered[-1] == max(stamps_ns)


def test_an_image_that_was_overtaken_on_its_way_is_dropped():
    now_ns = time.time_ns()
    answers: list[Answer] = []
    with Worker(opened(), answers.append, stale_after_ms=60_000) as worker:
        assert worker.put(IMAGE, stamp_ns=now_ns)
        assert not worker.put(IMAGE, stamp_ns=now_ns - 50_000_000)
        assert worker.put(IMAGE, stamp_ns=now_ns + 1_000_000)
        worker.deactivate()
        assert int(worker.diagnostics().values["dropped"]) >= 1
    stamps = [answer.stamp_ns for answer in answers]
    assert stamps[-1] == now_ns + 1_000_000
    assert now_ns - 50_000_000 not in stamps


def test_what_an_image_spent_on_its_way_is_taken_from_its_deadline():
    answers: list[Answer] = []
    with Worker(opened(budget_ms=10_000), answers.append, stale_after_ms=1e6) as worker:
        worker.put(IMAGE, stamp_ns=time.time_ns() - 4_000_000_000)
        worker.deactivate()
        worker.activate()
        worker.put(IMAGE)
        worker.deactivate()
    aged, fresh = answers
    assert aged.result.budget_ms is not None
    assert fresh.result.budget_ms is not None
    assert aged.result.budget_ms <= 6_000 < fresh.result.budget_ms <= 10_000
    assert aged.age_ms >= 4_000
    assert aged.late is fresh.late is False


def test_an_image_whose_deadline_has_passed_is_answered_by_the_fastest_and_counted():
    answers: list[Answer] = []
    with Worker(opened(budget_ms=10), answers.append, stale_after_ms=60_000) as worker:
        worker.put(IMAGE, stamp_ns=time.time_ns() - 1_000_000_000)
        worker.deactivate()
        found = worker.diagnostics()
    assert answers[0].late
    assert answers[0].result.topology == "a:0:3"
    assert (found.level, found.values["late"]) == ("WARN", "1")
    assert "1 of 1 images answered late" in found.message


def test_an_image_of_long_ago_is_not_answered_and_the_clocks_are_asked_about():
    answers: list[Answer] = []
    with Worker(opened(), answers.append) as worker:
        worker.put(IMAGE, stamp_ns=1)
        worker.deactivate()
        found = worker.diagnostics()
    assert not answers
    assert (found.level, found.values["too_old"]) == ("WARN", "1")
    assert "do the camera's clock and this one agree?" in found.message


def test_an_image_of_the_future_counts_as_taken_now_and_is_told():
    answers: list[Answer] = []
    with Worker(opened(budget_ms=60_000), answers.append) as worker:
        worker.put(IMAGE, stamp_ns=time.time_ns() + 10**12)
        worker.deactivate()
        assert worker.diagnostics().values["stamps_ahead"] == "1"
    assert answers[0].result.budget_ms is not None
    assert answers[0].result.budget_ms <= 60_000
    assert 0 <= answers[0].age_ms < 60_000


def test_stamps_can_be_of_any_clock_and_it_may_jump_back():
    now_ns = 10**12
    answers: list[Answer] = []
    stamps: list[int | None] = []
    worker = Worker(opened(), answers.append, clock=lambda: now_ns)
    with worker:
        for now_ns in (10**12, 5 * 10**9):  # a recording starts again
            worker.put(IMAGE, stamp_ns=now_ns)
            until(partial(exceeds, answers, len(stamps)))
            stamps.append(answers[-1].stamp_ns)
    assert stamps == [10**12, 5 * 10**9]


def test_without_a_budget_no_image_is_late():
    answers: list[Answer] = []
    with Worker(opened(), answers.append) as worker:
        worker.put(IMAGE)
    assert answers[0].late is None
    assert answers[0].result.budget_ms is None


def test_the_last_answer_is_there_at_once_and_flagged_when_it_is_too_old():
    gate = Gate(opened=True)
    with Worker(gate.runtime, lambda answer: None, stale_after_ms=300) as worker:
        assert worker.latest() is None
        until(lambda: worker.put(image(1)) and worker.latest())
        until(lambda: (latest := worker.latest()) is not None and latest.stale)
        found = worker.diagnostics()
    assert (found.level, found.values["stale"]) == ("WARN", "true")
    assert "no new image was answered for " in found.message


def test_a_worker_that_starts_again_is_given_time_before_its_old_answer_is_held_against_it():
    with Worker(opened(), lambda answer: None, stale_after_ms=1000) as worker:
        until(lambda: worker.put(IMAGE) and worker.latest())
        worker.deactivate()
        until(lambda: (latest := worker.latest()) is not None and latest.stale)
        assert worker.diagnostics().level == "OK"
        worker.activate()
        assert worker.diagnostics().values["stale"] == "false"


def test_the_control_loop_is_not_blocked_by_an_inference_that_hangs():
    gate = Gate()
    gate.gate.release()
    with Worker(gate.runtime, lambda answer: None) as worker:
        worker.put(image(1))
        until(worker.latest)
        worker.put(image(2))
        gate.wait_until_entered()
        gate.wait_until_entered()
        for _ in range(100):
            worker.put(image(3))
            worker.diagnostics()
        latest = worker.latest()
        assert latest is not None
        assert latest.number == 0
        gate.gate.release(2)


# --- what goes wrong ---------------------------------------------------------------------------


def test_an_exception_of_the_consumer_is_counted_and_the_next_image_answered():
    answers: list[Answer] = []

    def answered(answer: Answer) -> None:
        answers.append(answer)
        if answer.number == 0:
            raise OSError("the arm is gone")

    with Worker(opened(), answered) as worker:
        worker.put(IMAGE)
        until(lambda: worker.diagnostics().values["not_delivered"] == "1")
        found = worker.diagnostics()
        assert found.level == "WARN"
        assert "1 answers not delivered (OSError: the arm is gone)" in found.message
        worker.put(IMAGE)
    assert [answer.number for answer in answers] == [0, 1]


def test_an_image_that_cannot_be_answered_is_an_error_until_one_is():
    answers: list[Answer] = []
    with Worker(opened(), answers.append) as worker:
        worker.put(IMAGE)
        until(lambda: answers)
        worker.put(IMAGE[0])
        until(lambda: worker.diagnostics().values["not_answered"] == "1")
        found = worker.diagnostics()
        assert found.level == "ERROR"
        assert "the network takes float32 [1, 1, 8, 8]" in found.message
        latest = worker.latest()
        assert latest is not None
        assert latest.number == 0
        worker.put(IMAGE)
        until(lambda: len(answers) == 2)
        until(lambda: worker.diagnostics().values["answered"] == "2")
        assert worker.diagnostics().level == "WARN"
        worker.deactivate()
        worker.activate()
        assert worker.diagnostics().level == "OK"


def test_diagnostics_are_strings_and_ok_while_all_is_well():
    answers: list[Answer] = []
    with Worker(opened(budget_ms=10_000), answers.append, stale_after_ms=60_000) as worker:
        worker.put(IMAGE)
        until(lambda: answers)
        found = worker.diagnostics()
        assert (found.level, found.message) == ("OK", "running b:0:3")
        assert all(isinstance(value, str) for value in found.values.values())
        assert found.values["topology"] == "b:0:3"
        worker.deactivate()
        assert (worker.diagnostics().level, worker.diagnostics().message) == ("OK", "inactive")
    assert worker.diagnostics().message == "finalized"


def test_workers_that_share_a_device_take_turns():
    device, inside, most = threading.Lock(), 0, 0

    def run(topology: str, images: np.ndarray) -> np.ndarray:
        nonlocal inside, most
        if images.any():
            inside += 1
            most = max(most, inside)
            time.sleep(0.001)
            inside -= 1
        return ZEROS

    workers = [
        Worker(lambda: Runtime(fake_deployment(COSTS, run=run)), lambda answer: None, device=device)
        for _ in range(2)
    ]
    with workers[0] as first, workers[1] as second:
        for number in range(1, 30):
            first.put(image(number))
            second.put(image(number))
            time.sleep(0.001)
    assert most == 1


def test_a_staleness_that_is_no_time_is_refused():
    with pytest.raises(ValueError, match="stale_after_ms must be above zero"):
        Worker(opened(), print, stale_after_ms=0)


# --- systemd -----------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    """A socket as systemd's, and the environment that names it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@edgestitch-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
        unix.bind(name.replace("@", "\0"))
        unix.setblocking(False)
        yield unix, {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2000000"}


def received(unix: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(unix.recv(1000).decode())
        except BlockingIOError:
            return messages


def test_systemd_gets_what_it_is_told(systemd):
    unix, environment = systemd
    assert notify("READY=1", environment)
    assert notify("STATUS=running\nWATCHDOG=1", environment)
    assert received(unix) == ["READY=1", "STATUS=running\nWATCHDOG=1"]


def test_the_watchdog_is_fed_at_half_of_its_time_and_only_by_work(systemd):
    unix, environment = systemd
    now_ns = 0
    watchdog = Watchdog(environment, clock=lambda: now_ns)
    fed_at_ns = []
    for now_ns in range(0, 5 * 10**9, 33_000_000):
        fed_at_ns += [now_ns] * watchdog.alive()
    assert len(received(unix)) == len(fed_at_ns) == 5
    assert all(10**9 <= b - a < 1.034e9 for a, b in itertools.pairwise(fed_at_ns))
    now_ns = 60 * 10**9  # nothing was answered meanwhile, so nothing was said
    assert received(unix) == []
    assert watchdog.alive()


def test_a_worker_tells_systemd_of_start_answers_and_stop(systemd):
    unix, environment = systemd
    environment["WATCHDOG_USEC"] = "2"  # so short that every answer is told
    answers: list[Answer] = []
    with Worker(opened(), answers.append, watchdog=Watchdog(environment)) as worker:
        assert received(unix) == ["READY=1"]
        worker.put(IMAGE)
        worker.deactivate()
        assert received(unix) == ["WATCHDOG=1"]
        worker.activate()
        worker.put(IMAGE[0])  # fails, which is no sign of life
        worker.deactivate()
        assert received(unix) == ["READY=1"]
    assert received(unix) == ["STOPPING=1"]


def test_systemds_own_command_line_says_the_same(systemd):
    unix, environment = systemd
    notify("READY=1", environment)
    ours = received(unix)
    try:
        subprocess.run(
            ["systemd-notify", "--ready", "--no-block"],
            env={**os.environ, **environment},
            check=True,
            timeout=30,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("systemd-notify is not here, or refuses to speak from a container")
    assert any("READY=1" in message.splitlines() for message in received(unix))
    assert ours == ["READY=1"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "/nowhere/notify"},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": "/" + "x" * 200},
    ],
)
def test_where_nobody_listens_nothing_is_said_and_nothing_raised(environment):
    assert not notify("READY=1", environment)
    assert not Watchdog({**environment, "WATCHDOG_USEC": "2"}).alive()


def test_a_watchdog_of_another_process_is_not_fed(systemd):
    unix, environment = systemd
    other = Watchdog({**environment, "WATCHDOG_PID": str(os.getpid() + 1)})
    own = Watchdog({**environment, "WATCHDOG_PID": str(os.getpid())})
    assert not other.alive()
    assert own.alive()
    assert received(unix) == ["WATCHDOG=1"]


def test_a_watchdog_time_that_is_no_number_is_refused_by_name():
    with pytest.raises(ValueError, match=r"\$WATCHDOG_USEC must be a whole number .* not 'soon'"):
        Watchdog({"WATCHDOG_USEC": "soon"})


# --- pixels ------------------------------------------------------------------------------------


@given(
    encoding=st.sampled_from(["rgb8", "bgr8", "mono8"]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    padding=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_pixels_come_out_as_they_were_packed(encoding, height, width, padding, seed):
    channels = ros2_channels(encoding)
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
    packed = pixels[:, :, ::-1] if encoding == "bgr8" else pixels
    step = width * channels + padding
    rows = random.integers(0, 256, (height, step), dtype=np.uint8)
    rows[:, : width * channels] = packed.reshape(height, -1)
    found = unpack(rows.tobytes(), encoding=encoding, height=height, width=width, step=step)
    assert np.array_equal(found, pixels)


def ros2_channels(encoding: str) -> int:
    return 1 if encoding == "mono8" else 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": "bayer_rggb8"}, "'bayer_rggb8' are not understood, only rgb8, bgr8, mono8"),
        ({"step": 5}, "takes rows of at least 6 bytes, got 12 bytes in rows of 5"),
        ({"height": 3}, "got 12 bytes in rows of 6"),
        ({"width": 0}, "an image of 0 x 2 pixels"),
    ],
)
def test_an_image_that_contradicts_itself_is_refused(changes, message):
    form = {"encoding": "rgb8", "height": 2, "width": 2, "step": 6, **changes}
    with pytest.raises(ValueError, match=message):
        unpack(bytes(12), **form)


def test_pixels_of_the_networks_size_are_only_normalised(toy_family):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    expected = preprocess(pixels.transpose(2, 0, 1)[None], mean=(0.5,), std=(0.5,))
    assert np.array_equal(network_input(pixels, toy_family), expected)


@given(height=st.integers(1, 40), width=st.integers(1, 40), channels=st.sampled_from([1, 3]))
def test_pixels_of_any_size_become_what_the_runtime_takes(toy_family, height, width, channels):
    pixels = np.full((height, width, channels), 200, np.uint8)
    values = network_input(pixels, toy_family)
    assert values.shape == (1, 1, 8, 8)
    assert values.dtype == np.float32
    assert np.ptp(values) == 0
    assert (
        values[0, 0, 0, 0]
        == network_input(np.full((8, 8, 1), 200, np.uint8), toy_family)[0, 0, 0, 0]
    )


def test_the_centre_of_a_wide_image_is_seen(toy_family):
    pixels = np.zeros((8, 80, 1), np.uint8)
    pixels[:, 30:50] = 255
    assert (
        network_input(pixels, toy_family).min()
        == network_input(np.full((8, 8, 1), 255, np.uint8), toy_family).max()
    )


@pytest.mark.parametrize("size", [(80, 80), (60, 90), (97, 41)])
def test_a_photograph_is_seen_as_calibration_and_evaluation_see_it(toy_family, tmp_path, size):
    waves = np.sin(np.arange(size[0])[:, None] / 7) * np.cos(np.arange(size[1]) / 11)
    pixels = (127 + 120 * waves).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "photograph.png")
    images, _ = open_source(tmp_path, shape=(1, 8, 8), labelled=False).load([0])
    expected = preprocess(images.numpy(), mean=(0.5,), std=(0.5,))
    assert np.array_equal(network_input(pixels[:, :, None], toy_family), expected)


@pytest.mark.parametrize("pixels", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 1), np.float32)])
def test_what_is_no_pixels_is_refused(toy_family, pixels):
    with pytest.raises(ValueError, match=r"pixels are uint8 \[H, W, 1 or 3\], got"):
        network_input(pixels, toy_family)


# --- the ROS 2 node ----------------------------------------------------------------------------


@pytest.fixture
def ros(monkeypatch):
    modules = fake_rclpy.modules()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules


@pytest.fixture
def node(ros):
    made = ros2.create_node(open_runtime=open_fake, parameters={"stale_after_ms": 60_000})
    yield made
    made.destroy_node()


def open_fake(deployment: object) -> Runtime:
    run = Gate(opened=True).run
    return Runtime(fake_deployment(COSTS, run=run))


def camera_image(node: Any, *, encoding: str = "mono8", age_ms: float = 0.0, **changes: Any) -> Any:
    channels = ros2_channels(encoding)
    pixels = np.full((8, 8 * channels), 255, np.uint8)
    sec, nanosec = divmod(node.now_ns - round(age_ms * 1e6), 10**9)
    header = fake_rclpy.Header(stamp=fake_rclpy.Time(sec=sec, nanosec=nanosec), frame_id="front")
    values = {
        "header": header,
        "height": 8,
        "width": 8,
        "encoding": encoding,
        "step": 8 * channels,
        "data": pixels.tobytes(),
    }
    return fake_rclpy.Image(**{**values, **changes})


def remembered(node: Any, nodes: list[Any]) -> Any:
    nodes.append(node)
    return node


def bring_up(node: Any) -> None:
    assert node.trigger("configure").name == "SUCCESS", node.errors
    assert node.trigger("activate").name == "SUCCESS", node.errors


def status_of(node: Any) -> Any:
    period_s, report = node.timers[0]
    assert period_s == 1.0
    report()
    (status,) = node.publishers["/diagnostics"].published[-1].status
    return status


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8"])
def test_the_node_answers_an_image_with_the_best_classes_and_its_header(node, encoding):
    bring_up(node)
    message = camera_image(node, encoding=encoding)
    node.subscriptions["image"].callback(message)
    published = node.publishers["classification"].published
    until(lambda: published)
    assert published[0].header is message.header
    assert [result.class_id for result in published[0].results] == ["0", "1", "2", "3"]
    assert sum(result.score for result in published[0].results) == pytest.approx(1)
    assert not node.errors


def test_without_vision_msgs_the_node_publishes_logits(monkeypatch):
    for name, module in fake_rclpy.modules(vision=False).items():
        monkeypatch.setitem(sys.modules, name, module)
    node = ros2.create_node(open_runtime=open_fake)
    bring_up(node)
    node.subscriptions["image"].callback(camera_image(node))
    published = node.publishers["logits"].published
    until(lambda: published)
    assert len(published[0].data) == 4
    node.destroy_node()


def test_topics_keep_only_the_newest_and_ask_no_deadline_of_a_camera(ros):
    node = ros2.create_node(open_runtime=open_fake, parameters={"period_ms": 50})
    bring_up(node)
    qos = node.subscriptions["image"].qos
    assert (qos.depth, qos.history.name, qos.reliability.name) == (1, "KEEP_LAST", "BEST_EFFORT")
    assert qos.deadline is None
    offered = node.publishers["classification"].qos
    assert (offered.depth, offered.deadline.nanoseconds) == (1, 50_000_000)
    node.destroy_node()


def test_a_budget_changes_while_the_node_runs(node):
    bring_up(node)
    runtime = node.adapter.worker.runtime
    assert runtime.topology == "b:0:3"
    assert node.set_parameter("budget_ms", 2).successful
    assert runtime.topology == "a:0:1+b:1:3"
    assert node.set_parameter("budget_ms", 1.5).successful
    assert runtime.topology == "a:0:3"
    assert node.set_parameter("budget_ms", 0).successful
    assert runtime.budget_ms is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0.5, "no topology fits 0.5 ms: the cheapest, a:0:3, takes 1 ms, 0.5 ms too much"),
        (-1.0, "must be above zero and finite, not -1"),
        (float("nan"), "must be above zero and finite, not nan"),
        ("5", "budget_ms must be a number of milliseconds, not '5'"),
        (True, "budget_ms must be a number of milliseconds, not True"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused_with_the_reason_and_the_last_one_stays(
    node, value, reason
):
    bring_up(node)
    assert node.set_parameter("budget_ms", 2.0).successful
    result = node.set_parameter("budget_ms", value)
    assert not result.successful
    assert reason in result.reason
    assert node.get_parameter("budget_ms").value == 2.0
    assert node.adapter.worker.runtime.budget_ms == 2.0


def test_before_it_is_configured_a_node_takes_any_budget_and_judges_it_then(node):
    assert not node.set_parameter("budget_ms", -1.0).successful
    assert node.set_parameter("budget_ms", 0.5).successful
    assert node.trigger("configure").name == "FAILURE"
    assert "no topology fits 0.5 ms" in node.errors[0]
    assert node.set_parameter("budget_ms", 2.0).successful
    bring_up(node)
    assert node.adapter.worker.runtime.topology == "a:0:1+b:1:3"


def test_other_parameters_are_read_only(node):
    assert not node.set_parameter("deployment", "/elsewhere").successful


def test_a_deployment_that_takes_several_images_at_once_is_refused(ros):
    closed: list[bool] = []
    several: Any = SimpleNamespace(input_shape=(2, 1, 8, 8), close=lambda: closed.append(True))
    node = ros2.create_node(open_runtime=lambda deployment: several)
    assert node.trigger("configure").name == "FAILURE"
    assert "compile it with --batch 1" in node.errors[0]
    assert closed
    node.destroy_node()


def test_a_node_goes_through_its_states_and_back(node):
    for _ in range(2):
        bring_up(node)
        assert node.trigger("deactivate").name == "SUCCESS"
        node.subscriptions["image"].callback(camera_image(node))  # still subscribed: ignored
        assert node.trigger("cleanup").name == "SUCCESS"
        assert not node.subscriptions
        assert list(node.publishers) == ["/diagnostics"]
    assert node.trigger("activate").name == "FAILURE"
    assert "cannot activate a worker that is unconfigured" in node.errors[0]
    assert node.trigger("shutdown").name == "SUCCESS"
    assert node.adapter.worker.state == "finalized"


def test_diagnostics_are_published_in_every_state(node):
    assert (status_of(node).level, status_of(node).message) == (b"\x00", "unconfigured")
    bring_up(node)
    node.subscriptions["image"].callback(camera_image(node, encoding="16UC1"))
    until(lambda: node.adapter.worker.diagnostics().values["not_answered"] == "1")
    status = status_of(node)
    assert status.level == b"\x02"
    assert "'16UC1' are not understood" in status.message
    assert status.hardware_id == "fake"
    pairs = {pair.key: pair.value for pair in status.values}
    assert pairs["state"] == "active"
    assert all(isinstance(value, str) for value in pairs.values())


def test_an_images_age_by_the_nodes_clock_is_part_of_its_deadline(node):
    assert node.set_parameter("budget_ms", 20_000).successful
    bring_up(node)
    for index, age_ms in enumerate((15_000, 2_000)):
        node.subscriptions["image"].callback(camera_image(node, age_ms=age_ms))
        budget_ms = answer_to(node, index).result.budget_ms
        assert budget_ms is not None
        assert budget_ms <= 20_000 - age_ms
    unset = fake_rclpy.Header()  # a driver that sets no stamps
    node.subscriptions["image"].callback(camera_image(node, header=unset))
    assert answer_to(node, 2).stamp_ns is None


def answer_to(node: Any, number: int) -> Answer:
    """The answer to an image, by its number."""
    worker = node.adapter.worker
    until(partial(answered_to, worker, number))
    answer: Answer = worker.latest()
    return answer


def test_main_spins_and_stops_in_order(ros, monkeypatch):
    made: list[Any] = []
    create = ros2.create_node
    monkeypatch.setattr(
        ros2, "create_node", lambda: remembered(create(open_runtime=open_fake), made)
    )
    ros2.main([])
    assert ros["rclpy"].calls == ["init", "spin", "try_shutdown"]
    assert made[0].adapter.worker.state == "finalized"


def test_without_ros_the_node_says_what_to_install_and_the_rest_works():
    if importlib.util.find_spec("rclpy") is not None:
        pytest.skip("ROS 2 is here")
    with pytest.raises(EdgestitchError, match="the node needs ROS 2's rclpy, which no package"):
        ros2.create_node()
    with pytest.raises(SystemExit, match="install ROS 2 and"):
        ros2.main()


def test_a_real_node_answers_a_real_image():
    rclpy = pytest.importorskip("rclpy", reason="ROS 2's rclpy is not installed")
    image_type = importlib.import_module("sensor_msgs.msg").Image

    rclpy.init()
    node = ros2.create_node(open_runtime=open_fake)
    camera = rclpy.create_node("camera")
    try:
        node.trigger_configure()
        node.trigger_activate()
        publisher = camera.create_publisher(image_type, "image", 1)
        message = image_type(height=8, width=8, encoding="mono8", step=8, data=bytes([255]) * 64)
        end_s = time.monotonic() + SOON_S
        while node.adapter.worker.latest() is None:
            assert time.monotonic() < end_s
            publisher.publish(message)
            rclpy.spin_once(node, timeout_sec=0.1)
    finally:
        node.destroy_node()
        camera.destroy_node()
        rclpy.try_shutdown()


# --- examples ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("robotics") / "deployment"
    toy_deployment(folder)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A second of noise, 48 x 64, as a camera would have recorded it."""
    av = pytest.importorskip("av", reason="PyAV writes the video: pip install 'edgestitch[video]'")
    path = tmp_path_factory.mktemp("video") / "drive.mp4"
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(30):
            pixels = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def run_example(name: str, *arguments: object) -> str:
    module = importlib.import_module(f"edgestitch.examples.{name}")
    result = CliRunner().invoke(module.main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_camera_example_answers_a_video(toy, video):
    pytest.importorskip("cv2", reason="pip install opencv-python-headless")
    output = run_example(
        "camera", video, "--deployment", toy, "--fps", 100, "--frames", 25, "--budget-ms", 1000
    )
    assert "25 images, " in output
    assert "image 0: class " in output


def test_the_camera_example_says_what_a_source_is_not(toy, tmp_path):
    pytest.importorskip("cv2", reason="pip install opencv-python-headless")
    module = importlib.import_module("edgestitch.examples.camera")
    result = CliRunner().invoke(module.main, [str(tmp_path / "no.mp4"), "--deployment", str(toy)])
    assert result.exit_code == 1
    assert "is no camera and no video that OpenCV can read" in result.output


def test_the_camera_example_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    module = importlib.import_module("edgestitch.examples.camera")
    result = CliRunner().invoke(module.main, [])
    assert result.exit_code == 1
    assert "pip install opencv-python-headless" in result.output


def test_two_networks_share_a_device(toy):
    output = run_example("two_networks", "--first", toy, "--second", toy, "--frames", 12)
    front, arm = output.splitlines()
    assert front.startswith("front: ")
    assert "images answered at 10 Hz within 60 ms" in arm


def test_the_battery_example_goes_by_deadlines_where_no_energy_was_measured(toy):
    output = run_example("battery", "--deployment", toy, "--frames", 2)
    assert "no energy was measured" in output
    assert output.count("ms an image, runs ") == 5


def test_the_battery_example_goes_by_energy_where_it_was(capsys):
    battery = importlib.import_module("edgestitch.examples.battery")
    energies = {"a:0:3": 5.0, "a:0:1+b:1:3": 10.0, "b:0:3": 25.0}
    with Runtime(fake_deployment(COSTS, energies_mj=energies)) as runtime:
        battery.drain(runtime, IMAGE, images=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "battery 100 %: at most 25 mJ an image, runs b:0:3"
    assert lines[-1] == "battery  20 %: at most 5 mJ an image, runs a:0:3"
