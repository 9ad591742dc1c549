"""A profile from another machine: over a real sshd on this one, with a stand-in for the profiler."""

import getpass
import io
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from edgestitch import ArtifactError, DeviceError, EdgestitchError, MismatchError, __version__
from edgestitch import remote as module
from edgestitch.artifact import load, save, sha256, tensor_digest
from edgestitch.catalog import require_accuracy, shipped_network
from edgestitch.profile import Profile
from edgestitch.remote import profile_on, progress_lines
from tests.strategies import cost
from tests.strategies import profile as make_profile

# What runs there instead of edgestitch: says what the file `behaviour` beside it tells it to.
STAND_IN = """\
#!{python} -IS
import json, os, shutil, signal, sys, time
from pathlib import Path

here = Path(__file__).parent
told = json.loads((here / "behaviour").read_text())
arguments = sys.argv[1:]
if arguments == ["--version"]:
    print("edgestitch, version", told["version"])
    sys.exit()
with (here / "runs").open("a") as runs:
    print(json.dumps(dict(arguments=arguments, pid=os.getpid())), file=runs)
if told["deaf"]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    for done in range(1, 5):
        if os.environ.get("EDGESTITCH_PROGRESS") == "json":
            print(json.dumps(dict(stage="measure", done=done, total=4)), file=sys.stderr, flush=True)
        print("a warning of some library", file=sys.stderr, flush=True)
        if done == 2 and told["die"]:
            os.killpg(0, signal.SIGKILL)
        while done == 2 and told["wait"] and not (here / "go").exists():
            time.sleep(0.02)
except KeyboardInterrupt:
    (here / "interrupted").touch()
    sys.exit(130)
if told["fail"]:
    print(told["fail"], file=sys.stderr)
    sys.exit(told["code"])
out = Path(arguments[arguments.index("--out") + 1])
for suffix in told["result"]:
    shutil.copy((here / "profile").with_suffix(suffix), out.with_suffix(suffix))
"""
ROOT = Path(module.__file__).parent.parent
RESULT = make_profile([cost("a:0:3"), cost("b:0:3", latency=2.0)])
USUAL = {
    "version": __version__,
    "wait": False,
    "deaf": False,
    "die": False,
    "fail": "",
    "code": 1,
    "result": [".samples.safetensors", ".json"],
}

