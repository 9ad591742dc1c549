"""A camera or a video, answered within a budget at the camera's own rate.

python -m edgestitch.examples.camera                           the first camera
python -m edgestitch.examples.camera drive.mp4 --budget-ms 10  a video, at the speed it was taken
"""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from edgestitch import EdgestitchError, Runtime
from edgestitch.robotics import Answer, Worker, network_input


def frames(source: str) -> Iterator[np.ndarray]:
    """The images of a camera (its number) or of a video (its path), uint8 [H, W, 3], RGB."""
    import cv2

    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    try:
        if not capture.isOpened():
            raise EdgestitchError(f"{source} is no camera and no video that OpenCV can read")
        while True:
            there, pixels = capture.read()
            if not there:
                return
            yield pixels[:, :, ::-1]  # OpenCV's are blue, green, red
    finally:
        capture.release()


def paced(images: Iterator[np.ndarray], fps: float) -> Iterator[np.ndarray]:
    """Images at a steady rate; one that comes late is not made up for."""
    due_s = time.monotonic()
    for image in images:
        time.sleep(max(0.0, due_s - time.monotonic()))
        due_s = max(due_s + 1 / fps, time.monotonic())
        yield image


@click.command()
@click.argument("source", default="0")
@click.option("--budget-ms", type=float, default=33.0, show_default=True)
@click.option("--fps", type=click.FloatRange(min=0.1), default=30.0, show_default=True)
@click.option("--frames", "limit", type=click.IntRange(min=1), help="Stop after so many images.")
@click.option("--deployment", type=click.Path(path_type=Path), help="The shipped one if not given.")
def main(
    source: str, budget_ms: float, fps: float, limit: int | None, deployment: Path | None
) -> None:
    """Classifies what a camera or a video SOURCE shows."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise click.ClickException(
            "this example reads images with OpenCV: pip install opencv-python-headless"
        ) from error
    seen: Counter[str] = Counter()

    def answered(answer: Answer) -> None:
        seen[answer.result.topology] += 1
        if seen.total() % 30 == 1:
            best = int(answer.result.output.argmax())
            click.echo(
                f"image {answer.number}: class {best}, {answer.age_ms:.1f} ms after it was taken, "
                f"by {answer.result.topology}"
            )

    try:
        with Worker(
            lambda: Runtime(deployment, budget_ms=budget_ms), answered, prepare=network_input
        ) as worker:
            for number, pixels in enumerate(paced(frames(source), fps), 1):
                worker.put(pixels)
                if number == limit:
                    break
            worker.deactivate()  # the last image is answered
            state = worker.diagnostics()
    except EdgestitchError as error:
        raise click.ClickException(str(error)) from error
    for topology, number in seen.most_common():
        click.echo(f"{number} images by {topology}")
    values = state.values
    click.echo(f"{values['images']} images, {values['late']} late, {values['dropped']} dropped")


if __name__ == "__main__":
    main()
