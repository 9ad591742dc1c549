"""From a recipe to weights, the same whether or not it was killed on the way."""

import shutil
from collections import Counter
from itertools import pairwise
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from edgestitch import train
from edgestitch.anchor import build, take_apart
from edgestitch.artifact import load
from edgestitch.augment import augment
from edgestitch.batchnorm import reestimated
from edgestitch.calibrate import (
    Calibration,
    Splits,
    _Session,
    calibrate,
    groups,
    in_memory,
    initialize,
    load_splits,
    own_images,
    predictions,
)
from edgestitch.complexity import AtomComplexity, Complexity
from edgestitch.data import LabelledImages, preprocess, toy_images
from edgestitch.errors import ArtifactError, MismatchError
from edgestitch.evaluate import evaluate
from edgestitch.family import Anchor, Family, Stitching
from edgestitch.images import ArraySource
from edgestitch.network import StitchNetwork, build_network, count, load_network
from edgestitch.recipe import (
    Finetuning,
    Initialization,
    Recipe,
    Training,
    load_family,
    load_recipe,
)
from edgestitch.shipped import shipped
from edgestitch.train import learning_rate
from tests.strategies import families

replace = msgspec.structs.replace
AnyTraining = TypeVar("AnyTraining", bound=Training)


def short(training: AnyTraining, epochs: int) -> AnyTraining:
    return replace(training, epochs=epochs, batch_size=32)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """The toy recipe with an epoch or two of three steps each."""
    toy = load_recipe("toy")
    assert toy.finetune is not None
    return replace(
        toy,
        anchors={"a": short(toy.anchors["a"], 1), "b": short(toy.anchors["b"], 2)},
        initialize=replace(toy.initialize, images=64),
        finetune=short(toy.finetune, 2),
    )


@pytest.fixture(scope="module")
def splits() -> Splits:
    return in_memory(toy_images(96, seed=0), toy_images(32, seed=1))


class Killed(BaseException):
    """Nothing in the package may catch it."""


class KilledAfter:
    """Progress that ends the work after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


@pytest.fixture(scope="module")
def uninterrupted(recipe, splits, tmp_path_factory):
    """The calibration, its file and what was told of its progress."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    told = []
    result = calibrate(
        recipe,
        splits,
        folder / "work",
        folder / "toy.safetensors",
        device="cpu",
        progress=lambda *now: told.append(now),
    )
    return result, folder / "toy.safetensors", told


@pytest.fixture
def run(recipe, splits, tmp_path):
    """Calibrates, with another recipe if given, always with the same work folder."""

    def run(recipe=recipe, splits=splits, **options):
        out = tmp_path / "toy.safetensors"
        return calibrate(recipe, splits, tmp_path / "work", out, device="cpu", **options)

    return run


@pytest.fixture
def run_again(run, uninterrupted, tmp_path):
    """Calibrates where the uninterrupted calibration left its checkpoints."""
    shutil.copytree(uninterrupted[1].parent / "work", tmp_path / "work")
    return run


# --- calibration -----------------------------------------------------------------------------


def test_the_weights_that_were_written_are_those_of_the_result(uninterrupted, recipe):
    result, path, _ = uninterrupted
    assert load_network(path, family=recipe.family).digest == result.network
    assert load(Calibration, path.with_suffix(".calibration.json")) == result


def test_a_calibration_says_what_each_stage_reached(uninterrupted, recipe, splits):
    result, _, _ = uninterrupted
    assert [step.topology for step in result.steps] == [t.name for t in recipe.family.topologies]
    assert [step.alone is not None for step in result.steps] == [True, True] + 7 * [False]
    assert all(step.finetuned is not None for step in result.steps)
    assert result.data == splits.test.digest


def test_least_squares_leave_the_anchors_as_they_were(uninterrupted):
    result, _, _ = uninterrupted
    assert all(step.alone == step.initialized for step in result.steps[:2])


def test_progress_tells_every_stage_to_its_last_step(uninterrupted):
    stages = list(dict.fromkeys(stage for stage, _, _ in uninterrupted[2]))
    assert stages == [
        "anchor a",
        "anchor b",
        "evaluate: anchors alone",
        "least squares",
        "evaluate: least squares alone",
        "fine-tuning",
        "evaluate: fine-tuned",
    ]
    assert [now for now in uninterrupted[2] if now[0] == "anchor b"] == [
        ("anchor b", step, 6) for step in range(6)
    ]


