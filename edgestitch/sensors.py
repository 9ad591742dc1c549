"""What a device is doing: clocks, temperatures, throttling, who else uses it.

Everything here is a file that the kernel shows, or NVML's for a GPU of its own. Files are found
once, by what they say they are, since their numbers change from boot to boot; a look then reads
them. What cannot be read is left out, with the reason in `unread`: never 0, never a last value.
"""

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from . import sysfs
from .artifact import Value
from .device import Device, descriptor
from .errors import DeviceError

if TYPE_CHECKING:
    from .nvml import Nvml

THROTTLING = ("oc1", "oc2", "oc3", "cpu_throttle")
"""Counters that only throttling moves. Ticks stolen from a virtual machine are none of them."""


class State(Value, frozen=True, kw_only=True):
    """A device at one moment; only what could be read."""

    clocks_mhz: dict[str, float]
    """Of `gpu`, `memory` and `cpu`: the mean over its cores."""
    temperatures_c: dict[str, float]
    """Of parts of the chip, as `gpu`, `cpu` and `tj`, the hottest of a Jetson's."""
    throttle: tuple[str, ...]
    """Reasons for which the device throttles now."""
    events: dict[str, int]
    """Counters since the machine started: `oc1` (under-voltage), `oc2` (average current too high),
    `oc3` (peak current too high), `cpu_throttle`, `steal_ticks` (time that a virtual machine's host
    gave to others)."""
    memory_available_mib: int | None = None
    """Of the whole machine; a Jetson's GPU lives on the same."""
    others: tuple[str, ...] = ()
    """Other processes that use the GPU: number and name."""
    unread: dict[str, str] = msgspec.field(default_factory=dict)
    """What could not be read, as `temperatures_c.gpu`, and why."""


class Sensors(Protocol):
    @property
    def locked(self) -> bool | None:
        """Whether the GPU's clock (of the device `cpu`, the CPU's) is pinned; `None`: unknown."""

    def read(self) -> State:
        """The state of now. On a Jetson a temperature costs about 80 us, the rest less each."""


def find_sensors(
    device: Device, *, root: Path = Path("/"), nvml: "Nvml | None" = None
) -> "BoardSensors":
    """The sensors of a device; those that it lacks are named, with the reason, in each state.

    `root` is where `sys` and `proc` are. For a `cuda` device NVML is asked unless `nvml` is given.
    """
    absent = {}
    if device.name == "cuda" and nvml is None:
        from .nvml import connect

        try:
            nvml = connect()
        except DeviceError as error:
            absent = dict.fromkeys(("clocks_mhz.gpu", "throttle", "others"), str(error))
    return BoardSensors(device, root, nvml if device.name == "cuda" else None, absent)


def throttled(before: State, after: State) -> tuple[str, ...]:
    """Why the device throttled at one of two moments, or between them; empty if it did not."""
    grown = (
        name
        for name in THROTTLING
        if name in before.events and after.events.get(name, 0) > before.events[name]
    )
    return tuple(sorted({*before.throttle, *after.throttle, *grown}))


