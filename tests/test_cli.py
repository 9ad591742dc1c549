"""The command line: every verb through the toy family, and one line for every mistake."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edgestitch import Profile, load_plan, load_profile
from edgestitch import cli as command_line
from edgestitch.accuracy import Accuracy
from edgestitch.artifact import load, save
from edgestitch.calibrate import Calibration
from edgestitch.catalog import require_accuracy
from edgestitch.complexity import Complexity
from edgestitch.coschedule import JointPlan
from edgestitch.data import save_images
from edgestitch.evaluate import evaluate
from edgestitch.network import load_network, save_network
from edgestitch.recipe import load_family
from edgestitch.report import RunRow
from edgestitch.testing import toy_images, toy_network
from tests.strategies import cost
from tests.strategies import profile as make_profile

FAST = "--min-samples 20 --time-cap-s 3"
VERBS = [
    "calibrate",
    "compile",
    "coschedule",
    "demo",
    "env",
    "evaluate",
    "export",
    "import",
    "profile",
    "report",
    "run",
    "schedule",
    "show",
    "verify",
    "zoo",
]


def edgestitch(line: str) -> str:
    """The output of a verb that succeeds."""
    result = CliRunner().invoke(command_line.cli, shlex.split(line))
    assert result.exit_code == 0, result.output
    return result.stdout


def failure(line: str) -> str:
    """The one line that a verb says when it fails."""
    result = CliRunner().invoke(command_line.cli, shlex.split(line))
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a toy network and everything that the verbs make of it."""
    folder = tmp_path_factory.mktemp("files")
    network = toy_network()
    save_network(network, folder / "toy.safetensors")
    save(evaluate(network, toy_images(64)), folder / "accuracy.json")
    save_images(toy_images(40), folder / "images.safetensors", "made up")
    profile = f"profile {folder}/toy.safetensors --backend eager {FAST}"
    edgestitch(f"{profile} --out {folder}/profile.json")
    artifacts = f"{folder}/profile.json {folder}/accuracy.json"
    edgestitch(f"schedule {artifacts} --out {folder}/plan.json")
    inputs = f"{folder}/toy.safetensors {folder}/plan.json {folder}/accuracy.json"
    edgestitch(f"compile {inputs} --backend eager {FAST} --out {folder}/deployment")
    return folder


def test_every_verb_has_help_with_an_example():
    listed = edgestitch("--help")
    for verb in VERBS:
        assert verb in listed
        assert f"Example:  edgestitch {verb}" in edgestitch(f"{verb} --help")


def test_show_lists_the_references_topologies_in_order():
    found = json.loads(edgestitch("show deit-ti-s-b --json"))
    assert found["family"] == "deit-ti-s-b"
    assert len(found["topologies"]) == 71
    assert found["topologies"][3]["topology"] == "ti:0:1+s:0:12"
    assert found["topologies"][1]["gmacs"] == pytest.approx(4.608, abs=1e-3)
    assert set(found["topologies"][0]) >= {"topology", "gmacs", "params", "top1", "origin"}


def test_show_says_of_each_topology_what_is_known():
    found = json.loads(edgestitch("show swin-ti-s-b --json"))
    assert (found["family"], found["mode"]) == ("swin-ti-s-b", "reference")
    assert "github.com/ziplab/SN-Net" in found["source"]
    assert [entry["reference_id"] for entry in found["topologies"]] == list(range(41))
    assert all(entry["origin"] == "published" for entry in found["topologies"])
    assert sum(entry["pareto"] for entry in found["topologies"]) == 24


def test_show_states_where_accuracies_come_from_above_the_table():
    lines = edgestitch("show levit-192-256").splitlines()
    assert lines[1] == "levit-192-256, reference: 8 topologies, 7 on the Pareto front"
    assert lines[2].startswith("top-1 published: github.com/ziplab/SN-Net")
    assert re.fullmatch(
        r"l192:0:12 +0 +0.662 GMACs +10.9 M +79.64 % +published +\*", lines[4].strip()
    )
    assert "top-1 measured on 10,000 images" in edgestitch("show fashion-vit")


