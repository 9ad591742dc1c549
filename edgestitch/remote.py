"""Profiling on another machine over SSH: the work is there, its progress and its result come here.

    here                                      there, in ~/.cache/edgestitch/remote
    files, named by their SHA-256   ------->  files/<digest>.safetensors
    start, unless it runs or ended  ------->  jobs/<digest>/run, detached from the connection
    progress                        <-------  jobs/<digest>/stderr
    profile and samples             <-------  jobs/<digest>/profile.json, .samples.safetensors

A job is named by the digest of what it does. It holds the lock of its folder while it runs, which
the kernel takes back even when the machine goes down, and leaves its exit code when it ends. So all
that is asked of the other machine can be asked again: after a lost connection, or by a second call
after this process died. While the job measures there is one connection, whose far end sleeps until
there is progress to tell.
"""

import contextlib
import hashlib
import math
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

import msgspec

from . import __version__
from .artifact import Value, load, sha256, write
from .errors import ArtifactError, DeviceError, EdgestitchError, MismatchError
from .profile import Profile
from .progress import Progress, silent

T = TypeVar("T")

OPTIONS = (
    "-T",
    *("-o", "BatchMode=yes"),  # asks nothing: nobody may be there to answer
    *("-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5"),  # 15 s of silence are a lost connection
    *("-o", "ServerAliveCountMax=3"),
    *("-o", "ClearAllForwardings=yes"),  # a port forwarded by the user's configuration may be taken
    *("-o", "RemoteCommand=none"),
)
SENDINGS = 3  # of a file, the last of which has to find it there
STARTS = 3  # of a job that vanishes each time; a reboot or two may be chance
FIRST_WAIT_S, LAST_WAIT_S = 0.5, 30.0  # between two attempts to connect
STOP_S = 10  # from SIGINT to SIGKILL
REPORT_S = 0.2  # between two lines of progress of one stage

# --- progress as lines of JSON -----------------------------------------------------------------


class Step(Value, frozen=True, kw_only=True):
    """One line of progress."""

    stage: str
    done: int
    total: int


