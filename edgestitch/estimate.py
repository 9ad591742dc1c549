"""What topologies may cost on a device that is not at hand: a range for each, from its peaks alone.

    estimate(family, complexity, peaks("jetson-orin-nano"), precision="fp16")

The low end is the roofline (Williams et al. 2009) of a whole topology: every multiply-add at the
peak, what no cache can hold at the memory's full bandwidth; or, of a small one, the shortest that
its operators can take one after the other. Direct computation can be no faster; a 3x3 convolution
by Winograd's method can, since it multiplies less. The high end runs one operator after the other,
far from the peaks, each launched by itself. Between the two lies a factor of ten and more: enough
to order topologies and to rule a device out, not to plan with.
"""

import math
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial

from . import __version__
from .artifact import Value
from .complexity import AtomComplexity, Complexity
from .device import Descriptor, Variant, descriptor, resolve
from .errors import ArtifactError, DeviceError
from .family import Family
from .nvml import Nvml, connect
from .profile import Conditions, Cost, Profile, Protocol

BACKEND = "estimate"
"""In the place of a backend's name, so that no estimate passes for a measured profile."""
WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Bytes of a number."""

CALL_MS = (0.005, 0.1)
"""What a call takes in any case: one launch at least; at most copies of images and logits, and the
host's code around them."""

# The high end. Each is a choice, on the far side of what is commonly reached.
GPU_SHARE = 0.1
"""Of the peak. One image is little: the 197 tokens of a ViT are two tiles of a matrix product, so
that most multiprocessors of a large GPU have nothing to do."""
CPU_SHARE = 0.25
"""Of a large matrix product, probed. Products in networks are smaller, and depthwise convolutions
none at all."""
BANDWIDTH_SHARE = 0.4
"""Of the peak. Reads of a few hundred KiB end before the memory is at full speed."""
CPU_LAUNCH_US = 20.0
"""What PyTorch takes at most to reach a kernel on a CPU; compiled networks take much less."""

# The low end.
FUSED_SHARE = 0.25
"""Of the operators, that are left when a compiler has fused what it can. In a ViT's block 14 become
five or six, and a ResNet's 7 two."""
KERNEL_US = 1.0
"""No kernel that waits for another one's result takes less, not even in a CUDA graph."""
SGEMM_SHARE = 0.7
"""A large matrix product on all cores reaches at least that part of a CPU's peak."""
BOARD_CACHE_MB = 40.0
"""Weights that need not be read again for the next image. On the safe side: the second-level cache
of an Orin has 4 MiB."""

# FP32 lanes of a multiprocessor, and FP16 multiply-adds of its tensor cores in a clock, by compute
# capability: CUDA's programming guide and the architectures' white papers.
_SM = {
    (7, 0): (64, 512),
    (7, 2): (64, 512),
    (7, 5): (64, 512),
    (8, 0): (64, 1024),
    (8, 6): (128, 512),
    (8, 7): (128, 1024),
    (8, 9): (128, 512),
    (9, 0): (128, 2048),
    (10, 0): (128, 4096),
    (10, 3): (128, 4096),
    (11, 0): (128, 4096),
    (12, 0): (128, 512),
    (12, 1): (128, 512),
}
_CLOCK_SM, _CLOCK_MEMORY = 1, 2  # nvmlClockType_t


class Peaks(Value, frozen=True, kw_only=True):
    """The most that a device can do."""

    device: str
    hardware: str
    module: str | None = None
    clock_mhz: float | None = None
    """Of the GPU, for which the peaks hold."""
    threads: int = 1
    """Of the host that computes or launches."""
    tflops: dict[str, tuple[float, float]]
    """By precision: of the ordinary way to compute, and of the fastest, which is TF32 for FP32."""
    share: float
    """Of the first of the two, that is reached at least."""
    bandwidth_gbs: float
    cache_mb: float | None
    """Weights up to that size may stay on the chip from one image to the next; `None`: any."""
    launch_us: float
    """What the host takes to launch one operator, at most."""
    notes: tuple[str, ...] = ()
    """Where the numbers come from."""


# --- from peaks to costs -----------------------------------------------------------------------


