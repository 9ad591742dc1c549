"""Slices and programs: what was asked for and nothing else, equal to eager, whole or not there."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestitch import ArtifactError, CompileError, DeviceError, load_network
from edgestitch import cli as command_line
from edgestitch import export as exporting
from edgestitch.artifact import load, load_tensors, read, save_tensors, sha256
from edgestitch.backends.trt_compile import package
from edgestitch.catalog import shipped_network
from edgestitch.data import preprocess, shipped_images
from edgestitch.export import EXPORT, NETWORK, Export, conversions, export
from edgestitch.family import Anchor, Family, Mode, Stitching
from edgestitch.network import KIND, VERSION, StitchNetwork, build_network, save_network
from edgestitch.program import example_images
from edgestitch.recipe import load_family

TOY = tuple(topology.name for topology in load_family("toy").topologies)
KEPT = ("a:0:3", "a:0:2+b:1:3")


def outputs(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits of a program, as any user of torch opens it."""
    module = torch.export.load(path).module()
    logits: torch.Tensor = module(torch.from_numpy(images))
    return np.asarray(logits.detach())


def eager(network: StitchNetwork, topology: str, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(network.eval()(torch.from_numpy(images), topology))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A network, and an export of two of its topologies."""
    torch.manual_seed(0)
    network = build_network(load_family("toy"))
    out = tmp_path_factory.mktemp("toy") / "export"
    return network, export(network, KEPT, out), out


# --- programs --------------------------------------------------------------------------------


def pair(
    *models: str,
    stages: tuple[int, ...],
    options: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
    mode: Mode = "corrected",
) -> Family:
    """Two small anchors, of one model or two."""
    anchors = [
        Anchor(name=name, model=model, depth=sum(stages), stages=stages, options=own)
        for name, model, own in zip("ab", (models * 2)[:2], options, strict=True)
    ]
    return Family(
        name="pair",
        mode=mode,
        anchors=tuple(anchors),
        stitching=Stitching(rule="staged" if len(stages) > 1 else "paired"),
        input_shape=(3, 64, 64),
        num_classes=5,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def widths(name: str, *values: Any, **common: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of two anchors that differ in one."""
    first, second = ({name: value, **common} for value in values)
    return first, second


VIT = widths("embed_dim", 16, 32, num_heads=2, depth=2)
SWIN = widths("embed_dim", 8, 16, depths=(2, 2), num_heads=(1, 2), window_size=4)
LEVIT = widths("embed_dim", (16, 32), (32, 64), depth=(2, 2), num_heads=(2, 2), key_dim=8)
RESNET_SWIN = (
    {"channels": (8, 16, 24, 32)},
    {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 2), "window_size": 4},
)
RESNET = widths("channels", (8, 16, 24, 32), (16, 16, 32, 32))
CONVNEXT = widths("dims", (8, 16, 24, 32), (16, 16, 32, 32))
LITE, MOBILE = (1, 3, 3, 4, 4, 5, 1), (1, 2, 3, 2, 3, 1)
FAMILIES = {
    "vit": pair("vit_tiny_patch16_224", stages=(2,), options=VIT),
    "deit": pair("deit_tiny_distilled_patch16_224", stages=(2,), options=VIT, mode="reference"),
    "swin": pair("swin_tiny_patch4_window7_224", stages=(2, 2), options=SWIN),
    "swin-v2": pair("swinv2_tiny_window8_256", stages=(2, 2), options=SWIN),
    "levit": pair("levit_128s", stages=(2, 2), options=LEVIT),
    "levit-conv": pair("levit_conv_128s", stages=(2, 2), options=LEVIT),
    "resnet": pair("resnet18", stages=(2, 2, 2, 2), options=RESNET),
    "resnet-swin": pair(
        "resnet18", "swin_tiny_patch4_window7_224", stages=(2, 2, 2, 2), options=RESNET_SWIN
    ),
    "efficientnet": pair("tf_efficientnet_lite1", "tf_efficientnet_lite2", stages=LITE),
    "mobilenet-v3": pair("mobilenetv3_small_050", "mobilenetv3_small_075", stages=MOBILE),
    "convnext": pair("test_convnext", stages=(1, 2, 4, 2), options=CONVNEXT),
}