@pytest.mark.parametrize(("mode", "gmacs"), [("corrected", 4.69639), ("reference", 4.69601)])
def test_show_gives_the_costs_of_either_mode(mode, gmacs):
    found = json.loads(edgestitch(f"show deit-ti-s-b --mode {mode} --json"))
    assert found["mode"] == mode
    assert found["topologies"][3]["gmacs"] == pytest.approx(gmacs, abs=1e-5)
    assert found["source"].endswith(", of the reference network") == (mode == "corrected")


def test_show_counts_what_does_not_ship(tmp_path):
    assert "no multiply-adds ship for toy, corrected; --count counts them" in edgestitch("show toy")
    out = tmp_path / "toy.json"
    line = f"show toy --count --mode reference --out {out} --json"
    found = json.loads(edgestitch(line))
    assert all(entry["gmacs"] > 0 for entry in found["topologies"])
    assert load(Complexity, out).family_digest == load_family("toy").in_mode("reference").digest


def test_show_makes_a_family_of_models(tmp_path):
    anchors = "--anchors test_vit,test_vit4"
    found = json.loads(edgestitch(f"show {anchors} --out {tmp_path}/counts.json --json"))
    assert (found["family"], found["source"]) == ("test-vit-vit4", None)
    assert found["topologies"][0]["topology"] == "vit:0:6"
    assert all(entry["gmacs"] > 0 and entry["top1"] is None for entry in found["topologies"])
    assert load(Complexity, tmp_path / "counts.json").family == found["family"]


def test_a_plan_of_published_accuracies_says_so(tmp_path):
    save(_deit_profile(), tmp_path / "profile.json")
    line = f"schedule {tmp_path}/profile.json --out {tmp_path}/plan.json"
    told = edgestitch(line)
    assert "accuracies: those that ship for deit-ti-s-b, published: github.com" in told
    assert "accuracies published, not of these weights" in told
    plan = json.loads(edgestitch(f"{line} --json"))
    assert plan["origin"] == "published"
    assert [candidate["top1"] for candidate in plan["resident"]] == [70.564, 79.464]


def test_schedule_without_accuracies_that_ship_asks_for_them(tmp_path):
    save(make_profile([cost("a:0:3")]), tmp_path / "profile.json")
    assert "no accuracies ship for 'toy'" in failure(f"schedule {tmp_path}/profile.json")


def test_compile_takes_a_plan_of_published_accuracies(files, tmp_path):
    """Published for other weights than the toy's, which nobody can know."""
    measured = load(Accuracy, files / "accuracy.json")
    published = msgspec.structs.replace(
        measured, origin="published", source="a paper", network=None, data=None
    )
    save(published, tmp_path / "accuracy.json")
    made = f"{tmp_path}/plan.json {tmp_path}/accuracy.json"
    edgestitch(f"schedule {files}/profile.json {tmp_path}/accuracy.json --out {tmp_path}/plan.json")
    line = f"compile {files}/toy.safetensors {made} --backend eager {FAST} --out {tmp_path}/d"
    assert "wrote" in edgestitch(line)
    assert json.loads((tmp_path / "d" / "plan.json").read_text())["data"]["origin"] == "published"
    unknown = line.replace(f" {tmp_path}/accuracy.json", "")
    assert "no accuracies ship for 'toy'" in failure(unknown)


def test_compile_knows_the_accuracies_that_ship(tmp_path):
    accuracy = require_accuracy("fashion-vit")
    costs = [cost("s:0:6", bound=1.0)]
    profile = make_profile(costs, family="fashion-vit", network=accuracy.network or "")
    save(profile, tmp_path / "profile.json")
    edgestitch(f"schedule {tmp_path}/profile.json --out {tmp_path}/plan.json")
    line = f"compile fashion-vit {tmp_path}/plan.json --backend eager {FAST} --out {tmp_path}/d"
    assert "s:0:6" in edgestitch(line)


def test_a_report_is_made_of_what_ships(tmp_path):
    edgestitch(f"report --family resnet18-50 --out {tmp_path}/page.html")
    assert "One network against 200" in (tmp_path / "page.html").read_text()