def estimate(
    family: Family, complexity: Complexity, peaks: Peaks, *, precision: str, batch: int = 1
) -> Profile:
    """A profile of every topology whose costs are `estimated`, each with its range.

    `latency_ms` is the geometric middle of the two ends.

    Raises:
        ValueError: the device has no such precision, or nothing says how fast it is.
        MismatchError: the complexity is another family's.
        ArtifactError: the complexity lacks activations and kernels.
    """
    complexity.check(family)
    if precision not in peaks.tflops:
        raise ValueError(
            f"nothing is known of {peaks.hardware} in {precision}, only in "
            f"{', '.join(peaks.tflops)}; estimate in one of these, or measure on the device"
        )
    if batch < 1:
        raise ValueError(f"a batch has one image at least, not {batch}")
    _require_counts(complexity)
    costs = []
    for topology in family.topologies:
        atoms = [complexity.atoms[name] for name in family.atoms(topology)]
        low_ms = _low_ms(atoms, peaks, precision, batch)
        costs.append(_cost(topology.name, low_ms, _high_ms(atoms, peaks, precision, batch)))
    return Profile(
        family=family.name,
        network=None,
        conditions=_conditions(peaks, precision, batch),
        protocol=_NO_PROTOCOL,
        segments=(),
        meter="none",
        energy_reason="an estimate has no energy: that takes a meter on the device",
        date=datetime.now(timezone.utc).date().isoformat(),
        samples_digest="",
        costs=tuple(costs),
        notes=(*peaks.notes, *_notes(peaks, precision)),
    )


def _require_counts(complexity: Complexity) -> None:
    if any(None in (atom.activations, atom.kernels) for atom in complexity.atoms.values()):
        raise ArtifactError(
            f"the complexity of {complexity.family} has multiply-adds and parameters only, an "
            "estimate needs activations and kernels: count again, `edgestitch show "
            f"{complexity.family} --count --out FILE`"
        )


def _low_ms(atoms: list[AtomComplexity], peaks: Peaks, precision: str, batch: int) -> float:
    """The roofline of these atoms together: arithmetic, memory and waiting overlap fully."""
    _, most = peaks.tflops[precision]
    compute_ms = 2 * sum(atom.macs for atom in atoms) * batch / most / 1e9
    weights = sum(atom.params for atom in atoms) * WIDTHS[precision]
    kept = weights if peaks.cache_mb is None else peaks.cache_mb * 1e6
    memory_ms = max(0.0, weights - kept) / peaks.bandwidth_gbs / 1e6
    waiting_ms = sum(atom.kernels or 0 for atom in atoms) * FUSED_SHARE * KERNEL_US / 1e3
    return CALL_MS[0] + max(compute_ms, memory_ms, waiting_ms)


def _high_ms(atoms: list[AtomComplexity], peaks: Peaks, precision: str, batch: int) -> float:
    """Weights come from memory once, activations go there and back, operators wait for the host."""
    usual, _ = peaks.tflops[precision]
    total_ms = CALL_MS[1]
    for atom in atoms:
        compute_ms = 2 * atom.macs * batch / (usual * peaks.share) / 1e9
        moved = (atom.params + 2 * (atom.activations or 0) * batch) * WIDTHS[precision]
        memory_ms = moved / (peaks.bandwidth_gbs * BANDWIDTH_SHARE) / 1e6
        launch_ms = (atom.kernels or 0) * peaks.launch_us / 1e3
        total_ms += max(compute_ms, memory_ms) + launch_ms
    return total_ms


def _cost(topology: str, low_ms: float, high_ms: float) -> Cost:
    return Cost(
        topology=topology,
        latency_ms=math.sqrt(low_ms * high_ms),
        latency_low_ms=low_ms,
        latency_high_ms=high_ms,
        p99_ms=None,
        p99_high_ms=None,
        max_ms=None,
        energy_mj=None,
        samples=0,
        origin="estimated",
    )


def _conditions(peaks: Peaks, precision: str, batch: int) -> Conditions:
    clock = peaks.clock_mhz
    return Conditions(
        device=peaks.device,
        hardware=peaks.hardware,
        power_mode=None if clock is None else f"GPU at {clock:g} MHz",
        backend=BACKEND,
        precision=precision,
        batch=batch,
        threads=peaks.threads,
        versions={"edgestitch": __version__},
        module=peaks.module,
    )


# Nothing was asked for and nothing was taken.
_NO_PROTOCOL = Protocol(
    precision=0.0,
    min_samples=0,
    time_cap_s=0.0,
    seed=0,
    duration_s=0.0,
    steady=False,
    capped=False,
)


