"""The zoo: networks of timm measured in groups, resumed, boxed in time, none of them lost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgestitch import cli as command_line
from edgestitch.artifact import load, save
from edgestitch.backends import Backend, Compiled, Load, Resident
from edgestitch.device import detect
from edgestitch.energy import EnergySettings
from edgestitch.errors import MismatchError
from edgestitch.instruments import Instruments, find_instruments
from edgestitch.measure import MeasureSettings
from edgestitch.meters import Meter, NoMeter, Trace
from edgestitch.peers import Peer, Peers
from edgestitch.profile import require_comparable
from edgestitch.testing import FEW_SAMPLES, ReplayMeter, null_backend
from edgestitch.timer import TimerSettings
from edgestitch.zoo import ANCHORS, Group, Zoo, ZooRow, select, tables
from edgestitch.zoo_run import OUT_OF_TIME, is_complete, known, measure_zoo
from tests.strategies import cost

SMALL = {"test_resnet": 2.0, "test_vit": 1.0, "test_efficientnet": 3.0, "test_vit2": 4.0}
"""The smallest networks of timm, and the latencies that `Clockwork` gives them, in milliseconds."""

FAST = MeasureSettings(
    timer=TimerSettings(min_samples=20, precision=1.0, min_warmup_s=0.0), energy=None
)


def table(*names: str, source: str = "made up") -> Peers:
    """A table of these networks; the first one has the fewest multiply-adds."""
    rows = tuple(
        Peer(name=name, gmacs=1.0 + index, params=1000, top1=70.0 + index)
        for index, name in enumerate(names)
    )
    return Peers(
        dataset="made up", source=source, input_shape=(3, 160, 160), num_classes=7, rows=rows
    )


class Clockwork:
    """A machine whose clock only calls, sleep and work move: it does what you say, at once."""

    def __init__(self, latencies_ms: Mapping[str, float] = SMALL, build_s: float = 0.0) -> None:
        self.now_ns = 0
        self.latencies_ms = dict(latencies_ms)
        self.build_s = build_s
        self.built: list[str] = []
        self.order: list[str] = []
        self.fails: dict[str, int] = {}
        """After how many calls a network fails."""
        self.interrupt_after = 10**9
        """Calls of all networks."""

    def clock(self) -> int:
        return self.now_ns

    def now_s(self) -> float:
        return self.now_ns / 1e9

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    def instruments(self, meter: Meter | None = None) -> Instruments:
        return Instruments(
            device=msgspec.structs.replace(detect(), name="cpu"),
            meter=meter or NoMeter("none here"),
            clock=self.clock,
            sleep=self.sleep,
        )

    def meter(self, watts: float) -> ReplayMeter:
        """A counter that says that the machine always uses this power."""
        times_ns = np.arange(0, 600 * 10**9, 10**7, dtype=np.int64)
        trace = Trace(
            quantity="energy_mj",
            times_ns=times_ns,
            values=times_ns / 1e6 * watts,
            period_s=0.01,
        )
        return ReplayMeter(trace, clock=self.clock)

    def backend(self, num_classes: int = 7, refuses: Sequence[str] = ()) -> Backend:
        """One that compiles nothing, but for what it refuses to."""

        def load(compiled: Compiled) -> Load:
            (name,) = compiled.chains
            self.built.append(name)
            self.sleep(self.build_s)

            def run(images: np.ndarray) -> np.ndarray:
                assert images.shape == compiled.input_shape
                self.order.append(name)
                self.now_ns += round(self.latencies_ms[name] * 1e6)
                if len(self.order) > self.interrupt_after:
                    raise KeyboardInterrupt
                if self.order.count(name) > self.fails.get(name, 10**9):
                    raise RuntimeError("out of memory")
                return np.zeros((len(images), num_classes), np.float32)

            return lambda topology: Resident(run=run)

        return replace(null_backend(num_classes, fail=lambda name: name in refuses), load=load)

    def measure(
        self,
        peers: Peers,
        settings: MeasureSettings = FAST,
        *,
        meter: Meter | None = None,
        backend: Backend | None = None,
        **options: Any,
    ) -> Zoo:
        return measure_zoo(
            self.instruments(meter),
            settings,
            found=[peers],
            backend=backend or self.backend(),
            clock=self.now_s,
            **options,
        )


def reasons(zoo: Zoo) -> dict[str, str | None]:
    return {row.name: row.reason for row in zoo.rows}


# --- what is measured ------------------------------------------------------------------------


def test_each_network_gets_the_latency_that_it_has():
    zoo = Clockwork().measure(table(*SMALL), group=2)
    assert {row.name: row.latency_ms for row in zoo.rows} == pytest.approx(SMALL)
    assert [row.name for row in zoo.rows] == list(SMALL)
    assert all(row.cost and row.cost.topology == row.name for row in zoo.rows)
    assert all(row.cost and row.cost.samples >= 20 for row in zoo.rows)


def test_the_reference_is_measured_in_every_group():
    zoo = Clockwork().measure(table(*SMALL), group=1)
    assert zoo.reference == "test_resnet"  # the cheapest by multiply-adds
    assert len(zoo.groups) == 3
    assert all(group.names[0] == "test_resnet" for group in zoo.groups)
    assert sorted(name for group in zoo.groups for name in group.names[1:]) == sorted(
        set(SMALL) - {"test_resnet"}
    )
    assert zoo.drift == pytest.approx(0)


def test_networks_of_a_group_take_turns():
    clockwork = Clockwork()
    clockwork.measure(table(*SMALL), group=3)
    last = clockwork.order[-100:]
    changes = sum(a != b for a, b in pairwise(last))
    assert set(last) == set(SMALL)
    assert changes > 12


def test_a_machine_that_changes_between_groups_is_told_of():
    clockwork = Clockwork()
    latencies = clockwork.latencies_ms

    class Slower(dict[str, float]):
        def __getitem__(self, name: str) -> float:
            return latencies[name] * (1 + 0.3 * (len(clockwork.built) > 2))

    clockwork.latencies_ms = Slower()
    zoo = clockwork.measure(table(*SMALL), group=1)
    assert zoo.drift == pytest.approx(0.3)
    assert any("medians of the reference lie 30.0% apart" in note for note in zoo.notes)


def test_energy_is_measured_where_a_meter_is():
    clockwork = Clockwork()
    energy = EnergySettings(window_s=0.5, mixed_windows=0, settle_s=0.1, idle_s=0.5)
    settings = msgspec.structs.replace(FAST, energy=energy)
    zoo = clockwork.measure(table("test_vit", "test_vit2"), settings, meter=clockwork.meter(10))
    assert zoo.energy_reason is None
    # Ten watts for the time of a call.
    assert {r.name: r.energy_mj for r in zoo.rows} == pytest.approx(
        {"test_vit": 10.0, "test_vit2": 40.0}, rel=0.02
    )


def test_without_a_meter_energy_is_null_with_the_reason():
    zoo = Clockwork().measure(
        table("test_vit"), msgspec.structs.replace(FAST, energy=EnergySettings())
    )
    assert zoo.rows[0].energy_mj is None
    assert zoo.energy_reason == "none here"


@pytest.mark.parametrize("backend", ["eager", "openvino"])
def test_real_networks_run(backend, tmp_path):
    pytest.importorskip(backend if backend != "eager" else "torch")
    zoo = measure_zoo(
        find_instruments(detect(), energy=False),
        FEW_SAMPLES,
        found=[table("test_vit", "test_resnet")],
        backend=backend,
        time_cap_s=4,
    )
    assert [row.model for row in zoo.rows] == ["test_vit.r160_in1k", "test_resnet.r160_in1k"]
    assert all(row.latency_ms and row.input_shape == (3, 160, 160) for row in zoo.rows)
    save(zoo, tmp_path / "zoo.json")
    assert load(Zoo, tmp_path / "zoo.json") == zoo
    assert zoo.conditions.backend == backend


def test_a_network_is_measured_at_the_resolution_of_its_published_multiply_adds():
    def shape(gmacs: float) -> tuple[int, int, int] | None:
        peers = table("ecaresnet26t")
        peers = msgspec.structs.replace(
            peers, rows=(msgspec.structs.replace(peers.rows[0], gmacs=gmacs),)
        )
        return Clockwork({"ecaresnet26t": 1.0}).measure(peers).rows[0].input_shape

    assert shape(5.24) == (3, 320, 320)
    assert shape(3.35) == (3, 256, 256)


# --- what cannot be measured is a row --------------------------------------------------------


def test_a_name_that_timm_does_not_know_is_a_row_with_the_reason():
    zoo = Clockwork().measure(table("nothing_of_timm", "test_vit"))
    assert "knows no such model" in (reasons(zoo)["nothing_of_timm"] or "")
    assert reasons(zoo)["test_vit"] is None
    assert is_complete(zoo)


def test_a_former_name_of_timm_is_measured_under_the_name_of_today():
    zoo = Clockwork({"tv_resnet50": 1.0}).measure(table("tv_resnet50"))
    assert zoo.rows[0].model == "resnet50.tv_in1k"


def test_a_network_that_does_not_compile_is_a_row_and_the_others_are_measured():
    clockwork = Clockwork()
    zoo = clockwork.measure(table(*SMALL), backend=clockwork.backend(refuses=["test_vit"]))
    assert reasons(zoo)["test_vit"] == "null cannot compile test_vit, as it was told"
    assert len(zoo.measured) == len(SMALL) - 1


def test_a_network_with_another_number_of_classes_is_a_row():
    zoo = Clockwork().measure(table("test_vit"), backend=Clockwork().backend(num_classes=3))
    assert reasons(zoo)["test_vit"] == "ValueError: it answers an array [1, 3], not [1, 7]"


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_network_that_fails_while_it_is_measured_is_a_row_also_if_it_is_the_reference(name):
    clockwork = Clockwork()
    clockwork.fails[name] = 10
    zoo = clockwork.measure(table(*SMALL))
    assert reasons(zoo)[name] == "RuntimeError: out of memory"
    assert {row.name for row in zoo.measured} == set(SMALL) - {name}


def test_a_reference_that_fails_later_is_replaced_and_its_groups_are_not_compared_with_others():
    whole = Clockwork()
    whole.measure(table(*SMALL), group=1)
    second_group = whole.order.index(whole.built[2])
    clockwork = Clockwork()
    clockwork.fails["test_resnet"] = whole.order[:second_group].count("test_resnet") + 5
    zoo = clockwork.measure(table(*SMALL), group=1)
    assert {row.name for row in zoo.measured} == set(SMALL)
    assert len({group.names[0] for group in zoo.groups}) == 2
    assert zoo.drift is None or zoo.drift == pytest.approx(0)


def test_a_network_that_does_not_fit_in_memory_is_a_row():
    peers = table("test_vit", "test_vit2")
    huge = msgspec.structs.replace(peers.rows[1], params=10**13)
    zoo = Clockwork().measure(msgspec.structs.replace(peers, rows=(peers.rows[0], huge)))
    assert "needs 1144" in (reasons(zoo)["test_vit2"] or "")
    assert zoo.rows[0].cost is not None


def test_where_nothing_can_be_measured_every_network_has_its_reason():
    clockwork = Clockwork()
    zoo = clockwork.measure(table(*SMALL), backend=clockwork.backend(refuses=list(SMALL)))
    assert all("cannot compile" in (reason or "") for reason in reasons(zoo).values())
    assert zoo.reference is None
    assert zoo.drift is None


# --- time ------------------------------------------------------------------------------------


def test_what_the_time_cap_leaves_is_a_row_and_measured_when_called_again(tmp_path):
    clockwork = Clockwork(build_s=2.0)
    first = clockwork.measure(table(*SMALL), time_cap_s=7.0, group=1, unfinished=tmp_path)
    assert not is_complete(first)
    assert 0 < len(first.measured) < len(SMALL)
    assert {row.reason for row in first.rows if row.cost is None} == {OUT_OF_TIME}
    done = {row.name: row for row in first.measured}
    again = Clockwork().measure(table(*SMALL), group=1, unfinished=tmp_path)
    assert is_complete(again)
    assert {
        name: row for name, row in {r.name: r for r in again.rows}.items() if name in done
    } == done
    assert again.protocol.resumed == 1


@pytest.mark.parametrize("cap_s", [0.5, 2.0, 5.0, 20.0])
def test_the_time_cap_is_kept_but_for_one_build(cap_s):
    many = dict.fromkeys(SMALL, 30.0)
    clockwork = Clockwork(many, build_s=0.4)
    settings = msgspec.structs.replace(
        FAST, timer=TimerSettings(min_samples=10**6, max_samples=10**7)
    )
    clockwork.measure(table(*many), settings, time_cap_s=cap_s, group=2)
    # One build that had begun, and one round of the sampler.
    assert clockwork.now_s() <= cap_s + 0.4 + 5.5 * 3 * 0.030 * 6


def test_each_network_gets_a_fair_share_of_the_time():
    settings = msgspec.structs.replace(
        FAST, timer=TimerSettings(min_samples=10**6, max_samples=10**7)
    )
    zoo = Clockwork(dict.fromkeys(SMALL, 1.0)).measure(
        table(*SMALL), settings, time_cap_s=15.0, group=1
    )
    samples = [row.cost.samples for row in zoo.rows if row.cost]
    assert len(samples) == len(SMALL)
    assert max(samples) < 2.5 * min(samples)


# --- interrupted -----------------------------------------------------------------------------


def test_a_run_that_is_interrupted_goes_on_with_the_samples_that_it_has(tmp_path):
    peers = table(*SMALL)
    settings = msgspec.structs.replace(FAST, timer=TimerSettings(min_samples=300, precision=1.0))
    interrupted = Clockwork()
    interrupted.interrupt_after = 1500
    with pytest.raises(KeyboardInterrupt):
        interrupted.measure(peers, settings, unfinished=tmp_path)
    again = Clockwork()
    zoo = again.measure(peers, settings, unfinished=tmp_path)
    whole = Clockwork()
    whole.measure(peers, settings)
    assert all(row.cost and row.cost.samples >= 300 for row in zoo.rows)
    assert len(again.order) < 0.7 * len(whole.order)


def test_a_network_that_twice_ended_the_process_is_left_out(tmp_path):
    interrupted = Clockwork()
    interrupted.interrupt_after = 0
    with pytest.raises(KeyboardInterrupt):
        interrupted.measure(table(*SMALL), unfinished=tmp_path)
    with (tmp_path / "zoo").open("a") as journal:  # as kills for memory leave it
        journal.write('["begun","test_vit"]\n["begun","test_vit"]\n')
    zoo = Clockwork().measure(table(*SMALL), unfinished=tmp_path)
    assert "the process ended 2 times" in (reasons(zoo)["test_vit"] or "")
    assert len(zoo.measured) == len(SMALL) - 1


def test_being_interrupted_by_hand_counts_against_no_network(tmp_path):
    for _ in range(3):
        clockwork = Clockwork()
        clockwork.interrupt_after = 0
        with pytest.raises(KeyboardInterrupt):
            clockwork.measure(table(*SMALL), unfinished=tmp_path)
    assert len(Clockwork().measure(table(*SMALL), unfinished=tmp_path).measured) == len(SMALL)


def test_what_was_begun_otherwise_is_not_gone_on_with(tmp_path):
    Clockwork().measure(table(*SMALL), unfinished=tmp_path)
    with pytest.raises(MismatchError, match="batch is 1 there and 2 now"):
        Clockwork().measure(table(*SMALL), batch=2, unfinished=tmp_path)
    with pytest.raises(MismatchError, match="models is 4, digest"):
        Clockwork().measure(table(*SMALL), models=["test_vit"], unfinished=tmp_path)


# --- values ----------------------------------------------------------------------------------


@given(st.booleans(), st.booleans())
def test_a_row_has_either_a_cost_or_a_reason(measured, reason):
    def row() -> ZooRow:
        return ZooRow(
            name="x",
            gmacs=1.0,
            params=1,
            top1=1.0,
            cost=cost("x") if measured else None,
            reason="why" if reason else None,
        )

    if measured != reason:
        assert (row().latency_ms is None) == reason
    else:
        with pytest.raises(ValueError, match="either a cost or a reason"):
            row()


@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=6))
def test_drift_is_the_spread_of_the_references_medians(medians):
    zoo = Clockwork().measure(table("nothing_of_timm"))
    groups = tuple(
        Group(
            names=("r",),
            reference_ms=median,
            reference_low_ms=median,
            reference_high_ms=median,
            duration_s=1.0,
            steady=True,
            capped=False,
        )
        for median in medians
    )
    drift = msgspec.structs.replace(zoo, groups=groups).drift
    assert drift == pytest.approx(max(medians) / min(medians) - 1)


def test_the_conditions_are_those_of_a_profile_on_the_same_backend():
    first = Clockwork().measure(table("test_vit"))
    second = Clockwork().measure(table("test_vit2"))
    require_comparable("two zoos", first.conditions, second.conditions)


# --- tables and patterns ---------------------------------------------------------------------


def test_the_tables_are_those_of_the_project_page_and_the_anchors():
    page, anchors = tables()
    assert len(page.single) == 200
    assert anchors is ANCHORS
    names = [peer.name for found in (page, anchors) for peer in found.single]
    assert len(set(names)) == len(names)


def test_patterns_choose_by_name():
    found = [table("resnet50", "resnet101", "vit")]
    assert [peer.name for _, peer in select(found, ["resnet*"])] == ["resnet50", "resnet101"]
    assert [peer.name for _, peer in select(found, ["vit", "*101"])] == ["resnet101", "vit"]
    assert len(select(found)) == 3


def test_a_pattern_that_chooses_nothing_is_an_error():
    with pytest.raises(ValueError, match="none of the 1 networks is called 'resnet'"):
        select([table("resnet50")], ["resnet50", "resnet"])


def test_the_rows_of_another_table_say_where_their_accuracy_is_from():
    clockwork = Clockwork()
    zoo = measure_zoo(
        clockwork.instruments(),
        FAST,
        found=[table("test_vit"), table("test_resnet", source="elsewhere")],
        backend=clockwork.backend(),
        clock=clockwork.now_s,
    )
    assert zoo.source == "made up"
    assert [row.source for row in zoo.rows] == ["", "elsewhere"]


def test_timm_knows_nearly_all_networks_of_the_project_page():
    unknown = [peer.name for peer in tables()[0].single if not known(peer.name)]
    assert len(unknown) <= 2


# --- the command -----------------------------------------------------------------------------


def edgestitch(*arguments: str) -> str:
    result = CliRunner().invoke(command_line.cli, ["zoo", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_lists_networks_and_whether_timm_knows_them():
    listed = json.loads(edgestitch("--list", "--json", "--models", "gluon_x*,resnet18*"))
    assert listed == [
        {"name": "gluon_xception65", "top1": 79.72, "known": False},
        {"name": "resnet18.a1_in1k", "top1": 71.504, "known": True},
    ]
    assert "unknown" in edgestitch("--list", "--models", "gluon_x*")


def test_the_command_measures_and_leaves_nothing_but_the_file(tmp_path):
    out = tmp_path / "zoo.json"
    printed = edgestitch(
        *("--models", "tf_efficientnet_lite0*", "--models", "gluon_xception65", "--device", "cpu"),
        *("--backend", "eager", "--min-samples", "4", "--time-cap-s", "8", "--no-energy"),
        *("--out", str(out)),
    )
    assert "1 of 2 networks" in printed
    assert "knows no such model" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["zoo.json"]
    assert len(load(Zoo, out).measured) == 1


def test_the_command_refuses_a_name_of_no_network(tmp_path):
    result = CliRunner().invoke(
        command_line.cli, ["zoo", "--models", "nosuch", "--out", str(tmp_path / "zoo.json")]
    )
    assert result.exit_code == 1
    assert "none of the 216 networks is called 'nosuch'" in result.stderr
    assert not Path(tmp_path / "zoo.json").exists()
