"""Sums over atoms, what is counted, and how far a topology lies above the line of its anchors."""

from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgestitch import MismatchError, load_family
from edgestitch.artifact import digest, load
from edgestitch.catalog import overview, shipped_complexity
from edgestitch.complexity import AtomComplexity, Complexity, above_line
from edgestitch.network import build_network, count


@pytest.fixture(scope="module")
def deit():
    family = load_family("deit-ti-s-b")
    complexity = shipped_complexity(family)
    assert complexity is not None
    return family, complexity


@pytest.fixture(scope="module")
def both_ways():
    family = load_family("deit3-s-b")
    complexity = shipped_complexity(family)
    assert complexity is not None
    return family, complexity


@pytest.mark.parametrize("name", ["deit", "both_ways"])
@given(slope=st.floats(-5, 5), offset=st.floats(-50, 50))
def test_what_lies_on_a_line_is_not_above_it(request, name, slope, offset):
    family, complexity = request.getfixturevalue(name)
    top1 = {t.name: offset + slope * complexity.gmacs(family, t) for t in family.topologies}
    assert all(abs(p) < 1e-9 * 100 for p in above_line(family, complexity, top1).values())


@pytest.mark.parametrize("name", ["deit", "both_ways"])
def test_only_stitched_topologies_are_above_or_below(request, name):
    family, complexity = request.getfixturevalue(name)
    top1 = {t.name: 50.0 for t in family.topologies}
    stitched = {t.name for t in family.topologies} - {
        family.whole(a.name).name for a in family.anchors
    }
    assert set(above_line(family, complexity, top1)) == stitched


@pytest.mark.parametrize(
    "name", ["s:0:4+b:4:12", "b:0:4+s:4:12", "s:0:4+b:4:8+s:8:12", "b:0:4+s:4:8+b:8:12"]
)
def test_there_and_back_the_line_is_between_the_two_anchors(both_ways, name):
    family, complexity = both_ways
    x, low, high = (complexity.gmacs(family, t) for t in (name, "s:0:12", "b:0:12"))
    top1 = {t.name: 81.0 for t in family.topologies} | {"s:0:12": 80.0, "b:0:12": 84.0}
    expected = 81.0 - (80.0 + 4.0 * (x - low) / (high - low))
    assert above_line(family, complexity, top1)[name] == pytest.approx(expected)


def test_through_three_anchors_the_line_is_between_the_outer_two(deit):
    family, _ = deit
    chains = msgspec.structs.replace(
        family, stitching=msgspec.structs.replace(family.stitching, nearest=False)
    )
    cost = {"ti": 1, "s": 4, "b": 10}
    atoms = {
        atom: AtomComplexity(macs=cost[atom.partition(":")[0]] * 10**9, params=0)
        for topology in chains.topologies
        for atom in chains.atoms(topology)
    }
    complexity = Complexity(family=chains.name, family_digest=chains.digest, atoms=atoms)
    long = next(t for t in chains.topologies if len(t.runs) == 3)
    # The anchor between lies far above the line: only the outer two count.
    top1 = {t.name: 75.0 for t in chains.topologies} | {
        "ti:0:12": 72.0,
        "s:0:12": 99.0,
        "b:0:12": 82.0,
    }
    x, low, high = (complexity.gmacs(chains, t) for t in (long, "ti:0:12", "b:0:12"))
    expected = 75.0 - (72.0 + 10.0 * (x - low) / (high - low))
    assert above_line(chains, complexity, top1)[long.name] == pytest.approx(expected)


def test_the_complexity_of_another_family_is_refused_with_both(deit):
    _, complexity = deit
    other = msgspec.structs.replace(load_family("deit-ti-s-b"), num_classes=10)
    with pytest.raises(MismatchError, match="complexity was counted for deit-ti-s-b"):
        overview(other, complexity=complexity)


# --- what is counted -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    return counted("toy")


def counted(name: str) -> Complexity:
    with torch.random.fork_rng(devices=[]):
        return count(build_network(load_family(name)))


def test_a_transformer_block_has_the_operators_that_one_counts_by_hand(toy):
    block = toy.atoms["a:1"]
    # Norms, linear layers, additions, GELU; in attention the scaling of queries, two products, the
    # softmax, and the copy that puts the heads side by side.
    assert block.kernels == 2 + 4 + 2 + 1 + 1 + 2 + 1 + 1
    tokens, width, heads = 5, 8, 2
    norms = 2 * (tokens * width + 2 * tokens)  # each with mean and deviation of every token
    linear = tokens * width * (3 + 1 + 4 + 1)
    scores = 2 * heads * tokens * tokens  # before and after the softmax
    rest = tokens * width * (2 + 4 + 1 + 1 + 1)  # additions, GELU, scaled, mixed, copied
    assert block.activations == norms + linear + scores + rest


def test_operators_in_place_count_and_views_do_not():
    atoms = counted("fashion-resnet").atoms
    # Two convolutions, norms and ReLUs, one addition.
    assert atoms["r18:1"].kernels == 2 + 2 + 2 + 1


@pytest.mark.filterwarnings("ignore::FutureWarning")  # fvcore uses what torch will drop
def test_at_least_what_convolutions_and_products_write_is_counted(toy, toy_network, toy_family):
    from fvcore.nn import ActivationCountAnalysis

    x = torch.zeros(1, *toy_family.input_shape)
    for name, atom in toy_network.assemble("a:0:2+b:1:3").named_children():
        analysis = ActivationCountAnalysis(atom, x)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert 0 < analysis.total() <= toy.atoms[name].activations
        x = atom(x)


def test_the_counts_of_the_first_release_load_and_keep_their_digest():
    path = Path(__file__).parent / "data" / "complexity.v1.json"
    complexity = load(Complexity, path)
    assert {(a.activations, a.kernels) for a in complexity.atoms.values()} == {(None, None)}
    assert digest(complexity) == msgspec.json.decode(path.read_bytes())["digest"]