def _notes(peaks: Peaks, precision: str) -> tuple[str, ...]:
    usual, most = peaks.tflops[precision]
    return (
        f"Estimated before anything was measured, from peaks of {usual:.4g} TFLOPS in {precision} "
        f"and {peaks.bandwidth_gbs:.4g} GB/s: a measured profile takes its place.",
        f"Low end: the roofline, multiply-adds at {most:.4g} TFLOPS; at least {KERNEL_US:g} us for "
        f"each of {FUSED_SHARE:.0%} of the operators, which is what fusing leaves. High end: "
        f"{peaks.share:.0%} of the peak, {BANDWIDTH_SHARE:.0%} of the bandwidth, every operator's "
        f"result written and read, {peaks.launch_us:g} us for each operator and {CALL_MS[1]:g} ms "
        "for the call.",
    )


# --- peaks of a device -------------------------------------------------------------------------


def peaks(
    device: str, *, module: str | None = None, super_clocks: bool = False, nvml: Nvml | None = None
) -> Peaks:
    """The peaks of a device, by its descriptor's name.

    A board's are those of the module with that part number, or of the one with most memory, at its
    highest clock; with `super_clocks` in the Super modes of JetPack 6.2. `cuda` and `cpu` are what
    this machine has: NVML is asked, the CPU is probed for half a second at most.

    Raises:
        ValueError: no such device or module; a group of boards; no Super modes.
        DeviceError: `cuda`, and this machine's GPU does not say enough.
    """
    kind = descriptor(device)
    if kind.members:
        raise ValueError(
            f"{device} is {', '.join(kind.members)}, which differ by a factor of eight: name one"
        )
    if kind.variants:
        return _board(kind, _variant(kind, module), super_clocks)
    if module is not None or super_clocks:
        raise ValueError(f"{device} has no modules and no Super modes; those are of Jetson boards")
    return probe_cpu() if device == "cpu" else peaks_of(nvml or connect())


def _variant(kind: Descriptor, module: str | None) -> Variant:
    if module is None:
        return max(kind.variants, key=lambda variant: variant.memory_gb)
    found = kind.variant(module)
    if found is None:
        known = ", ".join(f"{v.title} ({', '.join(v.modules)})" for v in kind.variants)
        raise ValueError(
            f"nothing is known of a {kind.name} with module {module!r}, but of {known}"
        )
    return found


def _board(kind: Descriptor, variant: Variant, super_clocks: bool) -> Peaks:
    if super_clocks and variant.super is None:
        raise ValueError(f"{variant.title} has no Super modes")
    at = variant.super if super_clocks and variant.super else variant
    return Peaks(
        device=kind.name,
        hardware=f"NVIDIA Jetson {variant.title}",
        module=variant.module,
        clock_mhz=at.clock_mhz,
        tflops=_tflops(at.fp32_tflops, at.fp16_tflops, _capability(kind)),
        share=GPU_SHARE,
        bandwidth_gbs=at.bandwidth_gbs,
        cache_mb=BOARD_CACHE_MB,
        launch_us=_launch_us(kind),
        notes=_board_notes(kind, variant, super_clocks),
    )


def _board_notes(kind: Descriptor, variant: Variant, super_clocks: bool) -> tuple[str, ...]:
    notes = []
    others = [other.title for other in kind.variants if other != variant]
    if others:
        notes.append(f"For {variant.title}; {kind.name} can also be {', '.join(others)}.")
    if variant.super is not None:
        plain, high = (f"{at.clock_mhz:g} MHz" for at in (variant, variant.super))
        notes.append(
            f"For the Super modes, at {high}; without them the GPU has {plain}."
            if super_clocks
            else f"For a GPU at {plain}; in the Super modes it has {high} and is faster than this."
        )
    return tuple(notes)


