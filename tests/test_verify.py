"""Whether a deployment still holds: its files, its topologies beside eager, its latencies."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from edgestitch import MismatchError, cli, verify
from edgestitch.artifact import digest
from edgestitch.backends import Resident
from edgestitch.deployment import Deployment, open_deployment
from edgestitch.device import detect
from edgestitch.instruments import find_instruments
from edgestitch.testing import toy_deployment
from edgestitch.timer import TimerSettings
from edgestitch.verify import Inspection, verify_deployment

ANY_SPEED = 20.0
"""The tests' machine is shared: how fast it is says nothing here."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return toy_deployment(tmp_path_factory.mktemp("verify") / "deployment")


def inspected(folder: Path, **options: Any) -> Inspection:
    instruments = find_instruments(detect(), energy=False)
    timer = TimerSettings(min_samples=20, time_cap_s=2.0)
    (found,) = verify_deployment(folder, instruments, timer=timer, **options)
    return found


def verified(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.cli, ["verify", *words])
    return result.exit_code, result.output


def opened_as(monkeypatch: pytest.MonkeyPatch, deployment: Deployment) -> None:
    monkeypatch.setattr(verify, "open_deployment", lambda folder: deployment)


def test_a_deployment_that_was_just_made_holds(made):
    found = inspected(made.folder, tolerance=ANY_SPEED)
    assert found.holds
    assert found.files == len(made.manifest.files)
    assert {one.topology for one in found.equalities} == set(made.manifest.chains)
    assert all(one.check and one.check.max_difference < 1e-5 for one in found.equalities)
    assert 2 <= len(found.replay.replays) <= 5


def test_a_topology_that_computes_something_else_is_named_and_not_timed(made, monkeypatch):
    deployment = open_deployment(made.folder)
    program, wrong = deployment.program, next(iter(made.manifest.chains))

    def load(topology: str) -> Resident:
        resident = program.load(topology)
        if topology != wrong:
            return resident
        return Resident(run=lambda images: resident.run(images) + 1)

    changed = dataclasses.replace(program, load=load)
    opened_as(monkeypatch, dataclasses.replace(deployment, program=changed))
    found = inspected(made.folder, tolerance=ANY_SPEED)
    assert not found.holds
    failures = {one.topology: one.failure for one in found.equalities if one.failure}
    assert list(failures) == [wrong]
    assert "not equal to eager" in failures[wrong]
    assert wrong not in {replay.topology for replay in found.replay.replays}


def test_latencies_that_are_others_now_are_told(made, monkeypatch):
    deployment = open_deployment(made.folder)
    costs = tuple(
        msgspec.structs.replace(
            cost,
            latency_ms=cost.latency_ms / 100,
            latency_low_ms=cost.latency_low_ms / 100,
            latency_high_ms=cost.latency_high_ms / 100,
        )
        for cost in deployment.profile.costs
    )
    profile = msgspec.structs.replace(deployment.profile, costs=costs)
    plan = msgspec.structs.replace(deployment.plan, profile=digest(profile))
    opened_as(monkeypatch, dataclasses.replace(deployment, profile=profile, plan=plan))
    found = inspected(made.folder)
    assert not found.holds
    assert not any(replay.holds for replay in found.replay.replays)
    assert all(one.failure is None for one in found.equalities)


def test_a_plan_of_another_profile_is_refused(made, monkeypatch):
    deployment = open_deployment(made.folder)
    plan = msgspec.structs.replace(deployment.plan, profile="0" * 64)
    opened_as(monkeypatch, dataclasses.replace(deployment, plan=plan))
    with pytest.raises(MismatchError, match="plan and profile"):
        inspected(made.folder)


def test_the_verb_says_by_its_exit_code_what_it_found(made, tmp_path):
    words = ("--tolerance", str(ANY_SPEED), "--number", "2")
    code, said = verified(str(made.folder), *words)
    assert code == 0
    assert "the deployment holds" in said
    assert f"{len(made.manifest.files)} files are as they were written" in said
    code, said = verified(str(made.folder), *words, "--json")
    found = json.loads(said)
    assert (code, found["holds"], found["inspections"][0]["batch"]) == (0, True, 1)

    altered = shutil.copytree(made.folder, tmp_path / "altered")
    (altered / "plan.json").write_text("{}")
    code, said = verified(str(altered), *words)
    assert code == 1
    assert "plan.json was altered" in said


def test_the_verb_refuses_what_it_cannot_judge(made, tmp_path, monkeypatch):
    assert verified(str(made.folder), "toy")[0] == 2
    (tmp_path / "empty").mkdir()
    code, said = verified(str(tmp_path / "empty"))
    assert code == 1
    assert "no deployment at" in said

    def elsewhere(folder: Path) -> None:
        raise MismatchError("hardware is Colossus there")

    monkeypatch.setattr(verify, "open_deployment", elsewhere)
    code, said = verified(str(made.folder))
    assert code == 3
    assert "not comparable: hardware is Colossus there" in said
