"""Families, their topologies and segments, and the recipes they are read from."""

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given

from edgestitch.errors import ArtifactError
from edgestitch.family import (
    Anchor,
    Family,
    normalized_range,
)
from edgestitch.recipe import load_family, load_recipe
from edgestitch.shipped import shipped
from edgestitch.topology import Topology
from tests.strategies import families

REFERENCE = Path(__file__).parent / "data" / "deit_topologies.json"


@pytest.fixture(scope="module")
def deit() -> Family:
    return load_family("deit-ti-s-b")


@pytest.fixture(scope="module")
def reference():
    return [
        (anchors, stitch) for anchors, stitch, *_ in json.loads(REFERENCE.read_text())["topologies"]
    ]


# --- topologies ------------------------------------------------------------------------------


def test_deit_has_the_topologies_of_the_reference_in_its_order(deit, reference):
    def name(anchors: list[int], stitch: list[int]) -> str:
        if not stitch:
            return f"{deit.anchors[anchors[0]].name}:0:12"
        front, back = (deit.anchors[index].name for index in anchors)
        i, k, _ = stitch
        return f"{front}:0:{i + 1}+{back}:{k}:12"

    assert [t.name for t in deit.topologies] == [name(*row) for row in reference]


def test_deit_shares_stitching_layers_as_the_reference_does(deit, reference):
    def layers(names: Iterable[object]) -> list[int]:
        """Each stitch's layer as the position of the first stitch that has it."""
        listed = list(names)
        return [listed.index(name) for name in listed]

    stitched = [topology for topology in deit.topologies if topology.stitches]
    ours = (next(a for a in deit.atoms(t) if "+" in a) for t in stitched)
    theirs = ((tuple(anchors), stitch[2]) for anchors, stitch in reference if stitch)
    assert layers(ours) == layers(theirs)


@given(families())
def test_every_topology_is_unique_and_known_by_its_name(family):
    names = [topology.name for topology in family.topologies]
    assert len(set(names)) == len(names)
    assert tuple(family.topology(name) for name in names) == family.topologies


@given(families())
def test_atoms_go_from_a_stem_over_contiguous_blocks_to_a_head(family):
    for topology in family.topologies:
        first, *inner, last = family.atoms(topology)
        assert first == f"{topology.runs[0].anchor}:stem"
        assert last == f"{topology.runs[-1].anchor}:head"
        blocks = [f"{r.anchor}:{b}" for r in topology.runs for b in range(r.start, r.stop)]
        assert [atom for atom in inner if "+" not in atom] == blocks
        assert len(inner) == len(blocks) + len(topology.stitches)


@given(families())
def test_a_stitching_layer_stands_where_its_stitch_is(family):
    for topology in family.topologies:
        atoms = family.atoms(topology)
        for stitch, (run, _) in zip(topology.stitches, pairwise(topology.runs), strict=True):
            layer = atoms[1 + run.stop - run.start]
            assert stitch in family.stitches[layer]


@given(families())
def test_every_stitch_has_one_layer_named_after_the_first_it_serves(family):
    served = [stitch for stitches in family.stitches.values() for stitch in stitches]
    assert len(set(served)) == len(served) == len(family.topologies) - len(family.anchors)
    assert all(layer == stitches[0].name for layer, stitches in family.stitches.items())


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("ti:0:13", "runs block 12 of ti, which deit-ti-s-b lacks: ti has blocks 0 to 11"),
        ("ti:0:6+s:5:13", "runs block 12 of s"),
        ("ti:1:12", "leaves blocks out: it must begin with block 0 of ti"),
        ("ti:0:11", "leaves blocks out: .* end with block 11 of ti"),
        ("ti:0:6+s:5:11", "leaves blocks out: .* end with block 11 of s"),
        ("ti:0:6+s:9:12", r"needs the stitch ti:6\+s:9, which deit-ti-s-b lacks"),
        ("s:0:6+ti:5:12", r"needs the stitch s:6\+ti:5"),
        ("ti:0:6+b:5:12", r"needs the stitch ti:6\+b:5"),
        ("ti:0:6+ti:6:12", r"needs the stitch ti:6\+ti:6"),
        ("ti:0:6+s:5:8+b:7:12", "has 2 stitches, topologies of deit-ti-s-b have one at most"),
        ("x:0:12", "deit-ti-s-b has no anchor 'x'; it has ti, s, b"),
        ("ti", "is no topology"),
    ],
)
def test_an_unknown_topology_is_refused_naming_what_is_wrong(deit, topology, message):
    with pytest.raises(ValueError, match=message):
        deit.topology(topology)


