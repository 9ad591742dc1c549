"""Finds the data folders that travel with the package, in a wheel and in a checkout."""

from importlib.resources import files
from pathlib import Path
from typing import Literal

Folder = Literal["profiles", "calibrate"]


def shipped(folder: Folder) -> Path:
    """The folder of shipped data; nothing in it may be written."""
    package = Path(str(files("edgestitch")))
    packaged = package / "_data" / folder
    return packaged if packaged.is_dir() else package.parent / folder
