"""The worker between a camera and a robot, over a real middleware: DDS on the loopback interface.

Topics and types have the names and layouts that ROS 2 gives them on the wire, so that a ROS 2 node
would understand every message. The camera is a process of its own, `python tests/test_dds.py`.

What is asserted is counted in images: how fast this machine is decides how long the test takes.
"""

# Of a package that may be absent, and whose own annotations of sequences say nothing.
# mypy: disable-error-code="arg-type,import-not-found,index,misc,no-untyped-call,type-arg"

import dataclasses
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from edgestitch.deployment import Deployment
    from edgestitch.robotics import Answer

pytest.importorskip("cyclonedds", reason="no DDS here: pip install 'edgestitch[dds]'")

from cyclonedds.core import Policy, Qos
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import byte, float64, int32, sequence, uint8, uint32
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

CONFIGURATION = """
<CycloneDDS><Domain><General>
  <Interfaces><NetworkInterface address="127.0.0.1"/></Interfaces><AllowMulticast>false</AllowMulticast>
</General><Discovery>
  <ParticipantIndex>auto</ParticipantIndex><Peers><Peer Address="127.0.0.1"/></Peers>
</Discovery></Domain></CycloneDDS>
"""

RATE_HZ = 30
HEIGHT, WIDTH, STEP = 24, 32, 40
"""Of the camera's images; rows are padded."""

BUDGET_MS = 90.0
COSTS_MS = {"a:0:3": 4.0, "a:0:1+b:1:3": 8.0, "b:0:3": 24.0}
SLOWDOWN = 5
"""Disturbed they take 20, 40 and 120 ms, after an image has waited for up to 33: the last is late."""

PERIOD_MS = 100
"""Between two answers, at most: the deadline that the reader asks of their topic."""

CALM = 15
"""Images in a row without a miss, after which misses have stopped."""


# --- messages, as ROS 2 lays them out ------------------------------------------------------------


