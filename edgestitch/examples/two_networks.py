"""Two networks on one device: each its own images, rate and deadline, one lock between them.

    python -m edgestitch.examples.two_networks --first front/deployment --second arm/deployment

Two inferences at once on one device make both late by an amount that no profile has measured. With
the lock they take turns, and the time that one waits counts: its topology is chosen by what is left.
"""

import threading
import time
from pathlib import Path

import click
import numpy as np

from edgestitch import EdgestitchError, Runtime
from edgestitch.robotics import Answer, Worker, network_input


class Camera:
    """A camera that is not there: `number` noisy images at a steady rate, to one worker."""

    def __init__(
        self, name: str, deployment: Path | None, budget_ms: float, rate_hz: float
    ) -> None:
        self.name = name
        self.rate_hz = rate_hz
        self.deployment = deployment
        self.budget_ms = budget_ms
        self.answers: list[Answer] = []

    def worker(self, device: threading.Lock) -> Worker:
        return Worker(
            lambda: Runtime(self.deployment, budget_ms=self.budget_ms),
            self.answers.append,
            prepare=network_input,
            device=device,
        )

    def run(self, worker: Worker, number: int) -> None:
        random = np.random.default_rng(0)
        for _ in range(number):
            worker.put(random.integers(0, 256, (48, 64, 3), dtype=np.uint8))
            time.sleep(1 / self.rate_hz)

    def summary(self) -> str:
        late = sum(bool(answer.late) for answer in self.answers)
        topologies = sorted({answer.result.topology for answer in self.answers})
        return (
            f"{self.name}: {len(self.answers)} images answered at {self.rate_hz:g} Hz within "
            f"{self.budget_ms:g} ms, {late} late, by {', '.join(topologies)}"
        )


@click.command()
@click.option(
    "--first", type=click.Path(path_type=Path), help="A deployment; else the shipped one."
)
@click.option(
    "--second", type=click.Path(path_type=Path), help="A deployment; else the shipped one."
)
@click.option("--frames", type=click.IntRange(min=1), default=90, show_default=True)
def main(first: Path | None, second: Path | None, frames: int) -> None:
    """Runs two workers that share a device: one of 30 Hz and 15 ms, one of 10 Hz and 60 ms."""
    device = threading.Lock()
    cameras = (Camera("front", first, 15.0, 30.0), Camera("arm", second, 60.0, 10.0))
    try:
        with cameras[0].worker(device) as front, cameras[1].worker(device) as arm:
            sources = [
                threading.Thread(target=cameras[0].run, args=(front, frames)),
                threading.Thread(target=cameras[1].run, args=(arm, max(1, frames // 3))),
            ]
            for source in sources:
                source.start()
            for source in sources:
                source.join()
    except EdgestitchError as error:
        raise click.ClickException(str(error)) from error
    for camera in cameras:
        click.echo(camera.summary())


if __name__ == "__main__":
    main()
