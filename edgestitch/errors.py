"""Everything edgestitch raises on purpose.

    EdgestitchError
      + ArtifactError     a file is missing, damaged, of another kind or of an unknown version
        + BusyError       another process is writing it
      + MismatchError     two things that do not describe the same network, device or backend
      + InfeasibleError   no topology fits the budget
      + DeviceError       the device, meter or permission that was asked for is not here
      + CompileError      a backend refused a segment, or computes something else than eager

A wrong argument is a `ValueError` or `TypeError`. Every message says what was asked, what was
found, and what to do next.
"""


class EdgestitchError(Exception):
    """Base of all errors that are the user's to handle."""


class ArtifactError(EdgestitchError):
    """A file cannot be read or written as the artifact it should be."""


class BusyError(ArtifactError):
    """Another process is writing the file."""


class MismatchError(EdgestitchError):
    """Two values were joined that do not belong together."""


class InfeasibleError(EdgestitchError):
    """No topology fits; the message names the cheapest and by how much it misses."""


class DeviceError(EdgestitchError):
    """The machine lacks what was asked of it."""


class CompileError(EdgestitchError):
    """A backend could not compile a segment, or its result is not equal to eager."""
