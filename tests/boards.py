"""Trees of files like those of real boards: what `/proc`, `/etc`, `/var` and `/sys` have there."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

from edgestitch import DeviceError


@dataclass(frozen=True, kw_only=True)
class Board:
    compatible: str
    model: str
    release: str
    memory_kb: int
    modes: tuple[tuple[int, str], ...]
    default: int
    mode: int
    """Number of the mode that it is in."""
    gpu: str
    """Its name under `/sys/class/devfreq`."""
    gpu_mhz: tuple[float, float, float]
    """Clock, lowest and highest that is allowed."""
    zones: dict[str, float] = field(default_factory=dict)
    alerts: dict[str, int] = field(default_factory=dict)
    over_current: tuple[int, int, int] | None = None


_ORIN_ZONES = {
    "cpu-thermal": 47.5,
    "gpu-thermal": 46.25,
    "soc0-thermal": 45.0,
    "cv0-thermal": 44.0,
    "tj-thermal": 47.5,
}
_ORIN_ALERTS = {"cpu-throttle-alert": 0, "gpu-throttle-alert": 0, "pwm-fan": 2}

BOARDS = {
    "jetson-orin-nano": Board(
        compatible="nvidia,p3768-0000+p3767-0005-super nvidia,p3767-0005 nvidia,tegra234",
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        release="# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
        memory_kb=7802136,
        modes=((0, "15W"), (1, "25W"), (2, "MAXN_SUPER"), (3, "7W")),
        default=1,
        mode=2,
        gpu="17000000.gpu",
        gpu_mhz=(1020, 306, 1020),
        zones=_ORIN_ZONES,
        alerts=_ORIN_ALERTS,
        over_current=(0, 0, 7),
    ),
    "jetson-orin-nx": Board(
        compatible="nvidia,p3768-0000+p3767-0000 nvidia,p3767-0000 nvidia,tegra234",
        model="NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        release="# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
        memory_kb=15824764,
        modes=((0, "MAXN_SUPER"), (1, "10W"), (2, "15W"), (3, "25W"), (4, "40W")),
        default=4,
        mode=4,
        gpu="17000000.gpu",
        gpu_mhz=(306, 306, 918),
        zones=_ORIN_ZONES,
        alerts=_ORIN_ALERTS,
        over_current=(0, 0, 0),
    ),
    "jetson-agx-orin": Board(
        compatible="nvidia,p3737-0000+p3701-0005 nvidia,p3701-0005 nvidia,tegra234",
        model="NVIDIA Jetson AGX Orin Developer Kit",
        release="# R35 (release), REVISION: 5.0, GCID: 35550185, BOARD: t186ref, EABI: aarch64",
        memory_kb=64349888,
        modes=((0, "MAXN"), (1, "MODE_15W"), (2, "MODE_30W"), (3, "MODE_50W")),
        default=2,
        mode=0,
        gpu="17000000.ga10b",
        gpu_mhz=(1300.5, 1300.5, 1300.5),
        zones=_ORIN_ZONES,
        alerts=_ORIN_ALERTS,
        over_current=(0, 0, 0),
    ),
    "jetson-thor": Board(
        compatible="nvidia,p4071-0000+p3834-0008 nvidia,p3834-0008 nvidia,tegra264",
        model="NVIDIA Jetson AGX Thor Developer Kit",
        release="# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64",
        memory_kb=128738304,
        modes=((0, "MAXN"), (1, "120W"), (2, "90W"), (3, "70W")),
        default=1,
        mode=1,
        gpu="gpu-gpc-0",
        gpu_mhz=(1575, 1575, 1575),
        zones={"cpu-thermal": 55.0, "gpu-thermal": 57.0, "tj-thermal": 58.0},
        alerts={"devfreq-gpu-gpc-0": 0},
        over_current=(0, 0, 1),
    ),
    "jetson-xavier": Board(
        compatible="nvidia,p2972-0000 nvidia,p2822-0000+p2888-0004 nvidia,tegra194",
        model="Jetson-AGX",
        release="# R35 (release), REVISION: 6.5, GCID: 35550185, BOARD: t186ref, EABI: aarch64",
        memory_kb=32083908,
        modes=((0, "MAXN"), (1, "MODE_10W"), (2, "MODE_15W"), (3, "MODE_30W_ALL")),
        default=2,
        mode=3,
        gpu="17000000.gv11b",
        gpu_mhz=(318.75, 114.75, 905.25),
        zones={"CPU-therm": 40.5, "GPU-therm": 39.0, "PMIC-Die": 100.0},
    ),
}


def put(file: Path, content: object) -> Path:
    """Writes a file and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{content}\n")
    return file


