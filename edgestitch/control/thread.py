"""A thread for as long as a context is open."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def running(work: Callable[[threading.Event], object], name: str) -> Iterator[None]:
    """Runs `work` in a thread; the event that it is given is set when the context is left."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5.0)  # a driver that hangs must not hold the robot up
