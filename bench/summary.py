"""One table of all figures of `make bench`: those of the suites and those of the run side by side."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import has_failed, ratio, versions
from pages import QUIET, noise, page, result_path, table
from rivals import PACKAGES, TITLES, Job, ours
from side_by_side import AGAIN, EAGER, found, job_of, options, parts

COLUMNS = ("figure", "subject", "value", "ratio [95 %]", "of it to")
UNITS = {"ns": 1e9, "us": 1e6, "ms": 1e3, "s": 1.0}


# --- suites --------------------------------------------------------------------------------------


def suite_rows(suites: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row for the time of each benchmark, and one for each value that is no time."""
    for bench in suites["benchmarks"]:
        info, stats = bench["extra_info"], bench["stats"]
        if "figure" not in info:
            continue  # it was skipped when it had begun
        figure, subject = info["figure"], info["subject"]
        if info.get("timed", True):
            scale = UNITS[info["unit"]] / info.get("per", 1)
            middle, low, high = (shown(stats[name] * scale) for name in ("median", "q1", "q3"))
            spread = f", quartiles {low} to {high}" if stats["rounds"] > 1 else ", once"
            yield [figure, subject, f"{middle} {info['unit']}{spread}", "", ""]
        for name, (value, to) in info.get("values", {}).items():
            yield [name, subject, "" if to else value, value if to else "", to]


def shown(value: Any) -> str:
    """Three digits, and all before the point."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


# --- side by side --------------------------------------------------------------------------------


def latency_rows(job: Job) -> Iterator[list[str]]:
    """Each candidate's medians by topology, and their ratios to edgestitch's."""
    latency = found(job, "latency")
    if has_failed(latency):
        return
    samples = latency["samples_ms"]
    base = _base(job, samples)
    for label, own in samples.items():
        medians = ", ".join(shown(np.median(values)) for values in own.values())
        named = f" ({', '.join(own)})" if len(own) < len(latency["names"]) else ""
        to = EAGER if label == AGAIN else base
        yield [
            "latency",
            label,
            f"{medians} ms{named}",
            _ratio(own, samples[to]) if label != to else "",
            to if label != to else "",
        ]


def _ratio(own: Mapping[str, Sequence[float]], to: Mapping[str, Sequence[float]]) -> str:
    """Geometric mean over the topologies that both have."""
    both = [name for name in own if name in to]
    return str(ratio([own[name] for name in both], [to[name] for name in both]))


def _base(job: Job, measured: Mapping[str, Any]) -> str:
    """What the others are compared with: the first of edgestitch's backends that was measured.

    Where none was, the first row.
    """
    labels = [ours(backend) for backend in job.ours]
    return next((label for label in labels if label in measured), next(iter(measured)))


def switch_rows(job: Job) -> Iterator[list[str]]:
    """From the change to the first result; ratios are of that."""
    switching = found(job, "switching")
    if has_failed(switching):
        return
    samples = switching["samples"]
    base = _base(job, samples)
    for label, own in samples.items():
        first, steady = (shown(np.median(own[name])) for name in ("first_ms", "steady_ms"))
        value = f"{first} ms, steady {steady} ms"
        if "imports_ms" in own:
            value += f", imports {shown(np.median(own['imports_ms']))} ms of it"
        against = str(ratio(own["first_ms"], samples[base]["first_ms"])) if label != base else ""
        yield ["first result after a change", label, value, against, base if against else ""]
        if "imports_ms" in own:
            without = np.subtract(own["first_ms"], own["imports_ms"])
            yield [
                "the same without imports",
                label,
                f"{shown(np.median(without))} ms",
                str(ratio(without, samples[base]["first_ms"])),
                base,
            ]


def memory_rows(job: Job) -> Iterator[list[str]]:
    """Growth over libraries that have run something small; ratios are of the growth."""
    grown, weights = _grown(job), found(job, "build weights")
    if not grown or has_failed(weights):
        return
    base = _base(job, grown)
    for label, own in grown.items():
        record = found(job, f"memory {label}")
        value = f"{own:.0f} MiB, {own / weights['union_mib']:.2f} copies of the weights"
        if record["device_mib"] is None:
            value += f", {record['anonymous_mib']:.0f} MiB without clean pages of files"
            value += f"; whole process {record['process_mib']:.0f} MiB"
        figure = f"memory, {len(job.names)} topologies"
        against = "" if label == base else f"{own / grown[base]:.2f}"
        yield [figure, label, value, against, base if against else ""]


def _grown(job: Job) -> dict[str, float]:
    """MiB that each way takes, where it was measured."""
    records = {
        part.removeprefix("memory "): found(job, part)
        for part in parts(job)
        if part.startswith("memory")
    }
    return {
        label: float(record["uss_mib"] if record["device_mib"] is None else record["device_mib"])
        for label, record in records.items()
        if not has_failed(record)
    }


# --- the page ------------------------------------------------------------------------------------


def reading(job: Job, suites: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers say, noise first."""
    shares = {
        "the suites": suites.get("others"),
        "latencies": found(job, "latency").get("others"),
        "switches": found(job, "switching").get("others"),
    }
    known = {what: share for what, share in shares.items() if share is not None and share == share}
    if known:
        worst = max(known, key=known.__getitem__)
        yield noise(known[worst])
        yield f"That is their share during {worst}, the largest."
    if len(known) < len(shares):
        unknown = ", ".join(what for what in shares if what not in known)
        yield f"What others had of the machine during {unknown} is not known."
    latency, switching = found(job, "latency"), found(job, "switching")
    if not has_failed(latency) and AGAIN in latency["samples_ms"]:
        samples = latency["samples_ms"]
        yield f"Eager against itself gives {_ratio(samples[AGAIN], samples[EAGER])}."
    if not has_failed(switching):
        samples = switching["samples"]
        base = _base(job, samples)
        again = f"{base}, again"
        if again in samples:
            against = ratio(samples[again]["first_ms"], samples[base]["first_ms"])
            yield f"Switching against itself gives {against}."
    yield "A difference smaller than these is none."
    yield from _findings(job)