def _deit_profile() -> Profile:
    costs = [cost("ti:0:12", bound=1.0), cost("s:0:12", bound=2.0)]
    return make_profile(costs, family="deit-ti-s-b", network="somebody's own")


def test_show_marks_the_best_within_a_budget(files):
    profile = json.loads((files / "profile.json").read_text())["data"]
    budget_ms = max(cost["max_ms"] for cost in profile["costs"])
    known = f"--profile {files}/profile.json --accuracy {files}/accuracy.json"
    assert edgestitch(f"show toy {known} --budget-ms {budget_ms}").count("<- best") == 1


def test_env_says_what_works_and_why_the_rest_does_not():
    found = json.loads(edgestitch("env --json"))
    assert found["device"]["cores"] >= 1
    assert found["meter"]["reason"]
    assert "backend    eager: works" in edgestitch("env")


def test_schedule_answers_each_budget(files, tmp_path):
    plan = json.loads((files / "plan.json").read_text())["data"]
    slowest = plan["resident"][-1]["latency_ms"]
    artifacts = f"{files}/profile.json {files}/accuracy.json --out {tmp_path}/plan.json"
    budgets = f"--budget-ms {slowest} --budget-ms {2 * slowest}"
    found = json.loads(edgestitch(f"schedule {artifacts} {budgets} --json"))
    assert [choice["budget"]["latency_ms"] for choice in found["choices"]] == [slowest, 2 * slowest]


def test_run_reports_each_budget(files):
    images = f"--images {files}/images.safetensors"
    budgets = "--budget-ms 1000 --budget-ms 0.001"
    rows = json.loads(edgestitch(f"run {files}/deployment {images} {budgets} --json"))
    assert [row["frames"] for row in rows] == [40, 40]
    assert rows[0]["hit_rate"] == 1
    assert rows[1]["hit_rate"] == 0
    assert set(rows[0]) == set(RunRow.__struct_fields__)


def test_run_without_a_budget_runs_those_of_the_plan(files):
    images = f"--images {files}/images.safetensors"
    plan = json.loads((files / "deployment/plan.json").read_text())["data"]
    rows = json.loads(edgestitch(f"run {files}/deployment {images} --json"))
    assert len(rows) == len(plan["choices"] or plan["resident"])


def test_report_writes_one_page(files, tmp_path):
    known = f"{files}/accuracy.json --profile {files}/profile.json --plan {files}/plan.json"
    edgestitch(f"report {known} --out {tmp_path}/page.html")
    assert (tmp_path / "page.html").read_text().lower().startswith("<!doctype html>")


