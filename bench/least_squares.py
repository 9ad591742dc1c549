"""In how much memory least squares over many images runs. See README.md.

Each measurement is a fresh process that initialises the stitching layers and reads its largest
resident memory on the way, as the kernel keeps it (VmHWM).
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import msgspec
import psutil
import torch
from pages import result_path
from torch import Tensor

from edgestitch import __version__, load_family
from edgestitch.calibrate import LEAST_SQUARES_BATCH, initialize
from edgestitch.catalog import shipped_network
from edgestitch.data import fashion_mnist, preprocess
from edgestitch.device import detect
from edgestitch.family import Family
from edgestitch.network import StitchNetwork, build_network, load_network

DEIT = "deit-ti-s-b"
FASHION = "fashion-vit"
NOISY = 0.05


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What one process had reached after so many images."""

    images: int
    peak_mib: float
    """The largest resident memory of the process so far."""
    seconds: float


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One process."""

    family: str
    batch: int
    begun_mib: float
    """Resident before the first image: Python, the libraries, the network."""
    others: float
    """Share of the machine that other processes had."""
    readings: tuple[Reading, ...]
    finished: bool
    """Whether it came to the end, the solution included."""


def two_deits() -> Family:
    """DeiT-S and -B of the shipped family: 11 stitching layers, 34 stitches."""
    family = load_family(DEIT)
    return msgspec.structs.replace(family, name="deit-s-b", anchors=family.anchors[1:])


# --- the process that is measured --------------------------------------------------------------


def _status(field: str) -> float:
    """MiB, of the kernel's account of this process."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(f"{field}:")
    )
    return int(line.split()[1]) / 1024


def _made_up(family: Family, batch: int) -> Iterator[Tensor]:
    """Normalised images that are made when they are asked for; least squares costs the same."""
    random = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(batch, *family.input_shape, generator=random)


def _real(family: Family, batch: int) -> Iterator[Tensor]:
    """The training images of Fashion-MNIST, from the first."""
    data = fashion_mnist("train")
    for start in range(0, len(data), batch):
        pixels = torch.from_numpy(data.images[start : start + batch])
        yield preprocess(pixels, mean=family.mean, std=family.std)


def worker(name: str, batch: int, stops: list[int]) -> None:
    """Prints a line of JSON after each of the stops, the whole at the end."""
    network: StitchNetwork
    if name == FASHION:
        network = load_network(shipped_network(FASHION))
        stream = _real(network.family, batch)
        first = next(stream)  # the data set is in memory before anything is measured
        stream = (images for part in ((first,), stream) for images in part)
    else:
        torch.manual_seed(0)
        network = build_network(two_deits())
        stream = _made_up(network.family, batch)
    begun_mib = _status("VmRSS")
    machine, process = psutil.cpu_times(), psutil.Process()
    own = sum(process.cpu_times()[:2])
    begun = time.monotonic()
    readings: list[Reading] = []

    def record(images: int) -> None:
        reading = Reading(
            images=images, peak_mib=_status("VmHWM"), seconds=time.monotonic() - begun
        )
        readings.append(reading)

    def tell(finished: bool) -> None:
        now = psutil.cpu_times()
        busy = sum(
            getattr(now, f) - getattr(machine, f)
            for f in now._fields
            if f not in ("idle", "iowait")
        )
        cores = (time.monotonic() - begun) * (psutil.cpu_count() or 1)
        mine = sum(process.cpu_times()[:2]) - own
        found = Measurement(
            family=network.family.name,
            batch=batch,
            begun_mib=begun_mib,
            others=max(0.0, (busy - mine) / cores),
            readings=tuple(readings),
            finished=finished,
        )
        print(msgspec.json.encode(found).decode(), flush=True)

    def counted() -> Iterator[Tensor]:
        done = 0
        for images in stream:
            # Asked for the next batch, least squares has taken in all before it.
            if done in stops:
                record(done)
                tell(finished=False)
            if done >= stops[-1]:
                return
            yield images
            done += len(images)

    # One more than the last stop, so that the stream is asked once more and can say so.
    initialize(network, counted(), stops[-1] + 1)
    readings[-1] = msgspec.structs.replace(
        readings[-1], peak_mib=_status("VmHWM"), seconds=time.monotonic() - begun
    )
    tell(finished=True)


# --- page --------------------------------------------------------------------------------------


def measure(name: str, batch: int, stops: list[int], limit_s: float) -> Measurement | None:
    """One fresh process; where the time is up, what it had reached."""
    command = [sys.executable, __file__, "--worker", name, str(batch), *map(str, stops)]
    try:
        out = subprocess.run(command, capture_output=True, check=True, timeout=limit_s).stdout
    except subprocess.TimeoutExpired as late:
        out = late.stdout or b""
    lines = [line for line in out.splitlines() if line.startswith(b"{")]
    return msgspec.json.decode(lines[-1], type=Measurement) if lines else None


def rows(found: Measurement) -> list[str]:
    return [
        f"| {found.family} | {found.batch} | {reading.images:,} | {found.begun_mib:.0f} | "
        f"{reading.peak_mib:.0f} | {reading.peak_mib - found.begun_mib:.0f} | "
        f"{1e3 * reading.seconds / reading.images:.1f} |"
        for reading in found.readings
    ]


