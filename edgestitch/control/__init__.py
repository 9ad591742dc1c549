"""What keeps the promise when the device does not keep its profile.

governor   which topology keeps the deadline, frame by frame
slowdown   how much slower than profiled the device is now
margin     how much room that prediction needs
power      an average power held by what a meter says
watch      power modes and throttling, once a second
"""

from .governor import Decision, Governor, Status
from .power import PowerLoop, readings
from .slowdown import fixed_ms
from .watch import Event, Watch

__all__ = [
    "Decision",
    "Event",
    "Governor",
    "PowerLoop",
    "Status",
    "Watch",
    "fixed_ms",
    "readings",
]