def test_calibrate_makes_a_network_that_evaluates(tmp_path):
    out = tmp_path / "toy.safetensors"
    assert "least squares" in edgestitch(f"calibrate toy --out {out} --work {tmp_path}/work")
    assert load(Calibration, tmp_path / "toy.calibration.json").network == load_network(out).digest


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("show nope", "no family 'nope'; shipped are deit-ti-s-b, .*, fashion-vit, .*, toy"),
        ("show --anchors test_vit4,test_vit", "must come cheapest first, by multiply-adds; found vit4 "),
        ("show --anchors resnet18,mixer_b16_224", "mixer_b16_224 cannot be an anchor: MlpMixer .* would fit"),
        ("report --family deit3-s-b", "no accuracies ship for 'deit3-s-b', they do for deit-ti-s-b"),
        ("profile nope", "no network 'nope'; give a .safetensors file"),
        ("profile {0}/accuracy.safetensors", "no stitch network at"),
        ("profile --device jetson-orin", "jetson-orin was asked for, but this machine is"),
        ("profile --device toaster", "no device 'toaster'; there are auto, cpu"),
        ("profile {0}/toy.safetensors --backend tpu", "no backend 'tpu'"),
        ("profile {0}/toy.safetensors --topologies a:0:9", "a:0:9 runs block 8 of a, which toy lacks"),
        ("profile {0}/toy.safetensors --topologies x:0:3", "toy has no anchor 'x'; it has a, b"),
        ("schedule {0}/accuracy.json {0}/profile.json", "holds 'accuracy', but 'profile' was asked for"),
        ("schedule {0}/gone.json {0}/accuracy.json", "cannot read"),
        ("schedule {0}/profile.json {0}/accuracy.json --budget-ms 0", "must be above zero"),
        ("schedule {0}/profile.json {0}/accuracy.json --budget-ms nan", "must be above zero"),
        ("schedule {0}/profile.json {0}/accuracy.json --budget-ms 1e-6", "no topology fits 1e-06 ms: the cheapest"),
        ("schedule {0}/profile.json {0}/accuracy.json --budget-mj 5", "no energy_mj was measured"),
        ("profile {0}/toy.safetensors --require-energy --out {0}/x.json", "no energy meter works on cpu: nvml"),
        ("profile {0}/toy.safetensors --meter sundial", "no meter 'sundial'; there are nvml-energy"),
        ("profile {0}/toy.safetensors --power-modes 15W", "power mode"),
        ("profile {0}/toy.safetensors --device jetson-orin", "--host user@jetson, or use --device auto"),
        ("profile {0}/toy.safetensors --topologies a:0:3 --contend false --out {0}/x.json", "ended with exit code 1"),
        ("profile toy --device jetson-orin --estimate", "name one"),
        ("run {0}", "no deployment at"),
        ("run {0}/deployment --images {0}/toy.safetensors", "holds 'stitch network', but 'labelled images'"),
        ("run {0}/deployment", r"images of \[1, 28, 28\], the network takes \[1, 8, 8\]"),
        ("evaluate {0}/toy.safetensors --data {0}", "Fashion-MNIST is taken from --data DIR"),
        ("calibrate deit-ti-s-b --out {0}/x.safetensors", "the recipe names no data set"),
        ("report {0}/accuracy.json --out {0}/accuracy.json/page.html --profile {0}/profile.json", "cannot write"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_the_next_step(files, line, message):
    found = failure(line.format(files))
    assert re.search(message, found), found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dance", "No such command 'dance'"),
        ("show", "give FAMILY or --anchors"),
        ("show toy --anchors resnet18,resnet50", r"either FAMILY \(toy\) or --anchors, not both"),
        ("show toy --window 3", "--window, --stride and --all-pairs are for --anchors"),
        ("show toy --out counts.json", "--out is for counts: give --count or --anchors"),
        ("report", "give ACCURACY or --family"),
        ("show toy --profile p.json --device cpu", "give --profile or --device, not both"),
        ("profile toy --rate 30 --idle-ms 5", "give --rate or --idle-ms, not both"),
        ("profile toy --power-modes 15W,25W --out p.json", "--out and --host are for one"),
        ("profile toy --host user@jetson --estimate", "an estimate needs no --host"),
    ],
)
def test_usage_errors_have_exit_code_2(line, message):
    result = CliRunner().invoke(command_line.cli, line.split())
    assert result.exit_code == 2
    assert re.search(message, result.stderr)


