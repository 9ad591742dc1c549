"""Power modes of a Jetson, from the board's own files, and switching between them for a while.

A mode's number means something else on each board and release: `MAXN` is 0 on one and 2 on another.
So no number is written down here; `/etc/nvpmodel.conf` of the board at hand says what there is.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import sysfs
from .artifact import Value
from .errors import DeviceError

CONFIGURATION = "etc/nvpmodel.conf"
STATUS = "var/lib/nvpmodel/status"
_LIMITS = (
    "sys/class/devfreq/*/m??_freq",
    "sys/devices/system/cpu/cpufreq/policy*/scaling_m??_freq",
)
# A process of its own, so that it outlives ours. It waits for a byte, which says that all is as it
# was, or for the end of the pipe, which comes without one when we are killed. Processes that we
# forked may hold the pipe open for longer than we live: hence the look at the parent.
_GUARD = """
import os, select, sys
parent, command = int(sys.argv[1]), sys.argv[2:]
while os.getppid() == parent:
    if select.select([0], [], [], 0.5)[0]:
        if os.read(0, 1):
            sys.exit()
        break
os.execvp(command[0], command)
"""

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


class PowerMode(Value, frozen=True, kw_only=True):
    id: int
    """On this board, with this release."""
    name: str
    default: bool = False
    """Whether the board starts in it."""


def modes(root: Path = Path("/")) -> tuple[PowerMode, ...]:
    """The modes of this board, in the order of its file; none where it has no such file."""
    text = re.sub(r"#.*", "", sysfs.text(root / CONFIGURATION))
    default = re.search(r"<\s*PM_CONFIG\s+DEFAULT=(\d+)\s*>", text)
    return tuple(
        PowerMode(
            id=int(number),
            name=name,
            default=default is not None and int(default[1]) == int(number),
        )
        for number, name in re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text)
    )


def current(root: Path = Path("/")) -> PowerMode | None:
    """The mode that the board is in; named `mode 7` where its file has no 7; `None` if unknown."""
    match = re.search(r"pmode:(\d+)", sysfs.text(root / STATUS))
    if match is None:
        return None
    number = int(match[1])
    named = (mode for mode in modes(root) if mode.id == number)
    return next(named, PowerMode(id=number, name=f"mode {number}"))


@contextlib.contextmanager
def switched(
    name: str,
    *,
    root: Path = Path("/"),
    command: Sequence[str] = ("nvpmodel",),
    run: Run | None = None,
    settle_s: float = 2.0,
) -> Iterator[PowerMode]:
    """The board in the mode of that name, its clocks settled; afterwards in the one it was in.

    The former mode comes back even if this process is killed: another one sees to it. Only where
    the whole control group is ended, as systemd does with a service, nobody is left.

    `command` is what switches, given `-m` and a number: `("sudo", "-n", "nvpmodel")`, for one, where
    sudo asks for no password. It is run to switch back as well, then perhaps without a terminal.

    Raises:
        ValueError: this board has no mode of that name.
        DeviceError: it has no modes, switching is not permitted, or it did not take effect.
    """
    former, wanted = _mode_now(root), _mode(name, root)
    if wanted.id == former.id:
        yield wanted
        return
    run = run or _run
    with _guard([*command, "-m", str(former.id)]) as call_off:
        try:
            _switch(wanted, root, command, run)
            _settle(root, settle_s)
            yield wanted
        finally:
            if current(root) != former:
                _switch(former, root, command, run)
            call_off()  # not reached if even this was interrupted: then the guard restores


def _mode_now(root: Path) -> PowerMode:
    now = current(root)
    if now is None:
        raise DeviceError(
            f"no power mode can be read from {root / STATUS}: only a Jetson has them, once its "
            "nvpmodel service has run; leave the mode as it is"
        )
    return now


def _mode(name: str, root: Path) -> PowerMode:
    known = modes(root)
    if not known:
        raise DeviceError(f"no power modes in {root / CONFIGURATION}; leave the mode as it is")
    for mode in known:
        if mode.name.lower() == name.lower():
            return mode
    raise ValueError(
        f"no power mode {name!r} on this board; there are {', '.join(mode.name for mode in known)}"
    )


def _switch(mode: PowerMode, root: Path, command: Sequence[str], run: Run) -> None:
    """Switches, and looks whether it did: nvpmodel may exit with 0 and have left all as it was."""
    done = run([*command, "-m", str(mode.id)])
    now = current(root)
    if now is not None and now.id == mode.id:
        return
    said = " ".join(f"{done.stdout or ''} {done.stderr or ''}".split())
    was = f"the board is still in {now.name if now else 'no mode that can be read'}"
    if "reboot" in said.lower():
        why = f"{mode.name} needs a reboot: run `sudo nvpmodel -m {mode.id}` at a terminal, say yes"
    elif done.returncode == 0:
        why = (
            "nvpmodel said nothing of a failure, as it does over SSH with a mode that needs a "
            f"reboot: run `sudo nvpmodel -m {mode.id}` at a terminal of the board"
        )
    elif os.geteuid() != 0:
        why = "only root may switch: run this command with sudo"
    else:
        why = f"nvpmodel ended with {done.returncode}"
    raise DeviceError(
        f"power mode {mode.name} was asked for, but {was}; {why}" + (f" ({said})" if said else "")
    )


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    try:
        # Without an input: nvpmodel asks whether to reboot, and must not do so in our name.
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(
            f"{command[0]} cannot be run: {error}; it is part of JetPack, as /usr/sbin/nvpmodel"
        ) from error


def _settle(root: Path, settle_s: float, cap_s: float = 15.0) -> None:
    """Waits until the limits of all clocks have stayed as they are for `settle_s`."""
    start = since = time.monotonic()
    before = _limits(root)
    while time.monotonic() - since < settle_s:
        time.sleep(min(settle_s, 0.1))
        now = _limits(root)
        if now != before:
            before, since = now, time.monotonic()
        if time.monotonic() - start > settle_s + cap_s:
            raise DeviceError(
                f"the limits of the clocks still change {cap_s:.0f} s after the power mode did; "
                "end what else changes them, a fan or clock service for one"
            )


def _limits(root: Path) -> dict[Path, str]:
    return {file: sysfs.text(file) for pattern in _LIMITS for file in root.glob(pattern)}


@contextlib.contextmanager
def _guard(command: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Another process, which runs a command once this one has ended, unless it was called off."""
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,  # Ctrl-C at the terminal, and its end, are not for the guard
    )
    pipe = guard.stdin
    assert pipe is not None

    def call_off() -> None:
        with contextlib.suppress(BrokenPipeError):  # it was killed: nothing to call off
            pipe.write(b".")

    try:
        yield call_off
    finally:
        pipe.close()
        guard.wait()