# Notes what is asked for, and is a network that can be taken away.
SSH = """\
for last; do :; done
echo "$last" >>{folder}/asked
if [ -e {folder}/unreachable ]; then echo "ssh: Network is unreachable" >&2; exit 255; fi
exec ssh -F {folder}/config "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Far:
    """A machine of this test: its home folder, and how to get there."""

    folder: Path
    daemon: "subprocess.Popen[bytes]"

    @property
    def ssh(self) -> tuple[str, ...]:
        return ("sh", str(self.folder / "ssh"))

    @property
    def bin(self) -> Path:
        """Where the stand-in is, with what it is told and what it notes."""
        return self.folder / "home/.local/bin"

    @property
    def files(self) -> Path:
        return self.folder / "home/.cache/edgestitch/remote/files"

    @property
    def jobs(self) -> list[Path]:
        return list((self.folder / "home/.cache/edgestitch/remote/jobs").iterdir())

    @property
    def runs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.bin / "runs").read_text().splitlines()]

    @property
    def sendings(self) -> int:
        """How often a file, or a part of one, was sent."""
        asked = (self.folder / "asked").read_text().splitlines()
        return sum(line.startswith("cat ") for line in asked)

    def behave(self, **told: object) -> None:
        (self.bin / "behaviour").write_text(json.dumps({**USUAL, **told}))

    def go(self) -> None:
        """Lets a stand-in that waits go on."""
        (self.bin / "go").touch()

    def cut(self) -> None:
        """Kills the far ends of all connections."""
        pid = self.daemon.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)

    def profile(self, out: Path, *arguments: str | Path, **options: Any) -> "tuple[Profile, Path]":
        settings = {"ssh": self.ssh, "patience_s": 20.0, **options}
        return profile_on("far", arguments, lambda found: out, **settings)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """The folder of an sshd that runs, with keys and configurations of its own."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("needs sshd and ssh; Debian and Ubuntu pack them as openssh-server")
    folder = tmp_path_factory.mktemp("far")
    for key in ("host", "user", "other"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(make, check=True)
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    (folder / "known_hosts").write_text(f"far {(folder / 'host.pub').read_text()}")
    port = _free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\n"
        f"PermitRootLogin yes\nMaxStartups 100\n"
        f"SetEnv HOME={folder}/home OMP_NUM_THREADS=1\n"
    )
    (folder / "config").write_text(
        f"Host far\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n"
        f" IdentityFile {folder}/user\n IdentitiesOnly yes\n HostKeyAlias far\n"
        f" KexAlgorithms curve25519-sha256\n"  # the default one takes half as long again
        f" UserKnownHostsFile {folder}/known_hosts\n GlobalKnownHostsFile /dev/null\n"
    )
    (folder / "ssh").write_text(SSH.format(folder=folder))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd of root goes there to drop its privileges
    log = folder / "log"
    process = subprocess.Popen([sshd, "-D", "-E", str(log), "-f", str(folder / "sshd_config")])
    try:
        (folder / "home").mkdir()
        greeting = _greeting(folder)
        if greeting:
            pytest.skip(f"no login to an sshd here: {greeting}; {log.read_text()}")
        yield Far(folder=folder, daemon=process)
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _greeting(folder: Path) -> str:
    """Why nobody can log in; empty if one can."""
    command = ["sh", str(folder / "ssh"), "-o", "BatchMode=yes", "far", "true"]
    for _ in range(20):
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            return ""
        time.sleep(0.1)
    return tried.stderr


@pytest.fixture
def far(daemon):
    """A machine that nobody has used, where a stand-in for edgestitch is installed for the user."""
    shutil.rmtree(daemon.folder / "home")
    for left in ("asked", "unreachable"):
        (daemon.folder / left).unlink(missing_ok=True)
    daemon.bin.mkdir(parents=True)
    script = daemon.bin / "edgestitch"
    script.write_text(STAND_IN.format(python=sys.executable))
    script.chmod(0o755)
    save(RESULT, daemon.bin / "profile.json")
    (daemon.bin / "profile.samples.safetensors").write_bytes(secrets.token_bytes(1 << 20))
    daemon.behave()
    yield daemon
    for run in daemon.runs if (daemon.bin / "runs").exists() else ():
        if _alive(run["pid"]):
            os.kill(run["pid"], signal.SIGKILL)