@pytest.mark.parametrize("share", [0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.99])
def test_killed_and_resumed_it_reaches_the_same_weights(run, uninterrupted, share):
    result, _, told = uninterrupted
    with pytest.raises(Killed):
        run(progress=KilledAfter(int(share * len(told))))
    assert run() == result


def test_killed_again_and_again_it_reaches_the_same_weights(run, uninterrupted):
    result, _, told = uninterrupted
    for _ in range(2 * len(told)):
        try:
            resumed = run(progress=KilledAfter(10))
        except Killed:
            continue
        break
    else:
        pytest.fail("ten steps at a time it never came to an end")
    assert resumed == result


def test_what_is_done_is_not_done_again(run_again, uninterrupted):
    told = []
    assert run_again(progress=lambda stage, *_: told.append(stage)) == uninterrupted[0]
    assert not {"anchor a", "anchor b", "fine-tuning"} & set(told)


def other_seed(recipe):
    return replace(recipe, seed=1)


def other_training(recipe):
    return replace(recipe, anchors={**recipe.anchors, "a": short(recipe.anchors["a"], 2)})


def other_finetuning(recipe):
    return replace(recipe, finetune=short(recipe.finetune, 1))


def other_family(recipe):
    return replace(recipe, family=replace(recipe.family, mean=(0.4,)))


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (other_seed, "anchor-a"),
        (other_training, "anchor-a"),
        (other_finetuning, "fine-tuning"),
        (other_family, "anchor-a"),
    ],
)
def test_checkpoints_of_another_recipe_are_refused_by_name(run_again, recipe, change, file):
    message = rf"{file}\.safetensors is a checkpoint of another recipe, .* remove it, or .* --work"
    with pytest.raises(MismatchError, match=message):
        run_again(change(recipe))


def test_checkpoints_of_other_images_are_refused(run_again, splits):
    with pytest.raises(MismatchError, match=r"checkpoint of another recipe, seed, data set"):
        run_again(splits=Splits(ArraySource(toy_images(96, seed=7)), splits.test))


def test_a_damaged_checkpoint_is_refused_by_name(run_again, tmp_path):
    path = tmp_path / "work" / "anchor-b.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"anchor-b\.safetensors is no safetensors file or is"):
        run_again()


def test_too_few_images_for_a_batch_are_refused_naming_the_stage(run):
    few = in_memory(toy_images(16), toy_images(16))
    with pytest.raises(ValueError, match="anchor a: a batch of 32 is more than the 16 images"):
        run(splits=few)


def test_a_recipe_without_fine_tuning_ends_with_least_squares(run_again, recipe):
    result = run_again(replace(recipe, finetune=None))
    assert [step.finetuned for step in result.steps] == [None] * 9


def test_a_recipe_without_data_is_refused():
    with pytest.raises(ValueError, match="the recipe names no data set"):
        load_splits("none")


def test_the_toy_data_are_made_up_and_apart():
    splits = load_splits("toy")
    assert (len(splits.train), len(splits.test)) == (512, 256)
    assert splits.train.digest != splits.test.digest


def test_missing_data_are_refused_naming_the_folder(tmp_path):
    with pytest.raises(ArtifactError, match=rf"{tmp_path} has no train-images"):
        load_splits("fashion-mnist", tmp_path)


# --- fine-tuning -----------------------------------------------------------------------------

FINETUNING: dict[str, dict[str, Any]] = {
    "grouped": {"sampling": "grouped", "group_gap_gmacs": 1e-5, "topologies_per_step": 2},
    "low rank": {"rank": 2, "ema": 0.9, "clip": 1.0},
    "sgd": {"optimizer": "sgd", "stitch_rate": 10.0, "hard": True, "temperature": 2.0},
    "half": {"precision": "fp16", "mixup": 0.8, "cutmix": 1.0},
    "bfloat": {"precision": "bf16", "rank": 1, "distillation": 1.0},
}


