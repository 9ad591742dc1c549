"""The report: one page that loads nothing, and picks exactly what the scheduler picks."""

import json
import math
import re
import shutil
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edgestitch import report, schedule
from edgestitch.accuracy import Accuracy
from edgestitch.artifact import save
from edgestitch.baseline import honest
from edgestitch.catalog import shipped_accuracy, shipped_complexity, shipped_peers
from edgestitch.complexity import AtomComplexity, Complexity
from edgestitch.errors import ArtifactError, EdgestitchError, InfeasibleError, MismatchError
from edgestitch.peers import Peer, Peers
from edgestitch.profile import Certificate
from edgestitch.recipe import load_family
from edgestitch.report import RunRow, render, write_report
from edgestitch.schedule import Budget, Candidate, Plan, candidates
from edgestitch.shipped import shipped
from tests.reports import (
    FAMILY,
    HOSTILE,
    NETWORK,
    TOP1,
    chromium,
    make_accuracy,
    make_cost,
    make_log,
    make_profile,
    make_switches,
    make_zoo,
)
from tests.strategies import composition


@pytest.fixture(scope="module")
def accuracy():
    return make_accuracy()


@pytest.fixture(scope="module")
def profile():
    return make_profile()


@pytest.fixture(scope="module")
def plan(profile, accuracy):
    return schedule.plan(profile, accuracy, [Budget(latency_ms=x) for x in (1.8, 2.6, 5.0)])


@pytest.fixture(scope="module")
def complexity():
    atoms = {atom for topology in FAMILY.topologies for atom in FAMILY.atoms(topology)}
    sizes = {atom: 1000 * (1 + 3 * atom.startswith("b")) for atom in atoms}
    return Complexity(
        family="toy",
        family_digest=FAMILY.digest,
        atoms={atom: AtomComplexity(macs=9 * n, params=n) for atom, n in sizes.items()},
    )


@pytest.fixture(scope="module")
def peers():
    """Networks of others for the toy's images: a cheap one, a better one, and a topology of it."""
    rows = [("dear", 6e-5, 85.0, ""), ("better", 9e-5, 95.0, ""), ("a:0:3", 3e-5, 82.0, "toy")]
    return Peers(
        dataset="Toys",
        source="a page",
        input_shape=(1, 8, 8),
        num_classes=4,
        rows=tuple(Peer(name=n, gmacs=g, params=1, top1=t, family=f) for n, g, t, f in rows),
    )


def as_published(accuracy: Accuracy) -> Accuracy:
    """The same accuracies, of weights and images that are not here."""
    return replace(accuracy, origin="published", source="a paper", network=None, data=None)


@pytest.fixture(scope="module")
def run():
    return RunRow(
        budget=Budget(latency_ms=1.8),
        topologies={"a:0:2+b:2:3": 2000},
        frames=2000,
        median_ms=1.51,
        p99_ms=1.63,
        top1=84.3,
        top1_low=82.6,
        top1_high=85.8,
        hit_rate=0.9985,
        switch_us=41.0,
        first_ms=None,
    )


def embedded(page: str) -> Any:
    """The data that the page's script works with."""
    return json.loads(part(page, 'id="picture">', "</script>"))


def part(text: str, after: str, before: str) -> str:
    """What stands between two texts, each of which must be there."""
    _, found, rest = text.partition(after)
    assert found
    inside, found, _ = rest.partition(before)
    assert found
    return inside


def without_plotly(page: str) -> str:
    script = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    assert script in page
    return page.replace(script, "")


def page_pick(picks: list[dict[str, Any]], budget_ms: float) -> str | None:
    """What the page's script does: the last step at or below the budget."""
    step = bisect_right([pick["bound_ms"] for pick in picks], budget_ms)
    return str(picks[step - 1]["topology"]) if step else None


def scheduler_pick(choose: Callable[[Budget], Candidate], budget_ms: float) -> str | None:
    try:
        return choose(Budget(latency_ms=budget_ms)).topology
    except InfeasibleError:
        return None


def around(values: Sequence[float]) -> Iterator[float]:
    """Budgets at every value, the floats next to it, and between two values."""
    for value in values:
        yield from (math.nextafter(value, 0), value, math.nextafter(value, math.inf))
    yield from ((low + high) / 2 for low, high in pairwise(sorted(values)))
    yield from (min(values) / 2, 2 * max(values))


# --- what the page says ----------------------------------------------------------------------


def test_page_refers_to_nothing_outside_itself(profile, accuracy, plan, complexity):
    page = without_plotly(
        render(FAMILY, accuracy, profile=profile, plan=plan, complexity=complexity)
    )
    assert "http:" not in page
    assert "https:" not in page
    links = re.findall(r'(?:src|href|action)="([^"]*)"', page)
    assert [link for link in links if not link.startswith("#")] == ["data:,"]
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_page_has_no_marker_left(profile, accuracy):
    assert "{{" not in without_plotly(render(FAMILY, accuracy, profile=profile))