def _alive(pid: int) -> bool:
    """Whether a process runs; a zombie whose parent is slow to notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def at(step: int, act: Callable[[], object]) -> Callable[[str, int, int], None]:
    """Progress that acts once, when the far profiler tells of that step."""
    acted: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "measure" and done == step and not acted:
            acted.append(done)
            act()

    return progress


def interrupt() -> None:
    """What Ctrl-C does to the main thread."""
    raise KeyboardInterrupt


# --- what comes back -------------------------------------------------------------------------


def test_profile_and_samples_come_back_as_they_are_there_and_progress_as_it_is_made(far, tmp_path):
    seen: list[tuple[str, int, int]] = []
    profile, path = profile_on(
        "far",
        ["fashion-vit"],
        lambda found: tmp_path / f"new/{found.family}.json",
        ssh=far.ssh,
        progress=lambda *step: seen.append(step),
    )
    assert path == tmp_path / "new/toy.json"  # where it goes may depend on what it is
    assert profile == load(Profile, path) == RESULT
    for suffix in (".json", ".samples.safetensors"):
        there = (far.bin / "profile").with_suffix(suffix)
        assert path.with_suffix(suffix).read_bytes() == there.read_bytes()
    assert len(list(path.parent.iterdir())) == 2
    assert seen == [("measure", done, 4) for done in range(1, 5)]
    assert far.jobs == []


def test_an_argument_arrives_as_it_is(far, tmp_path):
    arguments = ["it's", 'a "b" $HOME `id`', "", "*", "a\nb", "-é\\n", "%s {job}", "\udcff"]
    far.profile(tmp_path / "p.json", *arguments)
    (run,) = far.runs
    assert run["arguments"][:-2] == ["profile", *arguments]
    assert run["arguments"][-2] == "--out"


def test_the_command_may_be_several_words_that_the_shell_there_reads(far, tmp_path):
    (far.bin / "edgestitch").rename(far.folder / "home/elsewhere")
    command = f"nice {sys.executable} ~/elsewhere"
    for name in ("behaviour", "profile.json", "profile.samples.safetensors"):
        shutil.copy(far.bin / name, far.folder / "home")
    far.profile(tmp_path / "p.json", "x", command=command)
    assert (tmp_path / "p.json").exists()


def test_the_real_profiler_there_profiles_a_network_from_here(far, tmp_path):
    network = tmp_path / "it's my network.safetensors"
    shutil.copy(shipped_network("fashion-vit"), network)
    accuracy = require_accuracy("fashion-vit")
    few = ["--backend", "eager", "--min-samples", "20", "--time-cap-s", "1"]
    topologies = [row.topology for row in accuracy.rows[:2]]
    seen: list[tuple[str, int, int]] = []
    profile, path = far.profile(
        tmp_path / "p.json",
        *(network, *few, "--topologies", ",".join(topologies)),
        command=f"PYTHONPATH={shlex.quote(str(ROOT))} {sys.executable} -m edgestitch",
        progress=lambda *step: seen.append(step),
    )
    assert profile.network == accuracy.network
    assert [cost.topology for cost in profile.costs] == topologies
    samples = load_file(path.with_suffix(".samples.safetensors"))
    assert tensor_digest(samples) == profile.samples_digest
    assert seen[0][0] == "copy"
    assert ("measure", 1000, 1000) in seen


# --- files from here -------------------------------------------------------------------------


def test_a_file_is_sent_once_and_named_by_its_digest(far, tmp_path):
    network = tmp_path / "a network.safetensors"
    network.write_bytes(b"weights")
    for batch in ("1", "2"):
        far.profile(tmp_path / f"{batch}.json", network, "--batch", batch)
    name = f"{sha256(b'weights')}.safetensors"
    assert [path.name for path in far.files.iterdir()] == [name]
    expected = [["profile", str(far.files / name), "--batch", batch] for batch in ("1", "2")]
    assert [run["arguments"][:-2] for run in far.runs] == expected
    assert far.sendings == 1


@pytest.mark.parametrize(
    ("there", "content"), [("", b"weig"), (".part", b"WEIGHTS"), (".part", b"more weights")]
)
def test_a_damaged_copy_is_not_used(far, tmp_path, there, content):
    network = tmp_path / "network.safetensors"
    network.write_bytes(b"weights")
    copy = far.files / f"{sha256(b'weights')}.safetensors"
    far.files.mkdir(parents=True)
    copy.with_name(copy.name + there).write_bytes(content)
    far.profile(tmp_path / "p.json", network)
    assert [path.name for path in far.files.iterdir()] == [copy.name]
    assert copy.read_bytes() == b"weights"


def test_a_copy_goes_on_where_the_connection_broke(far, tmp_path):
    network = tmp_path / "network.safetensors"
    network.write_bytes(secrets.token_bytes(16 << 20))
    sent: list[int] = []
    cut: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "copy":
            if done >= 3 * total // 4 and not cut:
                cut.append(done)
                far.cut()
            sent.append(done)

    far.profile(tmp_path / "p.json", network, progress=progress)
    (copy,) = far.files.iterdir()
    assert copy.read_bytes() == network.read_bytes()
    assert far.sendings == 2
    assert len(sent) < 2 * 64  # pieces of 256 KiB, 64 in all


def test_a_file_that_changes_while_it_is_sent_is_refused(far, tmp_path, monkeypatch):
    network = tmp_path / "network.safetensors"
    network.write_bytes(b"weights")
    monkeypatch.setattr(module, "_measure", lambda file: (sha256(b"WEIGHTS"), 7))
    with pytest.raises(DeviceError, match="is it being written to"):
        far.profile(tmp_path / "p.json", network)
    assert list(far.files.glob("*.safetensors")) == []


def test_a_missing_file_is_refused_by_name(far, tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot read .*gone\.safetensors"):
        far.profile(tmp_path / "p.json", tmp_path / "gone.safetensors")


def test_what_nobody_used_for_a_month_is_removed_there(far, tmp_path):
    far.files.mkdir(parents=True)
    for name, age_days in (("old", 40), ("young", 20)):
        (far.files / name).touch()
        then_s = time.time() - age_days * 86400
        os.utime(far.files / name, (then_s, then_s))
    far.profile(tmp_path / "p.json", "x")
    assert [path.name for path in far.files.iterdir()] == ["young"]


# --- lost connections ------------------------------------------------------------------------


def test_a_job_outlives_its_connection_and_runs_once(far, tmp_path):
    far.behave(wait=True)
    seen: list[int] = []
    acts = at(2, lambda: (far.cut(), far.go()))

    def progress(stage: str, done: int, total: int) -> None:
        seen.append(done)
        acts(stage, done, total)

    profile, _ = far.profile(tmp_path / "p.json", "x", progress=progress)
    assert profile.family == "toy"
    assert seen == [1, 2, 3, 4]  # nothing twice, nothing left out
    assert len(far.runs) == 1


def test_a_second_call_picks_up_after_this_process_died(far, tmp_path):
    far.behave(wait=True)
    code = f"""
        from edgestitch.remote import profile_on
        show = lambda stage, done, total: print(done, flush=True)
        profile_on("far", ["x"], lambda found: None, ssh={far.ssh!r}, progress=show)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"1\n"
        first.kill()
    told: list[str] = []
    seen: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        seen.append(done)
        far.go()

    far.profile(tmp_path / "p.json", "x", progress=progress, tell=told.append)
    assert seen == [1, 2, 3, 4]  # from the beginning, for whoever looks now
    assert told == ["far is at it already; following"]
    assert len(far.runs) == 1


