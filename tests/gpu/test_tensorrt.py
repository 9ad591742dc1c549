"""TensorRT where there is a GPU: engines that are really run, beside eager."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgestitch.backends import backend
from edgestitch.backends.trt_compile import VARIANTS
from edgestitch.cut import cut_topologies
from edgestitch.device import resolve
from edgestitch.equality import TOLERANCE
from edgestitch.network import StitchNetwork, build_network
from edgestitch.program import Program, compile_segments, example_images, load_program
from edgestitch.recipe import load_family

TENSORRT = backend("tensorrt")
TOPOLOGIES = {
    "toy": ("a:0:3", "a:0:1+b:1:3", "a:0:2+b:1:3"),
    "deit-ti-s-b": ("ti:0:12", "ti:0:6+s:5:12"),
    "resnet18-swin-ti": ("r18:0:8", "r18:0:3+ti:3:12"),
    "levit-192-256": ("l192:0:12", "l192:0:1+l256:1:12"),
}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(TENSORRT.unavailable() is not None, reason=str(TENSORRT.unavailable())),
]


@pytest.fixture(scope="module", params=TOPOLOGIES)
def network(request):
    torch.manual_seed(0)
    return build_network(load_family(request.param)).eval().cuda()


def program_of(network: StitchNetwork, folder: Path, precision: str, variant: str = "") -> Program:
    plan = cut_topologies(network.family, TOPOLOGIES[network.family.name])
    compile_segments(network, plan, TENSORRT, folder, precision=precision, variant=variant)
    return load_program(
        plan,
        TENSORRT,
        folder,
        network.family,
        lambda: network,
        resolve("auto"),
        precision=precision,
        batch=1,
    )


def eager(network: StitchNetwork, topology: str, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = (
            network.assemble(topology)(torch.from_numpy(images).cuda()).cpu().numpy()
        )
    return logits


@pytest.mark.parametrize(
    ("precision", "variant"),
    [("fp32", ""), ("bf16", ""), *(("fp16", variant) for variant in VARIANTS)],
)
def test_every_topology_equals_eager_in_any_order(network, precision, variant, tmp_path):
    program = program_of(network, tmp_path, precision, variant)
    random = np.random.default_rng(0)
    limit, _ = TOLERANCE[precision]
    for topology in random.choice(program.topologies, 20):
        images = example_images(network.family, 1, seed=int(random.integers(1000)))
        expected = eager(network, topology, images)
        found = program.load(topology).run(images)
        assert np.abs(found - expected).max() < limit * np.abs(expected).max()


def test_images_on_the_device_give_the_same_logits(network, tmp_path):
    program = program_of(network, tmp_path, "fp16")
    images = example_images(network.family, 1)
    for topology in program.topologies:
        resident = program.load(topology)
        assert resident.on_device is not None
        found = resident.on_device(torch.from_numpy(images).cuda()).cpu().numpy()
        assert np.array_equal(found, resident.run(images))


def test_topologies_that_are_loaded_later_leave_the_earlier_ones_as_they_were(network, tmp_path):
    program = program_of(network, tmp_path, "fp16")
    images = example_images(network.family, 1)
    first = program.load(program.topologies[0]).run(images)
    for topology in program.topologies[1:]:
        program.load(topology).run(images)
    assert np.array_equal(program.load(program.topologies[0]).run(images), first)
