"""The topologies of a deployment in memory, as they become ready and as they fail."""

import logging
import threading
import time
from collections.abc import Callable

from .backends import Resident
from .deployment import Deployment
from .errors import DeviceError

log = logging.getLogger(__name__)


class Residents:
    """Which topologies can be called.

    The first one is loaded by `load_first`, the others by a thread of their own. One that fails,
    while it is loaded or later, is left out from then on; where none is left, eager PyTorch on the
    CPU takes the place of the first.

    Args:
        topologies: in the order in which they are loaded, the safety topology first.
        guard: held while a topology is run to test it, since inferences run one at a time.
        changed: called after any change of `ready`.
    """

    def __init__(
        self,
        deployment: Deployment,
        topologies: tuple[str, ...],
        guard: threading.Lock,
        changed: Callable[[], None],
    ) -> None:
        self.ready: dict[str, Resident] = {}
        self.failed: dict[str, str] = {}
        """Why, by topology."""
        self.eager = False
        """Whether eager PyTorch answers, since everything compiled has failed."""
        self.first_ready_ms: float | None = None
        self.all_ready_ms: float | None = None
        """Since this was made; `None`: not yet."""
        self._deployment = deployment
        self._topologies = topologies
        self._guard = guard
        self._changed = changed
        self._started_ns = time.monotonic_ns()
        self._change = threading.Condition()
        self._stopped = False

    def load_first(self) -> None:
        """Makes the first topology ready, or the next one where that fails."""
        if not any(self._load(name) for name in self._topologies):
            self.fall_back()
        self.first_ready_ms = self._since_start_ms()

    def load_rest(self) -> None:
        """Loads the others in a thread.

        No daemon: a process that ends in the middle of a backend's code would crash. It ends when the
        topology that is being loaded is.
        """
        threading.Thread(target=self._load_rest, name="edgestitch-loading").start()

    def _load_rest(self) -> None:
        for name in self._topologies:
            if self._stopped or not threading.main_thread().is_alive():
                break
            if name not in self.ready and name not in self.failed:
                self._load(name)
                self._changed()
        with self._change:
            self.all_ready_ms = self._since_start_ms()
            self._change.notify_all()

    def _load(self, topology: str) -> bool:
        """Whether a topology was made ready."""
        try:
            resident = self._deployment.ready(topology, self._guard)
        except Exception as error:  # whatever a backend raises: another topology can do the work
            self.fail(topology, error)
            return False
        with self._change:
            self.ready[topology] = resident
            self._change.notify_all()
        return True

    def fail(self, topology: str, error: Exception) -> None:
        """Leaves a topology out from now on."""
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        log.warning("%s failed and is left out: %s", topology, reason)
        with self._change:
            self.failed[topology] = reason
            self.ready.pop(topology, None)
            self._change.notify_all()

    def fall_back(self) -> None:
        """Makes the first topology run in eager PyTorch on the CPU.

        Raises:
            DeviceError: it cannot be had either, or was running already and failed.
        """
        first = self._topologies[0]
        reason = self.failed.get(first, "")
        if self.eager:
            raise DeviceError(
                f"{first} fails in eager PyTorch on the CPU as well: {reason}; see whether memory is "
                "left, or compile the deployment again"
            )
        try:
            run = self._deployment.eager(first)
        except Exception as error:
            raise DeviceError(
                f"every compiled topology failed ({reason}), and eager PyTorch cannot take over: "
                f"{error}; compile the deployment again"
            ) from error
        log.error("everything compiled has failed: %s runs in eager PyTorch on the CPU", first)
        with self._change:
            self.eager = True
            self.ready[first] = Resident(run=run)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until every topology is ready or has failed; whether that is so."""
        with self._change:
            return self._change.wait_for(lambda: self.all_ready_ms is not None, timeout_s)

    def wait_for(self, topology: str) -> bool:
        """Waits until a topology is ready or has failed; whether it is ready."""
        with self._change:
            self._change.wait_for(
                lambda: (
                    topology in self.ready
                    or topology in self.failed
                    or self.all_ready_ms is not None
                )
            )
            return topology in self.ready

    def stop(self) -> None:
        """Loads no more, and lets go of what was loaded."""
        self._stopped = True
        with self._change:
            self.ready.clear()

    def _since_start_ms(self) -> float:
        return (time.monotonic_ns() - self._started_ns) / 1e6
