"""The network's own modules, each topology captured into one CUDA graph: eager less the host's part.

Nothing is compiled and all weights are shared; a call is one launch in place of one per operator.
"""

import torch

from . import Backend, Compiled, Load
from .chain import DTYPES
from .eager import modules, nothing_to_compile
from .graphs import captured


def _unavailable() -> str | None:
    if torch.version.cuda is None:
        return (
            f"PyTorch {torch.__version__} was built without CUDA; install a build with CUDA "
            "(pytorch.org names the index, on a Jetson NVIDIA's), or use backend eager"
        )
    if not torch.cuda.is_available():
        return (
            f"PyTorch finds no CUDA device (it was built for CUDA {torch.version.cuda}); "
            "`nvidia-smi` says whether the driver does, or use backend eager"
        )
    return None


def _load(compiled: Compiled) -> Load:
    return captured(modules(compiled), compiled)


BACKEND = Backend(
    name="cudagraph",
    accelerators=("cuda",),
    precisions=tuple(DTYPES),
    unavailable=_unavailable,
    compile=nothing_to_compile,
    load=_load,
    version=lambda: str(torch.__version__),
    shares_weights=True,
)