def test_hostile_text_is_text(accuracy, run):
    honest = make_profile()
    profile = make_profile(
        conditions=replace(
            honest.conditions, hardware=HOSTILE, power_mode=HOSTILE, versions={HOSTILE: HOSTILE}
        ),
        energy_reason=HOSTILE,
        date=HOSTILE,
        meter=HOSTILE,
        samples_digest=HOSTILE,
    )
    page = render(FAMILY, accuracy, profile=profile, runs=[replace(run, topologies={HOSTILE: 1})])
    assert page.count("</script>") == without_plotly(
        render(FAMILY, accuracy, profile=honest)
    ).count("</script>")
    assert "<b>{{title}}" not in page
    assert "&lt;/script&gt;&lt;b&gt;{{title}}&lt;/b&gt;" in page
    assert all("<script" not in point["hover"] for point in embedded(page)["points"])


@pytest.mark.parametrize("with_profile", [True, False])
def test_every_topology_is_in_the_table_and_in_the_picture(
    with_profile, accuracy, profile, complexity
):
    page = render(
        FAMILY, accuracy, profile=profile if with_profile else None, complexity=complexity
    )
    names = [topology.name for topology in FAMILY.topologies]
    table = part(page, 'id="topologies"', "</section>")
    rows = re.findall(r'<th scope="row" class="name">([^<]*)</th>', table)
    assert sorted(rows) == sorted(names)
    assert sorted(point["topology"] for point in embedded(page)["points"]) == sorted(names)


def test_table_is_sorted_by_latency_and_marks_the_front(accuracy, profile):
    page = part(render(FAMILY, accuracy, profile=profile), 'id="topologies"', "</section>")
    rows = re.findall(r'<tr class="([^"]*)"><th scope="row" class="name">([^<]*)</th>', page)
    by_median = sorted(profile.costs, key=lambda cost: cost.latency_ms)
    assert [name for _, name in rows] == [cost.topology for cost in by_median]
    front = schedule.pareto_front(candidates(profile, accuracy))
    assert [name for css, name in rows if "front" in css] == [c.topology for c in front]
    assert {name for css, name in rows if "anchor" in css} == {"a:0:3", "b:0:3"}


def test_without_a_profile_accuracy_stands_against_multiply_adds(accuracy, complexity):
    page = render(FAMILY, accuracy, complexity=complexity)
    data = embedded(page)
    assert [axis["key"] for axis in data["axes"]] == ["macs"]
    assert data["pools"] == {}
    assert "No latency was measured" in page
    assert "How it was measured" not in page


def test_without_complexity_there_are_latencies_only(accuracy, profile):
    axes = embedded(render(FAMILY, accuracy, profile=profile))["axes"]
    assert [axis["key"] for axis in axes] == ["bound", "median"]


def test_accuracies_alone_are_refused(accuracy, tmp_path):
    path = tmp_path / "report.html"
    with pytest.raises(ValueError, match=r"give a profile .* a complexity .* or a zoo"):
        write_report(path, FAMILY, accuracy)
    assert not path.exists()


def test_published_accuracies_are_said_to_be(accuracy, profile, complexity):
    page = render(FAMILY, as_published(accuracy), complexity=complexity)
    assert "with published accuracies on 400 images" in page
    assert "It was not measured here, but published: a paper." in page
    assert part(page, "<dt>Weights</dt><dd>", "</dd>").startswith("not here")
    page = render(FAMILY, as_published(accuracy), profile=profile, complexity=complexity)
    assert "not measured here, and not of the weights that were profiled, but published" in page
    assert part(page, "<dt>Weights</dt><dd>", "</dd>") == NETWORK


# --- multiply-adds ---------------------------------------------------------------------------


def test_the_second_picture_sets_accuracy_against_multiply_adds(accuracy, profile, complexity):
    page = render(FAMILY, accuracy, profile=profile, complexity=complexity)
    assert "<h2>Accuracy against multiply-adds</h2>" in page
    macs = embedded(page)["macs"]
    x = [1e6 * complexity.gmacs(FAMILY, topology) for topology in FAMILY.topologies]
    assert [scale["type"] for scale in macs["scales"]] == ["linear", "log"]
    for scale in macs["scales"]:
        assert 0 < scale["range"][0] < min(x)
        assert scale["range"][1] > max(x)
    assert macs["others"] == []


def test_without_multiply_adds_there_is_no_second_picture(accuracy, profile):
    page = render(FAMILY, accuracy, profile=profile)
    assert embedded(page)["macs"] is None
    assert 'id="plot-macs"' not in page


def test_without_latencies_there_is_no_first_picture(accuracy, profile, complexity):
    assert 'id="plot"' not in render(FAMILY, accuracy, complexity=complexity)
    page = render(FAMILY, accuracy, profile=profile, complexity=complexity)
    assert 'id="plot"' in page