def machine(root: Path, *, memory_kb: int = 8_000_000, steal_ticks: int = 0) -> Path:
    """What every machine with Linux has; a virtual one has no more."""
    put(root / "proc/cpuinfo", "processor : 0\nmodel name : Some CPU\ncpu MHz : 2600.000")
    put(root / "proc/meminfo", f"MemTotal: {memory_kb} kB\nMemAvailable: {memory_kb // 2} kB")
    put(
        root / "proc/stat",
        f"cpu  10 0 10 500 0 0 0 {steal_ticks} 0 0\ncpu0 10 0 10 500 0 0 0 0 0 0",
    )
    return root


def board(root: Path, name: str) -> Path:
    """The files of a board from `BOARDS`."""
    known = BOARDS[name]
    machine(root, memory_kb=known.memory_kb)
    put(root / "proc/cpuinfo", "processor : 0\nCPU implementer : 0x41")
    tree = root / "proc/device-tree"
    tree.mkdir()
    (tree / "compatible").write_bytes(known.compatible.replace(" ", "\0").encode() + b"\0")
    (tree / "model").write_bytes(known.model.encode() + b"\0")
    put(root / "etc/nv_tegra_release", known.release)
    modes = "\n".join(
        f"< POWER_MODEL ID={number} NAME={mode} >\nCPU_ONLINE CORE_0 1"
        for number, mode in known.modes
    )
    put(
        root / "etc/nvpmodel.conf",
        f"# < POWER_MODEL ID=99 NAME=COMMENT >\n< PARAM TYPE=FILE NAME=CPU_ONLINE >\n{modes}\n"
        f"< PM_CONFIG DEFAULT={known.default} >",
    )
    put(root / "var/lib/nvpmodel/status", f"pmode:{known.mode:04d} fmode:fanNull")
    for file, mhz in zip(("cur_freq", "min_freq", "max_freq"), known.gpu_mhz, strict=True):
        put(root / "sys/class/devfreq" / known.gpu / file, round(mhz * 1e6))
    policy = root / "sys/devices/system/cpu/cpufreq/policy0"
    put(policy / "scaling_governor", "schedutil")
    for file, khz in (("cur", 1510400), ("min", 729600), ("max", 1510400)):
        put(policy / f"scaling_{file}_freq", khz)
    for number, (kind, temperature_c) in enumerate(known.zones.items()):
        put(root / f"sys/class/thermal/thermal_zone{number}/type", kind)
        put(root / f"sys/class/thermal/thermal_zone{number}/temp", round(temperature_c * 1000))
    for number, (kind, state) in enumerate(known.alerts.items()):
        put(root / f"sys/class/thermal/cooling_device{number}/type", kind)
        put(root / f"sys/class/thermal/cooling_device{number}/cur_state", state)
    if known.over_current is not None:
        folder = root / "sys/class/hwmon/hwmon3"
        put(folder / "name", "soctherm_oc")
        for number, count in enumerate(known.over_current, 1):
            put(folder / f"oc{number}_event_cnt", count)
            put(folder / f"oc{number}_throt_en", 1)
    return root


@contextlib.contextmanager
def powered_off(file: Path) -> Iterator[None]:
    """While it lasts, reading the file fails with EAGAIN, as of a part without power."""
    # A pipe that somebody holds open and writes nothing into says just that.
    file.unlink()
    os.mkfifo(file)
    holder = os.open(file, os.O_RDWR)
    try:
        yield
    finally:
        os.close(holder)


def unreadable(file: Path) -> None:
    """Reading the file fails, also for root."""
    file.unlink()
    file.mkdir()


def hide_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML finds nothing, so that a tree is all that there is, whatever the real machine has."""

    def connect() -> NoReturn:
        raise DeviceError("the NVIDIA driver is not loaded")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("edgestitch.nvml.connect", connect)