@pytest.mark.parametrize("options", [pytest.param(o, id=name) for name, o in FINETUNING.items()])
def test_fine_tuning_resumes_at_any_step_to_the_same_weights(
    run_again, recipe, splits, tmp_path, monkeypatch, options
):
    """Killed before its first checkpoint as well, when all that is left are trained anchors."""
    monkeypatch.setattr(train, "CHECKPOINT_S", -1.0)
    other = replace(recipe, finetune=replace(recipe.finetune, **options))
    for name in ("anchor-a", "anchor-b"):
        (tmp_path / "work" / f"{name}.safetensors").unlink()
    (tmp_path / "work" / "fine-tuning.safetensors").unlink()
    whole = tmp_path / "whole"
    expected = calibrate(other, splits, whole, tmp_path / "whole.safetensors", device="cpu")
    for stop in (0, 1, 4):

        def progress(stage: str, done: int, total: int, stop: int = stop) -> None:
            if (stage, done) == ("fine-tuning", stop):
                raise Killed

        with pytest.raises(Killed):
            run_again(other, progress=progress)
    assert run_again(other) == expected
    names = load_network(tmp_path / "toy.safetensors", family=recipe.family).state_dict()
    assert not any("parametrizations" in name for name in names)


# --- groups of like cost -----------------------------------------------------------------------


def check_groups(family: Family, complexity: Complexity, gap: float) -> list[list[int]]:
    found = groups(family, complexity, gap)
    costs = [complexity.gmacs(family, topology) for topology in family.topologies]
    order = [index for group in found for index in group]
    assert sorted(order) == list(range(len(costs)))
    assert [costs[index] for index in order] == sorted(costs)
    for group in found:
        assert costs[group[-1]] - costs[group[0]] <= gap
    for one, following in pairwise(found):
        assert costs[following[0]] - costs[one[0]] > gap
    return found


@given(families(), st.data())
def test_groups_are_all_topologies_by_cost_and_no_wider_than_the_gap(family, data):
    atoms = sorted({atom for topology in family.topologies for atom in family.atoms(topology)})
    macs = data.draw(st.lists(st.integers(0, 10**10), min_size=len(atoms), max_size=len(atoms)))
    complexity = Complexity(
        family=family.name,
        family_digest=family.digest,
        atoms={a: AtomComplexity(macs=m, params=0) for a, m in zip(atoms, macs, strict=True)},
    )
    check_groups(family, complexity, data.draw(st.floats(1e-3, 50)))


def test_groups_of_sn_netv2_leave_its_anchors_alone():
    family = load_family("deit3-s-l").in_mode("reference")
    path = shipped("calibrate") / "deit3-s-l.reference.complexity.json"
    found = check_groups(family, load(Complexity, path), 1.0)
    assert [len(group) for group in found] == [1, *[12] * 11, 1]
    assert [family.topologies[group[0]].name for group in (found[0], found[-1])] == [
        "s:0:12",
        "l:0:24",
    ]


def test_grouped_sampling_draws_each_group_as_often(toy_network):
    family, complexity = toy_network.family, count(toy_network)
    found = groups(family, complexity, 1e-5)
    assert 1 < len(found) < len(family.topologies)
    session = object.__new__(_Session)
    object.__setattr__(session, "recipe", Recipe(family=family))
    training = Finetuning(epochs=1, sampling="grouped", group_gap_gmacs=1e-5)
    draw = session.sampler(training, complexity)
    random = torch.Generator().manual_seed(0)
    drawn = Counter(draw(random) for _ in range(4000))
    names = [topology.name for topology in family.topologies]
    for group in found:
        for index in group:
            share = 1 / len(found) / len(group)
            assert drawn[names[index]] / 4000 == pytest.approx(share, abs=0.03)


# --- images without labels -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def anchor_files(uninterrupted, recipe, tmp_path_factory):
    """The trained anchors under timm's names."""
    folder = tmp_path_factory.mktemp("anchors")
    network = load_network(uninterrupted[1])
    files = {}
    for anchor in recipe.family.anchors:
        model = build(anchor, recipe.family)
        state = model.state_dict()
        parts = take_apart(model)
        modules = {"stem": parts.stem, "head": parts.head}
        modules |= {str(index): block for index, block in enumerate(parts.blocks)}
        for name, module in modules.items():  # views: what they are given the model has
            module.load_state_dict(network.atoms[f"{anchor.name}:{name}"].state_dict())
        files[anchor.name] = folder / f"{anchor.name}.safetensors"
        save_file({name: tensor.clone() for name, tensor in state.items()}, files[anchor.name])
    return files