def test_networks_of_others_are_beside_the_family(accuracy, complexity, peers):
    page = render(FAMILY, accuracy, complexity=complexity, peers=peers)
    assert "<h2>One network against 2</h2>" in page
    others, stitched = embedded(page)["macs"]["others"]
    assert others["name"] == "2 networks of timm"
    assert others["x"] == pytest.approx([60.0, 90.0])  # in kMACs, as the family's own
    assert others["y"] == [85.0, 95.0]
    assert others["hover"][0] == "<b>dear</b><br>Top-1 85.00 %<br>60.0 kMACs, 1 parameters"
    assert (stitched["name"], stitched["y"]) == ("another training", [82.0])
    assert embedded(page)["macs"]["top1_range"][1] > 95


def test_how_many_of_the_others_are_outdone_is_said(accuracy, complexity, peers):
    """The cheapest topology costs 45 kMACs and is 80 % accurate; 84 % take 99 kMACs."""
    page = render(FAMILY, make_accuracy((86.0, *TOP1[1:])), complexity=complexity, peers=peers)
    assert "A topology that needs no more multiply-adds equals or beats 1 of the 2 networks" in page
    assert "By another training of the family, the open circles: 0." in page
    assert "Toys; all of them as listed by a page." in page


def test_hostile_names_of_others_are_text(accuracy, complexity, peers):
    hostile = replace(peers, rows=(replace(peers.rows[0], name=HOSTILE),))
    page = render(FAMILY, accuracy, complexity=complexity, peers=hostile)
    assert "<script" not in embedded(page)["macs"]["others"][0]["hover"][0]


# --- latencies -------------------------------------------------------------------------------


def test_a_number_that_was_not_measured_is_given_with_its_reason(accuracy, profile):
    page = render(FAMILY, accuracy, profile=profile)
    assert "Energy not measured: no counter &lt;here&gt; &amp; now." in page
    assert "Energy (mJ)" not in page
    hover = embedded(page)["points"][0]["hover"]
    assert "Energy not measured: no counter &lt;here&gt; &amp; now" in hover


def test_energy_that_was_measured_is_in_table_and_hover(accuracy):
    costs = [replace(cost, energy_mj=12 * cost.latency_ms) for cost in make_profile().costs]
    page = render(
        FAMILY, accuracy, profile=make_profile(costs=tuple(costs), energy_reason=None, meter="rapl")
    )
    assert "Power (W)" in page
    assert "Energy 12.0 mJ, 12.0 W" in embedded(page)["points"][0]["hover"]
    assert "not measured" not in part(page, 'id="topologies"', "</section>")


def test_costs_that_were_not_measured_are_marked(accuracy):
    certificate = Certificate(
        held_out=2,
        median_error=0.011,
        p95_error=0.034,
        factor=1.05,
        spread=0.05,
        confidence=0.9,
        costs={"call": 1.0},
    )
    measured = make_profile().costs
    costs = [
        replace(cost, origin="composed", samples=0, p99_ms=None, max_ms=None)
        for cost in measured[2:]
    ]
    page = render(
        FAMILY,
        accuracy,
        profile=make_profile(costs=(*measured[:2], *costs), composition=composition(certificate)),
    )
    assert "7 of 9, as sums fitted to 1 measured ones; error on 2 others: median 1.1 %" in page
    topologies = part(page, 'id="topologies"', "</section>")
    assert topologies.count('<td class="number">composed</td>') == 7
    assert "fewer samples than a bound" not in page
    hovers = [point["hover"] for point in embedded(page)["points"]]
    assert sum("Composed, not measured; at most" in hover for hover in hovers) == 7


def test_estimates_are_said_to_be_none_of_them_measured(accuracy):
    costs = [replace(cost, origin="estimated", samples=0) for cost in make_profile().costs]
    page = render(FAMILY, accuracy, profile=make_profile(costs=tuple(costs)))
    assert "peaks: nothing was measured yet" in page


def test_a_bound_from_few_samples_is_said_to_be_the_largest_sample(accuracy):
    costs = [replace(cost, p99_ms=None, p99_high_ms=None) for cost in make_profile().costs]
    page = render(FAMILY, accuracy, profile=make_profile(costs=tuple(costs)))
    assert "9 topologies have fewer samples than a bound of the 99th percentile takes" in page
    assert (
        "Largest of 1\N{NO-BREAK SPACE}200 samples 2.00 ms" in embedded(page)["points"][0]["hover"]
    )


def test_a_topology_that_was_not_evaluated_is_said_to_be(accuracy, profile):
    page = render(FAMILY, replace(accuracy, rows=accuracy.rows[:-1]), profile=profile)
    assert page.count("not evaluated") == 1
    assert len(embedded(page)["points"]) == len(FAMILY.topologies) - 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steady": True}, "latencies had settled before the first sample"),
        ({"steady": False}, "latencies had not settled before the first sample"),
        ({"capped": True}, "by the time cap, before every topology met the stop rule"),
        ({"capped": False}, "when every topology met the stop rule"),
    ],
)
def test_whether_the_measurement_can_be_relied_on_is_said_in_words(accuracy, changes, words):
    protocol = replace(make_profile().protocol, **changes)
    assert words in render(FAMILY, accuracy, profile=make_profile(protocol=protocol))