def test_traceback_is_shown_on_demand():
    result = CliRunner().invoke(command_line.cli, ["--traceback", "show", "nope"])
    assert result.exception is not None
    assert "no family 'nope'" in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        "show deit-ti-s-b",
        "show deit-ti-s-b --device jetson-orin-nano",
        "profile deit-ti-s-b --device jetson-agx-orin --precision fp16 --estimate --out X",
        "schedule P A --out X",
        "report A --profile P --out X",
        "report --family deit3-s-l --out X",
    ],
)
def test_planning_verbs_need_no_torch(files, tmp_path, arguments):
    names = {"P": files / "profile.json", "A": files / "accuracy.json", "X": tmp_path / "out"}
    words = [str(names.get(word, word)) for word in arguments.split()]
    code = (
        "import sys; from edgestitch.cli import main\n"
        f"sys.argv = ['edgestitch', *{words!r}]\n"
        "main()\n"
        "assert not {'torch', 'timm', 'scipy.stats'} & set(sys.modules)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


def test_no_progress_bar_where_nobody_looks(files, tmp_path):
    line = f"profile {files}/toy.safetensors --backend eager {FAST} --out {tmp_path}/p.json"
    assert CliRunner().invoke(command_line.cli, shlex.split(line)).stderr == ""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "edgestitch: interrupted; nothing half-written is left"),
        (signal.SIGTERM, 143, "edgestitch: terminated; nothing half-written is left"),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_a_profile_that_is_stopped_goes_on_where_it_was(files, tmp_path, number, code, said):
    out, unfinished = tmp_path / "p.json", tmp_path / "p.unfinished"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    line = f"profile {files}/toy.safetensors --backend eager --out {out}"
    process = subprocess.Popen(
        [sys.executable, "-m", "edgestitch", *shlex.split(f"{line} --min-samples 1000000")],
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for(lambda: unfinished.exists() and unfinished.stat().st_size > 10_000, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stderr.strip() == said
    assert not out.exists()
    if number != signal.SIGKILL:
        assert list(temporary.glob("edgestitch-*")) == []
    kept = unfinished.stat().st_size
    assert "load is back-to-back there and paced at 200 Hz now" in failure(f"{line} --rate 200")
    assert unfinished.stat().st_size == kept
    edgestitch(f"{line} {FAST}")
    found = load(Profile, out)
    assert found.protocol.resumed == 1
    assert min(cost.samples for cost in found.costs) >= 20
    assert not unfinished.exists()


def test_a_recipe_without_weights_is_profiled_with_random_ones(tmp_path):
    out = tmp_path / "p.json"
    result = CliRunner().invoke(
        command_line.cli, shlex.split(f"profile toy --backend eager {FAST} --out {out}")
    )
    assert result.exit_code == 0, result.output
    assert "no weights ship for toy: random ones, which cost the same" in result.stderr
    assert load(Profile, out).network is None


def test_a_plan_made_of_estimates_says_so_and_is_compiled_only_on_demand(files, tmp_path):
    device = "--device cpu --precision fp32"
    edgestitch(f"show toy --count --out {tmp_path}/toy.complexity.json")
    edgestitch(f"profile toy {device} --estimate --out {tmp_path}/e.json")
    estimated = load(Profile, tmp_path / "e.json")
    assert {cost.origin for cost in estimated.costs} == {"estimated"}
    said = edgestitch(
        f"schedule {tmp_path}/e.json {files}/accuracy.json --out {tmp_path}/plan.json"
    )
    assert "costs ESTIMATED, nothing was measured" in said
    line = (
        f"compile {files}/toy.safetensors {tmp_path}/plan.json {files}/accuracy.json "
        f"--backend eager {FAST} --out {tmp_path}/d"
    )
    assert "made from estimated costs" in failure(line)
    edgestitch(f"{line} --from-estimate --no-energy")
    assert "estimated and not measured" in _verify(f"{tmp_path}/e.json toy")[1]


def test_show_marks_what_is_measured_and_what_is_estimated(files):
    measured = json.loads(edgestitch(f"show toy --profile {files}/profile.json --json"))
    assert {entry["latency_origin"] for entry in measured["topologies"]} == {"measured"}
    estimated = json.loads(edgestitch("show deit-ti-s-b --device jetson-orin-nano --json"))
    assert {entry["latency_origin"] for entry in estimated["topologies"]} == {"estimated"}
    assert "estimated" in edgestitch("show deit-ti-s-b --device jetson-orin-nano")


def test_verify_says_by_its_exit_code_whether_a_profile_holds(files, tmp_path):
    profile = load(Profile, files / "profile.json")

    def scaled(name: str, factor: float) -> str:
        costs = tuple(
            msgspec.structs.replace(
                cost,
                latency_ms=cost.latency_ms * factor,
                latency_low_ms=cost.latency_low_ms * factor,
                latency_high_ms=cost.latency_high_ms * factor,
            )
            for cost in profile.costs
        )
        save(msgspec.structs.replace(profile, costs=costs), tmp_path / name)
        return f"{tmp_path / name} {files}/toy.safetensors"

    assert _verify(f"{scaled('same.json', 1)} --tolerance 5 --number 3")[0] == 0
    code, said = _verify(f"{scaled('slow.json', 100)} --number 3")
    assert (code, "no longer holds" in said) == (1, True)
    assert _verify(f"{files}/profile.json toy")[0] == 3  # other weights
    conditions = msgspec.structs.replace(profile.conditions, hardware="Colossus")
    save(msgspec.structs.replace(profile, conditions=conditions), tmp_path / "other.json")
    code, said = _verify(f"{tmp_path}/other.json {files}/toy.safetensors")
    assert code == 3
    assert "hardware is Colossus and" in said
    conditions = msgspec.structs.replace(profile.conditions, contention="exit 7")
    save(msgspec.structs.replace(profile, conditions=conditions), tmp_path / "beside.json")
    code, said = _verify(f"{tmp_path}/beside.json {files}/toy.safetensors")
    assert (code, "ended with exit code 7" in said) == (3, True)


def _verify(line: str) -> tuple[int, str]:
    result = CliRunner().invoke(command_line.cli, ["verify", *shlex.split(line)])
    return result.exit_code, result.output


def test_a_load_is_part_of_the_conditions(files, tmp_path):
    options = f"--backend eager --topologies a:0:3 {FAST} --out {tmp_path}/p.json"
    edgestitch(f"profile {files}/toy.safetensors {options} --rate 200")
    found = load(Profile, tmp_path / "p.json").conditions
    assert str(found.load) == "paced at 200 Hz"
    edgestitch(f"profile {files}/toy.safetensors {options} --idle-ms 5 --contend 'sleep 100'")
    found = load(Profile, tmp_path / "p.json").conditions
    assert (str(found.load), found.contention) == ("after 5 ms idle", "sleep 100")


def _wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- budgets of other kinds ----------------------------------------------------------------------


def planning(files: Path, options: str, out: Path) -> str:
    return f"schedule {files}/profile.json {files}/accuracy.json {options} --out {out}"


def test_a_plan_can_minimise_what_a_least_accuracy_costs(files, tmp_path):
    edgestitch(planning(files, "--min-top1 1 --minimise latency", tmp_path / "p.json"))
    plan = load_plan(tmp_path / "p.json")
    (choice,) = plan.choices
    profile = load_profile(files / "profile.json")
    assert choice.topology == min(profile.costs, key=lambda c: c.bound_ms).topology
    assert choice.budget.min_top1 == 1


def test_a_plan_within_a_memory_says_what_it_is_worth(files, tmp_path):
    options = "--memory-mib 100 --budget-ms 1000 --weight 1 --budget-ms 500 --weight 2"
    said = edgestitch(planning(files, options, tmp_path / "p.json"))
    assert "of 100 MiB are worth" in said
    assert "nothing that fits is worth more" in said
    residency = load_plan(tmp_path / "p.json").residency
    assert residency is not None
    assert residency.memory_mib < 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--budget-ms 5 --rate-hz 30 --battery-wh 5 --hours 1", "idle device"),
        ("--weight 1", "give memory with them"),
        ("--budget-ms 1000 --quantile 1.5", "quantile"),
        ("--memory-mib 0.001 --budget-ms 1000", "MiB"),
        ("--minimise energy --budget-ms 1000", "min_top1"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(files, tmp_path, options, message):
    assert message in failure(planning(files, options, tmp_path / "p.json"))
    assert not (tmp_path / "p.json").exists()


def test_networks_on_one_device_are_chosen_together(files, tmp_path):
    for name in ("profile.json", "accuracy.json"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    tables = "".join(
        f'[{name}]\nprofile = "profile.json"\naccuracy = "accuracy.json"\nperiod_ms = {period}\n'
        for name, period in (("front", 2000), ("rear", 4000))
    )
    (tmp_path / "streams.toml").write_text(tables)
    said = edgestitch(f"coschedule {tmp_path}/streams.toml --out {tmp_path}/joint.json")
    assert "front" in said
    assert "rear" in said
    joint = load(JointPlan, tmp_path / "joint.json")
    assert all(one.response_ms <= one.deadline_ms for one in joint.assignments)
    (tmp_path / "streams.toml").write_text(tables.replace("period_ms", "period"))
    assert "no file of streams" in failure(f"coschedule {tmp_path}/streams.toml")
