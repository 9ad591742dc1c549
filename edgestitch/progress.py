"""How long work tells what it is doing: to a progress bar, and to a log that is kept."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

Progress = Callable[[str, int, int], None]
"""Told of a stage, the steps done and the steps in all."""

Log = Callable[[str, int, Mapping[str, float]], None]
"""Told of a stage, a step, and figures by name."""


def silent(stage: str, done: int, total: int) -> None:
    """Shows nothing."""


def unlogged(stage: str, step: int, figures: Mapping[str, float]) -> None:
    """Keeps nothing."""


@contextlib.contextmanager
def tensorboard(folder: Path | None) -> Iterator[Log]:
    """A log in a folder that TensorBoard shows, one curve a stage and figure; `None` keeps nothing.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    if folder is None:
        yield unlogged
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            f"--log needs TensorBoard ({error}); pip install 'edgestitch[tensorboard]'"
        ) from error
    writer = SummaryWriter(str(folder))

    def log(stage: str, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(f"{stage}/{name}".replace(" ", "-"), value, step)

    try:
        yield log
    finally:
        writer.close()