def unlabelled(number: int, seed: int, label: int) -> ArraySource:
    data = toy_images(number, seed=seed)
    return ArraySource(LabelledImages(data.images, np.full(number, label)))


@pytest.fixture
def without_labels(recipe, anchor_files, tmp_path):
    def run(label: int) -> tuple[Calibration, StitchNetwork]:
        other = replace(recipe, anchors={})
        splits = Splits(unlabelled(96, 0, label), unlabelled(32, 1, label))
        out = tmp_path / f"{label}.safetensors"
        work = tmp_path / str(label)
        result = calibrate(other, splits, work, out, weights=anchor_files, device="cpu")
        return result, load_network(out)

    return run


def test_without_labels_the_largest_anchor_judges(without_labels, anchor_files):
    result, network = without_labels(-1)
    assert result.judged_by == "b:0:3"
    assert {step.topology: step.alone for step in result.steps}["b:0:3"] == 100
    assert {step.topology: step.initialized for step in result.steps}["b:0:3"] == 100
    assert {name: weights.file for name, weights in result.weights.items()} == {
        name: path.name for name, path in anchor_files.items()
    }
    # The judge is that anchor as it was, not as fine-tuning left it.
    source = unlabelled(32, 1, -1)
    torch.manual_seed(0)
    before = build_network(network.family, weights=anchor_files)
    truth = predictions(before, "b:0:3", source)
    for step in result.steps:
        agreed = float((predictions(network, step.topology, source) == truth).float().mean())
        assert step.finetuned == pytest.approx(100 * agreed)


def test_no_label_is_looked_at(without_labels):
    (one, first), (other, second) = without_labels(-1), without_labels(-3)
    assert one.network == other.network
    assert one.steps == other.steps
    assert first.digest == second.digest


def test_training_anchors_without_labels_is_refused(run):
    with pytest.raises(ValueError, match=r"training anchor a needs labels, .* give a folder of"):
        run(splits=Splits(unlabelled(96, 0, -1), unlabelled(32, 1, -1)))


def test_fine_tuning_without_labels_and_teacher_is_refused(recipe, anchor_files, tmp_path):
    other = replace(recipe, anchors={}, finetune=replace(recipe.finetune, distillation=0.0))
    splits = Splits(unlabelled(96, 0, -1), unlabelled(32, 1, -1))
    out = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match="fine-tuning without distillation needs labels"):
        calibrate(other, splits, tmp_path, out, weights=anchor_files, device="cpu")