def test_plan_and_run_are_tables(accuracy, profile, plan, run):
    page = render(FAMILY, accuracy, profile=profile, plan=plan, runs=[run])
    for choice in plan.choices:
        assert re.search(f">{choice.budget}</th><td[^>]*>{re.escape(choice.topology)}<", page)
    assert f"{plan.safety.topology} is the safety topology" in page
    cells = ("2\N{NO-BREAK SPACE}000", "1.51", "1.63", "99.85", "84.30", "82.60 to 85.80")
    row = part(page, ">1.80 ms</th>", "</tr>")
    assert re.findall(r">([^<]+)<", row) == [
        *("a:0:2+b:2:3", *cells, "41.0 \N{MICRO SIGN}s", "not measured")
    ]


def test_a_plan_without_budgets_says_from_where_each_topology_is_used(accuracy, profile):
    page = render(FAMILY, accuracy, profile=profile, plan=schedule.plan(profile, accuracy))
    assert ">from 1.13 ms</th>" in page


def test_artifacts_of_different_networks_are_refused(accuracy, profile, plan, complexity):
    other = replace(profile, network="0" * 64)
    with pytest.raises(MismatchError, match=r"profile and accuracy .* network is 0000"):
        render(FAMILY, accuracy, profile=other)
    with pytest.raises(MismatchError, match="plan and profile do not belong together"):
        render(FAMILY, accuracy, profile=replace(profile, date="later"), plan=plan)
    with pytest.raises(MismatchError, match="plan and accuracy do not belong together"):
        render(FAMILY, replace(accuracy, num_images=1), profile=profile, plan=plan)
    with pytest.raises(MismatchError, match="complexity was counted for"):
        render(FAMILY, accuracy, complexity=replace(complexity, family_digest="0" * 64))
    with pytest.raises(MismatchError, match="family and accuracy"):
        render(load_family("deit-ti-s-b"), accuracy, profile=profile)


def test_a_topology_of_another_family_is_refused(accuracy, profile):
    rows = (*accuracy.rows, replace(accuracy.rows[0], topology="c:0:12"))
    with pytest.raises(MismatchError, match=r"c:0:12 was measured, but toy has no such topology"):
        render(FAMILY, replace(accuracy, rows=rows), profile=profile)


# --- any mix of artifacts --------------------------------------------------------------------


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>([^<]*)</h2>", page)


def test_a_profile_alone_has_its_tables_and_no_accuracies(profile):
    page = render(FAMILY, profile=profile)
    assert headings(page) == [
        "Beside individually trained networks",
        "Where the time goes",
        "Topologies",
        "How it was measured",
        "Made from",
    ]
    assert "Top-1" not in part(page, 'id="topologies"', "</section>")
    assert "No accuracy is known here" in page
    assert embedded(page)["points"] == []


def test_a_plan_needs_no_profile_beside_its_accuracies(accuracy, plan):
    page = render(FAMILY, accuracy, plan=plan)
    assert "Plan" in headings(page)
    assert embedded(page)["pools"] == {}


def test_runs_and_switches_alone_need_no_family():
    page = render(logs=[make_log(), make_log(100)], switches=make_switches())
    assert headings(page) == ["Timeline of a run", "Switches", "Made from"]
    assert "<h1>toy</h1>" in page
    assert "2 runs of 500 frames; 6 switches between resident topologies." in page


def test_a_zoo_alone_is_drawn_in_milliseconds(profile):
    page = render(zoo=make_zoo(profile))
    assert headings(page) == ["Accuracy against cost", "Individually trained networks", "Made from"]
    data = embedded(page)
    assert [axis["key"] for axis in data["axes"]] == ["bound", "median", "macs"]
    assert data["zoo"]["x"]["median"] == [1.9, 40.0]
    assert "Scatter plot of 2 networks of timm, measured here" in page
    assert "no such model" in part(page, 'id="zoo"', "</section>")


def test_a_zoo_is_drawn_beside_the_family_and_what_is_out_of_the_picture_is_counted(
    accuracy, profile
):
    data = embedded(render(FAMILY, accuracy, profile=profile, zoo=make_zoo(profile)))
    assert data["zoo"]["name"] == "2 networks of timm, measured here"
    assert [axis["outside"] for axis in data["axes"]] == [1, 1]
    assert data["axes"][0]["top1_range"][1] > 92.0  # the one in the picture


