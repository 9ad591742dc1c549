"""What this machine is, and what is known of its kind beforehand; the only file that asks.

What is known beforehand is a descriptor, `profiles/devices/<name>.toml`, each group of facts with
its source. What differs from one installation to the next, power modes above all, is never in it.
"""

import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from . import power, sysfs
from .artifact import Value, read
from .errors import ArtifactError, DeviceError
from .shipped import shipped

if TYPE_CHECKING:
    from .nvml import Nvml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAMES = (
    "auto",
    "cpu",
    "cuda",
    "jetson-agx-orin",
    "jetson-orin",
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-thor",
    "jetson-xavier",
)


# --- what is known of a kind of device ---------------------------------------------------------


class Peak(Value, frozen=True, kw_only=True):
    """The most that a GPU can do at one clock. No network reaches it.

    fp16_tflops = sms * tensor_fma_per_clock * 2 * clock_mhz / 1e6: dense, on the tensor cores.
    fp32_tflops = sms * fp32_lanes * 2 * clock_mhz / 1e6: on the ordinary lanes, no TF32.
    """

    clock_mhz: float
    bandwidth_gbs: float
    fp16_tflops: float
    fp32_tflops: float


class Variant(Value, frozen=True, kw_only=True):
    """A module: of one name there are several, which differ in memory and in what they can do.

    The peaks are `Peak`'s, at the module's largest clock.
    """

    title: str
    modules: tuple[str, ...]
    """Part numbers, or how they begin."""
    memory_gb: float
    sms: int
    clock_mhz: float
    """Of the GPU, the most that any power mode allows; without the Super modes."""
    bandwidth_gbs: float
    """Of the memory, which CPU and GPU share."""
    fp16_tflops: float
    fp32_tflops: float
    super: Peak | None = None
    """In the Super modes of JetPack 6.2, where the module has them."""

    @property
    def module(self) -> str:
        """The first of its part numbers."""
        return self.modules[0]


class Rails(Value, frozen=True, kw_only=True):
    """Which of a board's power sensors add up to its total."""

    totals: tuple[tuple[str, ...], ...] = ()
    """Sets of labels whose sum is the total, the best first; a board has the rails of one of them."""
    inside: tuple[str, ...] = ()
    """Labels that must not be added, since their power is in the total already."""
    estimate: bool = False
    """Whether the sum is only an estimate of what goes into the module."""
    note: str = ""


