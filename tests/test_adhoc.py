"""Families made up from timm's names of models, and what is said where they do not fit."""

import pytest

from edgestitch.adhoc import MOST_SUGGESTIONS, describe, look_at, misfit, short_names
from edgestitch.complexity import AtomComplexity, Complexity, check_order
from edgestitch.family import Anchor, Family
from edgestitch.network import build_network, count


def complexity_of(family: Family, macs: dict[str, int]) -> Complexity:
    """A complexity in which each atom of an anchor costs as said."""
    atoms = {a for topology in family.topologies for a in family.atoms(topology)}
    return Complexity(
        family=family.name,
        family_digest=family.digest,
        atoms={a: AtomComplexity(macs=macs[a.split(":")[0]], params=1) for a in atoms},
    )


# --- what fits -------------------------------------------------------------------------------


def test_plain_transformers_of_equal_depth_are_paired():
    family = describe(["vit_small_patch16_224", "vit_base_patch16_224"])
    assert family == Family(
        name="vit-small-base",
        anchors=(
            Anchor(name="small", model="vit_small_patch16_224", depth=12),
            Anchor(name="base", model="vit_base_patch16_224", depth=12),
        ),
        input_shape=(3, 224, 224),
        num_classes=1000,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    assert len(family.topologies) == 36


@pytest.mark.parametrize(
    ("models", "stages"),
    [
        (["deit3_small_patch16_224", "deit3_large_patch16_224"], [12, 24]),
        (["resnet18", "resnet50"], [(2, 2, 2, 2), (3, 4, 6, 3)]),
        (["resnet18", "swin_tiny_patch4_window7_224"], [(2, 2, 2, 2), (2, 2, 6, 2)]),
        (["levit_192", "levit_256"], [(4, 4, 4), (4, 4, 4)]),
    ],
)
def test_all_others_are_stitched_in_every_stage(models, stages):
    family = describe(models)
    assert (family.stitching.rule, family.stitching.stages) == ("staged", ())
    assert [anchor.stages or anchor.depth for anchor in family.anchors] == stages


def test_the_rule_can_be_chosen():
    models = ["deit3_small_patch16_224", "deit3_large_patch16_224"]
    assert len(describe(models, rule="two-way").topologies) == 134
    tiny = ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"]
    assert len(describe(tiny, window=3).topologies) == 111
    assert len(describe(tiny, window=2, stride=2).topologies) == 51
    assert len(describe(tiny, nearest=False).topologies) == 732


def test_a_family_without_a_recipe_is_counted_as_one_with():
    family = describe(["test_vit", "test_vit4"])
    assert family.stitching.rule == "staged"  # 6 and 9 blocks
    complexity = count(build_network(family))
    check_order(family, complexity)
    assert complexity.family_digest == family.digest


def test_convolutional_anchors_take_the_images_of_the_first():
    family = describe(["tf_efficientnet_lite0", "tf_efficientnet_lite1"])  # 240 by itself
    assert family.input_shape == (3, 224, 224)


def test_a_name_that_timm_replaced_is_the_new_one():
    family = describe(["deit3_small_patch16_224_in21ft1k", "deit3_base_patch16_224_in21ft1k"])
    assert family.anchors[0].model == "deit3_small_patch16_224.fb_in22k_ft_in1k"


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["vit_small_patch16_224.augreg_in1k", "vit_base_patch16_224"], ("small", "base")),
        (["resnet18", "resnet50.a1_in1k"], ("resnet18", "resnet50")),
        (["levit_192", "levit_256"], ("levit192", "levit256")),
        (["resnet18", "swin_tiny_patch4_window7_224"], ("resnet18", "swin")),
        (["resnet50.a1_in1k", "resnet50.tv_in1k"], ("a1", "a2")),
        (["vit_base_patch16_224", "vit_base_patch16_clip_224"], ("a1", "a2")),
    ],
)
def test_anchors_are_named_by_what_tells_them_apart(models, names):
    assert short_names(models) == names


# --- what does not ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "why"),
    [
        ("vit_smal_patch16_224,resnet18", "no model 'vit_smal_patch16_224'; close are vit_small_patch16"),
        ("zzz,resnet18", r"no model 'zzz'; timm.list_models\(\) lists its models"),
        ("vit_small_patch16_224.no,resnet18", "no weights 'vit_small_patch16_224.no'; it has vit_small"),
        ("resnet18,mixer_b16_224", "mixer_b16_224 cannot be an anchor: MlpMixer cannot be stitched"),
        ("vit_small_patch16_224,vit_base_patch16_384", r"images of \[3, 224, 224\] and \[3, 384, 384\]"),
        ("vit_small_patch16_224,vit_base_patch16_224.augreg_in21k", "know 1000 and 21843 classes"),
        ("vit_small_patch16_224,deit_base_patch16_224", r"normalised by mean \[0.5, .* and \[0.485"),
        ("vit_small_patch16_224,vit_base_patch32_224", "197 and 50 places, so their patch sizes"),
        ("vit_small_patch16_224,resnet18", "is a plain transformer without stages, resnet18 has 4"),
        ("resnet18,levit_192", "resnet18 has 4 stages, levit_192 has 3 stages"),
        ("resnet18,vit_small_patch14_dinov2", "has no classes: its weights are a backbone"),
        ("resnet18,resnet18", "resnet18 is given twice"),
        ("resnet18", "two anchors or more, got resnet18"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_reason(models, why):
    with pytest.raises(ValueError, match=why) as refused:
        describe(models.split(","))
    assert "\n" not in str(refused.value)


def test_a_refusal_names_models_that_would_fit():
    with pytest.raises(ValueError, match="with vit_small_patch16_224 would fit: ") as refused:
        describe(["vit_small_patch16_224", "vit_base_patch32_224"])
    suggested = str(refused.value).partition("would fit: ")[2].split(", ")
    assert "vit_base_patch16_224" in suggested
    assert len(suggested) <= MOST_SUGGESTIONS
    first = look_at("vit_small_patch16_224")
    assert all(misfit(first, look_at(model)) is None for model in suggested)


def test_where_no_model_can_be_taken_apart_some_that_can_are_named():
    with pytest.raises(ValueError, match="anchors can be vit_small_patch16_224, swin_tiny"):
        describe(["mixer_b16_224", "mixer_l16_224"])


# --- order -----------------------------------------------------------------------------------


def test_anchors_come_cheapest_first(toy_family):
    check_order(toy_family, complexity_of(toy_family, {"a": 10**8, "b": 10**8}))
    check_order(toy_family, complexity_of(toy_family, {"a": 10**8, "b": 2 * 10**8}))
    dear_first = complexity_of(toy_family, {"a": 2 * 10**8, "b": 10**8})
    with pytest.raises(
        ValueError,
        match=r"toy must come cheapest first, .* found a 1 GMACs, b 0.5 GMACs; write b, a",
    ):
        check_order(toy_family, dear_first)
