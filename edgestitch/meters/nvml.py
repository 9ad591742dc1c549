"""Energy and power of an NVIDIA GPU, from NVML.

The counter is preferred: nothing is lost between two readings of it. Sources of what the sensors
do: NVIDIA's nvml.h; Yang, Adamek, Armour, Part-time Power Measurements, SC24 (arXiv 2312.02741).
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from edgestitch.errors import DeviceError
from edgestitch.nvml import POWER_INSTANT, SCOPE_GPU, SCOPE_MODULE, Nvml, connect

from .recorder import PolledMeter, Read

_ENERGY = "nvmlDeviceGetTotalEnergyConsumption"
_USAGE = "nvmlDeviceGetPowerUsage"
_SCOPES = {SCOPE_GPU: "GPU", SCOPE_MODULE: "GPU module (CPU + GPU)"}


def candidates(
    parts: Collection[str], totals: Sequence[Sequence[str]], root: Path, nvml: Nvml | None
) -> Iterator[PolledMeter]:
    """`nvml-energy` and `nvml-power`, with the reason if they cannot work; they are not probed yet."""
    found: Nvml | str
    if "cuda" not in parts:
        found = "it covers the GPU, but the device that computes is the CPU"
    else:
        found = nvml or _connected()
    if isinstance(found, Nvml) and found.mig():
        found = "a slice of a GPU (MIG) has no power or energy of its own"
    yield _energy_meter(found)
    yield _power_meter(found)


def _connected() -> Nvml | str:
    try:
        return connect()
    except DeviceError as error:
        return str(error)


def _energy_meter(nvml: Nvml | str) -> PolledMeter:
    def read() -> float:
        assert isinstance(nvml, Nvml)
        return float(nvml.call(_ENERGY, nvml.handle))

    return PolledMeter(
        name="nvml-energy",
        scope="GPU",
        quantity="energy_mj",
        open=lambda: nullcontext(read),
        poll_s=0.002,  # to see its period, which was 10 to 100 ms on the GPUs people looked at
        period_s=0.1,
        resolution=1.0,
        reason=nvml if isinstance(nvml, str) else None,
    )


def _power_meter(nvml: Nvml | str) -> PolledMeter:
    scope, read, lag_s, reason = "GPU", _nothing, 0.0, None
    notes: dict[str, str] = {}
    if isinstance(nvml, str):
        reason = nvml
    else:
        try:
            scope, read, lag_s, notes = _power_source(nvml)
        except DeviceError as error:
            reason = str(error)
    return PolledMeter(
        name="nvml-power",
        scope=scope,
        quantity="power_w",
        open=lambda: nullcontext(read),
        poll_s=0.02,
        period_s=0.1,  # newer drivers update it so; a reading in between says nothing new
        lag_s=lag_s,
        resolution=1e-3,
        notes=notes,
        reason=reason,
    )


def _power_source(nvml: Nvml) -> tuple[str, Read, float, dict[str, str]]:
    """Scope, reader, lag and notes of the best that answers.

    Superchips of CPU and GPU, as GH200, refuse the scope of the GPU. Drivers before 530 have no
    field; since Ampere (but for GA100) the older call is an average, which blurs a short window.
    """
    for scope, words in _SCOPES.items():
        if nvml.field(POWER_INSTANT, scope) is not None:
            return (
                words,
                lambda scope=scope: nvml.read_field(POWER_INSTANT, scope) / 1e3,
                0.0,
                {"field": f"instant power, scope {scope}"},
            )
    if nvml.query(_USAGE) is None:
        tried = (f"field {POWER_INSTANT} {scope}" for scope in _SCOPES)
        raise DeviceError("; ".join(nvml.reasons[key] for key in (*tried, _USAGE)))
    return (
        "GPU, 1 s average",
        lambda: float(nvml.call(_USAGE, nvml.handle)) / 1e3,
        1.0,
        {"field": "power usage: an average over 1 s on Ampere and later, but for GA100"},
    )


def _nothing() -> float:
    raise DeviceError("this meter does not work")