class Descriptor(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a kind of device before any is at hand."""

    name: str
    title: str
    members: tuple[str, ...] = ()
    """Of a group: the devices that its name stands for."""
    chip: str | None = None
    """As the device tree has it."""
    compatible: tuple[str, ...] = ()
    """How the part numbers of its modules begin, in the device tree."""
    nvml: bool = False
    """Whether NVML names it."""
    compute_capability: str | None = None
    tensor_fma_per_clock: int | None = None
    """Dense FP16 fused multiply-adds of one SM's tensor cores, per clock."""
    fp32_lanes: int | None = None
    """FP32 fused multiply-adds of one SM's ordinary lanes, per clock."""
    variants: tuple[Variant, ...] = ()
    rails: Rails = Rails()
    thermal_zones: tuple[str, ...] = ()
    """Those worth reading; `gpu` is a zone called `gpu-thermal` or `GPU-therm`."""
    gpu_clock: tuple[str, ...] = ()
    """Names of the GPU under `/sys/class/devfreq`, by generation; a board has one."""
    memory_clock: tuple[str, ...] = ()
    """Names of the memory under `/sys/class/devfreq`."""
    memory_cap: str | None = None
    """File with the cap on the memory's clock, where the clock itself is not for users to read."""
    compile: bool
    """Whether compilers exist for it."""
    compile_reason: str | None = None
    launch_us: tuple[float, float] | None = None
    """Host time of one kernel launch: from, to."""
    sources: dict[str, str]
    """Where each group of facts is from."""

    def variant(self, module: str | None, memory_mib: int | None = None) -> Variant | None:
        """The variant with that part number; of several, the one nearest in memory.

        `None`: the module is not known, or nothing is known of it.
        """
        found = [v for v in self.variants if module and module.startswith(v.modules)]
        wanted_gb = (memory_mib or 0) / 1024
        return min(found, key=lambda v: abs(v.memory_gb - wanted_gb), default=None)


def names() -> tuple[str, ...]:
    """Devices that a descriptor ships for, in alphabetical order."""
    return tuple(sorted(file.stem for file in (shipped("profiles") / "devices").glob("*.toml")))


def descriptor(name: str) -> Descriptor:
    """The shipped descriptor of that name.

    Raises:
        ValueError: no device is called that.
        ArtifactError: the file is damaged: an unknown key, a wrong type.
    """
    if name not in names():
        raise ValueError(f"no device {name!r}; there are {', '.join(names())}")
    path = shipped("profiles") / "devices" / f"{name}.toml"
    try:
        return msgspec.convert(tomllib.loads(read(path).decode()), Descriptor)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is no TOML file: {error}") from error
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{path} is no valid descriptor: {error}") from error


# --- what this machine is ----------------------------------------------------------------------


class Device(Value, frozen=True, kw_only=True):
    name: str
    """`cpu`, `cuda` (a desktop or data-centre GPU) or a Jetson's. An Orin's is its board's, as
    `jetson-orin-nano`; `jetson-orin` is one whose module is not known."""
    hardware: str
    """What it calls itself."""
    cores: int
    """CPU cores that this process may use."""
    memory_mib: int
    power_mode: str | None
    """Of `nvpmodel`, on a Jetson."""
    module: str | None = None
    """Part number of a Jetson's module, as `p3767-0005`."""
    jetpack: str | None = None
    """Release of a Jetson's Linux, as `R36.4.3`."""
    driver: str | None = None
    """Version of NVIDIA's driver, from NVML."""

    @property
    def accelerator(self) -> Literal["cpu", "cuda"]:
        """What torch calls the part that computes."""
        return "cpu" if self.name == "cpu" else "cuda"

    @property
    def shares_memory(self) -> bool:
        """Whether what computes uses the host's memory: a CPU does, and a Jetson's GPU."""
        return self.name != "cuda"


def detect(root: Path = Path("/"), *, nvml: "Nvml | None" = None) -> Device:
    """The best device of this machine: a Jetson, else a CUDA GPU, else the CPU.

    `root` is where `proc`, `etc` and `var` are looked for. NVML is asked unless `nvml` is given. On
    an Orin it lists a device as well, `Orin (nvgpu)`: the device tree says more, and wins.
    """
    return _detect(root, nvml or _nvml()[0])


def _detect(root: Path, nvml: "Nvml | None") -> Device:
    jetson, module = _jetson(root)
    mode = power.current(root) if jetson else None
    cores = _cores()
    name = jetson.name if jetson else "cuda" if nvml else "cpu"
    if jetson:
        hardware = sysfs.text(root / "proc/device-tree/model") or jetson.title
    else:
        hardware = (nvml.name or "NVIDIA GPU") if nvml else _cpu(root, cores)
    return Device(
        name=name,
        hardware=hardware,
        cores=cores,
        memory_mib=_memory_mib(root),
        power_mode=mode.name if mode else None,
        module=module,
        jetpack=_jetpack(root) if jetson else None,
        driver=nvml.driver if nvml else None,
    )


def resolve(
    requested: str = "auto", root: Path = Path("/"), *, nvml: "Nvml | None" = None
) -> Device:
    """This machine's device, if it is the one requested; any machine can also serve as `cpu`.

    `jetson-orin` is each board of that family.

    Raises:
        ValueError: no device is called that.
        DeviceError: this machine is another one.
    """
    if requested not in NAMES:
        raise ValueError(f"no device {requested!r}; there are {', '.join(NAMES)}")
    nvml, reason = (nvml, "") if nvml else _nvml()
    found = _detect(root, nvml)
    if requested in ("auto", found.name) or found.name in _members(requested):
        return found
    if requested == "cpu":
        return msgspec.structs.replace(found, name="cpu", hardware=_cpu(root, found.cores))
    jetson = requested.startswith("jetson")
    where = f"the {requested} itself" if jetson else "a machine with an NVIDIA GPU"
    why = f"; {reason}" if reason and not jetson else ""
    raise DeviceError(
        f"{requested} was asked for, but this machine is {found.name} ({found.hardware}{why}); run "
        f"the command on {where}, reach it from here with --host "
        f"{'user@jetson' if jetson else 'user@machine'}, or use --device auto for this machine"
    )


def _members(name: str) -> tuple[str, ...]:
    return descriptor(name).members if name != "auto" else ()


def _jetson(root: Path) -> tuple[Descriptor | None, str | None]:
    """The kind of Jetson, and the part number of its module."""
    compatible = sysfs.text(root / "proc/device-tree/compatible")
    if "tegra" not in compatible:
        return None, None
    kinds = [kind for kind in map(descriptor, names()) if kind.chip and kind.chip in compatible]
    for kind in kinds:
        for part in re.findall(r"p\d{4}-\d{4}", compatible):  # carrier boards have numbers too
            if kind.compatible and part.startswith(kind.compatible):
                return kind, part
    # A chip that several boards have is the group's; a chip that one has is that one's.
    return next((kind for kind in kinds if kind.members or len(kinds) == 1), None), None


def _nvml() -> "tuple[Nvml | None, str]":
    """The GPU that NVML knows, or why it knows none."""
    from .nvml import connect

    try:
        return connect(), ""
    except DeviceError as error:
        return None, str(error)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu(root: Path, cores: int) -> str:
    match = re.search(
        r"^(?:model name|Model)\s*:\s*(.+)$", sysfs.text(root / "proc/cpuinfo"), re.MULTILINE
    )
    return f"{match[1].strip() if match else platform.machine()}, {cores} cores"


def _memory_mib(root: Path) -> int:
    match = re.search(r"^MemTotal:\s*(\d+) kB", sysfs.text(root / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) // 1024 if match else 0


def _jetpack(root: Path) -> str | None:
    match = re.match(
        r"# R(\d+) \(release\), REVISION: ([\d.]+)", sysfs.text(root / "etc/nv_tegra_release")
    )
    return f"R{match[1]}.{match[2]}" if match else None
