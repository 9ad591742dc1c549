"""Whether what a backend computes is what eager computes."""

import numpy as np

from .artifact import Value
from .errors import CompileError

# How far a compiled topology may be from eager before it is refused: largest difference of a logit
# relative to the largest logit, and smallest cosine of the logits of an image. Half precision keeps
# 11 bits of each number, bfloat16 8.
TOLERANCE = {"fp32": (1e-3, 0.9999), "fp16": (0.03, 0.999), "bf16": (0.25, 0.99)}


class Check(Value, frozen=True, kw_only=True):
    """A compiled topology beside eager, on the same images."""

    topology: str
    images: int
    max_difference: float
    """Largest difference of a logit, relative to the largest logit."""
    min_cosine: float
    """Of the logits of one image."""
    top1_agreement: float
    """Part of the images that both put in the same class."""


def compare(topology: str, found: np.ndarray, expected: np.ndarray) -> Check:
    """Logits [images, classes] of a backend beside those of eager."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = (found * expected).sum(1) / np.maximum(norms, np.finfo(np.float32).tiny)
    return Check(
        topology=topology,
        images=len(found),
        max_difference=float(np.abs(found - expected).max() / np.abs(expected).max()),
        min_cosine=float(cosine.min()),
        top1_agreement=float((found.argmax(1) == expected.argmax(1)).mean()),
    )


def require_close(check: Check, backend: str, precision: str) -> None:
    """Raises `CompileError` with the figures if a check is beyond the precision's tolerance."""
    largest, smallest = TOLERANCE[precision]
    # Not-a-number must fail, so the comparison asks for what is right.
    if not (check.max_difference <= largest and check.min_cosine >= smallest):
        raise CompileError(
            f"{check.topology} compiled by {backend} {precision} is not equal to eager: logits "
            f"differ by {check.max_difference:.2g} of the largest (allowed {largest:g}), cosine "
            f"{check.min_cosine:.6f} (at least {smallest:g}); use another precision or backend"
        )
