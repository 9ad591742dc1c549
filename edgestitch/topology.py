"""Topologies: which blocks of which anchors one assembled network runs, and their names.

A topology is named by what it is: `ti:0:6+s:5:12` runs blocks 0 to 5 of anchor `ti`, a stitching
layer, then blocks 5 to 11 of anchor `s`. There is one parser (`Topology.parse`) and one formatter
(`Topology.name`); the name is the key in files, the label in tables and the name of files.
"""

import re
from functools import cached_property
from itertools import pairwise

import msgspec

_RUN = re.compile(r"([A-Za-z][A-Za-z0-9]*):(0|[1-9][0-9]*):([1-9][0-9]*)")


class Run(msgspec.Struct, frozen=True):
    """Consecutive blocks `start` to `stop - 1` of one anchor."""

    anchor: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.anchor}:{self.start}:{self.stop}"


class Stitch(msgspec.Struct, frozen=True):
    """The joint after `stop` blocks of anchor `front`, before block `start` of anchor `back`."""

    front: str
    stop: int
    back: str
    start: int

    @property
    def name(self) -> str:
        return f"{self.front}:{self.stop}+{self.back}:{self.start}"


class Topology(msgspec.Struct, frozen=True, dict=True):
    """One network: runs of blocks, a stitch between each run and the next."""

    runs: tuple[Run, ...]

    @classmethod
    def parse(cls, name: str) -> "Topology":
        """The topology of that name.

        Raises:
            ValueError: the text is not a topology's name.
        """
        runs = []
        for part in name.split("+"):
            match = _RUN.fullmatch(part)
            if match is None or int(match[2]) >= int(match[3]):
                raise ValueError(
                    f"{name!r} is no topology: {part!r} should be ANCHOR:START:STOP with START < STOP; "
                    "a topology reads like ti:0:12 or ti:0:6+s:5:12"
                )
            runs.append(Run(match[1], int(match[2]), int(match[3])))
        return cls(tuple(runs))

    @cached_property
    def name(self) -> str:
        return "+".join(run.name for run in self.runs)

    @property
    def stitches(self) -> tuple[Stitch, ...]:
        return tuple(
            Stitch(front.anchor, front.stop, back.anchor, back.start)
            for front, back in pairwise(self.runs)
        )

    def __str__(self) -> str:
        return self.name
