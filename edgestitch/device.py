"""What this machine is; the only file that asks."""

import os
import platform
import re
from pathlib import Path
from typing import Literal

from .artifact import Value
from .errors import DeviceError

# The chip of each Jetson generation, from NVIDIA's device trees.
_TEGRA = {"tegra194": "jetson-xavier", "tegra234": "jetson-orin", "tegra264": "jetson-thor"}
NAMES = ("auto", "cpu", "cuda", *_TEGRA.values())


class Device(Value, frozen=True, kw_only=True):
    name: str
    """`cpu`, `cuda` (a desktop or data-centre GPU) or a Jetson's."""
    hardware: str
    """What it calls itself."""
    cores: int
    """CPU cores that this process may use."""
    memory_mib: int
    power_mode: str | None
    """Of `nvpmodel`, on a Jetson."""

    @property
    def accelerator(self) -> Literal["cpu", "cuda"]:
        """What torch calls the part that computes."""
        return "cpu" if self.name == "cpu" else "cuda"


def detect(root: Path = Path("/")) -> Device:
    """The best device of this machine: a Jetson, else a CUDA GPU, else the CPU.

    `root` is where `proc` and `var` are looked for.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    jetson, model = _jetson(root)
    gpu = None if jetson else _gpu_name()
    cpu = f"{_cpu_model(root)}, {cores} cores"
    return Device(
        name=jetson or ("cuda" if gpu else "cpu"),
        hardware=model or gpu or cpu,
        cores=cores,
        memory_mib=_memory_mib(root),
        power_mode=_power_mode(root) if jetson else None,
    )


def resolve(requested: str = "auto", root: Path = Path("/")) -> Device:
    """This machine's device, if it is the one requested; a GPU machine can also serve as `cpu`.

    Raises:
        ValueError: no device is called that.
        DeviceError: this machine is another one.
    """
    if requested not in NAMES:
        raise ValueError(f"no device {requested!r}; there are {', '.join(NAMES)}")
    found = detect(root)
    if requested in ("auto", found.name):
        return found
    if requested == "cpu":
        hardware = f"{_cpu_model(root)}, {found.cores} cores"
        return Device(
            name="cpu",
            hardware=hardware,
            cores=found.cores,
            memory_mib=found.memory_mib,
            power_mode=found.power_mode,
        )
    raise DeviceError(
        f"{requested} was asked for, but this machine is {found.name} ({found.hardware}); run the "
        f"command on the {requested} itself, or use --device auto for this machine"
    )


def _jetson(root: Path) -> tuple[str | None, str | None]:
    tree = root / "proc/device-tree"
    compatible = _text(tree / "compatible")
    for chip, name in _TEGRA.items():
        if chip in compatible:
            return name, _text(tree / "model") or name
    return None, None


def _gpu_name() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
    except Exception:  # NVML has a class for each of its failures: no driver, no GPU, no permission
        return None
    return name.decode() if isinstance(name, bytes) else str(name)


def _cpu_model(root: Path) -> str:
    match = re.search(
        r"^(?:model name|Model)\s*:\s*(.+)$", _text(root / "proc/cpuinfo"), re.MULTILINE
    )
    return match[1].strip() if match else platform.machine()


def _memory_mib(root: Path) -> int:
    match = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) // 1024 if match else 0


def _power_mode(root: Path) -> str | None:
    match = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status"))
    if match is None:
        return None
    number = int(match[1])
    modes = _text(root / "etc/nvpmodel.conf")
    name = re.search(rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+)\s*>", modes)
    return name[1] if name else f"mode {number}"


def _text(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
