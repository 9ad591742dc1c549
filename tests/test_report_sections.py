"""The sections of the report: where the time goes, sums against measurements, runs, switches."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edgestitch.compose import predict
from edgestitch.profile import Attribution
from edgestitch.recipe import load_family
from edgestitch.report import breakdown, render, timeline
from edgestitch.report.breakdown import break_down, composed_section
from edgestitch.report.switching import switches_section
from edgestitch.report.timeline import COLUMNS, MISSES, draw_run, timeline_section
from edgestitch.runlog import Frame, Reading, RunLog
from tests.reports import composed_profile, make_log, make_profile, make_switches

TOY = load_family("toy")
VIT = load_family("fashion-vit")
HOSTILE = "</script><b>x</b>"


# --- where the time goes ----------------------------------------------------------------------


def test_parts_of_a_topology_add_up_to_what_the_sum_predicts():
    profile = composed_profile()
    found = break_down(VIT, profile)
    assert not isinstance(found, str)
    assert set(found.parts) == {cost.topology for cost in profile.costs}
    for cost in profile.costs:
        total = sum(part.ms for part in found.parts[cost.topology])
        if cost.origin == "composed":
            assert total == pytest.approx(cost.latency_ms, rel=1e-9)
        assert total == pytest.approx(cost.latency_ms, rel=0.05)


def test_blocks_have_the_time_that_the_device_takes_for_them():
    """The simulated device takes 0.2 ms for a block of the first anchor, and 0.004 for its border."""
    found = break_down(VIT, composed_profile())
    assert not isinstance(found, str)
    first, second = VIT.anchors[0].name, VIT.anchors[1].name
    depth = VIT.anchors[0].depth
    parts = {part.label: part.ms for part in found.parts[VIT.whole(first).name]}
    assert parts[f"Blocks of {first}"] == pytest.approx(0.204 * depth, rel=0.03)
    parts = {part.label: part.ms for part in found.parts[VIT.whole(second).name]}
    assert parts[f"Blocks of {second}"] == pytest.approx(0.404 * depth, rel=0.03)


def test_what_cannot_be_told_apart_is_one_part():
    found = break_down(VIT, composed_profile())
    assert not isinstance(found, str)
    labels = {part.label for parts in found.parts.values() for part in parts}
    together = [label for label in labels if label.startswith("Call, ")]
    assert together
    assert all(re.search("stem of .* head of", label) for label in together)
    assert "cannot be told apart" in found.source


def test_without_marks_and_without_a_sum_the_parts_are_not_known():
    found = break_down(TOY, make_profile())
    assert "which part takes what is not known" in str(found)
    page = render(TOY, profile=make_profile())
    assert "which part takes what is not known" in page
    assert 'id="parts"' not in page


def test_estimates_have_no_parts():
    costs = tuple(replace(cost, origin="estimated") for cost in make_profile().costs)
    assert "not measured" in str(break_down(TOY, make_profile(costs=costs)))


def test_a_cut_of_others_is_not_taken_apart():
    found = break_down(VIT, replace(composed_profile(), segments=("s:stem",)))
    assert "cut otherwise" in str(found)


def test_costs_of_one_mode_are_taken_apart_beside_accuracies_of_the_other():
    """Published accuracies are of the authors' mode, in which final norms are atoms of their own."""
    family = load_family("deit-ti-s-b")
    found = break_down(family.in_mode("reference"), composed_profile("deit-ti-s-b"))
    assert not isinstance(found, str)
    assert "Blocks of s" in {part.label for part in found.parts["ti:0:6+s:6:12"]}


def test_marks_between_segments_are_taken_where_there_are_any():
    profile = make_profile()
    cut = breakdown._as_cut(TOY, replace(profile, segments=every_segment()))
    assert cut is not None
    marked = cut[1]["a:0:3"]
    attribution = Attribution(segments_ms=dict.fromkeys(marked, 0.25), rest_ms=0.1, overhead=0.02)
    profile = replace(profile, segments=every_segment(), attribution=attribution)
    found = break_down(TOY, profile)
    assert not isinstance(found, str)
    assert list(found.parts) == ["a:0:3"]  # all that was marked
    assert [part.label for part in found.parts["a:0:3"]] == [*marked, "Call"]
    assert "add 2.0 % to a call" in found.source


def every_segment() -> tuple[str, ...]:
    from edgestitch.cut import cut_topologies

    return tuple(cut_topologies(TOY, (topology.name for topology in TOY.topologies)).atoms)


