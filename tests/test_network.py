"""Stitched networks: their anchors are timm's, their weights exist once, their files are checked."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import timm
import torch

from edgestitch import anchor as anchors
from edgestitch.artifact import load_tensors, save_tensors
from edgestitch.errors import ArtifactError, MismatchError
from edgestitch.family import Anchor, Family
from edgestitch.network import KIND, VERSION, build_network, count, load_network, save_network
from edgestitch.recipe import load_family
from edgestitch.topology import Topology

REFERENCE = Path(__file__).parent / "data" / "deit_topologies.json"
WIDTHS = {"ti": 192, "s": 384, "b": 768}


def tiny(
    model: str = "vit_tiny_patch16_224", conv_stem: tuple[int, ...] = (), **options: Any
) -> Anchor:
    """An anchor of two small blocks."""
    options = {"embed_dim": 16, "depth": 2, "num_heads": 2, **options}
    return Anchor(name="a", model=model, depth=2, conv_stem=conv_stem, options=options)


def family_of(*family_anchors: Anchor) -> Family:
    return Family(
        name="some",
        anchors=family_anchors,
        input_shape=(3, 32, 32),
        num_classes=5,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def some_images(family: Family, number: int = 2) -> torch.Tensor:
    return torch.randn(number, *family.input_shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def built(monkeypatch):
    """The timm models of every network that is built."""
    models = []
    original = anchors.build

    def build(*arguments, **options):
        models.append(original(*arguments, **options).eval())
        return models[-1]

    monkeypatch.setattr(anchors, "build", build)
    return models


@pytest.fixture
def saved(toy_network, tmp_path):
    path = tmp_path / "toy.safetensors"
    save_network(toy_network, path)
    return path


# --- anchors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "anchor",
    [
        pytest.param(Anchor(name="a", model="test_vit", depth=6), id="class-token"),
        pytest.param(Anchor(name="a", model="test_vit2", depth=8), id="register-average-pool"),
        pytest.param(Anchor(name="a", model="test_vit3", depth=9), id="register-attention-pool"),
        pytest.param(Anchor(name="a", model="test_vit4", depth=9), id="rms-norm"),
        pytest.param(tiny(no_embed_class=True, reg_tokens=3), id="no-embed-class"),
        pytest.param(tiny(pos_embed="none", pre_norm=True), id="no-position-pre-norm"),
        pytest.param(tiny("deit_tiny_distilled_patch16_224"), id="distilled"),
        pytest.param(tiny(conv_stem=(4, 8, 16)), id="convolutional-stem"),
    ],
)
def test_an_anchor_assembled_equals_timm_bit_for_bit(built, anchor):
    family = family_of(anchor)
    network = build_network(family)
    with torch.inference_mode():
        expected = built[0](some_images(family))
        assert expected.std() > 0
        assert torch.equal(network(some_images(family), family.topologies[0]), expected)


def test_each_anchor_of_a_family_equals_timm_bit_for_bit(built, toy_family):
    network = build_network(toy_family)
    with torch.inference_mode():
        for model, topology in zip(built, toy_family.topologies, strict=False):
            expected = model(some_images(toy_family))
            assert torch.equal(network(some_images(toy_family), topology), expected)


def test_every_parameter_of_an_anchor_is_in_its_topology_once(built, toy_family):
    network = build_network(toy_family)
    for model, topology in zip(built, toy_family.topologies, strict=False):
        ours = [p.data_ptr() for p in network.assemble(topology).parameters()]
        assert sorted(ours) == sorted(p.data_ptr() for p in model.parameters())


def test_a_model_that_cannot_be_taken_apart_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"MlpMixer cannot be stitched: .* VisionTransformer, Swin"
    ):
        anchors.take_apart(timm.create_model("mixer_s32_224"))


@pytest.mark.parametrize(
    ("anchor", "message"),
    [
        (
            Anchor(name="a", model="resnet18", depth=2),
            r"anchor a: the recipe says depth 2, resnet18 .* has stages \[2, 2, 2, 2\]",
        ),
        (Anchor(name="a", model="no_such_vit", depth=2), "anchor a: timm cannot make 'no_such_vit"),
        (tiny(embed_dim=15), "anchor a: timm cannot make 'vit_tiny_patch16_224' with .*15"),
        (tiny(no_such_option=1), "anchor a: timm cannot make .*no_such_option"),
        (tiny(depth=3), "anchor a: the recipe says depth 2, vit_tiny_patch16_224 .* has depth 3"),
    ],
)
def test_an_anchor_that_cannot_be_made_is_refused_saying_why(anchor, message):
    with pytest.raises(ValueError, match=message):
        build_network(family_of(anchor))


# --- topologies ------------------------------------------------------------------------------


def test_every_topology_gives_logits(toy_network, toy_family):
    with torch.inference_mode():
        for topology in toy_family.topologies:
            assert toy_network(some_images(toy_family), topology).shape == (2, 4)


def test_a_topology_is_its_atoms_in_order(toy_network, toy_family):
    for topology in toy_family.topologies:
        names = [name for name, _ in toy_network.assemble(topology).named_children()]
        assert tuple(names) == toy_family.atoms(topology)


def test_a_topology_is_assembled_by_value_or_name(toy_network):
    by_name = toy_network.assemble("a:0:2+b:1:3")
    by_value = toy_network.assemble(toy_network.family.topology("a:0:2+b:1:3"))
    assert list(by_name) == list(by_value)


def test_all_topologies_share_one_copy_of_the_weights(toy_network, toy_family):
    assembled = [toy_network.assemble(topology) for topology in toy_family.topologies]
    theirs = {p.data_ptr() for topology in assembled for p in topology.parameters()}
    ours = [p.data_ptr() for p in toy_network.parameters()]
    assert sorted(theirs) == sorted(ours)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("b:0:2+a:1:3", r"needs the stitch b:2\+a:1, which toy lacks"),
        ("a:1:3", "leaves blocks out"),
        ("a:0:4", "runs block 3 of a, which toy lacks"),
        ("c:0:3", "toy has no anchor 'c'"),
        ("a", "'a' is no topology"),
    ],
)
def test_an_unknown_topology_is_not_assembled(toy_network, topology, message):
    with pytest.raises(ValueError, match=message):
        toy_network.assemble(topology)


# --- files -----------------------------------------------------------------------------------


def test_a_loaded_network_equals_the_saved_one(toy_network, saved):
    loaded = load_network(saved)
    assert loaded.digest == toy_network.digest
    assert loaded.family == toy_network.family
    assert not loaded.training
    with torch.inference_mode():
        for topology in toy_network.family.topologies:
            images = some_images(toy_network.family)
            assert torch.equal(loaded(images, topology), toy_network(images, topology))


def test_the_file_says_which_weights_it_holds(toy_network, saved):
    metadata, _ = load_tensors(KIND, VERSION, saved)
    assert metadata["digest"] == toy_network.digest


def test_the_digest_changes_with_any_weight(toy_network):
    before = toy_network.digest
    with torch.no_grad():
        toy_network.atoms["b:head"].model.head.bias[0] += 1
    assert toy_network.digest != before


def test_a_network_of_another_family_is_refused_naming_both(saved, toy_family):
    other = msgspec.structs.replace(toy_family, name="other")
    with pytest.raises(ArtifactError, match=r"toy\.safetensors holds .* family toy .* but other"):
        load_network(saved, family=other)


def test_a_network_of_the_family_that_was_asked_for_loads(saved, toy_family):
    assert load_network(str(saved), family=toy_family).family == toy_family


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_network_cut_short_is_refused_by_name(saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ArtifactError, match=r"toy\.safetensors is no safetensors file or is cut"):
        load_network(saved)


def test_a_missing_network_is_refused_by_name(tmp_path):
    with pytest.raises(ArtifactError, match=r"no stitch network at .*none\.safetensors"):
        load_network(tmp_path / "none.safetensors")


def without_one(tensors):
    tensors.pop("atoms.a:0.attn.qkv.weight")


def with_one_more(tensors):
    tensors["surprise"] = np.zeros(1, np.float32)


def with_another_shape(tensors):
    tensors["atoms.a:1+b:0.weight"] = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    ("change", "tensor"),
    [
        (without_one, "a:0.attn.qkv.weight"),
        (with_one_more, "surprise"),
        (with_another_shape, r"a:1\+b:0.weight"),
    ],
)
def test_tensors_that_do_not_fit_the_family_are_refused_by_name(saved, change, tensor):
    metadata, tensors = load_tensors(KIND, VERSION, saved)
    change(tensors)
    save_tensors(KIND, VERSION, metadata, tensors, saved)
    message = rf"(?s)toy\.safetensors does not fit its own family toy: .*{tensor}"
    with pytest.raises(ArtifactError, match=message):
        load_network(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "field 'family' of its header: .* truncated"),
        ('{"name": "toy"}', "field 'family' of its header: .*`anchors`"),
        ('{"name": "toy", "mode": "other"}', "field 'family' of its header: Invalid enum"),
    ],
)
def test_a_header_that_cannot_be_read_is_refused_by_name(saved, text, message):
    metadata, tensors = load_tensors(KIND, VERSION, saved)
    save_tensors(KIND, VERSION, {**metadata, "family": text}, tensors, saved)
    with pytest.raises(ArtifactError, match=rf"toy\.safetensors: {message}"):
        load_network(saved)


# --- complexity ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")  # fvcore uses what torch will drop
def test_the_sum_over_atoms_is_what_fvcore_counts_on_the_whole(toy_network, toy_family):
    from fvcore.nn import FlopCountAnalysis

    complexity = count(toy_network)
    for module in toy_network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    for topology in toy_family.topologies:
        whole = toy_network.assemble(topology)
        analysis = FlopCountAnalysis(whole, some_images(toy_family, 1))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert round(1e9 * complexity.gmacs(toy_family, topology)) == analysis.total()
        params = sum(parameter.numel() for parameter in whole.parameters())
        assert complexity.params(toy_family, topology) == params


def test_counting_leaves_attention_as_it_was(toy_network):
    attention = [m for m in toy_network.modules() if hasattr(m, "fused_attn")]
    before = [module.fused_attn for module in attention]
    count(toy_network)
    assert len(before) == 6
    assert [module.fused_attn for module in attention] == before


def test_complexity_of_another_family_is_refused_naming_both(toy_network, toy_family):
    other = msgspec.structs.replace(toy_family, name="other")
    complexity = count(toy_network)
    complexity.check(toy_family)
    with pytest.raises(MismatchError, match=r"was counted for toy \(.*\), not for other"):
        complexity.check(other)


@pytest.fixture(scope="module")
def deit():
    """DeiT-Ti/S/B counted; its weights are whatever memory held, which counting does not mind."""
    with torch.device("meta"):
        network = build_network(load_family("deit-ti-s-b"))
    return network.family, count(network.to_empty(device="cpu"))


@pytest.fixture(scope="module")
def reference(deit):
    rows = json.loads(REFERENCE.read_text())["topologies"]
    return list(zip(deit[0].topologies, rows, strict=True))


# The released SN-Net skips the last anchor's final norm on stitched paths; ours applies it: five
# operations an element of 197 tokens, and a weight and a bias (research on the released code).
def final_norm(topology: Topology) -> int:
    return WIDTHS[topology.runs[-1].anchor] if topology.stitches else 0


def test_multiply_adds_of_deit_are_the_released_ones_and_the_final_norm(deit, reference):
    family, complexity = deit
    for topology, (*_, flops, _) in reference:
        ours = round(1e9 * complexity.gmacs(family, topology))
        assert ours == flops + 5 * 197 * final_norm(topology)


def test_parameters_of_deit_are_those_of_the_reference_and_the_final_norm(deit, reference):
    family, complexity = deit
    for topology, (*_, params) in reference:
        assert complexity.params(family, topology) == params + 2 * final_norm(topology)
