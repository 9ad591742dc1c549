"""Memory: how much this process has, and how much the device has left."""

from pathlib import Path

from . import sysfs
from .device import Device
from .errors import InfeasibleError

MIB = 2**20


def available_mib(device: Device, root: Path = Path("/")) -> float:
    """What can still be allocated where topologies are kept.

    Of a graphics card its own memory; of a CPU, and of a Jetson, whose GPU has the same memory, what
    the kernel says is available without swapping, less where a control group allows less.
    """
    if device.accelerator == "cuda" and not device.shares_memory:
        import torch

        return float(torch.cuda.mem_get_info()[0]) / MIB
    return min(_kernel_mib(root), _group_mib(root))


def used_mib(device: Device, root: Path = Path("/")) -> float:
    """What is in use: of a graphics card by all, else by this process, files that it maps included."""
    if device.accelerator == "cuda" and not device.shares_memory:
        import torch

        free, total = torch.cuda.mem_get_info()
        return float(total - free) / MIB
    for line in sysfs.text(root / "proc/self/status").splitlines():
        if line.startswith("VmRSS:"):
            return float(line.split()[1]) / 1024
    return 0.0


def _kernel_mib(root: Path) -> float:
    for line in sysfs.text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) / 1024
    return float("inf")  # no Linux: nothing is known, so nothing is refused


def _group_mib(root: Path) -> float:
    """What the control group (version 2) of a container leaves; files it has read can be dropped."""
    group = root / "sys/fs/cgroup"
    limit, current = sysfs.text(group / "memory.max"), sysfs.text(group / "memory.current")
    if not (limit.isdigit() and current.isdigit()):
        return float("inf")
    dropped = [
        int(line.split()[1])
        for line in sysfs.text(group / "memory.stat").splitlines()
        if line.startswith("inactive_file ")
    ]
    return (int(limit) - int(current) + sum(dropped)) / MIB


def require_room(
    what: str, needed_mib: float, device: Device, advice: str, root: Path = Path("/")
) -> None:
    """Raises `InfeasibleError` with both numbers where more is needed than is left."""
    left = available_mib(device, root)
    if needed_mib > left:
        raise InfeasibleError(
            f"{what} needs {needed_mib:.0f} MiB, and {device.name} has {left:.0f} MiB left; {advice}"
        )