def test_a_result_that_was_not_fetched_is_not_measured_again(far, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot write"):
        far.profile(tmp_path / "file/p.json", "x")
    told: list[str] = []
    far.profile(tmp_path / "p.json", "x", tell=told.append)
    assert told == [
        "far has finished it already, for an earlier call; fetching what it measured then"
    ]
    assert len(far.runs) == 1


def test_a_connection_that_stays_away_ends_the_call_and_not_the_job(far, tmp_path):
    far.behave(wait=True)
    told: list[str] = []
    leave = at(2, lambda: ((far.folder / "unreachable").touch(), far.cut()))
    with pytest.raises(DeviceError, match=r"for 1 s \(ssh: Network is unreachable\).*goes on"):
        far.profile(tmp_path / "p.json", "x", progress=leave, patience_s=1.0, tell=told.append)
    (words,) = told
    assert words.startswith("the connection to far is lost (")
    (far.folder / "unreachable").unlink()
    far.go()
    far.profile(tmp_path / "p.json", "x")
    assert len(far.runs) == 1


def test_a_job_that_vanished_is_started_again_in_its_folder(far, tmp_path):
    far.behave(wait=True)

    def reboot() -> None:
        os.killpg(os.getpgid(far.runs[0]["pid"]), signal.SIGKILL)
        far.cut()
        far.go()

    far.profile(tmp_path / "p.json", "x", progress=at(2, reboot))
    first, second = far.runs
    assert first["arguments"] == second["arguments"]


def test_a_job_that_always_vanishes_is_given_up(far, tmp_path):
    far.behave(die=True)
    with pytest.raises(DeviceError, match="vanished 3 times without an exit code"):
        far.profile(tmp_path / "p.json", "x")
    assert len(far.runs) == 3


def test_half_a_script_does_nothing(tmp_path):
    lines = module._script(module._STOP, job="x", grace="1").splitlines(keepends=True)
    for end in range(1, len(lines) - 1):
        subprocess.run(
            ["sh", "-s"],
            input=b"".join(lines[:end]),
            env={**os.environ, "HOME": str(tmp_path)},
            check=False,
            capture_output=True,
        )
    assert list(tmp_path.iterdir()) == []


# --- Ctrl-C ----------------------------------------------------------------------------------


@pytest.mark.parametrize("deaf", [False, True])
def test_ctrl_c_stops_the_profiler_there(far, tmp_path, monkeypatch, deaf):
    monkeypatch.setattr(module, "STOP_S", 1 if deaf else 10)
    far.behave(wait=True, deaf=deaf)
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        far.profile(tmp_path / "p.json", "x", progress=at(2, interrupt), tell=told.append)
    assert told == ["the profiler on far was stopped"]
    assert not _alive(far.runs[0]["pid"])
    assert (far.bin / "interrupted").exists() == (not deaf)  # it could end in good order
    assert list(tmp_path.iterdir()) == []
    far.go()
    far.profile(tmp_path / "p.json", "x")  # begins again, beside what was measured so far
    first, second = far.runs
    assert first["arguments"] == second["arguments"]


def test_ctrl_c_without_a_connection_says_that_the_profiler_goes_on(far, tmp_path):
    far.behave(wait=True)
    told: list[str] = []

    def leave() -> None:
        (far.folder / "unreachable").touch()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        far.profile(tmp_path / "p.json", "x", progress=at(2, leave), tell=told.append)
    (words,) = told
    assert words.startswith("the profiler on far goes on, it could not be stopped (ssh: Network is")
    assert _alive(far.runs[0]["pid"])


# --- errors ----------------------------------------------------------------------------------


def test_a_failure_there_is_told_with_its_own_words_and_can_be_repeated(far, tmp_path):
    far.behave(fail="edgestitch: no device 'toaster'; there are auto, cpu")
    with pytest.raises(EdgestitchError, match=r"^far: no device 'toaster'; there are auto, cpu$"):
        far.profile(tmp_path / "p.json", "x")
    assert far.jobs == []
    assert list(tmp_path.iterdir()) == []
    far.behave()
    far.profile(tmp_path / "p.json", "x")
    assert len(far.runs) == 2


def test_a_job_that_was_killed_keeps_what_it_has_measured(far, tmp_path):
    far.behave(fail="Killed", code=137)
    with pytest.raises(EdgestitchError, match="ended with exit code 137; its last words: Killed"):
        far.profile(tmp_path / "p.json", "x")
    (job,) = far.jobs
    (job / "partial").touch()
    far.behave(wait=True)
    seen: list[str] = []

    def look() -> None:
        seen.extend(path.name for path in job.glob("part*"))
        far.go()

    far.profile(tmp_path / "p.json", "x", progress=at(2, look))
    assert seen == ["partial"]


@pytest.mark.parametrize(
    ("result", "missing"), [([], "profile.json"), ([".json"], "profile.samples.safetensors")]
)
def test_a_profiler_without_a_result_has_failed(far, tmp_path, result, missing):
    far.behave(result=result)
    with pytest.raises(EdgestitchError, match=rf"far: no {missing} in .*a container"):
        far.profile(tmp_path / "p.json", "x")
    assert far.jobs == []


def test_a_result_that_is_no_profile_is_refused_and_not_kept(far, tmp_path):
    (far.bin / "profile.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"from far: .* is no edgestitch artifact"):
        far.profile(tmp_path / "p.json", "x")
    assert far.jobs == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("edgestich", "edgestich: not found"),
        ("~/nowhere/edgestitch", "edgestitch: not found"),
        (f"{sys.executable} -m edgestich", "No module named edgestich"),
        ("echo", "says '--version'"),
        ("true", "says 'nothing'"),
        ("(", "[Ss]yntax error"),
    ],
)
def test_a_machine_without_edgestitch_is_told_what_to_install(far, tmp_path, command, said):
    with pytest.raises(DeviceError, match=said) as refused:
        far.profile(tmp_path / "p.json", "x", command=command)
    if command != "(":
        assert f"install edgestitch {__version__} there, or name" in str(refused.value)