class BoardSensors:
    """Sensors that the kernel shows as files, and NVML's if the device has one."""

    def __init__(
        self, device: Device, root: Path, nvml: "Nvml | None", absent: Mapping[str, str]
    ) -> None:
        kind = descriptor(device.name)
        clocks = root / "sys/class/devfreq"
        self._nvml = nvml
        self._root = root
        self._absent = dict(absent)
        self._gpu = next((clocks / n for n in kind.gpu_clock if (clocks / n).is_dir()), None)
        self._clocks = _present(
            {
                "gpu": [clocks / name / "cur_freq" for name in kind.gpu_clock],
                "memory": [clocks / name / "cur_freq" for name in kind.memory_clock],
            }
        )
        if kind.gpu_clock and self._gpu is None:
            self._absent["clocks_mhz.gpu"] = f"{clocks} has none of {', '.join(kind.gpu_clock)}"
        if kind.memory_cap:
            self._absent["clocks_mhz.memory"] = (
                f"only root may read it; others see the cap on it, /{kind.memory_cap}"
            )
        if kind.gpu_clock:
            self._absent["others"] = "NVML lists no processes on a Jetson's GPU"
        self._cpus = sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
        self._zones = dict(_zones(root, kind.thermal_zones))
        if kind.thermal_zones and not self._zones:
            self._absent["temperatures_c"] = (
                f"{root / 'sys/class/thermal'} has no zone of {', '.join(kind.thermal_zones)}"
            )
        self._alerts = dict(_alerts(root))
        self._over_current = dict(_over_current(root))
        self._cpu_throttles = sorted(
            root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
        )
        if not (nvml or self._alerts or self._over_current or self._cpu_throttles):
            self._absent.setdefault("throttle", "nothing here reports or counts throttling")

    @property
    def locked(self) -> bool | None:
        if self._nvml is not None:
            return self._nvml.locked()
        if self._gpu is not None:
            return _pinned(self._gpu / "min_freq", self._gpu / "max_freq")
        if "clocks_mhz.gpu" in self._absent or not self._cpus:
            return None
        pinned = [_cpu_pinned(policy) for policy in self._cpus]
        return None if None in pinned else all(pinned)

    def read(self) -> State:
        unread = dict(self._absent)
        clocks = {k: v / 1e6 for k, v in _numbers("clocks_mhz", self._clocks, unread).items()}
        temperatures = {
            k: v / 1e3 for k, v in _numbers("temperatures_c", self._zones, unread).items()
        }
        alerts = _numbers("throttle", self._alerts, unread)
        throttle = [name for name, value in alerts.items() if value > 0]
        others: tuple[str, ...] = ()
        cpu_mhz = self._cpu_mhz(unread)
        if cpu_mhz is not None:
            clocks["cpu"] = cpu_mhz
        if self._nvml is not None:
            clocks |= _gpu_clocks(self._nvml, unread)
            temperatures |= _gpu_temperature(self._nvml, unread)
            throttle += _gpu_throttle(self._nvml, unread)
            others = self._others(self._nvml, unread)
        return State(
            clocks_mhz=clocks,
            temperatures_c=temperatures,
            throttle=tuple(sorted(throttle)),
            events=self._events(unread),
            memory_available_mib=self._memory_available_mib(unread),
            others=others,
            unread=unread,
        )

    def _cpu_mhz(self, unread: dict[str, str]) -> float | None:
        if self._cpus:
            files = {policy.name: policy / "scaling_cur_freq" for policy in self._cpus}
            mhz = [value / 1e3 for value in _numbers("clocks_mhz.cpu", files, unread).values()]
        else:
            text = sysfs.text(self._root / "proc/cpuinfo")
            mhz = [float(found) for found in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.M)]
            if not mhz:
                unread["clocks_mhz.cpu"] = "neither cpufreq nor /proc/cpuinfo has it"
        return sum(mhz) / len(mhz) if mhz else None

    def _events(self, unread: dict[str, str]) -> dict[str, int]:
        events = {k: int(v) for k, v in _numbers("events", self._over_current, unread).items()}
        if self._cpu_throttles:
            files = {file.parent.parent.name: file for file in self._cpu_throttles}
            events["cpu_throttle"] = int(
                sum(_numbers("events.cpu_throttle", files, unread).values())
            )
        # cpu, then ticks: user nice system idle iowait irq softirq steal (proc(5))
        total = sysfs.text(self._root / "proc/stat").partition("\n")[0].split()
        if len(total) > 8:
            events["steal_ticks"] = int(total[8])
        else:
            unread["events.steal_ticks"] = f"{self._root / 'proc/stat'} does not have it"
        return events

    def _memory_available_mib(self, unread: dict[str, str]) -> int | None:
        text = sysfs.text(self._root / "proc/meminfo")
        match = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
        if match is None:
            unread["memory_available_mib"] = f"{self._root / 'proc/meminfo'} does not have it"
        return int(match[1]) // 1024 if match else None

    def _others(self, nvml: "Nvml", unread: dict[str, str]) -> tuple[str, ...]:
        processes = nvml.processes()
        if processes is None:
            unread["others"] = _reason(nvml, "nvmlDeviceGetComputeRunningProcesses")
            return ()
        # NVML numbers processes as the host does. Inside a container our own has another number
        # there, so that one which is not to be seen here may be anybody's, ours included.
        here = [p for p in processes if (self._root / f"proc/{p.pid}").is_dir()]
        if len(here) < len(processes):
            hidden = sorted({p.pid for p in processes} - {p.pid for p in here})
            unread["others"] = (
                f"processes {', '.join(map(str, hidden))} of the host cannot be seen from this "
                "container; one of them may be this very process"
            )
        return tuple(f"{p.pid} {p.name or 'of a name that NVML does not tell'}" for p in here)


