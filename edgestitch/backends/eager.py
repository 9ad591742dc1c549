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
    device = torch.device(compiled.accelerator)
    network = compiled.network().to(device).eval()
    return {
        topology: _run(
            network.chain(atom for name in segments for atom in compiled.atoms[name]), device
        )
        for topology, segments in compiled.chains.items()
    }


def _run(chain: nn.Module, device: torch.device) -> Run:
    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            # The copy back waits for the device.
            logits: np.ndarray = chain(torch.from_numpy(images).to(device)).cpu().numpy()
        return logits

    return run


BACKEND = Backend(
    name="eager",
    accelerators=("cpu", "cuda"),
    precisions=("fp32",),
    unavailable=lambda: None,
    compile=_compile,
    load=_load,
    version=lambda: str(torch.__version__),
)
