"""What works on a machine, and why the rest does not, is said on every machine."""

import json

import msgspec
import pytest
from click.testing import CliRunner

from edgestitch import backends
from edgestitch.cli import cli
from edgestitch.device import detect
from edgestitch.environment import Environment, describe, lines
from edgestitch.meters import survey
from edgestitch.nvml import Nvml
from tests.boards import BOARDS, board, hide_gpus, machine
from tests.fakes import FakeNvml, hwmon_tree


@pytest.fixture(autouse=True)
def _no_real_gpu(monkeypatch):
    hide_gpus(monkeypatch)


def said(found: Environment) -> dict[str, list[str]]:
    """The printed lines by their first word."""
    words: dict[str, list[str]] = {}
    for line in lines(found):
        words.setdefault(line[:10].strip(), []).append(line[11:])
    return words


def test_this_machine_is_described():
    found = describe()
    assert found.device == detect()
    assert {backend.name for backend in found.backends} == set(backends.NAMES)
    assert found.packages["torch"]


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_described_with_its_modes_as_its_own_file_has_them(tmp_path, name):
    found = describe(board(tmp_path, name))
    known = BOARDS[name]
    assert found.device.name == name
    assert [(mode.id, mode.name) for mode in found.power_modes] == list(known.modes)
    printed = said(found)
    mode = dict(known.modes)[known.mode]
    assert printed["power mode"] == [mode]
    assert printed["jetpack"] == [found.device.jetpack]
    default = dict(known.modes)[known.default]
    assert f"{known.default} {default} (default)" in printed[""]
    assert f"gpu {known.gpu_mhz[0]:.0f} MHz" in printed["clocks"][0]


def test_every_meter_is_listed_with_the_reason_why_it_does_not_work(tmp_path):
    root = machine(tmp_path)
    found = describe(root)
    tried = survey(found.device, root=root)
    assert [meter.name for meter in found.meters] == [meter.name for meter in tried]
    assert all(meter.reason for meter in found.meters)
    assert found.meter.name == "none"
    assert all(f"{meter.name}: {meter.reason}" in (found.meter.reason or "") for meter in tried)


def test_the_meter_of_a_board_reads_the_rails_that_add_up_to_its_total(tmp_path):
    root = hwmon_tree(board(tmp_path, "jetson-orin-nano"), "orin-nano")
    found = describe(root)
    assert (found.meter.name, found.meter.reason) == ("ina3221", None)
    assert "VDD_IN" in (found.meter.scope or "")
    assert "VDD_SOC" not in (found.meter.scope or "")


def test_a_sum_of_rails_that_is_an_estimate_says_so(tmp_path):
    root = hwmon_tree(board(tmp_path, "jetson-agx-orin"), "agx-orin")
    assert (describe(root).meter.scope or "").endswith("an estimate")


def test_a_board_that_nothing_compiles_for_says_so_of_each_compiler(tmp_path):
    found = describe(board(tmp_path, "jetson-xavier"))
    reasons = {backend.name: backend.reason for backend in found.backends}
    assert "JetPack 5" in (reasons.pop("openvino") or "")
    assert reasons.pop("eager") is None
    assert all(reason and "JetPack 5" in reason for reason in reasons.values())


def test_a_gpu_is_described_by_what_nvml_says(tmp_path):
    nvml = Nvml(FakeNvml())
    found = describe(machine(tmp_path), nvml=nvml)
    assert (found.device.name, found.device.driver) == ("cuda", nvml.driver)
    assert found.nvml is None
    assert said(found)["driver"] == [nvml.driver]


def test_a_machine_with_nothing_is_described_as_well(tmp_path):
    found = describe(tmp_path)
    printed = said(found)
    assert found.device.name == "cpu"
    assert printed["power mode"] == ["none that can be read"]
    assert printed["throttling"] == ["unknown"]
    assert printed["heat"] == ["none that can be read"]
    assert found.nvml
    assert printed["nvml"] == [found.nvml]


def test_what_is_described_survives_json(tmp_path):
    found = describe(board(tmp_path, "jetson-thor"))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Environment) == found


def test_the_command_line_says_the_same_and_succeeds_on_this_machine_whatever_it_is():
    plain, as_json = (CliRunner().invoke(cli, ["env", *more]) for more in ([], ["--json"]))
    assert plain.exit_code == as_json.exit_code == 0
    assert json.loads(as_json.output)["device"]["name"] == detect().name
    assert plain.output.startswith(f"device     {detect().name}")
