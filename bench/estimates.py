"""How far estimates are from measured profiles: their middle, their range, and their order.

Each profile is set beside an estimate of the same device, precision and batch. A profile of a CPU
must be of this machine, whose peaks are probed here.
"""

import argparse
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median

import pages
from scipy.stats import kendalltau

from edgestitch import __version__, load_family
from edgestitch.artifact import Value, load
from edgestitch.catalog import shipped_complexity
from edgestitch.device import detect
from edgestitch.estimate import Peaks, estimate, peaks
from edgestitch.profile import Profile, require_equal

SEEN = ("fashion-vit", "deit-ti-s-b", "resnet18-50", "efficientnet-lite0-1-2")
"""Families whose measured profiles were at hand when the constants for CPUs were settled."""


class Compared(Value, frozen=True, kw_only=True):
    """A measured profile beside its estimate, over the topologies that were measured."""

    profile: Profile
    measured_ms: tuple[float, ...]
    low_ms: tuple[float, ...]
    middle_ms: tuple[float, ...]
    high_ms: tuple[float, ...]
    gmacs: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Measured over the middle of the estimate."""
        return [m / e for m, e in zip(self.measured_ms, self.middle_ms, strict=True)]

    @property
    def within(self) -> int:
        """Topologies whose measured median lies between the ends."""
        ends = zip(self.low_ms, self.measured_ms, self.high_ms, strict=True)
        return sum(low <= measured <= high for low, measured, high in ends)

    @property
    def tau(self) -> float:
        """Kendall's, of the estimate's order and the measured one."""
        return float(kendalltau(self.measured_ms, self.middle_ms).statistic)

    @property
    def tau_macs(self) -> float:
        """The same of the order by multiply-adds."""
        return float(kendalltau(self.measured_ms, self.gmacs).statistic)

    @property
    def half_width(self) -> float:
        """Of the measured medians' intervals, relative; the median over the topologies."""
        costs = [cost for cost in self.profile.costs if cost.origin == "measured"]
        return median((c.latency_high_ms - c.latency_low_ms) / 2 / c.latency_ms for c in costs)

    @property
    def name(self) -> str:
        found = self.profile.conditions
        return f"`{self.profile.family}`, {found.backend} {found.precision}, batch {found.batch}"


def compare(profile: Profile, device: Peaks) -> Compared:
    """A profile beside the estimate for a device with these peaks."""
    family = load_family(profile.family)
    complexity = shipped_complexity(family)
    if complexity is None:
        raise SystemExit(f"no complexity ships for {family.name}")
    found = profile.conditions
    expected = estimate(
        family, complexity, device, precision=found.precision, batch=found.batch
    ).by_topology
    costs = [cost for cost in profile.costs if cost.origin == "measured"]
    return Compared(
        profile=profile,
        measured_ms=tuple(cost.latency_ms for cost in costs),
        low_ms=tuple(expected[cost.topology].latency_low_ms for cost in costs),
        middle_ms=tuple(expected[cost.topology].latency_ms for cost in costs),
        high_ms=tuple(expected[cost.topology].latency_high_ms for cost in costs),
        gmacs=tuple(complexity.gmacs(family, cost.topology) for cost in costs),
    )


def peaks_for(profile: Profile) -> Peaks:
    """The peaks of the device that a profile was measured on."""
    found = profile.conditions
    if not found.device.startswith("jetson"):
        device = peaks(found.device)
        require_equal("profile and this machine", hardware=(found.hardware, device.hardware))
        return device
    in_super = "SUPER" in (found.power_mode or "")
    return peaks(found.device, module=found.module, super_clocks=in_super)


# --- page --------------------------------------------------------------------------------------


def page(
    compared: list[Compared], devices: list[Peaks], files: list[str], others: tuple[float, ...]
) -> str:
    first = compared[0].profile.conditions
    versions = {k: v for c in compared for k, v in c.profile.conditions.versions.items()}
    versions |= {name: version(name) for name in ("numpy", "scipy")}
    versions["edgestitch"] = __version__
    probed = dict.fromkeys(note for device in devices for note in device.notes)
    return "\n".join(
        [
            "# How far are estimates from what was measured?",
            "",
            f"{datetime.now(timezone.utc).date().isoformat()}. Medians of measured profiles beside "
            "estimates from the device's peaks, the shipped multiply-adds, activations and operators.",
            "",
            "## Reading",
            "",
            *reading(compared, others),
            "",
            "## Machine",
            "",
            f"{first.hardware}, {detect().memory_mib} MiB; {first.threads} thread(s). Others use it as "
            "well.",
            *probed,
            "",
            "## Versions",
            "",
            ", ".join(f"{name} {found}" for name, found in sorted(versions.items())) + ".",
            "",
            "## Command",
            "",
            f"    python bench/estimates.py {' '.join(files)}",
            "",
            "## Measured and estimated",
            "",
            "Ratio: the measured median over the middle of the estimate. In range: topologies whose "
            "measured median lies between the ends. Tau: Kendall's, of the order of the topologies by "
            "the estimate, and by multiply-adds alone.",
            "",
            *table(compared),
            "",
            "How each profile was measured; weights are random where none ship:",
            "",
            *(f"- {c.name}: {protocol(c)}" for c in compared),
            "",
            "## Not measured",
            "",
            *missing(compared),
            "",
        ]
    )


