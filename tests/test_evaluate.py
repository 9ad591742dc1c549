"""Top-1 of topologies: the shared walk counts what one topology after the other would."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestitch.accuracy import wilson
from edgestitch.data import LabelledImages, preprocess
from edgestitch.evaluate import count_correct, evaluate
from edgestitch.network import StitchNetwork


def correct_one_by_one(network: StitchNetwork, topology: str, data: LabelledImages) -> int:
    family = network.family
    images = preprocess(torch.from_numpy(data.images), mean=family.mean, std=family.std)
    with torch.inference_mode():
        guesses = network.assemble(topology)(images).argmax(1).numpy()
    return int((guesses == data.labels).sum())


@pytest.mark.parametrize("batch_size", [7, 64, 1000])
def test_the_count_is_that_of_one_topology_after_the_other(toy_network, toy_images, batch_size):
    names = [topology.name for topology in toy_network.family.topologies]
    counted = count_correct(toy_network, names, toy_images, batch_size=batch_size)
    one_by_one = {name: correct_one_by_one(toy_network, name, toy_images) for name in names}
    assert counted == one_by_one
    assert len(set(counted.values())) > 1


@settings(max_examples=10)
@given(st.data())
def test_any_subset_of_topologies_counts_as_among_all(toy_network, toy_images, data):
    names = [topology.name for topology in toy_network.family.topologies]
    some = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    counted = count_correct(toy_network, some, toy_images)
    assert counted == {name: correct_one_by_one(toy_network, name, toy_images) for name in some}


def test_an_evaluation_has_every_topology_with_its_conditions(toy_network, toy_images):
    accuracy = evaluate(toy_network, toy_images)
    assert [row.topology for row in accuracy.rows] == [
        t.name for t in toy_network.family.topologies
    ]
    assert (accuracy.family, accuracy.network) == ("toy", toy_network.digest)
    assert (accuracy.data, accuracy.num_images) == (toy_images.digest, 64)
    for row in accuracy.rows:
        assert row.top1 == 100 * row.correct / 64
        assert (row.low, row.high) == tuple(100 * end for end in wilson(row.correct, 64))


def test_an_evaluation_of_some_topologies_has_these(toy_network, toy_images):
    accuracy = evaluate(toy_network, toy_images, topologies=["b:0:3", "a:0:1+b:0:3"])
    assert [row.topology for row in accuracy.rows] == ["b:0:3", "a:0:1+b:0:3"]


def test_progress_goes_from_none_to_all(toy_network, toy_images):
    told = []
    evaluate(toy_network, toy_images, batch_size=30, progress=lambda *now: told.append(now))
    assert told == [(0, 64), (30, 64), (60, 64), (64, 64)]


def test_images_of_another_shape_are_refused_naming_both(toy_network):
    wide = LabelledImages(np.zeros((2, 1, 8, 9), np.uint8), np.zeros(2, np.int64))
    with pytest.raises(
        ValueError, match=r"toy takes images of \[1, 8, 8\], the data are \[1, 8, 9\]"
    ):
        evaluate(toy_network, wide)


def test_an_unknown_topology_is_refused(toy_network, toy_images):
    with pytest.raises(ValueError, match="needs the stitch b:1"):
        evaluate(toy_network, toy_images, topologies=["b:0:1+a:1:3"])


# --- interval --------------------------------------------------------------------------------


# Wilson's closed form; the first row is the textbook's 10 of 20, the last DeiT-B on ImageNet.
@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (10, 20, 0.2993, 0.7007),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
        (40967, 50000, 0.8159, 0.8227),
    ],
)
def test_the_interval_has_wilsons_values(correct, total, low, high):
    assert wilson(correct, total) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_contains_the_proportion_and_stays_in_range(observed):
    correct, total = observed
    low, high = wilson(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    assert low < high


@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_ten_times_the_images_give_a_narrower_interval(observed):
    correct, total = observed
    low, high = wilson(correct, total)
    narrow_low, narrow_high = wilson(10 * correct, 10 * total)
    assert narrow_high - narrow_low < high - low