def _findings(job: Job) -> Iterator[str]:
    """What the rivals cost beside edgestitch's first backend."""
    latency, switching = found(job, "latency"), found(job, "switching")
    if not has_failed(latency):
        samples = latency["samples_ms"]
        base = _base(job, samples)
        rivals = [label for label in samples if label not in (base, AGAIN)]
        each = ", ".join(f"{label} {_ratio(samples[label], samples[base])}" for label in rivals)
        yield f"Latency over that of {base}: {each}."
    if not has_failed(switching):
        samples = switching["samples"]
        base = _base(job, samples)
        first = {label: float(np.median(own["first_ms"])) for label, own in samples.items()}
        said = [f"The first result after a change takes {shown(first[base])} ms with {base}"]
        for way in ("reload", "restart"):
            times = [value / first[base] for label, value in first.items() if label.startswith(way)]
            if times:
                said.append(f"{shown(min(times))} to {shown(max(times))} times that by a {way}")
        yield f"{', '.join(said)}."
    grown = _grown(job)
    engines = f"{TITLES[job.engine]}, an engine each"
    if engines in grown and (base := _base(job, grown)):
        yield f"Memory of {engines} is {grown[engines] / grown[base]:.2f} times that of {base}."


def missing(job: Job, suites: Mapping[str, Any]) -> list[str]:
    lines = list(suites.get("failed", []))
    for part in parts(job):
        record = found(job, part)
        if has_failed(record):
            lines.append(f"{part}: {record['failed']}")
        elif "failed" in record:
            lines += [f"{part}, {label}: {why}" for label, why in record["failed"].items()]
    lines.append(
        "Memory of `torch.compile`: its compiler runs in the process that it compiles for."
    )
    lines.append("Energy: the suites time alone; `edgestitch profile` measures it where it can be.")
    return lines


def whole_page(job: Job, suites: Mapping[str, Any], command: str) -> str:
    from edgestitch.device import resolve

    device = resolve(job.device)
    rows = [
        *suite_rows(suites),
        *latency_rows(job),
        *switch_rows(job),
        *memory_rows(job),
    ]
    return page(
        "What does edgestitch cost, beside what one would use instead?",
        f"Batch 1, {job.precision}. Side by side: {', '.join(job.names)} of `{job.family}`"
        f"{'' if job.family.startswith('fashion') else ', random weights'}; latencies are in this "
        "order. Definitions: bench/README.md.",
        reading=list(reading(job, suites)),
        machine=f"{device.hardware}, {device.memory_mib} MiB; "
        f"{job.threads} threads for every candidate.",
        versions=versions(PACKAGES),
        command=command,
        sections={"Figures": table(COLUMNS, rows)},
        missing=missing(job, suites),
    )


def noisy(job: Job, suites: Mapping[str, Any]) -> bool:
    shares = [suites, found(job, "latency"), found(job, "switching")]
    return any((share.get("others") or 0.0) > QUIET for share in shares)


def main() -> None:
    about = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(description=about, parents=[options()])
    parser.add_argument("--suites", type=Path, help="What pytest-benchmark wrote.")
    parser.add_argument("--command", default="make bench", help="What the page says.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    from edgestitch.device import resolve

    job = job_of(given)
    suites: dict[str, Any] = {"benchmarks": [], "failed": ["the suites: they were not run"]}
    if given.suites and given.suites.is_file():
        suites = json.loads(given.suites.read_text())
    text = whole_page(job, suites, given.command)
    out = given.out or result_path("bench", resolve(job.device).hardware)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    print(text)
    if noisy(job, suites):
        print("noisy: not to be quoted")


if __name__ == "__main__":
    main()
