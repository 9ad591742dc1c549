"""Power modes are the board's own, and the former one comes back, whatever happens."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgestitch import DeviceError
from edgestitch.power import current, modes, switched
from tests.boards import BOARDS, board, machine, put

STATUS = "var/lib/nvpmodel/status"


@pytest.fixture
def nano(tmp_path):
    """An Orin Nano in MAXN_SUPER, which is its mode 2."""
    return board(tmp_path / "nano", "jetson-orin-nano")


def nvpmodel(root: Path, *, fails: str = "", said: str = "", code: int = 0) -> tuple[str, ...]:
    """A command that switches a board's status file, except to the modes that fail.

    It notes each call in `<root>/calls`.
    """
    program = put(
        root / "nvpmodel.py",
        f"""
import pathlib, sys
number = sys.argv[-1]
failing = number in {fails.split()!r}
if not failing:
    pathlib.Path({str(root / STATUS)!r}).write_text("pmode:%04d fmode:fanNull" % int(number))
with open({str(root / "calls")!r}, "a") as calls:  # last, since tests wait for it
    calls.write(number + " ")
if failing:
    print({said!r})
    sys.exit({code})
""",
    )
    return (sys.executable, "-I", "-S", str(program))


def calls(root: Path) -> str:
    file = root / "calls"
    return file.read_text().strip() if file.exists() else ""


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# --- which there are -------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOARDS)
def test_modes_are_those_of_the_boards_file(tmp_path, name):
    root = board(tmp_path, name)
    known = BOARDS[name]
    found = modes(root)
    assert [(mode.id, mode.name) for mode in found] == list(known.modes)
    assert [mode.id for mode in found if mode.default] == [known.default]
    now = current(root)
    assert now
    assert now.id == known.mode


def test_the_same_name_has_another_number_on_another_board(tmp_path):
    def largest(name: str) -> int:
        found = modes(board(tmp_path / name, name))
        return next(mode.id for mode in found if mode.name.startswith("MAXN"))

    assert [largest("jetson-orin-nano"), largest("jetson-orin-nx")] == [2, 0]


def test_a_mode_that_the_file_does_not_have_is_called_by_its_number(nano):
    put(nano / STATUS, "pmode:0007 fmode:fanNull")
    now = current(nano)
    assert now
    assert (now.id, now.name, now.default) == (7, "mode 7", False)


def test_a_machine_that_is_no_jetson_has_no_modes(tmp_path):
    assert modes(machine(tmp_path)) == ()
    assert current(tmp_path) is None


# --- switching -------------------------------------------------------------------------------


def test_a_mode_is_switched_to_by_its_name_and_back(nano):
    with switched("25w", root=nano, command=nvpmodel(nano), settle_s=0.0) as mode:
        assert mode.name == "25W"
        assert current(nano) == mode
    now = current(nano)
    assert now
    assert now.name == "MAXN_SUPER"
    assert calls(nano) == "1 2"


def test_the_mode_that_already_holds_is_left_alone(nano):
    with switched("MAXN_SUPER", root=nano, command=nvpmodel(nano)) as mode:
        assert mode.id == 2
    assert calls(nano) == ""


def test_the_former_mode_comes_back_after_an_error(nano):
    with (
        pytest.raises(ZeroDivisionError),
        switched("7W", root=nano, command=nvpmodel(nano), settle_s=0.0),
    ):
        raise ZeroDivisionError
    assert calls(nano) == "3 2"


def test_a_switch_that_fails_silently_is_an_error(nano):
    """As over SSH, to a mode that needs a reboot: the exit code is 0 and all is as it was."""
    command = nvpmodel(nano, fails="3")
    with (
        pytest.raises(DeviceError, match="7W was asked for, but the board is still in MAXN_SUPER"),
        switched("7W", root=nano, command=command),
    ):
        pytest.fail("the mode is not the one that was asked for")
    assert calls(nano) == "3"


@pytest.mark.parametrize(
    ("said", "code", "advice"),
    [
        ("NVPM WARN: Reboot required for changing to this power mode", 0, "needs a reboot"),
        ("NVPM ERROR: failed to open status file", 1, "ended with 1"),
    ],
)
def test_a_refused_switch_says_why(nano, monkeypatch, said, code, advice):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    command = nvpmodel(nano, fails="3", said=said, code=code)
    with (
        pytest.raises(DeviceError, match=advice) as refused,
        switched("7W", root=nano, command=command),
    ):
        pytest.fail("the mode is not the one that was asked for")
    assert said in str(refused.value)


def test_switching_without_permission_says_how(nano, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    command = nvpmodel(nano, fails="3", code=1)
    with (
        pytest.raises(DeviceError, match="only root may switch: run this command with sudo"),
        switched("7W", root=nano, command=command),
    ):
        pytest.fail("the mode is not the one that was asked for")


def test_a_board_without_the_command_says_so(nano):
    with (
        pytest.raises(DeviceError, match="no-such-nvpmodel cannot be run"),
        switched("7W", root=nano, command=("no-such-nvpmodel",)),
    ):
        pytest.fail("nothing switched")


def test_an_unknown_mode_is_refused_with_the_boards_own(nano):
    with (
        pytest.raises(ValueError, match=r"no power mode 'MAXN'.*15W, 25W, MAXN_SUPER, 7W"),
        switched("MAXN", root=nano),
    ):
        pytest.fail("there is no such mode")


def test_a_machine_that_is_no_jetson_cannot_be_switched(tmp_path):
    with pytest.raises(DeviceError, match="only a Jetson has them"), switched("7W", root=tmp_path):
        pytest.fail("there is nothing to switch")


def test_a_failure_to_switch_back_is_an_error(nano):
    command = nvpmodel(nano, fails="2")
    with (
        pytest.raises(DeviceError, match="MAXN_SUPER was asked for, but the board is still in 7W"),
        switched("7W", root=nano, command=command, settle_s=0.0),
    ):
        pass


def test_work_begins_once_the_limits_of_the_clocks_have_settled(nano):
    limit = nano / "sys/class/devfreq/17000000.gpu/max_freq"
    script = f"sleep 0.3; echo 408000000 > {limit}"
    late = subprocess.Popen(["sh", "-c", script])
    try:
        with switched("7W", root=nano, command=nvpmodel(nano), settle_s=0.6):
            assert limit.read_text().strip() == "408000000"
    finally:
        late.wait()


# --- whatever happens ------------------------------------------------------------------------

PARENT = """
import os, sys, time
from pathlib import Path
from edgestitch.power import switched

