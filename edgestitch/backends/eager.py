"""The network's own modules, run by PyTorch: works everywhere, shares all weights, is the reference."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import Backend, Compiled, Run


def _compile(segment: nn.Module, example: Tensor, path: Path, precision: str) -> None:
    """Nothing is compiled: `load` takes the modules from the network itself."""


def _load(compiled: Compiled) -> Mapping[str, Run]:
    network = compiled.network().eval()
    return {
        topology: _run(network.chain(atom for name in segments for atom in compiled.atoms[name]))
        for topology, segments in compiled.chains.items()
    }


def _run(chain: nn.Module) -> Run:
    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = chain(torch.from_numpy(images)).numpy()
        return logits

    return run


BACKEND = Backend(
    name="eager",
    precisions=("fp32",),
    unavailable=lambda: None,
    compile=_compile,
    load=_load,
    version=lambda: str(torch.__version__),
)