@pytest.mark.parametrize("family", [pytest.param(f, id=name) for name, f in FAMILIES.items()])
def test_every_architecture_exports_and_equals_eager(family, tmp_path):
    network = build_network(family)
    stitched = family.topologies[-1].name
    assert "+" in stitched
    result = export(network, [stitched], tmp_path / "export", batch=2)
    images = example_images(family, 2, seed=3)
    found = outputs(tmp_path / "export" / result.topologies[0].file, images)
    np.testing.assert_allclose(found, eager(network, stitched, images), rtol=0, atol=1e-5)


def test_a_program_says_what_eager_says_of_real_images(tmp_path):
    network = load_network(shipped_network("fashion-vit"))
    data, family = shipped_images(), network.family
    pixels = torch.from_numpy(data.images[:200])
    images = preprocess(pixels, mean=family.mean, std=family.std).numpy()
    names = ["s:0:6", "s:0:3+m:2:6"]
    result = export(network, names, tmp_path / "export", batch=50, images=images)
    for name, check in zip(names, result.checks, strict=True):
        path = tmp_path / "export" / f"{name}.pt2"
        found = np.concatenate([outputs(path, part) for part in np.split(images, 4)])
        np.testing.assert_allclose(found, eager(network, name, images), atol=1e-4)
        assert (check.images, check.top1_agreement) == (200, 1.0)
        assert (found.argmax(1) == data.labels[:200]).mean() > 0.8


def test_a_program_takes_its_batch_and_no_other(made):
    network, result, out = made
    assert result.input_shape == (1, *network.family.input_shape)
    with pytest.raises(Exception, match=r"size\(\)\[0\] == 1|equal to 1"):  # in torch's words
        outputs(out / "a:0:3.pt2", example_images(network.family, 2))


