"""Around a `Runtime` on a robot: a worker for a camera's images, a watchdog, a ROS 2 node.

    camera -> Worker.put -> one slot, the newest image -> Runtime -> answered(Answer)

    with Worker(lambda: Runtime(budget_ms=10), publish, prepare=network_input) as worker:
        worker.put(pixels, stamp_ns=stamp_ns)   # returns at once; an older image that waits is dropped
        worker.latest()                         # the last answer, `stale` once its image is too old

The node is `edgestitch.robotics.ros2`, which alone needs ROS 2.
"""

from .mailbox import Mailbox as Mailbox
from .pixels import network_input as network_input
from .pixels import unpack as unpack
from .watchdog import Watchdog as Watchdog
from .watchdog import notify as notify
from .worker import Answer as Answer
from .worker import Worker as Worker
