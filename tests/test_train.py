"""Options of training: each does what it says, and a kill on the way changes nothing."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgestitch import train
from edgestitch.anchor import build
from edgestitch.batchnorm import has_batchnorm, reestimated
from edgestitch.calibrate import (
    Calibration,
    Splits,
    calibrate,
    fold_low_rank,
    groups,
    in_memory,
    make_low_rank,
    own_images,
)
from edgestitch.catalog import shipped_complexity
from edgestitch.data import LabelledImages, toy_images
from edgestitch.distributed import ALONE
from edgestitch.family import Anchor, Family, Stitching
from edgestitch.images import ArraySource
from edgestitch.network import load_network
from edgestitch.recipe import Finetuning, Initialization, Recipe, Training, load_family, load_recipe
from edgestitch.stitch import StitchingLayer

replace = msgspec.structs.replace


def toy_recipe(**finetuning: Any) -> Recipe:
    """The toy recipe with three steps for each anchor and six of fine-tuning."""
    toy = load_recipe("toy")
    settings = {"epochs": 2, "batch_size": 32, "learning_rate": 2e-3, "warmup_epochs": 0.5}
    return replace(
        toy,
        anchors=dict.fromkeys("ab", Training(epochs=1, batch_size=32)),
        initialize=Initialization(images=64),
        finetune=Finetuning(**{**settings, **finetuning}),
    )


@pytest.fixture(scope="module")
def splits() -> Splits:
    return in_memory(toy_images(96, seed=0), toy_images(32, seed=1))


def run(recipe: Recipe, splits: Splits, folder: Path, **options: Any) -> Calibration:
    return calibrate(
        recipe, splits, folder / "work", folder / "toy.safetensors", device="cpu", **options
    )


class Killed(BaseException):
    """Nothing in the package may catch it."""


OPTIONS: list[dict[str, Any]] = [
    {"ema": 0.9},
    {"optimizer": "sgd", "learning_rate": 0.05},
    {"clip": 0.1},
    {"sampling": "grouped", "group_gap_gmacs": 1e-5},
    {"rank": 2},
    {"precision": "bf16"},
    {"mixup": 0.8, "cutmix": 1.0},
    {"crop": 0.5, "hard": True},
    {"topologies_per_step": 2, "stitch_rate": 10.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_killed_inside_an_epoch_it_reaches_the_same_weights(options, splits, tmp_path, monkeypatch):
    recipe = toy_recipe(**options)
    whole = run(recipe, splits, tmp_path / "whole")
    plain = run(toy_recipe(), splits, tmp_path / "plain")
    assert whole.network != plain.network
    monkeypatch.setattr(train, "CHECKPOINT_S", 0.0)  # after every step

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning" and done == 4:
            raise Killed

    with pytest.raises(Killed):
        run(recipe, splits, tmp_path / "killed", progress=kill)
    told: list[int] = []

    def tell(stage: str, done: int, total: int) -> None:
        told.extend([done] if stage == "fine-tuning" else [])

    assert run(recipe, splits, tmp_path / "killed", progress=tell) == whole
    assert told == [4, 5]


def test_what_is_written_has_plain_layers(splits, tmp_path):
    run(toy_recipe(rank=2), splits, tmp_path)
    network = load_network(tmp_path / "toy.safetensors")
    assert not [name for name, _ in network.named_parameters() if "parametrizations" in name]


def test_low_rank_layers_compute_the_same_folded(toy_network):
    layers = [layer for layer in toy_network.atoms.values() if isinstance(layer, StitchingLayer)]
    before = [layer.weight.clone() for layer in layers]
    make_low_rank(toy_network, 2)
    torch.testing.assert_close([layer.weight for layer in layers], before)  # B begins with zeros
    with torch.no_grad():
        for name, parameter in toy_network.named_parameters():
            if name.endswith(".b"):
                parameter.normal_()
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = toy_network(images, "a:0:1+b:1:3")
        fold_low_rank(toy_network)
        torch.testing.assert_close(toy_network(images, "a:0:1+b:1:3"), expected)
    for layer, old in zip(layers, before, strict=True):
        assert torch.linalg.matrix_rank(layer.weight - old) <= 2
        assert layer.weight.requires_grad


def test_a_moving_average_lies_between_where_it_began_and_the_last_weights(toy_network):
    def fit(ema: float) -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(2, 2)
        state = train._State(layer, Training(epochs=1, ema=ema), torch.device("cpu"))
        for _ in range(5):
            losses = iter([layer(torch.ones(1, 2)).square().sum()])
            state.step(0.1, losses, ALONE)
        state.finish()
        return layer.weight.detach().clone()

    torch.manual_seed(0)
    first = torch.nn.Linear(2, 2).weight.detach()
    last, average = fit(0.0), fit(0.9)
    assert (average - first).norm() < (last - first).norm()
    assert (average - last).norm() < (last - first).norm()


def test_training_that_diverges_is_refused_with_what_to_change(splits, tmp_path):
    with pytest.raises(
        ValueError, match=r"anchor a diverged at step .* lower learning_rate, or set"
    ):
        run(
            replace(
                toy_recipe(),
                anchors={"a": Training(epochs=1, batch_size=32, learning_rate=1e38)},
            ),
            splits,
            tmp_path,
        )


def test_a_batch_that_cannot_be_divided_is_refused(splits, tmp_path):
    with pytest.raises(ValueError, match="a batch of 32 cannot be divided by 64"):
        run(toy_recipe(topologies_per_step=64), splits, tmp_path)


# --- sampling ----------------------------------------------------------------------------------


@given(st.sampled_from(["deit-ti-s-b", "swin-ti-s-b", "levit-192-256"]), st.floats(1e-3, 20))
def test_groups_divide_all_topologies_by_cost(name, gap):
    family = load_family(name)
    complexity = shipped_complexity(family)
    assert complexity is not None
    found = groups(family, complexity, gap)
    assert sorted(index for group in found for index in group) == list(
        range(len(family.topologies))
    )
    costs = [[complexity.gmacs(family, family.topologies[i]) for i in group] for group in found]
    assert all(max(group) - group[0] <= gap for group in costs)
    assert all(b[0] - a[0] > gap for a, b in pairwise(costs))


def test_groups_of_sn_netv2_are_the_authors():
    family = load_family("deit3-s-l").in_mode("reference")
    complexity = shipped_complexity(family)
    assert complexity is not None
    assert [len(group) for group in groups(family, complexity, 1.0)] == [1, *11 * [12], 1]


# --- without labels ----------------------------------------------------------------------------


def unlabelled(number: int, seed: int) -> ArraySource:
    images = toy_images(number, seed=seed).images
    return ArraySource(LabelledImages(images, np.full(number, -1)))


def test_without_labels_the_largest_anchor_teaches_and_judges(tmp_path):
    recipe = toy_recipe(epochs=4)
    files: dict[str, Path] = {}
    for anchor in recipe.family.anchors:
        torch.manual_seed(len(files))
        files[anchor.name] = tmp_path / f"{anchor.name}.pth"
        torch.save(build(anchor, recipe.family).state_dict(), files[anchor.name])
    without = Splits(unlabelled(96, 0), unlabelled(32, 1))
    result = run(replace(recipe, anchors={}), without, tmp_path, weights=files)
    assert result.judged_by == "b:0:3"
    steps = {step.topology: step for step in result.steps}
    assert steps["b:0:3"].alone == 100.0
    assert result.weights["a"].matched == "names"


@pytest.mark.parametrize("change", [{}, {"anchors": {}, "distillation": 0.0}])
def test_what_needs_labels_is_refused_without(change, tmp_path):
    recipe = toy_recipe(distillation=change.get("distillation", 0.5))
    files: dict[str, Path] = {}
    if "anchors" in change:
        recipe = replace(recipe, anchors={})
        for anchor in recipe.family.anchors:
            files[anchor.name] = tmp_path / f"{anchor.name}.pth"
            torch.save(build(anchor, recipe.family).state_dict(), files[anchor.name])
    without = Splits(unlabelled(96, 0), unlabelled(32, 1))
    with pytest.raises(ValueError, match=r"needs labels, and the images have none; give a folder"):
        run(recipe, without, tmp_path, weights=files)


# --- folders -----------------------------------------------------------------------------------


def tiny_resnets() -> Family:
    def resnet(name: str, width: int) -> Anchor:
        options: dict[str, Any] = {
            "layers": (1, 2, 1, 1),
            "channels": (width, width, width, 2 * width),
        }
        return Anchor(name=name, model="resnet18", depth=5, stages=(1, 2, 1, 1), options=options)

    return Family(
        name="tiny-resnets",
        anchors=(resnet("a", 8), resnet("b", 16)),
        stitching=Stitching(rule="staged"),
        input_shape=(3, 32, 32),
        num_classes=2,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )


def test_a_folder_of_classes_with_a_broken_image_is_calibrated_on(tmp_path):
    random = np.random.default_rng(0)
    for label, colour in enumerate(((200, 30, 30), (30, 30, 200))):
        folder = tmp_path / "images" / f"class-{label}"
        folder.mkdir(parents=True)
        for index in range(40):
            pixels = random.integers(0, 50, (36, 36, 3)) + np.array(colour)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02}.png")
    (tmp_path / "images" / "class-0" / "20.png").write_bytes(b"broken")
    training = Training(epochs=3, batch_size=12, learning_rate=3e-3, warmup_epochs=0.5)
    recipe = Recipe(
        family=tiny_resnets(),
        anchors={"a": training, "b": training},
        initialize=Initialization(images=64),
        finetune=Finetuning(epochs=2, batch_size=12, learning_rate=1e-3),
    )
    splits = own_images(recipe.family, data=tmp_path / "images")
    assert (len(splits.train), len(splits.test)) == (72, 8)
    result = run(recipe, splits, tmp_path)
    assert result.skipped == 1
    assert result.judged_by == "labels"
    assert {s.topology for s in result.steps} == {t.name for t in recipe.family.topologies}
    # 8 images are held out, of which the broken one is not counted.
    assert all(
        math.isclose(s.initialized * 7 % 100, 0, abs_tol=1e-9)
        or math.isclose(s.initialized * 7 % 100, 100, abs_tol=1e-6)
        for s in result.steps
    )

    network = load_network(tmp_path / "toy.safetensors")
    chain = network.assemble("a:0:2+b:2:5")
    assert has_batchnorm(chain)
    images = torch.randn(16, 3, 32, 32)
    own = reestimated(chain, [images])
    with torch.no_grad():
        assert not torch.allclose(own(images), chain(images))