def test_a_zoo_has_its_latencies_beside_accuracies_without_a_profile(accuracy, profile, complexity):
    page = render(FAMILY, accuracy, complexity=complexity, zoo=make_zoo(profile))
    data = embedded(page)
    assert [axis["key"] for axis in data["axes"]] == ["bound", "median", "macs"]
    assert "Scatter plot of 2 networks of timm, measured here" in page
    assert "No latency was measured" in page


def test_energy_is_an_axis_where_it_was_measured(accuracy):
    costs = [replace(cost, energy_mj=12 * cost.latency_ms) for cost in make_profile().costs]
    profile = make_profile(costs=tuple(costs), energy_reason=None, meter="rapl")
    axes = embedded(render(FAMILY, accuracy, profile=profile))["axes"]
    assert [axis["key"] for axis in axes] == ["bound", "median", "energy"]
    assert axes[2]["title"] == "Energy of one inference (mJ)"


def test_an_empty_profile_is_refused(accuracy, profile):
    with pytest.raises(ArtifactError, match=r"profile of toy on Toy CPU.* has no topology in it"):
        render(FAMILY, accuracy, profile=replace(profile, costs=()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logs": [make_log(network="0" * 64)]}, "run log and accuracy .* network is 0000"),
        ({"switches": replace(make_switches(), network="0" * 64)}, "switches and accuracy"),
        ({"zoo": make_zoo(make_profile(), classes=1000)}, "number of classes is 4 and 1000"),
        (
            {"zoo": replace(make_zoo(make_profile()), conditions=make_log().conditions)},
            "hardware is",
        ),
    ],
)
def test_artifacts_of_another_network_or_device_are_refused(accuracy, profile, changes, message):
    with pytest.raises(MismatchError, match=message):
        render(FAMILY, accuracy, profile=profile, **changes)


def test_a_run_is_compared_with_a_profile_without_accuracies(profile):
    with pytest.raises(MismatchError, match=r"run log and profile .* network"):
        render(FAMILY, profile=profile, logs=[make_log(network="0" * 64)])


def test_what_is_of_a_family_needs_it(accuracy, profile):
    with pytest.raises(ValueError, match="are of a family: pass it as well"):
        render(accuracy=accuracy, profile=profile)


# --- from files ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, accuracy, profile, plan):
    """Artifacts of every kind, and one that a report makes nothing of."""
    save(accuracy, tmp_path / "accuracy.json")
    save(profile, tmp_path / "profile.json")
    save(plan, tmp_path / "plan.json")
    save(make_zoo(profile), tmp_path / "zoo.json")
    save(make_log(), tmp_path / "run.json")
    save(make_log(50), tmp_path / "run-2.json")
    save(make_switches(), tmp_path / "switches.json")
    shutil.copy(
        shipped("calibrate") / "fashion-vit.calibration.json", tmp_path / "calibration.json"
    )
    return tmp_path


def test_artifacts_are_recognised_by_their_kind_in_any_order(folder, accuracy, profile, plan):
    out = folder / "report.html"
    left_out = report.report_files(out, sorted(folder.glob("*.json"), reverse=True))
    assert left_out == (f"{folder}/calibration.json (calibration)",)
    page = out.read_text(encoding="utf-8")
    made = {
        "profile": profile,
        "plan": plan,
        "zoo": make_zoo(profile),
        "logs": [make_log(), make_log(50)],
        "switches": make_switches(),
    }
    assert page == render(FAMILY, accuracy, complexity=shipped_complexity(FAMILY), **made)
    assert len(embedded(page)["runs"]) == 2


def test_two_files_of_which_one_is_needed_are_refused(folder):
    shutil.copy(folder / "plan.json", folder / "plan-2.json")
    with pytest.raises(MismatchError, match=r"plan-2.json and .*plan.json both hold 'plan'"):
        report.report_files(folder / "r.html", [folder / "plan-2.json", folder / "plan.json"])


def test_a_file_under_the_name_of_another_kind_is_refused(folder):
    named = [("profile", folder / "plan.json")]
    with pytest.raises(ArtifactError, match="holds 'plan', but 'profile' was asked for"):
        report.report_files(folder / "r.html", [], named=named)


def test_an_old_version_of_a_file_is_refused(folder):
    old = json.loads((folder / "profile.json").read_text())
    (folder / "profile.json").write_text(json.dumps({**old, "version": 0}))
    with pytest.raises(
        ArtifactError, match=r"profile of version 0, this edgestitch reads version 1"
    ):
        report.report_files(folder / "r.html", [folder / "profile.json"])


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"version": 1}'])
def test_what_is_no_artifact_is_refused_by_name(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"x.json is no edgestitch artifact or is cut short"):
        report.report_files(tmp_path / "r.html", [tmp_path / "x.json"])


def test_nothing_but_other_artifacts_is_refused(folder):
    with pytest.raises(
        ArtifactError, match=r"makes nothing of .*\(calibration\); it takes accuracy"
    ):
        report.report_files(folder / "r.html", [folder / "calibration.json"])