def test_atoms_of_an_unknown_topology_are_refused(deit):
    with pytest.raises(ValueError, match="leaves blocks out"):
        deit.atoms(Topology.parse("ti:1:12"))


def test_an_unknown_anchor_is_refused_naming_those_there_are(deit):
    with pytest.raises(ValueError, match="has no anchor 'l'; it has ti, s, b"):
        deit.anchor("l")


# --- recipes ---------------------------------------------------------------------------------

RECIPE = """
[family]
name = "mine"
input_shape = [1, 8, 8]
num_classes = 4
mean = [0.5]
std = [0.25]
anchors = [{ name = "a", model = "m", depth = 3 }, { name = "b", model = "m", depth = 3 }]
[anchors.a]
epochs = 3
"""


@pytest.fixture
def recipe_file(tmp_path):
    def write(text=RECIPE):
        path = tmp_path / "mine.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.mark.parametrize("path", sorted(shipped("calibrate").glob("*.toml")), ids=lambda p: p.stem)
def test_a_shipped_recipe_loads_under_its_family_name(path):
    family = load_recipe(path.stem).family
    assert family.name == path.stem
    assert family == load_recipe(path).family


def test_a_recipe_of_ones_own_loads_from_its_path(recipe_file):
    recipe = load_recipe(recipe_file())
    assert recipe.family.anchors[0] == Anchor(name="a", model="m", depth=3)
    assert recipe.anchors["a"].epochs == 3
    assert load_family(str(recipe_file())) == recipe.family


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_classes", "classes", r"unknown field `classes` - at `\$.family`"),
        ("epochs = 3", "epochs = 3\nlr = 1", r"unknown field `lr` - at `\$.anchors\[...\]`"),
        ("num_classes = 4", "", r"missing required field `num_classes` - at `\$.family`"),
        ("num_classes = 4", 'num_classes = "4"', r"got `str` - at `\$.family.num_classes`"),
        ("num_classes = 4", "num_classes = 0", r"`int` >= 1 - at `\$.family.num_classes`"),
        ("epochs = 3", "epochs = 3.5", r"got `float` - at `\$.anchors\[...\].epochs`"),
        ("[1, 8, 8]", "[8, 8]", r"length 3.* - at `\$.family.input_shape`"),
        ("std = [0.25]", "std = [0.0]", r"`float` > 0.* - at `\$.family.std\[0\]`"),
        ("mean = [0.5]", "mean = [0.5, 0.5]", r"mean \(2 values\).* - at `\$.family`"),
        ("std = [0.25]", "std = [0.5, 0.5]", r"std \(2\).* - at `\$.family`"),
        ('name = "b"', 'name = "a"', r"anchors need different names, found a, a - at `\$.family`"),
        ('name = "b"', 'name = "b:c"', r"regex.* - at `\$.family.anchors\[1\].name`"),
        ('name = "b"', r'name = "b\n"', r"regex.* - at `\$.family.anchors\[1\].name`"),
        ('name = "mine"', r'name = "mine\n"', r"regex.* - at `\$.family.name`"),
        (
            '"m", depth = 3 }]',
            '"m", depth = 4 }]',
            r"equal depth, found a 3, b 4; .* - at `\$.family`",
        ),
        ("[anchors.a]", "[anchors.c]", "mine has no anchor 'c'; it has a, b"),
    ],
)
def test_a_wrong_recipe_is_refused_naming_file_and_key(recipe_file, old, new, message):
    assert old in RECIPE
    path = recipe_file(RECIPE.replace(old, new))
    with pytest.raises(ArtifactError, match=rf"mine\.toml is no valid recipe: .*{message}"):
        load_recipe(path)


@pytest.mark.parametrize("text", ["[family", "a = ", b"\xff\xfe", b"\x00"])
def test_what_is_no_toml_is_refused_naming_the_file(recipe_file, text):
    with pytest.raises(ArtifactError, match=r"mine\.toml is no TOML file"):
        load_recipe(recipe_file(text))


def test_a_missing_recipe_is_refused_naming_the_file(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot read .*none\.toml: No such file"):
        load_recipe(tmp_path / "none.toml")


def test_an_unknown_family_is_refused_naming_the_shipped_ones():
    with pytest.raises(ArtifactError, match=r"no family 'deit'; shipped are deit-ti-s-b, .*\.toml"):
        load_family("deit")


def test_the_digest_of_a_family_changes_with_its_definition(recipe_file):
    first = load_family(recipe_file())
    again = load_family(recipe_file())
    other = load_family(recipe_file(RECIPE.replace("0.25", "0.5")))
    assert first.digest == again.digest != other.digest


def test_normalized_range_is_that_of_black_and_white(recipe_file):
    assert normalized_range(load_family(recipe_file())) == (-2.0, 2.0)
