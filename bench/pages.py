"""What the pages of bench/results share: headings, tables, names, and how quiet the machine was."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

QUIET = 0.05
"""Share of the machine that others may have before a figure is called noisy."""


@dataclass
class Span:
    """How long something took, and how much of the machine other processes had meanwhile."""

    duration_s: float = 0.0
    others: float = 0.0


@contextmanager
def observed() -> Iterator[Span]:
    """Time by the monotonic clock; the others' share counts time stolen by a hypervisor."""
    span, start, (busy, own) = Span(), time.perf_counter(), _cpu_s()
    yield span
    span.duration_s = time.perf_counter() - start
    others_s = (_cpu_s()[0] - busy) - (_cpu_s()[1] - own)
    span.others = max(0.0, others_s) / (span.duration_s * (os.cpu_count() or 1))


def _cpu_s() -> tuple[float, float]:
    """Seconds of CPU of the whole machine, and of this process with the children it waited for."""
    import psutil  # only where a page is written, not where a device is measured

    machine = psutil.cpu_times()
    idle = {"idle", "iowait", "guest", "guest_nice"}  # guest is inside user already
    busy = sum(value for name, value in machine._asdict().items() if name not in idle)
    return busy, sum(os.times()[:4])


def noise(others: float) -> str:
    """What the first sentence of a page says of the others."""
    had = f"Other processes had {others:.1%} of the machine meanwhile."
    return f"**Noisy, not to be quoted.** {had}" if others > QUIET else had


def page(
    question: str,
    about: str,
    *,
    reading: Sequence[str],
    machine: str,
    versions: Mapping[str, str],
    command: str,
    sections: Mapping[str, Sequence[str]],
    missing: Sequence[str],
) -> str:
    """A page with the headings that bench/README.md asks for, in their order."""
    date = datetime.now(timezone.utc).date().isoformat()
    lines = [f"# {question}", "", f"{date}. {about}", "", "## Reading", "", *reading, ""]
    lines += ["## Machine", "", machine, "", "## Versions", ""]
    lines += [", ".join(f"{name} {found}" for name, found in sorted(versions.items())) + ".", ""]
    lines += ["## Command", "", f"    {command}", ""]
    for title, content in sections.items():
        lines += [f"## {title}", "", *content, ""]
    return "\n".join([*lines, "## Not measured", "", *(f"- {what}" for what in missing), ""])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    line = "| " + " | ".join(columns) + " |"
    return [line, "|" + " --- |" * len(columns), *("| " + " | ".join(row) + " |" for row in rows)]


def slug(hardware: str) -> str:
    """A device's name in the names of pages."""
    words = hardware.lower().replace("(r)", "").replace(" cores", "core")
    return "-".join("".join(c if c.isalnum() else " " for c in words).split())


def result_path(what: str, hardware: str) -> Path:
    """Where a page goes."""
    month = datetime.now(timezone.utc).strftime("%Y%m")
    return Path(__file__).parent / "results" / f"{what}_{slug(hardware)}_{month}.md"
