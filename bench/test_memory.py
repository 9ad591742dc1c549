"""What all resident topologies keep, in a fresh process; the time is that of the process."""

from pathlib import Path
from typing import Any

import msgspec
import side_by_side
from measuring import has_failed, in_own_process
from rivals import Job, ours
from side_by_side import found


def test_what_resident_topologies_keep(
    benchmark: Any, described: Any, folder: Path, job: Job, subject: str, backend: str
) -> None:
    told = ["--job", msgspec.json.encode(job).decode(), "--part", f"memory {ours(backend)}"]
    script = str(side_by_side.__file__)
    grown = benchmark.pedantic(in_own_process, (script, told), rounds=1)
    assert not has_failed(grown), grown["failed"]
    union = found(job, "build weights")["union_mib"]
    apart = found(job, "build weights")["apart_mib"]
    kept = grown["uss_mib"] if grown["device_mib"] is None else grown["device_mib"]
    described(
        "memory",
        f"{subject}, {len(job.names)} topologies",
        "s",
        timed=False,
        values={
            "memory that topologies keep (growth, USS)": (f"{kept:.1f} MiB", ""),
            "the same over one copy of the weights": (f"{kept / union:.2f}", "their union"),
            "a copy of the weights each, over one": (f"{apart / union:.2f}", "their union"),
            "memory of the whole process (PSS)": (f"{grown['process_mib']:.0f} MiB", ""),
        },
    )
