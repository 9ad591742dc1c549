"""A thread that answers a camera's images, the newest first, each within its deadline."""

import atexit
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, Literal, NamedTuple

import msgspec

from edgestitch.artifact import Value
from edgestitch.errors import InfeasibleError
from edgestitch.family import Family
from edgestitch.runtime import Diagnostics, Result, Runtime

from .mailbox import Mailbox
from .watchdog import Watchdog

log = logging.getLogger(__name__)

State = Literal["unconfigured", "inactive", "active", "finalized"]
"""The primary states of a ROS 2 lifecycle node."""

RECENT = 100
"""Images that the level of `diagnostics` goes by."""

LATE = 0.01
"""The share of late images above which `diagnostics` warns, as that of the runtime does."""

AHEAD_MS = 5.0
"""How far a stamp may be ahead before it is said: clocks of two machines never quite agree."""

Level = Literal["OK", "WARN", "ERROR"]

_LEVELS: tuple[Level, ...] = ("OK", "WARN", "ERROR")


class Answer(Value, frozen=True, kw_only=True):
    """What was made of one image."""

    image: Any
    """As it was put."""
    result: Result
    stamp_ns: int | None
    """`None`: the image had none."""
    number: int
    """Of the image among all that were put, from 0; what was dropped leaves a gap."""
    age_ms: float
    """From the image's stamp to the answer."""
    late: bool | None
    """Whether it was answered after its deadline; `None` if it had none."""
    stale: bool = False
    """Whether the image is too old by now for the answer to be acted upon."""


class _Frame(NamedTuple):
    image: Any
    number: int
    stamp_ns: int | None
    taken_ns: int
    """When the image was taken, by the monotonic clock."""


