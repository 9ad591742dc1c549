"""From the start of a process to what it is there for; files are in memory already."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROUNDS = 5
FIRST_RESULT = """
import os, sys
import numpy as np
from edgestitch import Runtime
runtime = Runtime(sys.argv[1], wait=sys.argv[2] == "all", rebuild=False)
runtime(np.zeros(runtime.input_shape, np.float32))
os._exit(0)
"""
SCRIPTS = {
    "import edgestitch": "import edgestitch",
    "import numpy, torch": "import numpy, torch",
}


@pytest.mark.parametrize("what", SCRIPTS)
def test_importing(benchmark: Any, described: Any, what: str) -> None:
    described("a process that only imports", what, "ms")
    benchmark.pedantic(_process, (SCRIPTS[what],), rounds=ROUNDS, warmup_rounds=1)


def test_the_command_line(benchmark: Any, described: Any) -> None:
    described("a process that shows a family", "edgestitch show toy", "ms")
    script = "from edgestitch.cli import main; import sys; sys.argv[1:] = ['show', 'toy']; main()"
    benchmark.pedantic(_process, (script,), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("until", ["first", "all"])
def test_the_first_result(
    benchmark: Any, described: Any, folder: Path, subject: str, until: str
) -> None:
    word = "the others load on" if until == "first" else "after all are ready"
    described(f"a process until its first result, {word}", subject, "ms")
    benchmark.pedantic(_process, (FIRST_RESULT, str(folder), until), rounds=ROUNDS, warmup_rounds=1)


def _process(script: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)