root, command = Path(sys.argv[1]), sys.argv[2:]
with switched("7W", root=root, command=command, settle_s=0.0):
    if os.environ.get("FORK") and os.fork() == 0:
        os.closerange(0, 3)
        time.sleep(60)
        os._exit(0)
    print("switched", flush=True)
    time.sleep(60)
"""


def start(root: Path, **environment: str) -> "subprocess.Popen[str]":
    """A process that has switched a board to 7W and stays."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(root), *nvpmodel(root)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,  # so that its children can be ended with it
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "switched\n"
    return process


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_former_mode_comes_back_after_the_process_was_killed(nano, how):
    process = start(nano)
    assert calls(nano) == "3"
    process.send_signal(how)
    process.communicate()
    wait_for(lambda: calls(nano) == "3 2")
    now = current(nano)
    assert now
    assert now.name == "MAXN_SUPER"


def test_it_comes_back_though_a_forked_worker_outlives_the_process(nano):
    process = start(nano, FORK="1")
    try:
        process.kill()
        process.wait()
        wait_for(lambda: calls(nano) == "3 2")
        now = current(nano)
        assert now
        assert now.name == "MAXN_SUPER"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_it_comes_back_though_switching_back_was_interrupted(nano):
    command = nvpmodel(nano)

    def run(arguments):
        if arguments[-1] == "2":
            raise KeyboardInterrupt
        return subprocess.run(arguments, check=True, capture_output=True, text=True)

    with (
        pytest.raises(KeyboardInterrupt),
        switched("7W", root=nano, command=command, run=run, settle_s=0.0),
    ):
        pass
    assert calls(nano) == "3 2"


def test_ctrl_c_at_the_terminal_does_not_end_the_guard(nano):
    process = start(nano)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    assert calls(nano) == "3 2"


def test_work_goes_on_though_the_guard_was_killed(nano):
    with switched("7W", root=nano, command=nvpmodel(nano), settle_s=0.0):
        (guard,) = children(os.getpid())
        os.kill(guard, signal.SIGKILL)
        wait_for(lambda: state(guard) == "Z")
    assert calls(nano) == "3 2"


def children(parent: int) -> list[int]:
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [
        pid for pid in map(int, found) if b"getppid" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
