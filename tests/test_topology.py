"""Names of topologies, and the enumeration of stitches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestitch.family import Anchor, Family, Stitching
from edgestitch.rules import paired_layers
from edgestitch.topology import Run, Stitch, Topology
from tests.strategies import topologies

windows = st.integers(1, 9)


@given(topologies)
def test_a_name_reads_back_as_the_same_topology(topology):
    assert Topology.parse(topology.name) == topology


@given(st.text(alphabet="ab019:+", max_size=16))
def test_any_text_is_refused_or_is_the_one_name_of_a_topology(text):
    try:
        topology = Topology.parse(text)
    except ValueError:
        return
    assert topology.name == str(topology) == text


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("", ""),
        ("ti", "ti"),
        ("ti:0", "ti:0"),
        ("ti:0:12:3", "ti:0:12:3"),
        ("ti:5:5", "ti:5:5"),
        ("ti:6:5", "ti:6:5"),
        ("ti:-1:5", "ti:-1:5"),
        ("ti:00:12", "ti:00:12"),
        ("ti:0:012", "ti:0:012"),
        ("9:0:12", "9:0:12"),
        ("t-i:0:12", "t-i:0:12"),
        ("ti:0:6+", ""),
        ("+ti:0:6", ""),
        ("ti:0:6 + s:5:12", "ti:0:6 "),
        ("ti:0:12\n", r"ti:0:12\\n"),
        ("ti:0:1\u0662", "ti:0:1\u0662"),
        ("ti:0:6+s:5", "s:5"),
    ],
)
def test_a_bad_name_is_refused_naming_the_part_and_an_example(name, part):
    with pytest.raises(ValueError, match=rf"is no topology: '{part}' should be .* like ti:0:12 or"):
        Topology.parse(name)


def test_stitches_join_each_run_and_the_next():
    topology = Topology((Run("a", 0, 3), Run("b", 2, 5), Run("c", 4, 6)))
    assert topology.stitches == (Stitch("a", 3, "b", 2), Stitch("b", 5, "c", 4))
    assert [stitch.name for stitch in topology.stitches] == ["a:3+b:2", "b:5+c:4"]


@given(depth=st.integers(1, 16), window=windows, stride=windows)
def test_every_pair_inside_a_window_is_given_once(depth, window, stride):
    given_once = [pair for layer in paired_layers(depth, window, stride) for pair in layer]
    inside = {
        (i, k)
        for first in range(0, depth, stride)
        for i in range(first, min(first + window, depth))
        for k in range(first, min(first + window, depth))
    }
    assert sorted(given_once) == sorted(inside)


@given(depth=st.integers(1, 16), window=windows, stride=windows)
def test_no_layer_is_without_pairs_and_pairs_go_row_by_row(depth, window, stride):
    for layer in paired_layers(depth, window, stride):
        assert layer == tuple(sorted(layer)) != ()


# The reference's enumeration at depth 12 (research on the released code, `paired_stitching`).
@pytest.mark.parametrize(
    ("window", "stride", "layers", "configurations"),
    [
        (1, 1, 12, 27),
        (2, 1, 11, 71),
        (2, 2, 6, 51),
        (3, 1, 10, 111),
        (3, 3, 4, 75),
        (4, 1, 9, 147),
        (4, 4, 3, 99),
    ],
)
def test_three_anchors_of_twelve_blocks_give_the_reference_counts(
    window, stride, layers, configurations
):
    family = Family(
        name="three",
        anchors=tuple(Anchor(name=name, model="any", depth=12) for name in "abc"),
        stitching=Stitching(window=window, stride=stride),
        input_shape=(3, 224, 224),
        num_classes=1000,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    assert len(paired_layers(12, window, stride)) == layers
    assert len(family.stitches) == 2 * layers
    assert len(family.topologies) == len(set(family.topologies)) == configurations
