"""Imported networks compute what the authors' own code computes, topology by topology."""

import numpy as np
import pytest
import torch
from torch import Tensor

from edgestitch.checkpoint import import_checkpoint
from edgestitch.network import StitchNetwork, count
from tests.reference import images, load_reference, state_dict, write_checkpoint

TINY = ("tiny-deit", "tiny-deit-chains", "tiny-deit3-4-4", "tiny-deit3-12-24")
SMALL = ("resnet18-50", "resnet18-swin-ti", "levit-192-256")
LARGE = ("deit-ti-s-b", "swin-ti-s-b", "deit3-s-b")
FULL_SIZE = (*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE))
TOLERANCE = 1e-5
"""Of the largest logit of a topology: the order of additions is not the authors'."""


@pytest.fixture(scope="module")
def reference(request):
    return load_reference(request.param)


@pytest.fixture(scope="module")
def network(reference, tmp_path_factory):
    """Of a checkpoint in the released form."""
    path = tmp_path_factory.mktemp("checkpoint") / "released.pth"
    write_checkpoint(path, state_dict(reference.keys))
    imported = import_checkpoint(reference.family, path)
    path.unlink()
    return imported


@pytest.fixture(scope="module")
def complexity(network):
    return count(network)


every_family = pytest.mark.parametrize(
    "reference", [*TINY, *FULL_SIZE], indirect=True, scope="module"
)
every_shipped_family = pytest.mark.parametrize(
    "reference", FULL_SIZE, indirect=True, scope="module"
)


def all_logits(network: StitchNetwork, x: Tensor) -> dict[str, np.ndarray]:
    """The logits of every topology; a part that several begin with runs once."""
    family = network.family
    outputs: dict[tuple[str, ...], Tensor] = {(): x}
    logits = {}
    chains = sorted((family.atoms(topology), topology.name) for topology in family.topologies)
    with torch.inference_mode():
        for chain, name in chains:
            # In this order a part that no later chain begins with never comes back.
            outputs = {part: y for part, y in outputs.items() if chain[: len(part)] == part}
            for stop in range(len(chain)):
                part = chain[: stop + 1]
                if part not in outputs:
                    outputs[part] = network.atoms[chain[stop]](outputs[chain[:stop]])
            logits[name] = outputs[chain].numpy()
    return logits


@every_family
def test_every_topology_has_the_authors_logits(reference, network):
    logits = all_logits(network, images(reference.family))
    assert logits.keys() == reference.logits.keys()
    off = {
        name: np.abs(logits[name][:, :: reference.every] - expected).max() / np.abs(expected).max()
        for name, expected in reference.logits.items()
    }
    assert {name: share for name, share in off.items() if not share <= TOLERANCE} == {}


@every_family
def test_topologies_have_the_authors_numbers_and_stitching_layers(reference):
    family = reference.family.in_mode("reference")
    places = {name: ".".join(map(str, indices)) for name, indices in family.layer_places.items()}
    ours = {
        name: (number, [places[atom] for atom in family.atoms(name) if atom in places])
        for name, number in family.reference_ids.items()
    }
    assert ours == {row.topology: (row.number, row.layers) for row in reference.rows}


@every_shipped_family
def test_multiply_adds_are_the_authors_in_every_digit(reference, network, complexity):
    ours = {
        row.topology: round(1e9 * complexity.gmacs(network.family, row.topology))
        for row in reference.rows
    }
    assert ours == {row.topology: row.macs for row in reference.rows}


@every_shipped_family
def test_parameters_are_those_that_take_part_in_the_authors_topologies(
    reference, network, complexity
):
    ours = {row.topology: complexity.params(network.family, row.topology) for row in reference.rows}
    assert ours == {row.topology: row.params for row in reference.rows}