def test_another_version_there_is_refused_and_another_patch_is_not(far, tmp_path):
    far.behave(version="7.3.1")
    with pytest.raises(MismatchError, match=rf"7\.3\.1, this is {__version__}"):
        far.profile(tmp_path / "p.json", "x")
    far.behave(version=__version__.rpartition(".")[0] + ".99rc1")
    far.profile(tmp_path / "p.json", "x")


def test_an_unknown_host_key_is_told_in_sshs_own_words(far, tmp_path):
    strangers = tmp_path / "known_hosts"
    strangers.write_text(f"far {(far.folder / 'other.pub').read_text()}")
    ssh = (*far.ssh, "-o", f"UserKnownHostsFile={strangers}")
    with pytest.raises(DeviceError, match=r"Host key verification failed.*without a question"):
        far.profile(tmp_path / "p.json", "x", ssh=ssh)


def test_a_refused_key_is_told_in_sshs_own_words(far, tmp_path):
    other = f"IdentityFile={far.folder / 'other'}"
    with pytest.raises(DeviceError, match=r"Permission denied \(publickey"):
        far.profile(
            tmp_path / "p.json",
            "x",
            ssh=("ssh", "-o", other, "-F", str(_without_key(far, tmp_path))),
        )


def _without_key(far: Far, folder: Path) -> Path:
    config = folder / "config"
    lines = (far.folder / "config").read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "IdentityFile" not in line))
    return config