def test_a_named_family_brings_its_accuracies_where_they_are_of_that_network(tmp_path):
    family = load_family("fashion-vit")
    names = [topology.name for topology in family.topologies]
    medians = [1.0 + 0.1 * index for index in range(len(names))]
    costs = tuple(make_cost(name, x) for name, x in zip(names, medians, strict=True))
    for network, known in ((None, True), (NETWORK, False)):
        save(
            make_profile(family="fashion-vit", network=network, costs=costs),
            tmp_path / "profile.json",
        )
        report.report_files(tmp_path / "r.html", [tmp_path / "profile.json"], family="fashion-vit")
        assert bool(embedded((tmp_path / "r.html").read_text())["points"]) == known


# --- the honest baseline ---------------------------------------------------------------------


def test_each_budget_has_individually_trained_networks_beside_it(accuracy, profile, plan):
    page = render(FAMILY, accuracy, profile=profile, plan=plan, zoo=make_zoo(profile))
    rows = part(page, 'id="individuals"', "</section>")
    for one in honest(profile, accuracy, plan, zoo=make_zoo(profile), family=FAMILY):
        assert one.says in rows
        assert one.best is None or one.best.name in rows
    assert rows.count('scope="rowgroup"') == len(plan.choices)
    assert "WORSE" in rows  # 'better' is faster and more accurate than what fits 2.6 ms
    assert 'class="worse"' in rows


def test_without_a_zoo_the_anchors_alone_are_beside_it(accuracy, profile, plan):
    rows = part(
        render(FAMILY, accuracy, profile=profile, plan=plan), 'id="individuals"', "</section>"
    )
    assert "Beside ours stand the family's own anchors alone" in rows.replace("&#x27;", "'")
    assert "a:0:3 alone" in rows


def test_without_a_plan_the_budgets_are_those_of_the_front(accuracy, profile):
    rows = part(render(FAMILY, accuracy, profile=profile), 'id="individuals"', "</section>")
    assert 2 <= rows.count('scope="rowgroup"') <= 6


def test_the_section_is_there_where_nothing_was_measured(accuracy, complexity):
    page = render(FAMILY, accuracy, complexity=complexity)
    assert "give both an accuracy and a profile" in part(page, 'id="individuals"', "</section>")


def test_page_is_written_whole_or_not_at_all(accuracy, profile, tmp_path):
    path = tmp_path / "made" / "report.html"
    write_report(path, FAMILY, accuracy, profile=profile)
    assert path.read_text(encoding="utf-8") == render(FAMILY, accuracy, profile=profile)
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ArtifactError, match="cannot write"):
        write_report(path / "below-a-file.html", FAMILY, accuracy, profile=profile)


def test_missing_library_is_named(accuracy, profile, monkeypatch):
    def absent(package):
        if package == "plotly":
            raise ModuleNotFoundError("No module named 'plotly'")
        return files(package)

    monkeypatch.setattr(report, "files", absent)
    with pytest.raises(EdgestitchError, match=r"No module named 'plotly'.*pip install 'plotly>=6'"):
        render(FAMILY, accuracy, profile=profile)


def test_report_imports_neither_torch_nor_scipy_nor_plotlys_figures():
    check = (
        "import sys, edgestitch.report as report; report._plotly(); "
        "print([m for m in ('torch', 'scipy', 'numpy', 'plotly.graph_objs') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (report.format_ms(2.4137), "2.41 ms"),
        (report.format_ms(0.412), "0.412 ms"),
        (report.format_ms(0.0382), "38.2 \N{MICRO SIGN}s"),
        (report.format_ms(0.0), "0 \N{MICRO SIGN}s"),
        (report.format_ms(12_340), "12.3 s"),
        (report.format_mj(31.25), "31.2 mJ"),
        (report.format_w(0.052), "52.0 mW"),
        (report.format_gmacs(1.2583), "1.26 GMACs"),
        (report.format_gmacs(0.00534), "5.34 MMACs"),
        (report.format_count(5_717_416), "5.72 M"),
        (report.format_count(1234), "1234"),
        (report.format_percent(83.154), "83.15 %"),
        (report.format_interval(82.4, 83.96), "82.40 to 83.96"),
        (report.format_number(123_456), "123456"),
    ],
)
def test_numbers_for_people(text, expected):
    assert text == expected


# --- what the slider picks -------------------------------------------------------------------


def test_slider_picks_what_the_plan_picks(accuracy, profile, plan):
    pools = embedded(render(FAMILY, accuracy, profile=profile, plan=plan))["pools"]
    assert list(pools) == ["Resident in the plan", "All measured"]
    for budget_ms in around([cost.bound_ms for cost in profile.costs]):
        asked = page_pick(pools["Resident in the plan"], budget_ms)
        assert asked == scheduler_pick(plan.choose, budget_ms)


few = st.sampled_from([1.0, 1.5, 2.0, 2.5, 3.0])
nine = st.tuples(*[few] * len(FAMILY.topologies))


