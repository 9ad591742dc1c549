"""Files in which the kernel, and a board's vendor, say what a machine is and does."""

from pathlib import Path


def text(path: Path) -> str:
    """What a file says; empty where there is none, or none that may be read."""
    try:
        # A device tree ends its strings with zeros.
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