def progress_lines(stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Progress as lines of JSON: the first and last step of a stage, and between them five a second."""
    written_s: dict[str, float] = {}

    def progress(stage: str, done: int, total: int) -> None:
        now_s = clock()
        if done < total and now_s - written_s.get(stage, -REPORT_S) < REPORT_S:
            return
        written_s[stage] = now_s
        step = Step(stage=stage, done=done, total=total)
        stream.write(msgspec.json.encode(step).decode() + "\n")
        stream.flush()

    return progress


def _step(line: bytes) -> Step | None:
    """The progress that a line tells; `None` for whatever else is written to stderr."""
    try:
        return msgspec.json.decode(line, type=Step)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


# --- what the shell there is told --------------------------------------------------------------

# A script is one compound command on the standard input of `sh`: half of one, cut off with the
# connection, is a syntax error and does nothing, and no login shell has its own way with the quotes.
# ~/.local/bin is where pip installs for a user; only login shells have it in PATH.
_SCRIPT = """{
PATH=$PATH:$HOME/.local/bin
root=$HOME/.cache/edgestitch/remote
mkdir -p "$root/files" "$root/jobs" && cd "$root" || exit 1
%s
} </dev/null
"""

# Networks and abandoned jobs do not fill the disk of a small device for ever.
_PROBE = """
find files jobs -mindepth 1 -maxdepth 1 -mtime +30 -exec rm -rf {} +
missing=
for tool in flock setsid sha256sum tail; do
  command -v $tool >/dev/null || missing="$missing $tool"
done
answer=$(%s --version 2>&1)
echo "$? $missing"
printf '%%s\\n' "$answer"
"""

# How many bytes of a file are there; -1 for all of them, with the right digest.
_OFFER = """
whole() { echo "$digest  $1" | sha256sum -c --status 2>/dev/null; }
cd files || exit 1
touch "$name.part" || exit 1
if [ -f "$name" ] && whole "$name"; then rm -f "$name.part"; touch "$name"; echo -1; exit; fi
size=$(($(wc -c <"$name.part")))
if [ "$size" -lt "$total" ]; then echo "$size"; exit; fi
if whole "$name.part"; then mv "$name.part" "$name" && echo -1; exit; fi
rm -f "$name.part"
echo 0
"""

# Starts a job unless it runs or has ended, says which in one letter, and gives on what it tells.
_ATTACH = """
mkdir -p "jobs/$job" && cd "jobs/$job" && touch stderr || exit 1
if [ -f exit ]; then
  printf e
elif flock -n lock true; then
  rm -f pid
  printf '%s\\n' "$run" >run && setsid -f sh run >/dev/null 2>&1 || exit 1
  tries=0
  until [ -s pid ] || [ "$tries" -ge 100 ]; do sleep 0.05; tries=$((tries + 1)); done
  printf s
else
  printf r
fi
tail -c "+$start" -f stderr 2>/dev/null &
flock -s lock true
kill $!
exit 0
"""

_STATES = {
    b"r": "is at it already; following",
    b"e": "has finished it already, for an earlier call; fetching what it measured then",
}

# SIGINT reaches the whole group: the profiler ends in good order, and the shell around it has to
# outlive it. Only that shell holds the lock, not what the profiler might leave behind.
_RUN = """
cd "jobs/{job}" || exit 1
exec 9>lock
flock -w 2 9 || exit
[ ! -f exit ] || exit
trap : INT TERM
echo $$ >pid
export EDGESTITCH_PROGRESS=json
{command} profile {arguments} --out "$PWD/profile.json" >/dev/null 2>>stderr 9>&-
code=$?
for file in profile.json profile.samples.safetensors; do
  [ "$code" = 0 ] && [ ! -f "$file" ] || continue
  echo "no $file in $PWD; if edgestitch runs in a container there, mount it" >>stderr
  code=1
done
echo "$code" >exit.part && mv exit.part exit
"""

_STOP = """
cd "jobs/$job" || exit 0
if ! flock -n lock true; then
  kill -s INT -- "-$(cat pid)"
  if ! flock -w "$grace" lock true; then
    kill -s KILL -- "-$(cat pid)"
    flock -w 5 lock true || exit 1
  fi
  rm -f exit stderr
fi
"""

# Exit code and size of stderr; the rest of it; of a success digests, the profile's size, the files.
_COLLECT = """
cd "jobs/$job" 2>/dev/null || { echo "another call has taken the result" >&2; exit 1; }
[ -f exit ] || exit 0
code=$(cat exit)
echo "$code $(wc -c <stderr)"
tail -c "+$start" stderr
[ "$code" = 0 ] || exit 0
set -- profile.json profile.samples.safetensors
sha256sum "$@" && wc -c <profile.json && cat "$@"
"""
_REMOVE = 'rm -rf "jobs/$job"'
_AGAIN = 'cd "jobs/$job" && rm -f exit stderr'


def _script(body: str, **values: str) -> bytes:
    words = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    return _encode(_SCRIPT % "\n".join([*words, body.strip("\n")]))


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # names of files need not be UTF-8


# --- one connection after the other ------------------------------------------------------------


class _LostError(Exception):
    """The connection was not made or broke; what was asked may be asked again."""


@dataclass(kw_only=True)
class _Connections:
    """What asks the other machine, each time over a connection of its own."""

    host: str
    ssh: Sequence[str]
    patience_s: float
    tell: Callable[[str], None]
    heard_s: float = -math.inf
    """When it last said something."""

    def ask(self, body: str, **values: str) -> bytes:
        """What a script answers.

        Raises:
            DeviceError: it failed.
            _LostError: the connection did.
        """
        answer = bytearray()
        self.stream("sh -s", [_script(body, **values)], answer.extend)
        return bytes(answer)

    def insist(self, body: str, **values: str) -> bytes:
        """What a script answers, however often the connection is lost until then."""
        return self.patiently(lambda: self.ask(body, **values))

    def patiently(self, attempt: Callable[[], T]) -> T:
        """The result of an attempt that is made until the machine was silent for too long."""
        lost_s = wait_s = -math.inf
        while True:
            tried_s = time.monotonic()
            try:
                return attempt()
            except _LostError as lost:
                now_s = time.monotonic()
                if self.heard_s >= tried_s or wait_s < 0:
                    lost_s, wait_s = now_s, FIRST_WAIT_S
                    self.tell(f"the connection to {self.host} is lost ({lost}); trying again")
                if now_s - lost_s + wait_s > self.patience_s:
                    raise DeviceError(
                        f"no connection to {self.host} for {self.patience_s:g} s ({lost}); what was "
                        "started there goes on, and the same command picks it up again"
                    ) from lost
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LAST_WAIT_S)

    def stream(
        self, command: str, feed: Iterable[bytes], receive: Callable[[bytes], object]
    ) -> None:
        """Runs a command there on what is fed to it, and gives on what it writes as it comes."""

        def hear(chunk: bytes) -> None:
            self.heard_s = time.monotonic()
            receive(chunk)

        with tempfile.TemporaryFile() as stderr:
            try:
                process = subprocess.Popen(
                    [*self.ssh, *OPTIONS, "--", self.host, command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                )
            except OSError as error:
                raise DeviceError(
                    f"{self.ssh[0]} cannot be run ({error.strerror}); install OpenSSH's client"
                ) from error
            try:
                code = _exchange(process, feed, hear)
            finally:
                process.kill()
                process.wait()
            stderr.seek(0)
            words = _last_words(stderr.read(), lines=2)
        if code == 255 or code < 0:  # ssh's own failure, or its end by a signal
            raise _LostError(words or f"ssh ended with {code}")
        if code:
            raise DeviceError(f"{self.host}: {words or f'exit code {code}'}")


def _exchange(
    process: "subprocess.Popen[bytes]",
    feed: Iterable[bytes],
    receive: Callable[[bytes], object],
) -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    stdout = process.stdout
    with stdout:
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            for chunk in feed:
                stdin.write(chunk)
        for chunk in iter(lambda: stdout.read1(1 << 16), b""):  # type: ignore[attr-defined]
            receive(chunk)
    return process.wait()


def _last_words(text: bytes, *, lines: int = 1) -> str:
    """The last lines that say something."""
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(line.decode(errors="replace") for line in said[-lines:])


# --- a profile from there ----------------------------------------------------------------------


def profile_on(
    host: str,
    arguments: Sequence[str | Path],
    out: Callable[[Profile], Path],
    *,
    command: str = "edgestitch",
    ssh: Sequence[str] = ("ssh",),
    patience_s: float = 600.0,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[Profile, Path]:
    """Runs `edgestitch profile` on another machine; its profile, and where that was written here.

    Args:
        host: what `ssh` takes, such as `user@jetson` or a name from the user's configuration.
        arguments: of the verb, without `--out`; a `Path` is a file of this machine, which is copied.
        out: where a profile goes; its samples go beside it. Both are written whole or not at all.
        command: what starts edgestitch there, as the shell there reads it.
        ssh: what makes a connection, with options of its own.
        patience_s: how long a lost connection is tried again.
        progress: told of the copying, then of what the profiler does there.
        tell: told in words what happens to the connection.

    A job that runs there already, or has ended, is not started again: the same call after a lost
    connection picks up where the last one was. KeyboardInterrupt stops it.

    Raises:
        DeviceError: the machine cannot be reached, or has no edgestitch.
        MismatchError: its edgestitch is of another version.
        EdgestitchError: the profiler failed there; the message has its last words.
    """
    there = _Connections(host=host, ssh=ssh, patience_s=patience_s, tell=tell)
    version = _version(there, command)
    words = " ".join(
        _copy(there, argument, progress) if isinstance(argument, Path) else shlex.quote(argument)
        for argument in arguments
    )
    job = sha256(_encode("\0".join([version, command, words])))[:32]
    body = _RUN.format(job=job, command=command, arguments=words)
    try:
        result = _finish(there, job, _SCRIPT % body, progress)
    except KeyboardInterrupt:
        _stop(there, job)
        raise
    profile, path = _write(there, job, result, out)
    _forget(there, job)
    return profile, path


def _version(there: _Connections, command: str) -> str:
    """The version of the edgestitch there, if it is one that this one may join profiles with."""
    try:
        answer = there.ask(_PROBE % command).decode(errors="replace")
    except _LostError as lost:
        by_hand = shlex.join([*there.ssh, there.host])
        raise DeviceError(
            f"no connection to {there.host}: {lost}; `{by_hand}` has to work without a question"
        ) from lost
    status, _, said = answer.partition("\n")
    code, *missing = status.split()
    if missing:
        raise DeviceError(
            f"{there.host} lacks {', '.join(missing)}; install its packages coreutils and util-linux"
        )
    found = re.search(r"version (\d+\.\d+)(\S*)", said)
    if code != "0" or found is None:
        raise DeviceError(
            f"no edgestitch on {there.host}: `{command} --version` says "
            f"{_last_words(said.encode()) or 'nothing'!r}; install edgestitch {__version__} there, or "
            "name the command that starts it, such as ~/venv/bin/edgestitch"
        )
    if found[1] != ".".join(__version__.split(".")[:2]):
        raise MismatchError(
            f"{there.host} has edgestitch {found[1]}{found[2]}, this is {__version__}: their profiles "
            "may differ; install the same version on both"
        )
    return found[1] + found[2]


def _copy(there: _Connections, file: Path, progress: Progress) -> str:
    """The file there, as a word of the shell; only what is not there yet is sent."""
    digest, total = _measure(file)
    suffix = file.suffix if re.fullmatch(r"\.[A-Za-z0-9]+", file.suffix) else ""
    name = digest + suffix

    def attempt() -> bool:
        """Whether it is there; if not, what is missing was sent."""
        offer = there.ask(_OFFER, digest=digest, name=name, total=str(total))
        present = int(offer)
        if present >= 0:
            feed = _read(file, present, total, progress)
            folder = '"$HOME"/.cache/edgestitch/remote/files'
            there.stream(f"cat >>{folder}/{name}.part", feed, lambda answer: None)
        return present < 0

    if not any(there.patiently(attempt) for _ in range(SENDINGS)):
        raise DeviceError(
            f"{file} does not arrive on {there.host} as it is here: is it being written to? Try again"
        )
    return f'"$root"/files/{name}'


def _measure(file: Path) -> tuple[str, int]:
    """SHA-256 and size."""
    hasher, total = hashlib.sha256(), 0
    for chunk in _read(file):
        hasher.update(chunk)
        total += len(chunk)
    return hasher.hexdigest(), total


def _read(
    file: Path, start: int = 0, total: int = 0, progress: Progress = silent
) -> Iterator[bytes]:
    try:
        with file.open("rb") as content:
            content.seek(start)
            while chunk := content.read(1 << 18):
                start += len(chunk)
                yield chunk
                progress("copy", start, total)
    except OSError as error:
        raise ArtifactError(f"cannot read {file}: {error.strerror}") from error


def _finish(there: _Connections, job: str, run: str, progress: Progress) -> bytes:
    """What a job wrote that is started unless it runs or has ended.

    Raises:
        EdgestitchError: it failed.
    """
    follower = _Follower(progress)

    def attach() -> None:
        state = bytearray()

        def receive(chunk: bytes) -> None:
            if not state:
                state.extend(chunk[:1])
                chunk = chunk[1:]
                if not follower.offset and bytes(state) in _STATES:
                    there.tell(f"{there.host} {_STATES[bytes(state)]}")
            follower.receive(chunk)

        there.stream("sh -s", [_script(_ATTACH, job=job, run=run, start=follower.start)], receive)

    for _ in range(STARTS):
        there.patiently(attach)
        answer = there.insist(_COLLECT, job=job, start=follower.start)
        if answer:
            break
    else:
        raise DeviceError(
            f"the profiler on {there.host} vanished {STARTS} times without an exit code; does "
            "something there end what a user leaves running? See `loginctl enable-linger`"
        )
    head, _, content = answer.partition(b"\n")
    code, size = map(int, head.split())
    rest = size - follower.offset
    follower.receive(content[:rest] + b"\n")  # the last line may lack its end
    if code:
        raise EdgestitchError(_failure(there, job, code, follower.words))
    return content[rest:]


class _Follower:
    """Makes progress of a stream that may break anywhere, and knows where to go on."""

    def __init__(self, progress: Progress) -> None:
        self.offset = 0
        self.words = ""
        """The last line that is no progress."""
        self._progress = progress
        self._line = b""

    @property
    def start(self) -> str:
        """The first byte that is not here yet, from 1 as `tail` counts."""
        return str(self.offset + 1)

    def receive(self, chunk: bytes) -> None:
        self.offset += len(chunk)
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            step = _step(line)
            if step:
                self._progress(step.stage, step.done, step.total)
            elif line.strip():
                self.words = line.decode(errors="replace").strip()


def _stop(there: _Connections, job: str) -> None:
    """Stops a job; what it has measured stays there for the next call."""
    try:
        there.ask(_STOP, job=job, grace=str(STOP_S))
    except (_LostError, DeviceError) as error:
        there.tell(
            f"the profiler on {there.host} goes on, it could not be stopped ({error}); the same "
            "command picks it up again"
        )
    else:
        there.tell(f"the profiler on {there.host} was stopped")


def _failure(there: _Connections, job: str, code: int, words: str) -> str:
    """What to say of a job that failed, which is made ready to be started again."""
    if code <= 2:  # it ended on its own
        there.insist(_REMOVE, job=job)
        return f"{there.host}: {words.removeprefix('edgestitch: ') or f'exit code {code}'}"
    there.insist(_AGAIN, job=job)  # and goes on from what it has measured
    return (
        f"the profiler on {there.host} ended with exit code {code}; its last words: "
        f"{words or 'none'}"
    )


def _write(
    there: _Connections, job: str, result: bytes, out: Callable[[Profile], Path]
) -> tuple[Profile, Path]:
    """Puts the result where it goes, once it is known to be one."""
    first, second, size, content = result.split(b"\n", 3)
    parts = content[: int(size)], content[int(size) :]
    if [sha256(part) for part in parts] != [line.decode()[:64] for line in (first, second)]:
        raise DeviceError(
            f"the result on {there.host} changed while it was read; run the same command again"
        )
    with tempfile.TemporaryDirectory(prefix="edgestitch-") as folder:
        received = Path(folder) / "profile.json"
        received.write_bytes(parts[0])
        try:
            profile = load(Profile, received)
        except ArtifactError as error:
            there.insist(_REMOVE, job=job)
            raise ArtifactError(f"from {there.host}: {error}") from error
    path = out(profile)
    write(path.with_suffix(".samples.safetensors"), parts[1])
    write(path, parts[0])
    return profile, path


def _forget(there: _Connections, job: str) -> None:
    """Removes a job whose result is here."""
    try:
        there.ask(_REMOVE, job=job)
    except (_LostError, DeviceError) as error:  # a profile that is here is no failure
        there.tell(
            f"the profile is here, but {there.host} keeps it and will give it once more to the same "
            f"command ({error})"
        )
