"""A mailbox of one slot, in which a newer item takes the place of an older one."""

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """What a thread that is slower than its source should work on: always the newest.

    What waits when the mailbox is closed can still be taken; nothing can be put any more.
    """

    def __init__(self) -> None:
        self.dropped = 0
        """Items that a newer one replaced before they were taken."""
        self._changed = threading.Condition()
        self._slot: tuple[T] | None = None  # a tuple, so that any item can wait, `None` as well
        self._closed = False

    def put(self, item: T) -> bool:
        """Whether the item was accepted: not if the mailbox is closed. Never waits."""
        with self._changed:
            if self._closed:
                return False
            self.dropped += self._slot is not None
            self._slot = (item,)
            self._changed.notify()
            return True

    def take(self, timeout_s: float | None = None) -> T | None:
        """The newest item, waited for; `None` once closed and empty, or when the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._slot is not None or self._closed, timeout_s)
            slot, self._slot = self._slot, None
            return slot[0] if slot else None

    def close(self) -> None:
        """Accepts no more, and wakes whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
