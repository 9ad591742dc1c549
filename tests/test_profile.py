"""Profiles: what a load is, what a deadline is held against, what may be compared."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given

from edgestitch.artifact import digest, load, save
from edgestitch.errors import MismatchError
from edgestitch.profile import (
    Attribution,
    Conditions,
    Cost,
    EnergyProtocol,
    Load,
    Profile,
    require_comparable,
    require_same_network,
)
from tests.strategies import certificates, composition, conditions, cost, loads, profile

DATA = Path(__file__).parent / "data"


# --- loads -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "text"),
    [
        (Load(), "back-to-back"),
        (Load(kind="paced", rate_hz=30.0), "paced at 30 Hz"),
        (Load(kind="paced", rate_hz=29.97), "paced at 29.97 Hz"),
        (Load(kind="after-idle", gap_ms=500.0), "after 500 ms idle"),
    ],
)
def test_a_load_reads_as_what_it_asks_for(load, text):
    assert str(load) == text


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"rate_hz": 30.0}, "a load back-to-back has no number, found"),
        ({"kind": "paced"}, "a load paced has rate_hz, found"),
        ({"kind": "paced", "gap_ms": 5.0}, "a load paced has rate_hz"),
        ({"kind": "paced", "rate_hz": 30.0, "gap_ms": 5.0}, "a load paced has rate_hz"),
        ({"kind": "after-idle", "rate_hz": 30.0}, "a load after-idle has gap_ms"),
    ],
)
def test_a_load_has_the_number_of_its_kind_and_no_other(fields, wanted):
    with pytest.raises(ValueError, match=wanted):
        Load(**fields)


@pytest.mark.parametrize("number", [0.0, -1.0, float("nan"), float("inf")])
def test_the_number_of_a_load_is_above_zero_and_finite(number):
    with pytest.raises(
        ValueError, match=f"rate_hz of a load must be above zero and below 1e6, not {number}"
    ):
        Load(kind="paced", rate_hz=number)
    with pytest.raises(ValueError, match="gap_ms of a load must be above zero"):
        Load(kind="after-idle", gap_ms=number)


@given(loads)
def test_a_load_that_was_stored_is_equal(load):
    assert msgspec.json.decode(msgspec.json.encode(load), type=Load) == load


def test_an_impossible_load_is_refused_where_it_is_read():
    with pytest.raises(msgspec.ValidationError, match="a load paced has rate_hz"):
        msgspec.json.decode('{"kind": "paced"}', type=Load)


# --- costs -----------------------------------------------------------------------------------


def test_a_deadline_is_held_against_the_best_bound_that_there_is():
    measured = cost("a:0:3", latency=1.0, bound=3.0)
    with_max = msgspec.structs.replace(measured, max_ms=9.0, latency_high_ms=1.1)
    assert with_max.bound_ms == 3.0
    few_samples = msgspec.structs.replace(with_max, p99_ms=None, p99_high_ms=None)
    assert few_samples.bound_ms == 9.0
    estimated = msgspec.structs.replace(few_samples, max_ms=None, origin="estimated")
    assert estimated.bound_ms == 1.1


def test_power_is_energy_over_time_where_energy_was_measured():
    assert cost("a:0:3", latency=2.0, energy=8.0).power_w == 4.0
    assert cost("a:0:3").power_w is None


def test_a_cost_says_where_it_is_from():
    fields = msgspec.to_builtins(cost("a:0:3"))
    del fields["origin"]
    with pytest.raises(msgspec.ValidationError, match="missing required field `origin`"):
        msgspec.convert(fields, type=Cost)
    with pytest.raises(msgspec.ValidationError, match="origin"):
        msgspec.convert({**fields, "origin": "guessed"}, type=Cost)


# --- conditions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "a CPU of 2 cores, eager fp32, batch 1"),
        (
            {"load": Load(kind="paced", rate_hz=30.0)},
            "a CPU of 2 cores, eager fp32, batch 1, paced at 30 Hz",
        ),
        (
            {"contention": "stress-ng --cpu 1"},
            "a CPU of 2 cores, eager fp32, batch 1, beside 'stress-ng --cpu 1'",
        ),
        (
            {"load": Load(kind="after-idle", gap_ms=20.0), "contention": "slam", "batch": 4},
            "a CPU of 2 cores, eager fp32, batch 4, after 20 ms idle, beside 'slam'",
        ),
    ],
)
def test_conditions_are_labelled_with_what_is_not_usual(changes, label):
    assert conditions(**changes).label == label


OTHERS: dict[str, object] = {
    "device": "jetson-orin-nano",
    "hardware": "another CPU",
    "module": "3767-0005",
    "power_mode": "15W",
    "backend": "openvino",
    "precision": "bf16",
    "batch": 4,
    "threads": 2,
    "load": Load(kind="paced", rate_hz=30.0),
    "contention": "slam",
}


def test_every_condition_is_compared():
    assert {*OTHERS, "versions"} == set(Conditions.__struct_fields__)


@pytest.mark.parametrize("field", sorted(OTHERS))
def test_what_differs_is_named_with_both_values(field):
    left = conditions()
    right = conditions(**{field: OTHERS[field]})
    message = (
        f"a and b do not belong together: {field} is {getattr(left, field)} and {OTHERS[field]}$"
    )
    with pytest.raises(MismatchError, match=message):
        require_comparable("a and b", left, right)
    with pytest.raises(MismatchError, match=f"{field} is {OTHERS[field]} and "):
        require_comparable("a and b", right, left)


def test_of_several_differences_the_first_is_named():
    with pytest.raises(MismatchError, match="backend is eager and openvino"):
        require_comparable("a and b", conditions(), conditions(backend="openvino", batch=4))


def test_a_version_is_compared_where_both_name_it():
    left = conditions(versions={"driver": "570", "eager": "2.8", "python": "3.10"})
    require_comparable("a and b", left, conditions(versions={"eager": "2.8", "python": "3.12"}))
    require_comparable("a and b", left, conditions(versions={}))
    with pytest.raises(MismatchError, match=r"version of driver is 570 and 580$"):
        require_comparable("a and b", left, conditions(versions={"driver": "580"}))
    with pytest.raises(MismatchError, match=r"version of eager is 2\.8 and 2\.9$"):
        require_comparable("a and b", left, conditions(versions={"eager": "2.9"}))


def test_what_measured_may_be_of_another_release():
    left = conditions(versions={"edgestitch": "0.1.0", "python": "3.10"})
    require_comparable("a and b", left, conditions(versions={"edgestitch": "0.2.0"}))
    one, other = (conditions(versions={"eager": v}) for v in ("2.8", "2.9"))
    with pytest.raises(MismatchError, match="version of eager is"):
        require_comparable("a and b", one, other)


def test_random_weights_go_with_any_network():
    require_same_network("a and b", "weights", "weights")
    require_same_network("a and b", None, "weights")
    require_same_network("a and b", "weights", None)
    require_same_network("a and b", None, None)
    with pytest.raises(MismatchError, match=r"a and b .*: network is weights and others$"):
        require_same_network("a and b", "weights", "others")


# --- energy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "error", "agree"),
    [
        (0.02, 0.03, True),
        (0.03, 0.03, True),
        (0.04, 0.03, False),
        (None, 0.03, None),
        (0.04, None, None),
        (None, None, None),
    ],
)
def test_two_methods_agree_if_their_errors_explain_the_difference(difference, error, agree):
    protocol = EnergyProtocol(
        scope="board",
        period_s=0.1,
        window_s=2.0,
        windows=2,
        idle_before_w=4.0,
        idle_after_w=None,
        precision=0.02,
        mixed_difference=difference,
        mixed_error=error,
    )
    assert protocol.methods_agree is agree


# --- profiles --------------------------------------------------------------------------------


def composed(topology: str) -> Cost:
    return msgspec.structs.replace(
        cost(topology, bound=2.0), p99_ms=None, max_ms=None, samples=0, origin="composed"
    )


def test_a_profile_counts_its_costs_by_origin():
    estimate = msgspec.structs.replace(composed("c:0:3"), p99_high_ms=None, origin="estimated")
    made = profile([cost("a:0:3"), composed("b:0:3"), composed("b:0:2")])
    assert (made.number("measured"), made.number("composed"), made.number("estimated")) == (1, 2, 0)
    assert not made.estimated
    assert profile([cost("a:0:3"), estimate]).estimated


@given(certificates, loads)
def test_a_profile_with_all_there_is_saves_and_loads_equal(tmp_path, certificate, load_):
    path = tmp_path / "p.json"
    value = msgspec.structs.replace(
        profile([cost("a:0:3"), composed("b:0:3")], network=None),
        conditions=conditions(load=load_, contention="slam"),
        composition=composition(certificate),
        attribution=Attribution(segments_ms={"a:stem": 0.5}, rest_ms=0.1, overhead=0.02),
        notes=("others used the device meanwhile",),
    )
    save(value, path)
    assert load(Profile, path) == value


def test_what_is_as_usual_is_left_out_of_the_file():
    plain = msgspec.to_builtins(profile([cost("a:0:3")]))
    optional = {"composition", "energy", "attribution", "before", "after", "notes"}
    assert not optional & set(plain)
    assert not {"load", "contention", "module"} & set(plain["conditions"])
    assert not {"late", "throttled", "clocks_mhz", "locked", "resumed"} & set(plain["protocol"])
    assert not {"dropped", "energy_low_mj", "energy_origin"} & set(plain["costs"][0])


def test_equal_profiles_have_equal_digests():
    plain = profile([cost("a:0:3")])
    same = msgspec.structs.replace(plain, conditions=conditions(load=Load()))
    assert same == plain
    assert digest(same) == digest(plain)
    paced = conditions(load=Load(kind="paced", rate_hz=30.0))
    assert digest(msgspec.structs.replace(plain, conditions=paced)) != digest(plain)


def test_a_profile_of_the_first_release_has_what_was_then_as_usual():
    value = load(Profile, DATA / "profile.v1.json")
    assert value.conditions.load == Load()
    assert value.number("measured") == len(value.costs)
    assert (value.composition, value.energy, value.notes) == (None, None, ())


def test_a_composed_cost_is_predicted_and_says_that_it_is():
    made = profile([cost("a:0:3"), composed("b:0:3")])
    assert made.predict("a:0:3").origin == "measured"
    assert made.predict("b:0:3").origin == "composed"
