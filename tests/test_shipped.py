"""Every file that ships loads, fits the others, and reaches what the documents say."""

import numpy as np
import pytest
import torch

from edgestitch.accuracy import Accuracy
from edgestitch.artifact import load
from edgestitch.calibrate import Calibration
from edgestitch.catalog import shipped_accuracy, shipped_complexity
from edgestitch.complexity import Complexity, above_line
from edgestitch.data import DEBIAN_FOLDER, fashion_mnist, preprocess, shipped_images
from edgestitch.family import load_recipe
from edgestitch.network import count, load_network
from edgestitch.profile import Profile
from edgestitch.shipped import shipped

RECIPES = sorted(path.stem for path in shipped("calibrate").glob("*.toml"))


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
        "calibration": Calibration,
    }
    found = list(shipped("calibrate").glob("*.json"))
    assert found
    for path in found:
        family, kind = path.name.removesuffix(".json").rsplit(".", 1)
        assert load(kinds[kind], path).family == family
    for path in shipped("profiles").rglob("*.json"):
        assert load(Profile, path).family == path.parent.name


@pytest.mark.parametrize("name", ["fashion-vit", "deit-ti-s-b"])
def test_the_shipped_complexity_is_that_of_the_recipe(name):
    assert shipped_complexity(load_recipe(name).family) is not None


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
