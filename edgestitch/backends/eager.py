"""The network's own modules, run by PyTorch: works everywhere, shares all weights, is the reference."""

import torch

from . import Backend, Compiled, Load, Request
from .chain import DTYPES, Step, chained, in_precision


def _compile(request: Request) -> None:
    """Nothing is compiled: `load` takes the modules from the network itself."""


def _load(compiled: Compiled) -> Load:
    device, dtype = torch.device(compiled.accelerator), DTYPES[compiled.precision]
    network = in_precision(compiled.network().eval(), device, dtype)

    def segment(name: str) -> Step:
        return network.chain(compiled.atoms[name])

    return chained(segment, compiled)


BACKEND = Backend(
    name="eager",
    accelerators=("cpu", "cuda"),
    precisions=tuple(DTYPES),
    unavailable=lambda: None,
    compile=_compile,
    load=_load,
    version=lambda: str(torch.__version__),
    shares_weights=True,
)
