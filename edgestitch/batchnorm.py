"""Batch normalisation of one topology: running statistics of its own.

What passes through a stitched network differs from topology to topology, but the running statistics
of its BatchNorm layers are one set for all. A topology that is deployed alone can have its own,
estimated anew after stitching (slimmable networks, Yu et al. 2019).
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_batchnorm(module: nn.Module) -> bool:
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def reestimated(network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy that shares the parameters, with running statistics of these inputs only.

    Each statistic is the mean over the batches; the network it was copied from stays as it is.
    """
    shared = {id(parameter): parameter for parameter in network.parameters()}
    own = copy.deepcopy(network, memo=dict(shared)).eval()
    for part in own.modules():
        if isinstance(part, _BatchNorm):
            part.reset_running_stats()
            part.momentum = None  # the mean over all batches, not an exponential one
            part.train()
    with torch.no_grad():
        for images in batches:
            own(images)
    return own.eval()


def freeze_statistics(network: nn.Module) -> None:
    """Makes BatchNorm layers normalise by their running statistics, until `train` is called again."""
    for part in network.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
