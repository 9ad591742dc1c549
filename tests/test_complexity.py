"""Sums over atoms, and how far a topology lies above the line between its anchors."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestitch import MismatchError, load_family
from edgestitch.catalog import overview, shipped_complexity
from edgestitch.complexity import above_line


@pytest.fixture(scope="module")
def deit():
    family = load_family("deit-ti-s-b")
    complexity = shipped_complexity(family)
    assert complexity is not None
    return family, complexity


@given(slope=st.floats(-5, 5), offset=st.floats(-50, 50))
def test_what_lies_on_a_line_is_not_above_it(deit, slope, offset):
    family, complexity = deit
    top1 = {t.name: offset + slope * complexity.gmacs(family, t) for t in family.topologies}
    assert all(abs(p) < 1e-9 * 100 for p in above_line(family, complexity, top1).values())


def test_only_stitched_topologies_are_above_or_below(deit):
    family, complexity = deit
    top1 = {t.name: 50.0 for t in family.topologies}
    assert set(above_line(family, complexity, top1)) == {
        t.name for t in family.topologies if len(t.runs) == 2
    }


def test_the_complexity_of_another_family_is_refused_with_both(deit):
    _, complexity = deit
    other = msgspec.structs.replace(load_family("deit-ti-s-b"), num_classes=10)
    with pytest.raises(MismatchError, match="complexity was counted for deit-ti-s-b"):
        overview(other, complexity=complexity)