def peaks_of(nvml: Nvml) -> Peaks:
    """The peaks of the GPU that NVML names, at its largest clocks.

    Cores and clocks are NVML's; what a core of that compute capability does in a clock is NVIDIA's
    documentation. The memory moves two words in a clock.

    Raises:
        DeviceError: NVML does not tell, the GPU is cut into MIG slices, or newer than this table.
    """
    if nvml.mig():
        raise DeviceError(
            f"{nvml.name} is cut into MIG slices, whose peaks NVML does not tell; measure it: "
            "`edgestitch profile FAMILY --device cuda`"
        )
    capability = nvml.query("nvmlDeviceGetCudaComputeCapability")
    facts = {
        "cores": nvml.query("nvmlDeviceGetNumGpuCores"),
        "clock": nvml.query("nvmlDeviceGetMaxClockInfo", _CLOCK_SM),
        "clock of the memory": nvml.query("nvmlDeviceGetMaxClockInfo", _CLOCK_MEMORY),
        "width of the memory's bus": nvml.query("nvmlDeviceGetMemoryBusWidth"),
        "compute capability": capability and _SM.get(tuple(capability)),
    }
    missing = [fact for fact, value in facts.items() if not value]
    if missing:
        raise DeviceError(
            f"{nvml.name} (compute capability {capability}) cannot be estimated, unknown is its "
            f"{', '.join(missing)}; measure it: `edgestitch profile FAMILY --device cuda`"
        )
    cores, clock_mhz, memory_mhz, bus_bits, (lanes, tensor_fma) = facts.values()
    fp32_tflops = cores * 2 * clock_mhz / 1e6
    return Peaks(
        device="cuda",
        hardware=nvml.name or "NVIDIA GPU",
        clock_mhz=clock_mhz,
        tflops=_tflops(fp32_tflops, fp32_tflops / lanes * tensor_fma, tuple(capability)),
        share=GPU_SHARE,
        bandwidth_gbs=2 * memory_mhz * bus_bits / 8 / 1e3,
        cache_mb=None,
        launch_us=_launch_us(descriptor("cuda")),
        notes=("Peaks from NVML's cores, largest clocks and memory bus.",),
    )


def _tflops(
    fp32: float, fp16: float, capability: tuple[int, ...]
) -> dict[str, tuple[float, float]]:
    """By precision; since Ampere there are BF16 and, by default in TensorRT, TF32 for FP32."""
    if capability < (8, 0):
        return {"fp32": (fp32, fp32), "fp16": (fp16, fp16)}
    return {"fp32": (fp32, max(fp32, fp16 / 2)), "fp16": (fp16, fp16), "bf16": (fp16, fp16)}


def _launch_us(kind: Descriptor) -> float:
    """The upper end: the host may be slow, and PyTorch's way to a kernel is longer than CUDA's."""
    if kind.launch_us is None:
        raise DeviceError(f"nothing says how long a launch takes on a {kind.name}; measure it")
    return kind.launch_us[1]


def _capability(kind: Descriptor) -> tuple[int, ...]:
    return tuple(map(int, (kind.compute_capability or "0.0").split(".")))


# --- the CPU of this machine -------------------------------------------------------------------


def probe_cpu() -> Peaks:
    """What NumPy reaches on this machine's CPU, with the threads that its environment allows."""
    gflops, bandwidth_gbs = _sgemm_gflops(), _copy_gbs()
    device = resolve("cpu")
    return Peaks(
        device="cpu",
        hardware=device.hardware,
        threads=device.cores,
        tflops={"fp32": (gflops / 1e3, gflops / 1e3 / SGEMM_SHARE)},
        share=CPU_SHARE,
        bandwidth_gbs=bandwidth_gbs,
        cache_mb=None,
        launch_us=CPU_LAUNCH_US,
        notes=(
            f"Probed on this machine with NumPy, best of several: {gflops:.3g} GFLOPS in a large "
            f"matrix product, {bandwidth_gbs:.3g} GB/s in a copy. A busy machine reaches less.",
        ),
    )


def _sgemm_gflops() -> float:
    """Of a product of a millisecond on all cores, or of a small one on a single core.

    Where others compute, the threads of one product wait for each other for a scheduler's slice, and
    do so for a while: hence several short windows, and the single core, which waits for nobody.
    """
    import numpy as np

    found = []
    for size in (64, 512, 512, 512, 512):
        left = np.ones((size, size), np.float32)
        call = partial(np.matmul, left, left, out=np.empty_like(left))
        found.append(2 * size**3 / _best_s(call, 0.04) / 1e9)
        time.sleep(0.02)
    return max(found)


def _copy_gbs() -> float:
    import numpy as np

    source = np.ones(2**24, np.float32)
    target = np.zeros_like(source)
    return 2 * source.nbytes / _best_s(lambda: np.copyto(target, source), 0.08) / 1e9


def _best_s(call: Callable[[], object], budget_s: float) -> float:
    """The shortest of several calls: others on the machine only ever make one longer."""
    call()
    best, end = math.inf, time.perf_counter() + budget_s
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return best
