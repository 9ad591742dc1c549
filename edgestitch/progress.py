"""How long work tells what it is doing: a function of stage, steps done and steps in all."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Shows nothing."""
