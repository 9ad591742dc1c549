"""Energy of the CPU's packages, from RAPL: `/sys/class/powercap/intel-rapl:N`, AMD's processors too.

A zone `package-N` contains its subzones (core, uncore). The zone psys, where there is one, contains
the packages, so it is not added. DRAM of servers is in no package.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from .recorder import PolledMeter, Read

POLL_S = 0.01
"""It is updated every millisecond; to look as often would use the energy that is measured."""


def candidates(
    parts: Collection[str], totals: Sequence[Sequence[str]], root: Path, nvml: object
) -> Iterator[PolledMeter]:
    """The meter `rapl`, with the reason if it cannot work; it is not probed yet."""
    zones = tuple(
        zone
        for zone in sorted(root.glob("sys/class/powercap/intel-rapl:*"))
        if _name(zone).startswith("package")
    )
    yield PolledMeter(
        name="rapl",
        scope="CPU package" if len(zones) <= 1 else f"{len(zones)} CPU packages",
        quantity="energy_mj",
        open=lambda: _open(zones),
        poll_s=POLL_S,
        period_s=POLL_S,
        resolution=0.061 * max(len(zones), 1),  # 2^-14 J, the unit of most processors
        reason=_why_not(parts, zones, root),
    )


def _why_not(parts: Collection[str], zones: tuple[Path, ...], root: Path) -> str | None:
    if "cpu" not in parts:
        return "it covers the CPU, but the device that computes is the GPU"
    if not (root / "sys/class/powercap").is_dir():
        return "no /sys/class/powercap: a virtual machine, or a kernel without intel_rapl"
    if not zones:
        return "no package in /sys/class/powercap; load the driver: sudo modprobe intel_rapl_msr"
    file = zones[0] / "energy_uj"
    try:
        file.read_bytes()
    except PermissionError:
        return (
            f"no permission: {file} is root's alone since CVE-2020-8694; run as root, or allow it "
            f"until the next boot: sudo chmod a+r {zones[0].parent}/intel-rapl:*/energy_uj"
        )
    except OSError as error:
        return f"cannot read {file}: {error.strerror}"
    return None


@contextmanager
def _open(zones: tuple[Path, ...]) -> Iterator[Read]:
    with ExitStack() as stack:
        counters = [
            _Counter(
                stack.enter_context((zone / "energy_uj").open("rb", buffering=0)),
                int((zone / "max_energy_range_uj").read_bytes()),
            )
            for zone in zones
        ]
        yield lambda: sum(counter.read_uj() for counter in counters) / 1e3


class _Counter:
    """A zone's counter without its wraps; it wraps after minutes and is read far more often."""

    def __init__(self, file: BinaryIO, range_uj: int) -> None:
        self._file = file
        self._range_uj = range_uj
        self._last_uj = 0
        self._wraps = 0

    def read_uj(self) -> int:
        self._file.seek(0)
        now_uj = int(self._file.read())
        self._wraps += now_uj < self._last_uj
        self._last_uj = now_uj
        return now_uj + self._wraps * self._range_uj


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""