def growth(found: Measurement) -> str:
    """The readings of one process against its first one, in words."""
    first = found.readings[0]
    parts = [
        f"{r.peak_mib - first.peak_mib:+.0f} MiB from {first.images:,} to {r.images:,} images"
        for r in found.readings[1:]
    ]
    return ", ".join(parts) or "one reading only"


def page(measured: list[Measurement], wanted: int, command: str) -> str:
    device = detect()
    deit = [m for m in measured if m.family != FASHION]
    small = sorted(
        (m for m in measured if m.family == FASHION), key=lambda m: m.readings[-1].images
    )
    reading, missing = [], []
    busy = max(m.others for m in measured)
    reading.append(
        f"Other processes had up to {100 * busy:.0f} % of the machine: the times are "
        + ("noisy, not to be quoted" if busy > NOISY else "of a quiet machine")
        + "; memory does not depend on that."
    )
    for m in deit:
        reading.append(f"DeiT-S to B in batches of {m.batch}: the peak grew by {growth(m)}.")
        last = m.readings[-1].images
        if last < wanted:
            missing.append(
                f"- DeiT-S to B over {wanted:,} images: **not run**, only {last:,} in batches of "
                f"{m.batch} were. At the {m.readings[-1].seconds / last:.2f} s an image of this run it "
                f"would take {wanted * m.readings[-1].seconds / last / 60:.0f} minutes. Whether "
                "the peak stays from there on is for the readings above to say; sums do not grow with "
                "the number of images, what the allocator keeps may."
            )
        if not m.finished:
            missing.append(
                f"- The solution itself in batches of {m.batch}: the run was ended after "
                "the last reading."
            )
    for few, many in pairwise(small):
        a, b = few.readings[-1], many.readings[-1]
        reading.append(
            f"fashion-vit: {b.images:,} images peak at {b.peak_mib:.0f} MiB, {a.images:,} at "
            f"{a.peak_mib:.0f} MiB ({b.peak_mib - a.peak_mib:+.0f} MiB)."
        )
    if not any(m.batch == LEAST_SQUARES_BATCH for m in deit):
        missing.append(
            f"- DeiT-S to B in batches of {LEAST_SQUARES_BATCH}, as `edgestitch calibrate` takes them: "
            "more features are held at a time, so the peak is higher; the command without a record "
            "measures it."
        )
    missing += [
        "- Real images of 224 x 224: none are here, and neither memory nor time depends on what an "
        "image shows. The weights of DeiT are random for the same reason.",
        "- A GPU.",
    ]
    return "\n".join(
        [
            "# In how much memory does least squares over many images run?",
            "",
            f"{datetime.now(timezone.utc).date().isoformat()}, fp32, normal equations in fp64; "
            "`deit-s-b`: DeiT-S and -B, 34 stitches in 11 layers, random weights, made-up images of "
            "3 x 224 x 224; `fashion-vit`: as shipped, the first training images of Fashion-MNIST.",
            "",
            "## Reading",
            "",
            " ".join(reading),
            "",
            "## Machine",
            "",
            f"{device.hardware}, {device.memory_mib} MiB; {torch.get_num_threads()} thread(s).",
            "",
            "## Versions",
            "",
            f"edgestitch {__version__}, torch {torch.__version__}, timm {version('timm')}, Python "
            f"{platform.python_version()}.",
            "",
            "## Command",
            "",
            f"    {command}",
            "",
            "## Memory",
            "",
            "Each block of rows with the same batch is one fresh process. *Before*: resident before "
            "the first image (Python, libraries, the network; for `fashion-vit` the data set as "
            "well). *Peak*: the largest since it started. `edgestitch calibrate` takes batches of "
            f"{LEAST_SQUARES_BATCH}: the peak is made of the features of one batch, whatever the "
            "number of batches.",
            "",
            "| family | batch | images | before, MiB | peak, MiB | peak - before, MiB | ms an image |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(line for m in measured for line in rows(m)),
            "",
            "## Not measured",
            "",
            *missing,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 400, 800])
    parser.add_argument("--batch", type=int, default=50, help="divides the numbers of images")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for a process")
    parser.add_argument("--record", type=Path, help="keeps what was measured, and goes on from it")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, batch, *stops = options.worker
        worker(name, int(batch), [int(stop) for stop in stops])
        return
    jobs = [
        (FASHION, LEAST_SQUARES_BATCH, [1_000]),
        (FASHION, LEAST_SQUARES_BATCH, [10_000]),
        (DEIT, options.batch, options.images),
    ]
    if options.batch != LEAST_SQUARES_BATCH:
        jobs.append((DEIT, LEAST_SQUARES_BATCH, [LEAST_SQUARES_BATCH, 2 * LEAST_SQUARES_BATCH]))
    kept: dict[str, Measurement] = {}
    if options.record and options.record.exists():
        kept = msgspec.json.decode(options.record.read_bytes(), type=dict[str, Measurement])
    for job in jobs:
        key = json.dumps(job)
        if key not in kept and (found := measure(*job, options.limit)) is not None:
            kept[key] = found
            print(found, flush=True)
            if options.record:
                options.record.write_bytes(msgspec.json.encode(kept))
    measured = [kept[json.dumps(job)] for job in jobs if json.dumps(job) in kept]
    numbers = " ".join(map(str, options.images))
    command = f"python bench/least_squares.py --batch {options.batch} --images {numbers}"
    text = page(measured, 10_000, command)
    out = options.out or result_path("least_squares", detect().hardware)
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
