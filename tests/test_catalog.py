"""What is known of a family without computing anything."""

import subprocess
import sys

import msgspec
import pytest

from edgestitch import ArtifactError, MismatchError, load_family
from edgestitch.accuracy import Accuracy, accuracy_row
from edgestitch.artifact import digest
from edgestitch.catalog import (
    overview,
    require_accuracy,
    shipped_accuracy,
    shipped_complexity,
    shipped_peers,
)
from edgestitch.peers import Peer, Peers, outdone
from edgestitch.recipe import load_recipe
from edgestitch.shipped import shipped
from tests.strategies import accuracy, cost, profile

RECIPES = sorted(path.stem for path in shipped("calibrate").glob("*.toml"))


@pytest.fixture(scope="module")
def deit():
    family = load_family("deit-ti-s-b").in_mode("reference")
    return family, shipped_complexity(family), shipped_accuracy(family)


def published(family: str = "toy", **changes: object) -> Accuracy:
    """Accuracies of others: of weights and images that are not here."""
    value = Accuracy(
        family=family,
        origin="published",
        source="a paper",
        mode="reference",
        network=None,
        data=None,
        num_images=1000,
        rows=(accuracy_row("a:0:3", 600, 1000), accuracy_row("b:0:3", 700, 1000)),
    )
    return msgspec.structs.replace(value, **changes)


# --- the overview ----------------------------------------------------------------------------


def test_topologies_come_in_the_references_order_with_their_numbers(deit):
    family, complexity, known = deit
    table = overview(family, complexity=complexity, accuracy=known)
    assert (table.family, table.mode) == ("deit-ti-s-b", "reference")
    assert "published: github.com/ziplab/SN-Net" in (table.source or "")
    assert [entry.reference_id for entry in table.topologies] == list(range(71))
    third = table.topologies[3]
    assert (third.topology, third.top1, third.origin) == ("ti:0:1+s:0:12", 79.018, "published")
    assert third.gmacs == pytest.approx(4.696, abs=1e-3)
    assert third.params == 22_383_208


def test_the_second_versions_numbers_have_their_gap():
    family = load_family("deit3-s-l")
    numbers = [entry.reference_id for entry in overview(family).topologies]
    assert numbers == [number for number in range(135) if number != 13]


def test_a_topology_is_on_the_front_where_nothing_as_cheap_is_as_good(deit):
    family, complexity, known = deit
    entries = overview(family, complexity=complexity, accuracy=known).topologies
    points = {entry.topology: (entry.gmacs or 0, entry.top1 or 0) for entry in entries}
    for entry in entries:
        gmacs, top1 = points[entry.topology]
        beaten = any(
            x <= gmacs and y >= top1 for name, (x, y) in points.items() if name != entry.topology
        )
        assert entry.pareto == (not beaten)


def test_what_is_not_known_is_none(toy_family):
    table = overview(toy_family, accuracy=accuracy({"a:0:3": 61.0}))
    known, *others = table.topologies
    assert (known.top1, known.origin, known.gmacs, known.pareto) == (61.0, "measured", None, None)
    assert all((entry.top1, entry.origin, entry.pareto) == (None,) * 3 for entry in others)
    assert overview(toy_family).source is None


def test_the_source_says_where_accuracies_are_from_and_of_which_mode(toy_family):
    measured = accuracy({"a:0:3": 61.0})
    assert overview(toy_family, accuracy=measured).source == "measured on 1,000 images"
    source = overview(toy_family, accuracy=published()).source
    assert source == "published: a paper, of the reference network"
    reference = toy_family.in_mode("reference")
    assert overview(reference, accuracy=published()).source == "published: a paper"


def test_a_published_accuracy_is_joined_with_a_profile_of_any_weights(toy_family):
    known = profile([cost("a:0:3", latency=2.0)], network="somebody's own")
    (entry, *_) = overview(toy_family, accuracy=published(), profile=known).topologies
    assert (entry.top1, entry.latency_ms) == (60.0, 2.0)


def test_artifacts_of_others_are_refused(toy_family):
    with pytest.raises(MismatchError, match="family and accuracy do not belong together"):
        overview(toy_family, accuracy=published("deit"))
    with pytest.raises(
        MismatchError, match=r"profile and accuracy .* network is other and weights"
    ):
        overview(
            toy_family,
            accuracy=accuracy({"a:0:3": 61.0}),
            profile=profile([cost("a:0:3")], network="other"),
        )


# --- what ships ------------------------------------------------------------------------------


def test_each_mode_has_its_own_complexity():
    family = load_family("deit-ti-s-b")
    for mode in ("corrected", "reference"):
        found = shipped_complexity(family.in_mode(mode))
        assert found is not None
        assert found.family_digest == family.in_mode(mode).digest


def test_the_complexity_of_a_changed_recipe_does_not_ship():
    family = msgspec.structs.replace(load_family("deit-ti-s-b"), num_classes=10)
    assert shipped_complexity(family) is None


def test_accuracies_are_found_by_family_or_name():
    family = load_family("levit-192-256")
    assert shipped_accuracy(family) == shipped_accuracy("levit-192-256") is not None
    assert shipped_accuracy("deit3-s-b") is None


def test_where_no_accuracies_ship_those_that_do_are_named():
    with pytest.raises(
        ArtifactError, match=r"for 'toy', they do for .*swin-ti-s-b; `edgestitch eval"
    ):
        require_accuracy("toy")


def test_a_plan_of_other_accuracies_is_refused():
    found = require_accuracy("deit-ti-s-b")
    assert require_accuracy("deit-ti-s-b", of_plan=digest(found)) == found
    with pytest.raises(MismatchError, match="not made from the accuracies that ship"):
        require_accuracy("deit-ti-s-b", of_plan="0" * 64)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_family_is_shown_without_torch(name):
    code = (
        "import sys; from edgestitch.cli import main\n"
        f"sys.argv = ['edgestitch', 'show', {name!r}]\n"
        "main()\n"
        "assert not {'torch', 'timm', 'numpy', 'scipy.stats'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(load_recipe(name).family.topologies)} topologies" in done.stdout


# --- accuracies ------------------------------------------------------------------------------


def test_a_published_accuracy_names_its_source_and_a_measured_one_its_weights():
    with pytest.raises(ValueError, match="source is empty"):
        published(source="")
    with pytest.raises(ValueError, match="which network and data it is of"):
        published(origin="measured")


# --- networks of others ----------------------------------------------------------------------


def test_a_peer_is_outdone_by_what_is_as_good_and_costs_no_more():
    cheap, dear = (Peer(name=n, gmacs=g, params=1, top1=80.0) for n, g in (("a", 1.0), ("b", 4.0)))
    assert outdone([cheap, dear], [(2.0, 80.0), (0.5, 79.9)]) == (dear,)
    assert outdone([cheap, dear], [(1.0, 80.0)]) == (cheap, dear)
    assert outdone([cheap, dear], []) == ()


def test_peers_are_those_for_the_families_images(toy_family):
    peers = shipped_peers(load_family("deit-ti-s-b"))
    assert isinstance(peers, Peers)
    assert shipped_peers(toy_family) is None
    assert peers.stitched(toy_family) == ()