# --- a user's own images -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    """Colour images of four classes in folders, three of which cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for part, number in (("train", 64), ("val", 24)):
        for index in range(number):
            label = index % 4
            pixels = random.integers(0, 120, (32, 32, 3), np.uint8)
            pixels[16 * (label // 2) :, 16 * (label % 2) :][:16, :16] += 100
            path = folder / part / f"class{label}" / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    for name in ("train/class0/08.png", "val/class1/01.png", "val/class3/23.png"):
        (folder / name).write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def resnets(own_folder, tmp_path_factory):
    """A family of two tiny ResNets, calibrated on these images."""
    anchors = tuple(
        Anchor(
            name=name,
            model="resnet18",
            depth=6,
            stages=(1, 2, 2, 1),
            options={"layers": (1, 2, 2, 1), "channels": channels},
        )
        for name, channels in (("a", (8, 8, 16, 16)), ("b", (16, 16, 24, 32)))
    )
    family = Family(
        name="resnets",
        anchors=anchors,
        stitching=Stitching(rule="staged"),
        input_shape=(3, 32, 32),
        num_classes=4,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    training = Training(epochs=10, batch_size=16, learning_rate=1e-2)
    recipe = Recipe(
        family=family,
        anchors={"a": training, "b": training},
        initialize=Initialization(images=48),
        finetune=Finetuning(epochs=4, batch_size=16, learning_rate=2e-3, crop=0.8),
    )
    out = tmp_path_factory.mktemp("resnets") / "resnets.safetensors"
    splits = own_images(family, data=own_folder)
    result = calibrate(recipe, splits, out.parent / "work", out, device="cpu")
    return result, load_network(out, family=family), splits


def test_a_folder_of_images_calibrates_a_family_with_batch_normalisation(resnets):
    result, network, _ = resnets
    assert result.judged_by == "labels"
    assert result.network == network.digest
    anchors = [step.alone for step in result.steps if step.alone is not None]
    assert min(anchors) > 60  # of four classes, chance is 25
    stitched = [step.finetuned for step in result.steps if step.alone is None]
    assert sum(stitched) / len(stitched) > 50


def test_images_that_cannot_be_read_count_for_nothing(resnets):
    result, network, splits = resnets
    assert result.skipped == 3
    good = len(splits.test) - 2
    found = evaluate(network, splits.test)
    assert found.num_images == good
    for step, row in zip(result.steps, found.rows, strict=True):
        assert step.finetuned == pytest.approx(100 * row.correct / good)


def test_a_topology_with_statistics_of_its_own_is_no_worse(resnets):
    _, network, splits = resnets
    family = network.family

    def loss(module: torch.nn.Module) -> float:
        pixels, labels = splits.test.load(range(len(splits.test)))
        images = preprocess(pixels, mean=family.mean, std=family.std)
        with torch.inference_mode():
            return float(torch.nn.functional.cross_entropy(module(images), labels))

    pixels, _ = splits.train.load(range(len(splits.train)))
    batches = torch.split(preprocess(pixels, mean=family.mean, std=family.std), 32)
    before = network.digest
    stitched = [topology for topology in family.topologies if len(topology.runs) > 1]
    shared = [loss(network.assemble(topology)) for topology in stitched]
    own = [loss(reestimated(network.assemble(topology), batches)) for topology in stitched]
    assert network.digest == before
    assert all(value == value for value in own)
    assert sum(own) / len(own) < sum(shared) / len(shared)


# --- least squares ---------------------------------------------------------------------------


def normalized(family: Family, number: int = 64) -> torch.Tensor:
    pixels = torch.from_numpy(toy_images(number, seed=3).images)
    return preprocess(pixels, mean=family.mean, std=family.std)


def residuals(network: StitchNetwork, images: torch.Tensor) -> dict[str, float]:
    """Squared error of each stitching layer over all stitches that share it."""

    def entering(anchor: str, block: int) -> torch.Tensor:
        """Tokens that enter a block; the one after the last has what leaves the anchor."""
        names = [f"{anchor}:stem", *(f"{anchor}:{index}" for index in range(block))]
        tokens: torch.Tensor = network.chain(names)(images)
        return tokens

    with torch.inference_mode():
        return {
            name: sum(
                float(
                    (network.atoms[name](entering(s.front, s.stop)) - entering(s.back, s.start))
                    .double()
                    .square()
                    .sum()
                )
                for s in stitches
            )
            for name, stitches in network.family.stitches.items()
        }


def test_a_joint_solution_is_never_further_off_than_the_mean_of_solutions(toy_network):
    with torch.no_grad():  # blocks that do something: fresh ones are all but the identity
        for name, parameter in toy_network.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(8)
    images = normalized(toy_network.family)
    before = residuals(toy_network, images)
    initialize(toy_network, iter([images]), 64, "reference")
    reference = residuals(toy_network, images)
    initialize(toy_network, iter([images]), 64, "joint")
    joint = residuals(toy_network, images)
    for layer in toy_network.family.stitches:
        assert joint[layer] <= reference[layer] * (1 + 1e-5)
        assert joint[layer] < before[layer]
    assert any(joint[layer] < 0.999 * reference[layer] for layer in joint)


@pytest.mark.parametrize("batch_size", [1, 10, 48, 100])
@pytest.mark.parametrize("mode", ["joint", "reference"])
def test_the_size_of_batches_does_not_matter(toy_network, batch_size, mode):
    images = normalized(toy_network.family)
    initialize(toy_network, iter([images[:48]]), 48, mode)
    expected = {n: p.clone() for n, p in toy_network.state_dict().items()}
    initialize(toy_network, iter(torch.split(images, batch_size)), 48, mode)
    torch.testing.assert_close(toy_network.state_dict(), expected, rtol=1e-3, atol=1e-4)


def test_only_stitching_layers_are_set(toy_network):
    before = {name: tensor.clone() for name, tensor in toy_network.state_dict().items()}
    initialize(toy_network, iter([normalized(toy_network.family)]), 64)
    changed = {
        name.split(".")[1]
        for name, tensor in toy_network.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == set(toy_network.family.stitches)


# --- augmentation ----------------------------------------------------------------------------

PIXELS = torch.arange(1, 1 + 2 * 4 * 5, dtype=torch.uint8).view(1, 2, 4, 5)


def augmented(number: int = 400, **options: Any) -> torch.Tensor:
    """Many augmentations of one image without a black pixel."""
    random = torch.Generator().manual_seed(0)
    training = Training(epochs=1, **options)
    return augment(PIXELS.expand(number, -1, -1, -1), training, random)


def kinds(images: torch.Tensor) -> set[tuple[int, ...]]:
    return {tuple(image.flatten().tolist()) for image in images}


@given(
    st.integers(0, 100),
    st.booleans(),
    st.integers(0, 3),
    st.floats(0, 1),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 6), st.integers(2, 6)),
)
def test_augmenting_keeps_shape_and_type(seed, flip, shift, erase, shape):
    training = Training(epochs=1, flip=flip, shift=shift, erase=erase)
    images = torch.zeros(shape, dtype=torch.uint8)
    result = augment(images, training, torch.Generator().manual_seed(seed))
    assert (result.shape, result.dtype) == (images.shape, torch.uint8)


def test_without_augmentation_images_stay_as_they_are():
    assert kinds(augmented()) == kinds(PIXELS)


def test_a_flip_gives_the_image_and_its_mirror():
    assert kinds(augmented(flip=True)) == kinds(PIXELS) | kinds(PIXELS.flip(-1))


@pytest.mark.parametrize("shift", [1, 2])
def test_a_shift_gives_every_window_of_the_padded_image(shift):
    padded = torch.nn.functional.pad(PIXELS, (shift,) * 4)
    windows = padded.unfold(2, 4, 1).unfold(3, 5, 1).permute(2, 3, 0, 1, 4, 5).reshape(-1, 2, 4, 5)
    assert len(kinds(windows)) == (2 * shift + 1) ** 2
    assert kinds(augmented(shift=shift)) == kinds(windows)


def test_an_erasure_blanks_one_rectangle_of_all_channels():
    erased = augmented(erase=1.0) == 0
    assert torch.equal(erased[:, 0], erased[:, 1])
    for blank in erased[:, 0]:
        rows, columns = blank.any(1), blank.any(0)
        assert rows.any()
        assert torch.equal(blank, rows[:, None] & columns)


def test_an_erasure_happens_as_often_as_asked():
    erased = (augmented(erase=0.25, number=4000) == 0).flatten(1).any(1)
    assert float(erased.float().mean()) == pytest.approx(0.25, abs=0.03)


# --- learning rate ---------------------------------------------------------------------------


@st.composite
def trainings(draw: st.DrawFn) -> Training:
    epochs = draw(st.integers(2, 50))
    return Training(
        epochs=epochs,
        learning_rate=draw(st.floats(1e-4, 1.0)),
        warmup_epochs=draw(st.floats(0.1, epochs - 1)),
    )


@given(trainings())
def test_the_learning_rate_starts_and_ends_near_zero_and_peaks_after_the_warm_up(training):
    peak = training.learning_rate
    assert 0 < learning_rate(training, 0.0) <= 0.011 * peak
    assert learning_rate(training, training.warmup_epochs) == peak
    assert learning_rate(training, float(training.epochs)) == pytest.approx(0, abs=1e-9 * peak)


@given(trainings(), st.floats(0, 1), st.floats(0, 1))
def test_the_learning_rate_rises_then_falls_and_is_never_above_its_peak(training, one, other):
    earlier, later = sorted(training.epochs * share for share in (one, other))
    first, second = learning_rate(training, earlier), learning_rate(training, later)
    assert max(first, second) <= training.learning_rate
    if later < training.warmup_epochs:
        assert first <= second
    if earlier >= training.warmup_epochs:
        assert first >= second


def test_without_a_warm_up_it_starts_at_its_peak():
    training = Training(epochs=2, learning_rate=0.5, warmup_epochs=0.0)
    assert learning_rate(training, 0.0) == 0.5
