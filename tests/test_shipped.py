"""Every file that ships loads, fits the others, and reaches what the documents say."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from edgestitch.accuracy import Accuracy
from edgestitch.artifact import load
from edgestitch.calibrate import Calibration
from edgestitch.catalog import overview, shipped_accuracy, shipped_complexity, shipped_peers
from edgestitch.complexity import Complexity, above_line, check_order
from edgestitch.data import DEBIAN_FOLDER, fashion_mnist, preprocess, shipped_images
from edgestitch.network import count, load_network
from edgestitch.peers import Peers, outdone
from edgestitch.profile import Profile
from edgestitch.recipe import load_family, load_recipe
from edgestitch.shipped import shipped

RECIPES = sorted(path.stem for path in shipped("calibrate").glob("*.toml"))
IMAGENET = [name for name in RECIPES if load_family(name).num_classes == 1000]
# Number, multiply-adds, parameters and top-1 of each topology, as the authors' code and result files
# have them.
RELEASED = json.loads((Path(__file__).parent / "data" / "released.json").read_text())
# How many of them nothing as cheap beats, counted on the released files alone.
FRONTS = {
    "deit-ti-s-b": 39,
    "swin-ti-s-b": 24,
    "resnet18-50": 7,
    "resnet18-swin-ti": 8,
    "levit-192-256": 7,
    "deit3-s-l": 12,
}


@pytest.fixture(scope="module")
def network():
    return load_network(shipped("calibrate") / "fashion-vit.safetensors")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_named_as_its_family(name):
    assert load_recipe(name).family.name == name


def test_every_artifact_loads_and_is_named_as_its_content():
    kinds: dict[str, type[Accuracy | Complexity | Calibration]] = {
        "accuracy": Accuracy,
        "complexity": Complexity,
        "reference.complexity": Complexity,
        "calibration": Calibration,
    }
    found = set(shipped("calibrate").glob("*.json"))
    assert found
    peers = shipped("calibrate") / "imagenet.peers.json"
    assert load(Peers, peers).num_classes == 1000
    for path in found - {peers}:
        family, kind = path.name.removesuffix(".json").split(".", 1)
        assert load(kinds[kind], path).family == family
    for path in shipped("profiles").rglob("*.json"):
        assert load(Profile, path).family == path.parent.name


@pytest.mark.parametrize("name", ["fashion-vit", *IMAGENET])
def test_the_shipped_complexity_is_that_of_the_recipe(name):
    family = load_family(name)
    complexity = shipped_complexity(family)
    assert complexity is not None
    check_order(family, complexity)
    atoms = {atom for topology in family.topologies for atom in family.atoms(topology)}
    assert set(complexity.atoms) == atoms


# --- published accuracies --------------------------------------------------------------------


def test_every_family_of_the_papers_with_released_results_has_its_accuracies():
    assert set(RELEASED) == set(FRONTS)
    for name, rows in RELEASED.items():
        accuracy = shipped_accuracy(name)
        assert accuracy is not None
        assert (accuracy.origin, accuracy.mode, len(accuracy.rows)) == (
            "published",
            "reference",
            len(rows),
        )
        assert "github.com/ziplab/SN-Net" in accuracy.source


@pytest.mark.parametrize("name", RELEASED)
def test_costs_and_accuracies_of_the_reference_are_the_released_ones_in_every_digit(name):
    family = load_family(name).in_mode("reference")
    complexity, accuracy = shipped_complexity(family), shipped_accuracy(family)
    assert complexity is not None
    assert accuracy is not None
    found = [
        [
            family.reference_ids[topology.name],
            sum(complexity.atoms[atom].macs for atom in family.atoms(topology)),
            complexity.params(family, topology),
            accuracy.by_topology[topology.name].top1,
        ]
        for topology in family.topologies
    ]
    assert sorted(found) == RELEASED[name]


@pytest.mark.parametrize("name", RELEASED)
def test_published_accuracies_are_whole_images_with_their_interval(name):
    accuracy = shipped_accuracy(name)
    assert accuracy is not None
    for row in accuracy.rows:
        assert row.top1 == pytest.approx(100 * row.correct / 50_000, abs=1e-12)
        assert row.top1 - 0.5 < row.low < row.top1 < row.high < row.top1 + 0.5


@pytest.mark.parametrize(("name", "size"), FRONTS.items())
def test_the_published_fronts_are_the_known_ones(name, size):
    family = load_family(name).in_mode("reference")
    table = overview(
        family, complexity=shipped_complexity(family), accuracy=shipped_accuracy(family)
    )
    front = sorted((e.gmacs or 0, e.top1 or 0) for e in table.topologies if e.pareto)
    assert len(front) == size
    assert all(a[1] < b[1] for a, b in pairwise(front))


def test_the_modes_of_deit_differ_by_the_final_norm():
    """Five operations an element of 197 tokens, on each stitched path and on no anchor."""
    family = load_family("deit-ti-s-b")
    corrected = shipped_complexity(family)
    reference = shipped_complexity(family.in_mode("reference"))
    assert corrected is not None
    assert reference is not None
    for topology in family.topologies:
        width = {"ti": 192, "s": 384, "b": 768}[topology.runs[-1].anchor]
        norm = 5 * 197 * width / 1e9 if topology.stitches else 0
        more = corrected.gmacs(family, topology) - reference.gmacs(
            family.in_mode("reference"), topology
        )
        assert more == pytest.approx(norm, abs=1e-12)


def test_the_peers_are_those_of_the_project_page():
    swin = load_family("swin-ti-s-b")
    peers, complexity = shipped_peers(swin), shipped_complexity(swin)
    assert peers is not None
    assert complexity is not None
    assert len({peer.name for peer in peers.single}) == 200
    stitched = peers.stitched(swin)
    assert len(stitched) == 41
    for peer in stitched:
        for name in peer.name.split(" or "):
            assert complexity.gmacs(swin, name) == pytest.approx(peer.gmacs, abs=0.006)
    assert len(outdone(peers.single, [(peer.gmacs, peer.top1) for peer in stitched])) == 165


def test_peers_are_for_the_same_images_and_classes():
    assert shipped_peers(load_family("levit-192-256")) is not None
    assert shipped_peers(load_family("fashion-vit")) is None


# --- the shipped network ---------------------------------------------------------------------


def test_the_shipped_network_is_small_and_of_the_shipped_recipe(network):
    path = shipped("calibrate") / "fashion-vit.safetensors"
    assert path.stat().st_size <= 10e6
    assert network.family.digest == load_recipe("fashion-vit").family.digest
    assert len(network.family.topologies) >= 25
    assert shipped_complexity(network.family) == count(network)


def test_accuracy_and_calibration_are_of_the_shipped_weights(network):
    accuracy = shipped_accuracy(network.family)
    calibration = load(Calibration, shipped("calibrate") / "fashion-vit.calibration.json")
    assert accuracy is not None
    assert accuracy.network == calibration.network == network.digest
    assert accuracy.num_images == 10_000
    reached = {step.topology: step.finetuned for step in calibration.steps}
    assert reached == {row.topology: row.top1 for row in accuracy.rows}


def test_the_shipped_images_are_the_first_of_the_test_set():
    images = shipped_images()
    assert images.images.shape == (1000, 1, 28, 28)
    assert len(np.unique(images.labels)) == 10
    if DEBIAN_FOLDER.is_dir():
        test = fashion_mnist("test")
        np.testing.assert_array_equal(images.images, test.images[:1000])
        np.testing.assert_array_equal(images.labels, test.labels[:1000])


def test_the_shipped_network_sees_what_its_accuracy_says(network):
    accuracy, images = shipped_accuracy(network.family), shipped_images()
    assert accuracy is not None
    for name in ("s:0:6", "l:0:6"):
        with torch.inference_mode():
            logits = network.assemble(name)(torch.from_numpy(preprocess(images.images)))
        top1 = 100 * (logits.argmax(1).numpy() == images.labels).mean()
        expected = accuracy.by_topology[name].top1
        assert abs(top1 - expected) < 4 * np.sqrt(expected * (100 - expected) / 1000)


def test_licence_and_notice_name_the_shipped_data():
    root = shipped("calibrate").parent
    assert "Apache License" in (root / "LICENSE").read_text()
    notice = (root / "NOTICE").read_text()
    for path in shipped("calibrate").glob("*.safetensors"):
        assert path.name in notice
    for name in RELEASED:
        assert f"{name}.accuracy.json" in notice
    assert "imagenet.peers.json" in notice


def test_the_documents_state_what_the_artifacts_hold(network):
    calibration = load(Calibration, shipped("calibrate") / "fashion-vit.calibration.json")
    complexity = shipped_complexity(network.family)
    assert complexity is not None
    text = (shipped("calibrate") / "README.md").read_text()
    top1 = {s.topology: s.finetuned for s in calibration.steps if s.finetuned is not None}
    above = above_line(network.family, complexity, top1)
    for name, points in above.items():
        assert f"| {top1[name]:.2f} | {points:+.2f} |" in text
    assert f"topologies: {sum(above.values()) / len(above):+.2f} points" in text