@dataclass
class Time(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    sec: int32
    nanosec: uint32


@dataclass
class Header(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    stamp: Time
    frame_id: str


@dataclass
class Image(IdlStruct, typename="sensor_msgs::msg::dds_::Image_"):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: sequence[uint8]


@dataclass
class ObjectHypothesis(IdlStruct, typename="vision_msgs::msg::dds_::ObjectHypothesis_"):
    class_id: str
    score: float64


@dataclass
class Classification(IdlStruct, typename="vision_msgs::msg::dds_::Classification_"):
    header: Header
    results: sequence[ObjectHypothesis]


@dataclass
class KeyValue(IdlStruct, typename="diagnostic_msgs::msg::dds_::KeyValue_"):
    key: str
    value: str


@dataclass
class DiagnosticStatus(IdlStruct, typename="diagnostic_msgs::msg::dds_::DiagnosticStatus_"):
    level: byte
    name: str
    message: str
    hardware_id: str
    values: sequence[KeyValue]


@dataclass
class DiagnosticArray(IdlStruct, typename="diagnostic_msgs::msg::dds_::DiagnosticArray_"):
    header: Header
    status: sequence[DiagnosticStatus]


LEVELS = {"OK": 0, "WARN": 1, "ERROR": 2}
NEWEST = Qos(Policy.Reliability.BestEffort, Policy.History.KeepLast(1))
ANSWERS = NEWEST + Qos(Policy.Deadline(duration(milliseconds=PERIOD_MS)))
ALL = Qos(Policy.Reliability.Reliable(duration(seconds=1)), Policy.History.KeepAll)


def to_stamp(time_ns: int) -> Time:
    return Time(*divmod(time_ns, 10**9))


def to_ns(stamp: Time) -> int:
    return stamp.sec * 10**9 + stamp.nanosec


# --- the camera's process ------------------------------------------------------------------------


def run_camera(domain: int) -> None:
    """Publishes images at a steady rate until it is ended."""
    _configured = Domain(domain, CONFIGURATION)  # kept, since what is forgotten is deleted
    participant = DomainParticipant(domain)
    writer = DataWriter(participant, Topic(participant, "rt/image", Image), qos=NEWEST)
    rows = np.random.default_rng(0).integers(0, 256, (HEIGHT, STEP), dtype=np.uint8)
    data = rows.ravel().tolist()
    due_s = time.monotonic()
    while True:
        header = Header(to_stamp(time.time_ns()), "front")
        writer.write(Image(header, HEIGHT, WIDTH, "mono8", 0, STEP, data))
        due_s = max(due_s + 1 / RATE_HZ, time.monotonic())
        time.sleep(max(0.0, due_s - time.monotonic()))


if __name__ == "__main__":
    run_camera(int(sys.argv[1]))


@contextmanager
def process(*arguments: str) -> Iterator[None]:
    """Another Python at work meanwhile."""
    started = subprocess.Popen([sys.executable, *arguments])
    try:
        yield
        assert started.poll() is None, "it ended by itself"
    finally:
        started.kill()
        started.wait()


# --- the robot's process -------------------------------------------------------------------------


def deployment_with_costs(folder: Path, disturbed: Path) -> "Deployment":
    """A compiled network whose topologies take `COSTS_MS`, and a multiple while a file exists.

    They compute what they compute and sleep for the rest, so that the test does not depend on what
    this machine can do.
    """
    import msgspec

    from edgestitch.backends import Resident
    from edgestitch.data import toy_images
    from edgestitch.deploy import compile_deployment
    from edgestitch.device import detect
    from edgestitch.engine import profile_network
    from edgestitch.evaluate import evaluate
    from edgestitch.instruments import find_instruments
    from edgestitch.schedule import Candidate, plan
    from edgestitch.testing import FEW_SAMPLES, toy_network

    network, instruments = toy_network(), find_instruments(detect(), energy=False)
    accuracy = evaluate(network, toy_images(64))
    profile, _ = profile_network(network, instruments, FEW_SAMPLES, backend="eager")
    resident = tuple(
        Candidate(topology=name, top1=50.0 + number, median_ms=cost_ms, latency_ms=cost_ms)
        for number, (name, cost_ms) in enumerate(COSTS_MS.items())
    )
    chosen = msgspec.structs.replace(plan(profile, accuracy), resident=resident)
    made = compile_deployment(
        network, chosen, accuracy, folder, instruments, FEW_SAMPLES, backend="eager"
    )

    def load(topology: str) -> Resident:
        run = made.program.load(topology).run

        def slowed(images: np.ndarray) -> np.ndarray:
            started_s = time.monotonic()
            logits = run(images)
            cost_s = COSTS_MS[topology] / 1e3 * (SLOWDOWN if disturbed.exists() else 1)
            time.sleep(max(0.0, started_s + cost_s - time.monotonic()))
            return logits

        return Resident(run=slowed)

    return dataclasses.replace(
        made, plan=chosen, program=dataclasses.replace(made.program, load=load)
    )


class Robot:
    """The worker with its topics, and what arrives at their other end."""

    def __init__(self, domain: int, deployment: "Deployment") -> None:
        from edgestitch import Runtime
        from edgestitch.robotics import Worker, network_input, unpack

        self._configured = Domain(domain, CONFIGURATION)
        participant = DomainParticipant(domain)
        answers = Topic(participant, "rt/classification", Classification)
        diagnostics = Topic(participant, "rt/diagnostics", DiagnosticArray)
        self._images = DataReader(participant, Topic(participant, "rt/image", Image), qos=NEWEST)
        self._writer = DataWriter(participant, answers, qos=ANSWERS)
        self._reporter = DataWriter(participant, diagnostics, qos=ALL)
        # As another node would have them: a participant of their own.
        other = DomainParticipant(domain)
        self._reader = DataReader(
            other, Topic(other, "rt/classification", Classification), qos=ANSWERS
        )
        self._reports = DataReader(other, Topic(other, "rt/diagnostics", DiagnosticArray), qos=ALL)
        self.answers: list[Answer] = []
        self.misses: list[int] = []
        """Of the reader's deadline until then, at every answer."""
        self.stamps: list[int] = []
        """Of the answers that the reader saw."""
        self.worker = Worker(
            lambda: Runtime(deployment, budget_ms=BUDGET_MS),
            self._publish,
            prepare=lambda image, family: network_input(
                unpack(
                    bytes(image.data),
                    encoding=image.encoding,
                    height=image.height,
                    width=image.width,
                    step=image.step,
                ),
                family,
            ),
        )
        self._stopped = threading.Event()
        self._feeding = threading.Thread(target=self._feed)

    def __enter__(self) -> "Robot":
        self.worker.configure()
        self.worker.activate()
        self._feeding.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._feeding.join()
        self.worker.shutdown()

    def _feed(self) -> None:
        while not self._stopped.is_set():
            for image in self._images.take_iter(timeout=duration(milliseconds=200)):
                self.worker.put(image, stamp_ns=to_ns(image.header.stamp))
                if self._stopped.is_set():
                    break

    def _publish(self, answer: "Answer") -> None:
        scores = answer.result.output[0]
        results = [ObjectHypothesis(str(index), float(s)) for index, s in enumerate(scores)]
        self._writer.write(Classification(answer.image.header, results))
        found = self.worker.diagnostics()
        values = [KeyValue(key, value) for key, value in found.values.items()]
        status = DiagnosticStatus(LEVELS[found.level], "inference", found.message, "", values)
        self._reporter.write(DiagnosticArray(answer.image.header, [status]))
        self.misses.append(self._reader.get_requested_deadline_missed_status().total_count)
        self.stamps += [to_ns(sample.header.stamp) for sample in self._reader.take(N=10)]
        self.answers.append(answer)

    def reported(self) -> DiagnosticStatus:
        """The newest report that has arrived; it is waited for."""
        while not (samples := self._reports.take(N=1000)):
            time.sleep(0.005)
        status: DiagnosticStatus = samples[-1].status[0]
        return status

    def count_until(self, condition: Callable[[int], Any], *, within: int) -> int:
        """Answers from now until a condition on their number holds; fails after `within`."""
        start = len(self.answers)
        patience_s = time.monotonic() + 60
        while not condition(start):
            seen = len(self.answers) - start
            assert seen <= within, [a.result.topology for a in self.answers[start:]]
            assert time.monotonic() < patience_s, f"{seen} answers in a minute"
            time.sleep(0.005)
        return len(self.answers) - start

    def calm(self, start: int) -> bool:
        """Whether the last answers since `start` were all on time, at both ends."""
        recent = self.answers[max(start, len(self.answers) - CALM) :]
        misses = self.misses[-CALM:]
        return (
            len(recent) == CALM
            and not any(answer.late for answer in recent)
            and misses[0] == misses[-1]
        )

    @property
    def topology(self) -> str:
        return self.answers[-1].result.topology if self.answers else ""


def test_the_types_on_the_wire_have_the_names_of_ros_2():
    _configured = Domain(101, CONFIGURATION)
    participant = DomainParticipant(101)
    names = [
        Topic(participant, f"rt/{message.__name__}", message).get_type_name()
        for message in (Image, Classification, DiagnosticArray)
    ]
    assert names == [
        "sensor_msgs::msg::dds_::Image_",
        "vision_msgs::msg::dds_::Classification_",
        "diagnostic_msgs::msg::dds_::DiagnosticArray_",
    ]


def test_under_a_disturbance_the_worker_steps_down_keeps_its_deadlines_and_steps_up_again(
    tmp_path, monkeypatch
):
    # What the runtime's diagnostics look back on; a thousand images would take half a minute.
    monkeypatch.setattr("edgestitch.runtime.HISTORY", 100)
    domain, disturbed = 1 + os.getpid() % 100, tmp_path / "disturbed"
    deployment = deployment_with_costs(tmp_path / "deployment", disturbed)
    *_, best = COSTS_MS
    with process(__file__, str(domain)), Robot(domain, deployment) as robot:
        robot.count_until(lambda start: robot.topology == best and robot.calm(start), within=200)
        robot.count_until(lambda start: robot.reported().level == 0, within=300)
        missed = robot.misses[-1]

        disturbed.touch()
        with process("-c", "while True: pass"):
            robot.count_until(lambda start: robot.topology != best, within=30)
            robot.count_until(robot.calm, within=150)
            report = robot.reported()
            assert robot.topology != best
            assert robot.misses[-1] > missed
            assert report.level == 1
            assert "answered late" in report.message
        disturbed.unlink()

        robot.count_until(lambda start: robot.topology == best and robot.calm(start), within=300)
        robot.count_until(lambda start: robot.reported().level == 0, within=600)
    numbers = [answer.number for answer in robot.answers]
    assert all(a < b for a, b in itertools.pairwise(numbers))
    assert all(a < b for a, b in itertools.pairwise(robot.stamps))
    assert len(robot.stamps) > len(robot.answers) / 2  # best effort: a busy reader misses some