def reading(compared: list[Compared], others: tuple[float, ...]) -> list[str]:
    total = sum(len(c.measured_ms) for c in compared)
    within = sum(c.within for c in compared)
    ratios = [ratio for c in compared for ratio in c.ratios]
    wide = [h / low for c in compared for low, h in zip(c.low_ms, c.high_ms, strict=True)]
    better = [c for c in compared if c.tau > c.tau_macs]
    return [
        noise(others),
        f"{within} of {total} measured medians lie in the range of their estimate, whose ends are a "
        f"factor of {min(wide):.0f} to {max(wide):.0f} apart.",
        f"Measured over the middle: median {median(ratios):.2f}, from {min(ratios):.2f} to "
        f"{max(ratios):.2f}.",
        f"The order of topologies agrees by a tau of {min(c.tau for c in compared):.2f} to "
        f"{max(c.tau for c in compared):.2f}; that by multiply-adds alone by "
        f"{min(c.tau_macs for c in compared):.2f} to {max(c.tau_macs for c in compared):.2f}, and is "
        f"worse in {len(better)} of {len(compared)} profiles.",
    ]


def noise(others: tuple[float, ...]) -> str:
    if not others:
        return "How much of the machine others had while profiles were measured is not known."
    had = f"Others had {min(others):.0%} to {max(others):.0%} of the machine while they were measured."
    return f"**Noisy, not to be quoted.** {had}" if max(others) > pages.QUIET else had


def table(compared: list[Compared]) -> list[str]:
    columns = (
        "profile",
        "topologies",
        "measured, ms",
        "low ends, ms",
        "high ends, ms",
        "ratio, median",
        "ratio, from to",
        "in range",
        "tau",
        "tau of multiply-adds",
    )
    rows = [
        [
            c.name,
            str(len(c.measured_ms)),
            span(c.measured_ms),
            span(c.low_ms),
            span(c.high_ms),
            f"**{median(c.ratios):.2f}**",
            f"{min(c.ratios):.2f} to {max(c.ratios):.2f}",
            f"**{c.within}**",
            f"**{c.tau:.2f}**",
            f"{c.tau_macs:.2f}",
        ]
        for c in compared
    ]
    return pages.table(columns, rows)


def span(values: tuple[float, ...]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


def protocol(compared: Compared) -> str:
    found = compared.profile.protocol
    samples = [cost.samples for cost in compared.profile.costs]
    return (
        f"{min(samples)} to {max(samples)} samples of each topology in {found.duration_s:.0f} s, "
        f"{'steady' if found.steady else 'not steady'}"
        f"{', ended by the time cap' if found.capped else ''}; the medians' intervals are "
        f"+-{compared.half_width:.1%}."
    )


def missing(compared: list[Compared]) -> list[str]:
    devices = {c.profile.conditions.device for c in compared}
    lines = [
        f"- {what}: no measured profile was given."
        for what, prefix in {"A Jetson": "jetson", "A GPU": "cuda"}.items()
        if not any(device.startswith(prefix) for device in devices)
    ]
    seen = [c.name.split(",")[0] for c in compared if c.profile.family in SEEN]
    if seen and "cpu" in devices:
        lines.append(
            f"- Another CPU. What the ends assume of a CPU was settled with profiles of "
            f"{', '.join(dict.fromkeys(seen))} on one like this at hand; the other families came "
            "after."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profiles", nargs="+", type=Path, help="written by `edgestitch profile`")
    parser.add_argument(
        "--others",
        type=float,
        nargs="+",
        default=[],
        help="share of the machine that other processes had while each profile was measured, 0 to 1",
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    profiles = [load(Profile, path) for path in options.profiles]
    devices: dict[tuple[object, ...], Peaks] = {}  # a CPU is probed once for all of its profiles
    compared = []
    for profile in profiles:
        found = profile.conditions
        key = (found.device, found.module, found.power_mode)
        if key not in devices:
            devices[key] = peaks_for(profile)
        compared.append(compare(profile, devices[key]))
    given = [path.name for path in options.profiles]
    if options.others:
        given += ["--others", *map(str, options.others)]
    text = page(compared, list(devices.values()), given, tuple(options.others))
    out = options.out or pages.result_path("estimates", profiles[0].conditions.hardware)
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
