"""The network's own modules, run by PyTorch: works everywhere, shares all weights, is the reference."""

import torch

from . import Backend, Compiled, Load, Request
from .chain import DTYPES, Step, Steps, chained, loaded_network, per_segment


def nothing_to_compile(request: Request) -> None:
    """Writes no file: `load` takes the modules from the network itself."""


def modules(compiled: Compiled) -> Steps:
    """Each segment as the network has it, on the device, in the precision."""
    network = loaded_network(compiled)

    def segment(name: str) -> Step:
        return network.chain(compiled.atoms[name])

    return per_segment(segment, compiled)


def _load(compiled: Compiled) -> Load:
    return chained(modules(compiled), compiled)


BACKEND = Backend(
    name="eager",
    accelerators=("cpu", "cuda"),
    precisions=tuple(DTYPES),
    unavailable=lambda: None,
    compile=nothing_to_compile,
    load=_load,
    version=lambda: str(torch.__version__),
    shares_weights=True,
)