def test_an_unreachable_machine_is_told_at_once(far, tmp_path):
    ssh = (*far.ssh, "-p", str(_free_port()))
    with pytest.raises(DeviceError, match=r"connect to host .*: Connection refused; `sh .* far`"):
        far.profile(tmp_path / "p.json", "x", ssh=ssh)


def test_a_missing_ssh_says_what_to_install(tmp_path):
    with pytest.raises(DeviceError, match=r"no-ssh cannot be run .* install OpenSSH's client"):
        profile_on("far", ["x"], lambda found: tmp_path / "p.json", ssh=("no-ssh",))


def test_a_host_cannot_be_an_option_of_ssh(far, tmp_path):
    with pytest.raises(DeviceError, match="no connection to -oProxyCommand=touch"):
        profile_on(f"-oProxyCommand=touch {tmp_path}/x", ["x"], lambda found: tmp_path, ssh=far.ssh)
    assert list(tmp_path.iterdir()) == []


# --- progress as lines -----------------------------------------------------------------------


def test_lines_of_progress_are_few_and_have_every_stages_first_and_last_step():
    stream, now_s = io.StringIO(), [0.0]
    progress = progress_lines(stream, lambda: now_s[0])
    for stage in ("warm up", "measure"):
        for done in range(1, 101):
            now_s[0] += 0.01
            progress(stage, done, 100)
    steps = [json.loads(line) for line in stream.getvalue().splitlines()]
    for stage in ("warm up", "measure"):
        told = [step["done"] for step in steps if step["stage"] == stage]
        assert told[0] == 1
        assert told[-1] == 100
        assert 5 <= len(told) <= 7
    assert set(steps[0]) == {"stage", "done", "total"}