# --- NVML --------------------------------------------------------------------------------------


def _gpu_clocks(nvml: "Nvml", unread: dict[str, str]) -> dict[str, float]:
    found = nvml.clocks_mhz()
    clocks = {}
    for name, ours in (("sm", "gpu"), ("memory", "memory")):
        if name in found:
            clocks[ours] = float(found[name])
        else:
            unread[f"clocks_mhz.{ours}"] = _reason(nvml, "nvmlDeviceGetClockInfo")
    return clocks


def _gpu_temperature(nvml: "Nvml", unread: dict[str, str]) -> dict[str, float]:
    temperature_c = nvml.temperature_c()
    if temperature_c is None:
        unread["temperatures_c.gpu"] = _reason(nvml, "nvmlDeviceGetTemperature")
        return {}
    return {"gpu": temperature_c}


def _gpu_throttle(nvml: "Nvml", unread: dict[str, str]) -> tuple[str, ...]:
    reasons = nvml.throttle_reasons()
    if reasons is None:
        unread["throttle"] = _reason(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons")
    return reasons or ()


def _reason(nvml: "Nvml", function: str) -> str:
    return nvml.reasons.get(function, f"NVML's {function} gave nothing")


# --- files of the kernel -----------------------------------------------------------------------


def _zones(root: Path, wanted: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Files with the temperatures of those parts: `gpu` is a zone `gpu-thermal` or `GPU-therm`."""
    names = {part: (part, f"{part}-therm", f"{part}-thermal") for part in wanted}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        kind = sysfs.text(zone / "type").lower()
        yield from ((part, zone / "temp") for part, known in names.items() if kind in known)


def _alerts(root: Path) -> Iterator[tuple[str, Path]]:
    """Files that are above 0 while something throttles, by its name."""
    for cooler in sorted(root.glob("sys/class/thermal/cooling_device*")):
        kind = sysfs.text(cooler / "type")
        if kind.endswith("throttle-alert") or kind.startswith("devfreq-"):
            yield kind, cooler / "cur_state"
    # as the kernel of JetPack 5 has it
    for file in sorted(root.glob("sys/devices/platform/*throttle-alert/thermal_trip_event")):
        yield file.parent.name, file


def _over_current(root: Path) -> Iterator[tuple[str, Path]]:
    """Files that count over-current events, by name: `oc1`, `oc2`, `oc3`."""
    folders = [
        *root.glob("sys/devices/platform/soctherm-oc-event/hwmon/hwmon*"),
        *(
            f
            for f in root.glob("sys/class/hwmon/hwmon*")
            if sysfs.text(f / "name") == "soctherm_oc"
        ),
    ]
    for folder in folders:
        for file in sorted(folder.glob("oc[123]_event_cnt")):
            yield file.name.partition("_")[0], file


def _present(candidates: Mapping[str, list[Path]]) -> dict[str, Path]:
    found = {name: [f for f in files if f.exists()] for name, files in candidates.items()}
    return {name: files[0] for name, files in found.items() if files}


def _cpu_pinned(policy: Path) -> bool | None:
    governor = sysfs.text(policy / "scaling_governor")
    pinned = _pinned(policy / "scaling_min_freq", policy / "scaling_max_freq")
    return pinned and governor == "performance" if governor else None


def _pinned(low: Path, high: Path) -> bool | None:
    limits = (sysfs.text(low), sysfs.text(high))
    return limits[0] == limits[1] if all(limits) else None


def _numbers(group: str, files: Mapping[str, Path], unread: dict[str, str]) -> dict[str, float]:
    """What the files hold, by name; a failure goes into `unread` as `<group>.<name>`."""
    values = {name: _number(file, f"{group}.{name}", unread) for name, file in files.items()}
    return {name: value for name, value in values.items() if value is not None}


def _number(file: Path, name: str, unread: dict[str, str]) -> float | None:
    try:
        return float(_read(file))
    except OSError as error:
        unread[name] = _why(error, file)
    except ValueError as error:
        unread[name] = f"{file} holds no number: {error}"
    return None


def _why(error: OSError, file: Path) -> str:
    if error.errno == errno.EAGAIN:  # trying again would only cost time: it was so 300 times of 300
        return "this part of the chip is powered off for now (EAGAIN)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission to read {file}; run as root, or: sudo chmod a+r {file}"
    return f"{file}: {error.strerror}"


def _read(file: Path) -> bytes:
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