class Worker:
    """A runtime at work on a stream of images, in a thread of its own.

    `put` never waits: an image that still waits when a newer one comes is dropped and counted.
    Answers come in the order of the images. An image's deadline is its stamp and the runtime's
    `budget_ms`: what the image spent on its way is already used up.

    It has the states of a ROS 2 lifecycle node:

        unconfigured --configure--> inactive --activate--> active
        unconfigured <--cleanup---- inactive <--deactivate-- active      any --shutdown--> finalized

    A transition into the state that it is in does nothing; any other out of order raises
    `RuntimeError`. As a context manager it is active inside, and finalized after.

    What goes wrong with one image, in the network or in `answered`, is logged, counted and told by
    `diagnostics`; the worker goes on with the next.

    Args:
        open_runtime: called by `configure`; the worker closes what it returns.
        answered: called with every answer, in the worker's thread; `put_nowait` of a queue, say.
            While it runs no image is answered, so that a slow consumer gets fewer answers, never
            older ones; and until it returns the worker cannot be stopped.
        prepare: makes the runtime's input of an image and the network's family;
            `edgestitch.robotics.network_input` takes pixels. Without, images are put as the
            runtime takes them.
        stale_after_ms: the age of an image from which on nobody should act upon it. One that is
            older before its turn comes is not answered at all.
        device: held during every inference, for workers that share a device.
        watchdog: told of every answer that was delivered.
        clock: what stamps are read from, in nanoseconds.
    """

    def __init__(
        self,
        open_runtime: Callable[[], Runtime],
        answered: Callable[[Answer], object],
        *,
        prepare: Callable[[Any, Family], Any] | None = None,
        stale_after_ms: float = 1000.0,
        device: AbstractContextManager[object] | None = None,
        watchdog: Watchdog | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        if not stale_after_ms > 0:
            raise ValueError(f"stale_after_ms must be above zero, not {stale_after_ms}")
        self._open = open_runtime
        self._answered = answered
        self._prepare = prepare
        self._stale_after_ms = stale_after_ms
        self._device = device or nullcontext()
        self._watchdog = watchdog
        self._clock = clock
        self._state: State = "unconfigured"
        self._moving = threading.Lock()
        self._runtime: Runtime | None = None
        self._thread: threading.Thread | None = None
        # Not the inference's, so that neither cameras nor diagnostics wait for one.
        self._lock = threading.Lock()
        self._mailbox: Mailbox[_Frame] | None = None
        self._newest_ns = -math.inf
        self._active_ns = 0
        self._latest: tuple[Answer, int] | None = None
        self._counts: Counter[str] = Counter()
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._error = ""

    # --- lifecycle ----------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._state

    @property
    def runtime(self) -> Runtime:
        """The one that is open.

        Raises:
            RuntimeError: none is, before `configure` and after `cleanup`.
        """
        if self._runtime is None:
            raise RuntimeError(f"this worker is {self._state} and has no runtime; configure it")
        return self._runtime

    def configure(self) -> None:
        """Opens the runtime; what that raises leaves the worker unconfigured."""
        with self._transition("configure", "unconfigured", "inactive") as needed:
            if needed:
                self._runtime = self._open()

    def activate(self) -> None:
        """Starts to answer images."""
        with self._transition("activate", "inactive", "active") as needed:
            if needed:
                self._start()

    def deactivate(self) -> None:
        """Answers no more; waits for the answer that is under way and the image that waits."""
        with self._transition("deactivate", "active", "inactive") as needed:
            if needed:
                self._stop()

    def cleanup(self) -> None:
        """Closes the runtime."""
        with self._transition("clean up", "inactive", "unconfigured") as needed:
            if needed:
                self._close()

    def shutdown(self) -> None:
        """Stops and closes for good, from any state; waits for an answer that is under way."""
        self._refuse_own_thread("shut down")
        with self._moving:
            if self._state == "finalized":
                return
            if self._watchdog:
                self._watchdog.stopping()
            if self._state == "active":
                self._stop()
            self._close()
            self._state = "finalized"

    @contextmanager
    def _transition(self, verb: str, start: State, end: State) -> Iterator[bool]:
        """Whether there is something to do; the state changes if that succeeds."""
        self._refuse_own_thread(verb)
        with self._moving:
            if self._state not in (start, end):
                raise RuntimeError(
                    f"cannot {verb} a worker that is {self._state}, only one that is {start}"
                )
            yield self._state == start
            self._state = end

    def _refuse_own_thread(self, verb: str) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"cannot {verb} a worker from what it calls with its answers, since it would wait "
                "for itself; do it from another thread"
            )

    def _start(self) -> None:
        mailbox: Mailbox[_Frame] = Mailbox()
        # A daemon, since it waits for images for ever; at exit it is stopped in order, as a process
        # that ends in the middle of a backend's code would crash.
        self._thread = threading.Thread(
            target=self._work, args=(mailbox,), name="edgestitch-worker", daemon=True
        )
        atexit.register(self.shutdown)
        with self._lock:
            self._mailbox, self._active_ns = mailbox, time.monotonic_ns()
            self._recent.clear()
        self._thread.start()
        if self._watchdog:
            self._watchdog.ready()

    def _stop(self) -> None:
        assert self._thread is not None
        assert self._mailbox is not None
        self._mailbox.close()
        self._thread.join()
        with self._lock:
            self._counts["dropped"] += self._mailbox.dropped
            self._mailbox = self._thread = None
        atexit.unregister(self.shutdown)

    def _close(self) -> None:
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None

    def __enter__(self) -> "Worker":
        try:
            self.configure()
            self.activate()
        except BaseException:
            self.shutdown()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    # --- images -------------------------------------------------------------------------------

    def put(self, image: Any, *, stamp_ns: int | None = None) -> bool:
        """Whether the image is the next one to be answered; never waits.

        Not if the worker is not active, the image is too old, or a newer one came before. A stamp in the future
        counts as now. Without a stamp the image was taken now.
        """
        with self._lock:
            number = self._counts["put"]
            self._counts["put"] += 1
            if self._mailbox is None:
                self._counts["ignored"] += 1
                return False
            age_ns = self._age_ns(stamp_ns)
            if age_ns > self._stale_after_ms * 1e6:
                self._count("expired")
                return False
            taken_ns = time.monotonic_ns() - age_ns
            if taken_ns < self._newest_ns:
                self._counts["dropped"] += 1
                return False
            self._newest_ns = taken_ns
            accepted = self._mailbox.put(_Frame(image, number, stamp_ns, taken_ns))
            self._counts["ignored"] += not accepted
            return accepted

    def _age_ns(self, stamp_ns: int | None) -> int:
        if stamp_ns is None:
            return 0
        age_ns = self._clock() - stamp_ns
        self._counts["ahead"] += age_ns < -AHEAD_MS * 1e6
        return max(age_ns, 0)

    def latest(self, *, strict: bool = False) -> Answer | None:
        """The last answer, `stale` if its image is too old by now; `None` before the first.

        Never waits: what a control loop of its own rate goes by.

        Raises:
            InfeasibleError: there is none yet or it is stale, and it is asked for with `strict`.
        """
        with self._lock:
            latest = self._latest
        if latest is None:
            if strict:
                raise InfeasibleError("no image was answered so far")
            return None
        answer, taken_ns = latest
        age_ms = _since_ms(taken_ns)
        stale = age_ms > self._stale_after_ms
        if stale and strict:
            raise InfeasibleError(
                f"the last answer is to an image of {age_ms:.0f} ms ago, more than the "
                f"{self._stale_after_ms:g} ms that are allowed"
            )
        return msgspec.structs.replace(answer, stale=stale)

    def _work(self, mailbox: Mailbox[_Frame]) -> None:
        while (frame := mailbox.take()) is not None:
            outcome = self._handled(frame)
            with self._lock:
                self._count(outcome)

    def _count(self, outcome: str) -> None:
        self._counts[outcome] += 1
        self._recent.append(outcome)

    def _handled(self, frame: _Frame) -> str:
        """What became of a frame."""
        if _since_ms(frame.taken_ns) > self._stale_after_ms:
            return "expired"
        try:
            answer = self._answer(frame)
        except Exception as error:  # of an image, a driver, a network: the next one may do
            return self._failed("failed", frame, error)
        with self._lock:
            self._latest = answer, frame.taken_ns
        try:
            self._answered(answer)
        except Exception as error:  # whatever the user's code raises
            return self._failed("undelivered", frame, error)
        if self._watchdog:
            self._watchdog.alive()
        return "late" if answer.late else "answered"

    def _answer(self, frame: _Frame) -> Answer:
        runtime = self.runtime
        family, image = runtime.deployment.manifest.family, frame.image
        values = self._prepare(image, family) if self._prepare else image
        budget_ms = runtime.budget_ms
        deadline_ns = None if budget_ms is None else frame.taken_ns + round(budget_ms * 1e6)
        with self._device:
            result = runtime.infer(values, deadline_ns=deadline_ns)
        late = None if deadline_ns is None else time.monotonic_ns() > deadline_ns
        return Answer(
            image=frame.image,
            result=result,
            stamp_ns=frame.stamp_ns,
            number=frame.number,
            age_ms=_since_ms(frame.taken_ns),
            late=late,
        )

    def _failed(self, outcome: str, frame: _Frame, error: Exception) -> str:
        reason = " ".join(str(error).split())[:300]
        log.warning("image %d %s: %s", frame.number, outcome, error, exc_info=error)
        with self._lock:
            self._error = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        return outcome

    # --- state --------------------------------------------------------------------------------

    def diagnostics(self) -> Diagnostics:
        """The runtime's, with what the worker has seen of the stream.

        WARN if no image was answered for a while, or if of the last hundred more than 1 % were late
        or any one was too old, not answered, not delivered; ERROR if the last one was not answered.
        """
        runtime, state = self._runtime, self._state
        with self._lock:
            counts, recent, error = self._counts.copy(), list(self._recent), self._error
            taken_ns = self._latest[1] if self._latest else 0
            active_ns = self._active_ns
            if self._mailbox:
                counts["dropped"] += self._mailbox.dropped
        found = runtime.diagnostics() if runtime else None
        problems: list[tuple[Level, str]]
        problems = [(found.level, found.message)] if found and found.level != "OK" else []
        waited_ms = _since_ms(max(taken_ns, active_ns))
        stale = state == "active" and waited_ms > self._stale_after_ms
        if stale:
            problems.append(("WARN", f"no new image was answered for {waited_ms / 1e3:.1f} s"))
        problems += _of_images(recent, error)
        ranks = [_LEVELS.index(level) for level, _ in problems]
        calm = found.message if found and state == "active" else state
        return Diagnostics(
            level=_LEVELS[max(ranks, default=0)],
            message="; ".join(message for _, message in problems) or calm,
            values={
                **(found.values if found else {}),
                "state": state,
                "images": str(counts["put"]),
                "answered": str(counts["answered"] + counts["late"]),
                "late": str(counts["late"]),
                "dropped": str(counts["dropped"]),
                "ignored": str(counts["ignored"]),
                "too_old": str(counts["expired"]),
                "not_answered": str(counts["failed"]),
                "not_delivered": str(counts["undelivered"]),
                "stamps_ahead": str(counts["ahead"]),
                "age_ms": f"{_since_ms(taken_ns):.3f}" if taken_ns else "",
                "stale": str(stale).lower(),
                "last_error": error,
            },
        )


def _of_images(recent: list[str], error: str) -> list[tuple[Level, str]]:
    """What is wrong with the last images, by level."""
    seen, number = Counter(recent), len(recent)
    problems: list[tuple[Level, str]] = []
    if seen["failed"]:
        level: Level = "ERROR" if recent[-1] == "failed" else "WARN"
        problems.append((level, f"{seen['failed']} of {number} images not answered ({error})"))
    if seen["undelivered"]:
        problems.append(("WARN", f"{seen['undelivered']} answers not delivered ({error})"))
    if seen["expired"]:
        what = f"{seen['expired']} of {number} images were too old to be answered"
        problems.append(("WARN", f"{what}: do the camera's clock and this one agree?"))
    if seen["late"] > LATE * number:
        problems.append(("WARN", f"{seen['late']} of {number} images answered late"))
    return problems


def _since_ms(monotonic_ns: int) -> float:
    return (time.monotonic_ns() - monotonic_ns) / 1e6