def test_a_program_needs_torch_alone(made):
    network, _, out = made
    code = (
        "import sys, torch\n"
        f"module = torch.export.load({str(out / 'a:0:3.pt2')!r}).module()\n"
        f"print(module(torch.zeros(1, *{network.family.input_shape})).shape)\n"
        "assert not {'edgestitch', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=out)
    assert done.returncode == 0, done.stderr
    assert f"[1, {network.family.num_classes}]" in done.stdout


def test_a_program_names_no_file_of_the_machine(made):
    _, result, out = made
    places = [str(Path(module).parent).encode() for module in (exporting.__file__, torch.__file__)]
    for one in result.topologies:
        content = read(out / one.file)
        assert all(content.find(place) < 0 for place in places)


# --- the slice -------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(TOY), min_size=1, max_size=4))
@settings(max_examples=15)
def test_a_slice_has_the_atoms_of_its_topologies_and_no_other(tmp_path_factory, names):
    torch.manual_seed(0)
    network = build_network(load_family("toy"))
    path = tmp_path_factory.mktemp("slice") / "slice.safetensors"
    digest = save_network(network.slice(names), path)
    loaded = load_network(path)
    assert loaded.digest == digest
    assert set(loaded.atoms) == {atom for name in names for atom in network.family.atoms(name)}
    assert [topology.name for topology in loaded.topologies] == list(dict.fromkeys(names))
    images = example_images(network.family, 2)
    for name in names:
        np.testing.assert_array_equal(eager(loaded, name, images), eager(network, name, images))


def test_the_exported_slice_loads_and_says_what_it_lacks(made):
    network, result, out = made
    loaded = load_network(out / NETWORK)
    assert loaded.digest == result.weights
    assert load_tensors(KIND, VERSION, out / NETWORK)[0]["whole"] == network.digest
    with pytest.raises(
        ValueError, match=r"b:0:3 was left out of this slice of toy, which has a:0:3"
    ):
        loaded.assemble("b:0:3")
    with pytest.raises(ValueError, match="toy lacks"):
        loaded.assemble("a:0:9")


def test_a_slice_shares_the_weights_and_can_be_sliced(toy_network):
    once = toy_network.slice(KEPT)
    twice = once.slice(["a:0:3"])
    assert [topology.name for topology in twice.topologies] == ["a:0:3"]
    assert twice.atoms["a:0"] is toy_network.atoms["a:0"]
    with pytest.raises(ValueError, match="left out"):
        twice.slice(KEPT)


def test_a_slice_of_nothing_is_refused(toy_network):
    with pytest.raises(ValueError, match="a slice needs a topology"):
        toy_network.slice([])


@pytest.mark.parametrize("names", ['["b:0:9"]', '["nonsense"]', "nonsense", "[3]"])
def test_a_header_with_other_topologies_is_refused(made, tmp_path, names):
    metadata, tensors = load_tensors(KIND, VERSION, made[2] / NETWORK)
    path = tmp_path / "slice.safetensors"
    save_tensors(KIND, VERSION, {**metadata, "topologies": names}, tensors, path)
    with pytest.raises(ArtifactError, match=r"slice\.safetensors"):
        load_network(path)


# --- the folder ------------------------------------------------------------------------------


def test_an_export_says_what_it_holds(made):
    network, result, out = made
    assert load(Export, out / EXPORT) == result
    assert result.network == network.digest
    assert tuple(one.topology for one in result.topologies) == KEPT
    assert set(result.files) | {EXPORT} == {path.name for path in out.iterdir()}
    assert all(sha256(read(out / name)) == digest for name, digest in result.files.items())
    assert (result.mean, result.std) == (network.family.mean, network.family.std)


def test_sizes_are_those_of_the_weights(made):
    network, result, _ = made
    atoms = {atom for name in KEPT for atom in network.family.atoms(name)}
    params = sum(p.numel() for atom in atoms for p in network.atoms[atom].parameters())
    assert result.slice.params == params < result.whole.params
    assert result.slice.num_bytes < result.whole.num_bytes
    assert result.whole.num_bytes == sum(array.nbytes for array in network.tensors().values())
    assert max(one.params for one in result.topologies) < params


@pytest.mark.parametrize("names", [[], ["c:0:3"], ["a:0:3", "a:0:9"], ["nonsense"]])
def test_what_cannot_be_sliced_leaves_nothing(toy_network, tmp_path, names):
    with pytest.raises(ValueError):  # noqa: PT011 (each says something else)
        export(toy_network, names, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_what_torch_cannot_export_leaves_nothing(toy_network, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no\nkernel")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(CompileError, match=r"torch\.export cannot export a:0:3: no kernel"):
        export(toy_network, ["a:0:3"], tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_computes_something_else_is_refused(toy_network, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_open", lambda path: lambda images: np.ones((1, 4), np.float32))
    with pytest.raises(CompileError, match=r"torch\.export fp32 is not equal to eager"):
        export(toy_network, ["a:0:3"], tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_an_older_export_is_replaced_and_stays_where_the_new_one_fails(toy_network, tmp_path):
    out = tmp_path / "export"
    export(toy_network, KEPT, out)
    older = export(toy_network, ["a:0:3"], out)
    assert {path.name for path in out.iterdir()} == {EXPORT, NETWORK, "a:0:3.pt2"}
    with pytest.raises(ValueError, match="nonsense"):
        export(toy_network, ["nonsense"], out)
    assert load(Export, out / EXPORT) == older
    assert list(tmp_path.iterdir()) == [out]


def test_another_folder_is_not_replaced(toy_network, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ArtifactError, match="mine exists and is no export"):
        export(toy_network, KEPT, tmp_path / "mine")


# --- the verb --------------------------------------------------------------------------------


def test_the_verb_writes_an_export_and_says_how_large_it_is(toy_network, tmp_path):
    save_network(toy_network, tmp_path / "toy.safetensors")
    words = ["export", f"{tmp_path}/toy.safetensors", "--topologies", ", ".join(KEPT)]
    words += ["--batch", "2", "--out", f"{tmp_path}/export"]
    done = CliRunner().invoke(command_line.cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = load(Export, tmp_path / "export" / EXPORT)
    assert result.input_shape[0] == 2
    assert "a:0:2+b:1:3.pt2" in done.output
    assert " parameters, 0." in done.output


@pytest.mark.skipif(package() != "tensorrt_rtx", reason="torch-tensorrt-rtx is not installed")
def test_topologies_are_found_to_convert_to_tensorrt_without_a_gpu(toy_network):
    names = ("a:0:3", "a:0:1+b:1:3")
    before = toy_network.digest
    found = conversions(toy_network, names)
    assert list(found) == list(names)
    for conversion in found.values():
        assert conversion.supported == conversion.ops > 0
        assert (conversion.unsupported, conversion.engines) == ((), 1)
        assert conversion.engine_bytes
    assert toy_network.digest == before


@pytest.mark.skipif(package() == "tensorrt_rtx", reason="torch-tensorrt-rtx is installed")
def test_without_tensorrt_what_to_install_is_said(toy_network):
    with pytest.raises(DeviceError, match=r"pip install 'edgestitch\[tensorrt-rtx\]'"):
        conversions(toy_network, ["a:0:3"])