# --- composed against measured ----------------------------------------------------------------


def test_every_measured_topology_stands_beside_its_sum_and_held_out_ones_are_marked():
    profile = composed_profile()
    assert profile.composition is not None
    content, drawn = composed_section(VIT, profile)
    fitted, held_out = drawn["Latency"]["groups"]
    assert set(fitted["ids"]) == set(profile.composition.designed)
    assert set(held_out["ids"]) == set(profile.composition.validated)
    assert content.count(">held out<") == 3 * len(profile.composition.validated)
    assert list(drawn) == ["Latency", "p99 bound", "Energy"]


def test_errors_are_those_of_the_sum():
    profile = composed_profile()
    composition = profile.composition
    assert composition is not None
    summed = breakdown._summed(VIT, profile, composition)
    assert summed is not None
    _, drawn = composed_section(VIT, profile)
    for group in drawn["Latency"]["groups"]:
        predicted = predict(summed.terms, composition.latency.costs, group["ids"])
        for name, error, composed in zip(group["ids"], group["y"], predicted, strict=True):
            measured_ms = profile.predict(name).latency_ms
            assert error == pytest.approx(100 * (composed / measured_ms - 1))


def test_without_a_sum_there_is_no_such_section():
    assert composed_section(TOY, make_profile()) == ("", None)


# --- timelines --------------------------------------------------------------------------------


def log_of(frames: Sequence[Frame], readings: Sequence[Reading] = ()) -> RunLog:
    return replace(make_log(1), frames=tuple(frames), readings=tuple(readings))


def frames_of(latencies: Sequence[float], *, budget_ms: float | None = 5.0) -> list[Frame]:
    return [
        Frame(time_s=0.02 * index, topology="a:0:3", latency_ms=x, budget_ms=budget_ms)
        for index, x in enumerate(latencies)
    ]


def test_a_short_run_is_drawn_frame_by_frame():
    log = make_log(400)
    drawn = draw_run(log)
    assert drawn["latency"]["y"] == pytest.approx([frame.latency_ms for frame in log.frames])
    late = [frame.time_s for frame in log.frames if frame.met is False]
    assert drawn["missed"]["x"] == pytest.approx(late)


@settings(max_examples=10)  # of thousands of frames each
@given(late=st.sets(st.integers(0, 4_999), max_size=500), slowest=st.integers(0, 4_999))
def test_a_miss_is_never_left_out(late, slowest):
    latencies = [9.0 if index in late else 1.0 for index in range(5_000)]
    latencies[slowest] = 20.0
    drawn = draw_run(log_of(frames_of(latencies)))
    assert drawn["missed"]["x"] == pytest.approx([0.02 * i for i in sorted({*late, slowest})])
    assert len(drawn["latency"]["x"]) <= 2 * COLUMNS + 4
    assert max(drawn["latency"]["y"]) == 20.0


def test_of_very_many_misses_each_column_says_how_many_it_stands_for():
    drawn = draw_run(log_of(frames_of([9.0 + index % 7 for index in range(20_000)])))
    assert len(drawn["missed"]["x"]) <= COLUMNS + 1
    assert sum(drawn["missed"]["number"]) == 20_000
    assert len(drawn["missed"]["x"]) < MISSES


def test_a_hundred_thousand_frames_make_a_small_page():
    log = make_log(100_000)
    page, without = render(logs=[log]), render(logs=[make_log(10)])
    assert len(page) - len(without) < 600_000


def test_the_deadline_is_a_step_at_every_change():
    drawn = draw_run(make_log(400))["budget_ms"]
    assert drawn["x"] == pytest.approx([0, 2, 4, 6, 8])
    assert drawn["y"] == [1.5, 4.0, 1.5, 4.0, 4.0]


def test_where_no_budget_was_there_is_no_line():
    drawn = draw_run(make_log(deadlines=False))
    assert drawn["budget_ms"] == {"x": [], "y": []}
    assert drawn["missed"]["x"] == []
    assert "none had a deadline" in timeline_section([make_log(deadlines=False)])[0]


def test_a_deadline_of_its_own_for_each_frame_is_thinned_as_well():
    frames = [
        Frame(time_s=i / 50, topology="a:0:3", latency_ms=1.0, budget_ms=2 + i % 11)
        for i in range(50_000)
    ]
    assert len(draw_run(log_of(frames))["budget_ms"]["x"]) <= 2 * COLUMNS + 4