@settings(max_examples=15)
@given(medians=nine, top1=nine)
def test_slider_picks_what_the_scheduler_picks_among_all(medians, top1):
    profile, accuracy = make_profile(medians), make_accuracy(tuple(80 + x for x in top1))
    pool = candidates(profile, accuracy)
    picks = embedded(render(FAMILY, accuracy, profile=profile))["pools"]["All measured"]
    for budget_ms in around([c.latency_ms for c in pool]):
        expected = scheduler_pick(lambda budget: schedule.choose(pool, budget), budget_ms)
        asked = page_pick(picks, budget_ms)
        worth: dict[str | None, Any] = {
            c.topology: (c.top1, c.latency_ms, c.median_ms) for c in pool
        }
        # Of topologies that are equal in everything, any one is right.
        assert asked == expected or worth[asked] == worth[expected]


def test_slider_reaches_below_the_fastest_and_above_the_slowest(accuracy, profile):
    slider = embedded(render(FAMILY, accuracy, profile=profile))["slider"]
    bounds = [cost.bound_ms for cost in profile.costs]
    assert 0 < slider["min"] < min(bounds)
    assert slider["max"] > max(bounds)
    assert 100 <= (slider["max"] - slider["min"]) / slider["step"] <= 1000


# --- in a browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory, accuracy, profile, plan, complexity, run):
    """The report, open in a browser, with its complaints and its requests; opened once."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(
        path, FAMILY, accuracy, profile=profile, plan=plan, complexity=complexity, runs=[run]
    )
    complaints: list[str] = []
    requests: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("#plot .scatterlayer .points path")
    return page, path.as_uri(), complaints, requests


@pytest.fixture
def page(opened):
    """The page as it opens; after a test, nothing must have gone wrong or been requested."""
    page, url, complaints, requests = opened
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1200, "height": 900})
    page.get_by_label("Latency, p99 bound").check(force=True)
    page.get_by_label("Resident in the plan").check(force=True)
    yield page
    assert complaints == []
    assert requests == [url]


def shown_pick(page: Any) -> tuple[str | None, float | None, float | None]:
    """The topology that the page states, and where it is marked in the picture."""
    trace = "document.getElementById('plot').data.at(-1)"
    state = page.evaluate(f"[document.getElementById('pick').dataset.topology, {trace}]")
    topology, marked = state
    assert marked["name"] == "picked"
    return topology or None, marked["x"][0], marked["y"][0]


def assert_picks_as(plan: Plan, page: Any) -> None:
    """The slider's value leads to the plan's choice, in words and in the picture."""
    budget_ms = float(page.locator("#slider").input_value())
    topology, x, y = shown_pick(page)
    assert topology == scheduler_pick(plan.choose, budget_ms)
    if topology is None:
        assert (x, y) == (None, None)
        assert "Nothing fits within" in page.locator("#pick").inner_text()
        return
    chosen = plan.choose(Budget(latency_ms=budget_ms))
    assert (x, y) == (chosen.latency_ms, chosen.top1)
    text = page.locator("#pick").inner_text()
    for words in (chosen.topology, f"{chosen.top1:.2f} %", report.format_ms(chosen.latency_ms)):
        assert words in text
    assert page.locator("#topologies tr.picked th").inner_text() == chosen.topology


def until(condition: Callable[[], bool], page: Any) -> None:
    for _ in range(100):
        if condition():
            return
        page.wait_for_timeout(50)
    pytest.fail("did not happen within five seconds")


def test_picture_shows_every_topology(page):
    points = page.evaluate(
        "document.getElementById('plot').data.flatMap((trace) => trace.ids ?? []).sort()"
    )
    names = [topology.name for topology in FAMILY.topologies]
    assert sorted(set(points)) == sorted(names)
    # The mark of the pick is one more.
    assert page.locator("#plot .scatterlayer .points path").count() == len(names) + 1


def test_slider_moved_by_its_value_picks_as_the_plan(page, plan, profile):
    bounds = [cost.bound_ms for cost in profile.costs]
    picked = set()
    for budget_ms in (*bounds, *(bound + 0.02 for bound in bounds), 0.9):
        page.locator("#slider").fill(f"{budget_ms:.2f}")
        assert_picks_as(plan, page)
        picked.add(shown_pick(page)[0])
    assert picked == {None, *(candidate.topology for candidate in plan.resident)}


def test_slider_moved_by_keyboard_picks_as_the_plan(page, plan):
    slider = page.locator("#slider")
    slider.focus()
    for key in (
        "End",
        "PageDown",
        "PageDown",
        "ArrowLeft",
        "PageDown",
        "Home",
        "ArrowRight",
        "PageUp",
    ):
        before = slider.input_value()
        page.keyboard.press(key)
        assert slider.input_value() != before
        assert slider.get_attribute("aria-valuetext") == f"{float(slider.input_value()):.2f} ms"
        assert_picks_as(plan, page)


def test_below_the_fastest_the_page_says_by_how_much_it_misses(page, plan):
    page.locator("#slider").fill("1.00")
    assert shown_pick(page) == (None, None, None)
    assert page.locator("#pick").inner_text().split("\n") == [
        "Nothing fits within 1.00 ms",
        f"The fastest, {plan.safety.topology}, takes up to 1.13 ms and misses by 0.130 ms. "
        "A runtime runs it all the same, and says so.",
    ]
    assert page.locator("#topologies tr.picked").count() == 0


def test_slider_may_choose_from_all_that_was_measured(page, profile, accuracy):
    pool = candidates(profile, accuracy)
    page.get_by_label("All measured").check(force=True)
    for budget_ms in (1.0, 1.6, 1.7, 2.2, 3.2, 3.5):
        page.locator("#slider").fill(str(budget_ms))
        expected = scheduler_pick(lambda budget: schedule.choose(pool, budget), budget_ms)
        assert shown_pick(page)[0] == expected


def test_picture_can_be_set_against_each_cost(page, profile, plan, complexity):
    page.locator("#slider").fill("2.60")
    chosen = plan.choose(Budget(latency_ms=2.6))
    lines = "document.getElementById('plot').layout.shapes.map((shape) => shape.x0)"
    costs = {
        "Latency, median": profile.predict(chosen.topology).latency_ms,
        "Multiply-adds": 1e6 * complexity.gmacs(FAMILY, chosen.topology),
        "Latency, p99 bound": chosen.latency_ms,
    }
    for label, x in costs.items():
        page.get_by_label(label).check(force=True)
        assert shown_pick(page)[1] == pytest.approx(x)
        assert page.evaluate(lines) == ([] if label == "Multiply-adds" else [2.6])


def test_picture_follows_the_colour_scheme_and_paper_is_light(page):
    color = "document.querySelector('#plot .xtick text').style.fill"
    until(lambda: page.evaluate(color) == "rgb(85, 98, 111)", page)
    light = page.evaluate(color)
    page.emulate_media(color_scheme="dark")
    # Not wait_for_function: it evaluates text, which the page's own policy forbids.
    until(lambda: page.evaluate(color) != light, page)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(color) == light
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(color) != light


def test_second_picture_shows_every_topology_too(page):
    points = page.evaluate(
        "document.getElementById('plot-macs').data.flatMap((trace) => trace.ids ?? []).sort()"
    )
    assert points == sorted(topology.name for topology in FAMILY.topologies)


@pytest.fixture(scope="module")
def shipped_page(browser, tmp_path_factory):
    """The report of a family of the paper, made of what ships, open in a browser."""
    family = load_family("deit-ti-s-b").in_mode("reference")
    accuracy = shipped_accuracy(family)
    assert accuracy is not None
    path = tmp_path_factory.mktemp("shipped") / "report.html"
    complexity, peers = shipped_complexity(family), shipped_peers(family)
    write_report(path, family, accuracy, complexity=complexity, peers=peers)
    complaints: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("#plot-macs .scatterlayer .points path")
    yield page
    assert complaints == []


def test_one_network_stands_against_two_hundred(shipped_page):
    traces = shipped_page.evaluate(
        "document.getElementById('plot-macs').data.map((t) => [t.name, t.x.length, t.hovertext])"
    )
    sizes = {name: size for name, size, _ in traces}
    assert sizes.pop("Pareto front") == 39 + 1  # and on to the border
    assert sizes == {"200 networks of timm": 200, "ti + s": 34, "s + b": 34, "anchors": 3}
    assert "<b>swin_base_patch4_window7_224</b><br>Top-1 85.25 %<br>15.5 GMACs, 87.8 M" in str(
        traces
    )
    drawn = shipped_page.locator("#plot-macs .scatterlayer .points path").count()
    assert drawn == 200 + 71


def test_without_latencies_only_multiply_adds_are_drawn(shipped_page):
    assert not shipped_page.locator("#plot").is_visible()
    assert not shipped_page.locator("#budget").is_visible()
    assert shipped_page.locator("#plot-macs").is_visible()


def test_the_axis_can_be_linear_or_logarithmic(shipped_page):
    axis = "document.getElementById('plot-macs').layout.xaxis"
    ticks = "[...document.querySelectorAll('#plot-macs .xtick text')].map((t) => t.textContent)"
    shipped_page.get_by_label("Linear", exact=True).check(force=True)
    assert shipped_page.evaluate(f"{axis}.type") == "linear"
    until(lambda: "0" in shipped_page.evaluate(ticks), shipped_page)
    shipped_page.get_by_label("Logarithmic", exact=True).check(force=True)
    assert shipped_page.evaluate(f"{axis}.type") == "log"
    until(lambda: shipped_page.evaluate(ticks) == ["1", "2", "5", "10", "20"], shipped_page)


def test_page_fits_a_narrow_screen(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