@given(st.lists(st.sampled_from(["a:0:3", "b:0:3", "a:0:1+b:0:3"]), min_size=1, max_size=40))
def test_at_each_moment_the_topology_that_ran_is_drawn(names):
    frames = [Frame(time_s=float(i), topology=n, latency_ms=500.0) for i, n in enumerate(names)]
    lanes = draw_run(log_of(frames))["lanes"]
    for index, name in enumerate(names):
        moment = index + 0.25
        running = [
            lane["name"]
            for lane in lanes
            if any(start <= moment <= stop for start, stop in lane["spans"])
        ]
        assert running == [name]
    for lane in lanes:
        assert all(a[1] < b[0] for a, b in pairwise(lane["spans"]))


def test_topologies_in_turn_every_frame_are_few_spans():
    names = ["a:0:3", "b:0:3"] * 25_000
    frames = [Frame(time_s=i / 50, topology=n, latency_ms=1.0) for i, n in enumerate(names)]
    assert [len(lane["spans"]) for lane in draw_run(log_of(frames))["lanes"]] == [1, 1]


def test_power_temperature_and_throttling_are_drawn():
    drawn = draw_run(make_log(400))
    assert drawn["power"]["y"][:3] == [5.0, 6.0, 7.0]
    assert [sensor["name"] for sensor in drawn["temperatures"]] == ["cpu", "gpu"]
    assert drawn["throttle"] == [[2.0, 4.0, "thermal"]]
    assert drawn["budget_w"]["y"] == [9.0, 9.0]


def test_what_was_not_measured_has_no_panel_and_its_reason():
    log = replace(make_log(100), readings=(), power_reason="no <meter> here")
    content, (drawn,) = timeline_section([log])
    assert drawn["power"] == {"x": [], "y": []}
    assert drawn["temperatures"] == []
    assert "not measured: no &lt;meter&gt; here" in content
    assert "latency and deadline, topology. Latencies" in content


def test_what_ran_is_a_table_for_those_who_see_no_picture():
    content, _ = timeline_section([make_log(400)])
    assert "400 frames in 8.00 s; 8 of 400 deadlines missed (2.00 %)" in content
    row = re.search(r">a:0:3</th>(.*?)</tr>", content)
    assert row is not None
    cells = re.findall(r">([^<]+)</td>", row[1])
    assert cells[:2] == ["200", "50.0"]
    assert cells[-1] == "4"


def test_mean_power_is_over_time_not_over_readings():
    readings = [
        Reading(time_s=0.0, power_w=99.0),  # of what was before the first frame
        Reading(time_s=1.0, power_w=10.0),
        Reading(time_s=4.0, power_w=2.0),
    ]
    power = timeline._power(readings)
    assert power is not None
    assert (power.mean_w, power.energy_mj) == (4.0, 16_000.0)


def test_a_run_without_frames_is_said_to_be():
    content, drawn = timeline_section([log_of([])])
    assert drawn == []
    assert "has no frame in it" in content


def test_several_runs_have_a_heading_each():
    content, drawn = timeline_section([make_log(10), make_log(20)])
    assert content.count("<h3>") == 2
    assert [name in content for name in ("plot-run-0", "plot-run-1")] == [True, True]
    assert len(drawn) == 2


def test_hostile_names_in_a_run_are_text():
    page = render(logs=[replace(make_log(5), family=HOSTILE)])
    assert HOSTILE not in page


# --- switches ---------------------------------------------------------------------------------


def test_every_ordered_pair_is_a_cell_from_the_row_to_the_column():
    content = switches_section(make_switches())
    heat = content.partition("<details>")[0]
    row = re.search(r'<th scope="row" class="name">a:0:3</th>(.*?)</tr>', heat)
    assert row is not None
    assert re.findall(r">([\d.]+)<span", row[1]) == ["1.10", "1.50"]
    assert heat.count("--heat:") == 6
    assert heat.count("the same topology") == 3
    assert "at most 1.50 times as long as the tenth, from a:0:3 to b:0:3" in heat


def test_numbers_behind_the_colours_are_there():
    content = switches_section(make_switches())
    table = content.partition("<details>")[2]
    assert table.count('<th scope="row"') == 6
    assert "1.350 to 1.650" in table


def test_one_resident_topology_has_nothing_to_switch():
    assert "nothing to switch" in switches_section(make_switches(["a:0:3"]))


def test_no_matrix_is_no_section():
    empty: Any = switches_section(None)
    assert empty == ""
