"""The live view: who moves the slider changes the next frames, who may not is refused."""

import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edgestitch import Runtime
from edgestitch.cli import cli
from edgestitch.data import save_images
from edgestitch.errors import DeviceError, EdgestitchError
from edgestitch.live import Server, View, watch_session
from edgestitch.live.view import MOST_RUNS, about, points, words
from edgestitch.meters import NoMeter
from edgestitch.runlog import Frame, Recorder, load_run_log
from edgestitch.testing import fake_deployment, toy_deployment, toy_images

COSTS = {"a:0:3": 1.0, "a:0:1+b:1:3": 2.0, "b:0:3": 4.0}
ENERGIES = {"a:0:3": 6.0, "a:0:1+b:1:3": 14.0, "b:0:3": 32.0}
IMAGE = np.zeros((1, 1, 8, 8), np.float32)
IMAGES = toy_images(16)
CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def soon(condition: Callable[[], object]) -> None:
    """Waits for what another thread or process does."""
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it did not happen within 20 seconds"
        time.sleep(0.02)


@pytest.fixture
def runtime():
    # Without a miss rate: what the machine is busy with must not decide what runs.
    with Runtime(fake_deployment(COSTS), budget_ms=5.0, miss_rate=None) as runtime:
        yield runtime


@pytest.fixture
def recorder(runtime):
    return Recorder(runtime)


@pytest.fixture
def server(runtime, recorder):
    with Server(runtime, recorder) as server:
        yield server


@pytest.fixture
def fed(runtime, recorder, server):
    """A server whose runtime gets an image every few milliseconds."""
    stop = threading.Event()

    def feed():
        while not stop.wait(0.005):
            recorder.frame(runtime.infer(IMAGE))

    thread = threading.Thread(target=feed)
    thread.start()
    yield server
    stop.set()
    thread.join()


def ask(
    server: Server,
    method: str,
    path: str,
    body: object = None,
    *,
    token: str | None = None,
    **headers: str,
) -> tuple[int, str]:
    """Status and text of an answer; without `token` the right one is sent."""
    right = urlsplit(server.url).query.removeprefix("token=")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    sent = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if sent is not None:
        named.setdefault("Content-Type", "application/json")
    connection.request(method, f"{path}?token={right if token is None else token}", sent, named)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def news(server: Server) -> Generator[Any, None, None]:
    """What a page hears, one message after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", f"/events?{urlsplit(server.url).query}")
    answer = connection.getresponse()
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    kind = "message"
    try:
        for line in answer:
            name, _, value = line.decode().strip().partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield kind, json.loads(value)
    finally:
        answer.close()
        connection.close()


# --- what is shown ---------------------------------------------------------------------------

frames = st.lists(
    st.builds(
        Frame,
        time_s=st.floats(0, 100),
        topology=st.sampled_from(list(COSTS)),
        latency_ms=st.floats(0.1, 50),
        budget_ms=st.sampled_from([None, 2.0, 5.0]),
    ),
    max_size=60,
)


@given(frames)
def test_points_lose_no_frame_and_no_miss(some):
    found = points(some)
    assert sum(point.frames for point in found) == len(some)
    assert sum(point.missed for point in found) == sum(frame.met is False for frame in some)
    assert max((point.high_ms for point in found), default=0) == max(
        (frame.latency_ms for frame in some), default=0
    )
    assert all(
        point.low_ms <= point.mean_ms * (1 + 1e-12) and point.mean_ms <= point.high_ms * (1 + 1e-12)
        for point in found
    )


@given(frames)
def test_points_are_few_at_any_rate(some):
    assert len(points(some)) <= max(MOST_RUNS, len(COSTS) * 3)


def test_what_is_shown_is_what_ran(runtime, recorder):
    view = View(runtime, recorder)
    for budget_ms in (1.5, 5.0):
        runtime.budget_ms = budget_ms
        for _ in range(50):
            recorder.frame(runtime.infer(IMAGE))
    status, found = view.look()
    assert (status.frames, status.topology, status.top1) == (100, "b:0:3", 60.0)
    assert {point.topology for point in found} == {"a:0:3", "b:0:3"}
    latencies = sorted(frame.latency_ms for frame in recorder.since(0)[1])
    assert (status.p50_ms, status.p99_ms) == (latencies[49], latencies[98])
    assert view.look()[1] == ()


def test_before_the_first_frame_nothing_is_made_up(runtime, recorder):
    status, found = View(runtime, recorder).look()
    assert found == ()
    assert (status.last_ms, status.p50_ms, status.p99_ms, status.rate_hz) == (None,) * 4
    assert (status.power_w, status.power_reason) == (None, "the meter was not read")
    assert words(status)["power"] == "not measured"


def test_power_is_only_offered_where_energy_was_measured(runtime):
    assert about(runtime).range_w is None
    with Runtime(fake_deployment(COSTS, energies_mj=ENERGIES)) as measured:
        assert about(measured).range_w == (0.8 * 6, 1.25 * 8)


# --- the way back ----------------------------------------------------------------------------


def test_a_change_holds_from_the_next_frame_on(runtime, server):
    assert runtime.infer(IMAGE).topology == "b:0:3"
    assert ask(server, "POST", "/budget", {"budget_ms": 2.5}) == (
        200,
        '{"budget_ms":2.5,"budget_w":null}',
    )
    assert runtime.infer(IMAGE).topology == "a:0:1+b:1:3"
    ask(server, "POST", "/budget", {"budget_ms": None})
    assert runtime.budget_ms is None


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        ({"budget_ms": "fast"}, 400, "Expected `float | null`, got `str`"),
        ({"budget_ms": True}, 400, "Expected `float | null`, got `bool`"),
        ({"budget_ms": -1}, 400, "must be above zero and finite"),
        ({"budget_ms": 0}, 400, "must be above zero and finite"),
        (b'{"budget_ms": NaN}', 400, "JSON is malformed"),
        (b'{"budget_ms": 1e999}', 400, "out of range"),
        (b"\xff\xfe", 400, "JSON is malformed"),
        (b"", 400, "Input data was truncated"),
        ({"topology": "a:0:3"}, 400, "unknown field `topology`"),
        ({"budget_ms": 1.5, "budget_w": 5}, 400, "a fake deployment has no meter"),
        (b"[" * 5000, 413, "1024 bytes"),
    ],
)
def test_what_is_no_budget_is_refused_and_the_last_one_stays(runtime, server, body, status, why):
    found, text = ask(server, "POST", "/budget", body)
    assert found == status
    assert why in json.loads(text)["error"]
    assert runtime.budget_ms == 5.0


# --- who may ---------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "wrong", "A" * 32, "%C3%A9%FF"])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/events"), ("POST", "/budget"), ("GET", "/nothing")]
)
def test_without_the_token_everything_is_refused(runtime, server, method, path, token):
    status, text = ask(server, method, path, {"budget_ms": 1.0}, token=token)
    assert status == 403
    assert "wrong token" in text
    assert runtime.budget_ms == 5.0


def test_tokens_are_never_the_same(runtime, recorder, server):
    with Server(runtime, recorder) as other:
        assert urlsplit(other.url).query != urlsplit(server.url).query
        assert len(urlsplit(other.url).query) >= 32


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "192.168.0.7", "", "127.0.0.1.nip.io"]
)
def test_a_name_that_somebody_elses_server_gave_is_refused(runtime, server, host):
    status, text = ask(server, "POST", "/budget", {"budget_ms": 1.0}, Host=host)
    assert (status, runtime.budget_ms) == (403, 5.0)
    assert "is not at" in text


@pytest.mark.parametrize("host", ["localhost:9999", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_a_forwarded_port_is_as_good_as_its_own(server, host):
    assert ask(server, "GET", "/", Host=host)[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1"]
)
def test_pages_of_other_sites_are_refused(runtime, server, origin):
    status, text = ask(server, "POST", "/budget", {"budget_ms": 1.0}, Origin=origin)
    assert (status, runtime.budget_ms) == (403, 5.0)
    assert "other sites" in text
    own = f"http://127.0.0.1:{server.port}"
    assert ask(server, "POST", "/budget", {"budget_ms": 1.0}, Origin=own)[0] == 200


def test_a_form_cannot_change_a_budget(runtime, server):
    body = b'{"budget_ms": 1.0}'
    assert ask(server, "POST", "/budget", body, Content_Type="text/plain")[0] == 415
    assert runtime.budget_ms == 5.0


def test_there_are_no_websockets(server):
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Origin": "http://evil.example",
    }
    assert ask(server, "GET", "/events", **upgrade)[0] == 403


def test_the_page_may_load_nothing_and_tells_nobody_its_address(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", f"/?{urlsplit(server.url).query}")
    answer = connection.getresponse()
    policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
    connection.close()
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    (nonce,) = set(re.findall(r"'nonce-([\w-]+)'", policy))
    assert page.count(f'nonce="{nonce}"') == 2
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)


def test_it_listens_on_loopback_unless_asked_and_then_warns(runtime, recorder, server, caplog):
    assert urlsplit(server.url).hostname == "127.0.0.1"
    assert not server.exposed
    assert caplog.text == ""
    with Server(runtime, recorder, bind="0.0.0.0") as exposed:
        assert exposed.exposed
        assert "anyone who has the address and its token can change" in caplog.text
        # An address cannot be rebound, a name of somebody else's can.
        assert ask(exposed, "GET", "/", Host="192.168.0.7")[0] == 200
        assert ask(exposed, "GET", "/", Host=f"{socket.gethostname()}:80")[0] == 200
        assert ask(exposed, "GET", "/", Host="evil.example")[0] == 403
        assert ask(exposed, "GET", "/", token="wrong", Host="192.168.0.7")[0] == 403


def test_a_port_in_use_says_what_to_do(runtime, recorder, server):
    with pytest.raises(
        DeviceError, match=rf"port {server.port}: Address already in use; .*--port 0"
    ):
        Server(runtime, recorder, port=server.port)


def test_an_address_of_another_machine_is_refused(runtime, recorder):
    with pytest.raises(DeviceError, match=r"cannot listen on 192\.0\.2\.1"):
        Server(runtime, recorder, bind="192.0.2.1")


def test_a_missing_library_is_named_with_its_extra(runtime, recorder, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(EdgestitchError, match=r"uvicorn.*pip install 'edgestitch\[live\]'"):
        Server(runtime, recorder)


# --- who follows -----------------------------------------------------------------------------


def test_everyone_hears_the_same(runtime, fed):
    first, second = news(fed), news(fed)
    assert "about" in next(first)[1]
    assert "about" in next(second)[1]
    soon(lambda: fed.clients == 2)
    ask(fed, "POST", "/budget", {"budget_ms": 1.5})
    heard = []
    for follower in (first, second):
        for _, message in follower:
            ran = {point["topology"] for point in message["points"]}
            if ran == {"a:0:3"}:
                heard.append((message["status"]["budget_ms"], message["pages"]))
                break
        follower.close()
    assert heard == [(1.5, 2), (1.5, 2)]


def test_who_comes_later_gets_the_last_minute(fed):
    soon(lambda: fed._pushed > 5)
    (_, first), (_, second) = (message for message, _ in zip(news(fed), range(2), strict=False))
    assert first["points"]
    assert first["points"][-1]["time_s"] <= second["status"]["time_s"]


def test_a_client_that_vanishes_is_let_go(fed):
    vanishing = socket.create_connection(("127.0.0.1", fed.port))
    # Reset instead of a farewell, as when a laptop is shut.
    vanishing.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    request = f"GET /events?{urlsplit(fed.url).query} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    vanishing.sendall(request.encode())
    soon(lambda: fed.clients == 1)
    vanishing.close()
    soon(lambda: fed.clients == 0)
    kept = news(fed)
    assert [next(kept)[0] for _ in range(3)] == ["message"] * 3
    kept.close()


def test_a_client_that_reads_nothing_holds_nobody_up(runtime, recorder):
    with Server(runtime, recorder) as server:
        silent = socket.create_connection(("127.0.0.1", server.port))
        request = f"GET /events?{urlsplit(server.url).query} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        silent.sendall(request.encode())
        soon(lambda: server.clients == 1)
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 5
        silent.close()


def test_the_end_is_told_and_no_thread_is_left(runtime, recorder):
    before = set(threading.enumerate())
    with Server(runtime, recorder) as server:
        follower = news(server)
        next(follower)
        threading.Timer(0.3, server.close).start()
        assert [kind for kind, _ in follower][-1] == "over"
    soon(lambda: set(threading.enumerate()) == before)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.port))


# --- a session -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_meter(monkeypatch):
    """What there is to measure power with on this machine is none of these tests'."""
    monkeypatch.setattr("edgestitch.meters.find_meter", lambda *a, **k: NoMeter("none here"))


def test_a_session_ends_after_its_frames(runtime, tmp_path):
    text = io.StringIO()
    before = set(threading.enumerate())
    path = tmp_path / "run.json"
    console = Console(file=text, width=40)
    status = watch_session(runtime, IMAGES, console=console, rate_hz=0, frames=40, log=path)
    log = load_run_log(path)
    assert len(log.frames) == status.frames == 40
    assert log.power_reason == "none here"
    first, *_, last = text.getvalue().splitlines()
    assert re.fullmatch(r"live view: http://127\.0\.0\.1:\d+/\?token=[\w-]+", first)
    assert "of 40" in last
    assert "topology b:0:3" in last
    assert set(threading.enumerate()) == before


def test_in_a_terminal_a_table_follows(runtime):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    watch_session(runtime, IMAGES, console=console, rate_hz=0, frames=20)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text.getvalue())
    table = dict(line.split(maxsplit=1) for line in shown.splitlines() if " " in line.strip())
    assert table["topology"].strip() == "b:0:3"
    assert table["missed"].startswith("0 of 20")
    assert {"budget", "latency", "p99", "slowdown", "power", "temperature"} <= set(table)


def test_frames_come_at_the_rate_and_what_is_late_is_left_out():
    def slow_once(name, images):
        taken.append(time.perf_counter())
        time.sleep(0.33 if len(taken) == 3 else 0.0)
        return np.zeros((len(images), 4), np.float32)

    taken: list[float] = []
    with Runtime(fake_deployment(COSTS, run=slow_once), miss_rate=None) as runtime:
        taken.clear()  # those of loading
        watch_session(runtime, IMAGES, console=Console(file=io.StringIO()), rate_hz=10, frames=6)
    # The fourth comes at once, the others at their own time: nothing is made up for.
    assert np.diff(taken[3:]).min() > 0.03
    assert taken[-1] - taken[0] >= 0.69


def test_ctrl_c_in_the_middle_of_an_inference_ends_all_in_order(tmp_path):
    def interrupted(name, images):
        calls.append(name)
        if loaded.is_set() and len(calls) == 5:
            raise KeyboardInterrupt  # as Python's handler of the signal does, wherever it finds us
        return np.zeros((len(images), 4), np.float32)

    calls: list[str] = []
    loaded = threading.Event()
    before = set(threading.enumerate())
    path = tmp_path / "run.json"
    with Runtime(fake_deployment(COSTS, run=interrupted), miss_rate=None) as runtime:
        calls.clear()  # those of loading
        loaded.set()
        console = Console(file=io.StringIO())
        with pytest.raises(KeyboardInterrupt):
            watch_session(runtime, IMAGES, console=console, rate_hz=0, log=path)
        assert runtime.infer(IMAGE).topology == "b:0:3"  # it has not failed
    assert len(load_run_log(path).frames) == 4
    soon(lambda: set(threading.enumerate()) == before)


def test_a_port_in_use_leaves_the_log_of_before_alone(runtime, server, tmp_path):
    path = tmp_path / "run.json"
    path.write_text("of before")
    console = Console(file=io.StringIO())
    with pytest.raises(DeviceError, match="already in use"):
        watch_session(runtime, IMAGES, console=console, port=server.port, log=path)
    assert path.read_text() == "of before"


@pytest.mark.parametrize("rate_hz", [-1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(runtime, rate_hz):
    with pytest.raises(ValueError, match="rate_hz must be"):
        watch_session(runtime, IMAGES, console=Console(file=io.StringIO()), rate_hz=rate_hz)


# --- the command line ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Of the verb, with a deployment and images."""
    folder = tmp_path_factory.mktemp("live")
    toy_deployment(folder / "deployment")
    save_images(IMAGES, folder / "images.safetensors", "toy")
    return ["run", str(folder / "deployment"), "--images", str(folder / "images.safetensors")]


def test_ctrl_c_ends_the_process_with_130_and_the_log_is_there(arguments, tmp_path):
    path, pipe = tmp_path / "run.json", subprocess.PIPE
    # As many frames as it can, so that the signal comes in the middle of one.
    command = [*arguments, "--live", "--rate-hz", "0", "--log", str(path)]
    with subprocess.Popen(
        [sys.executable, "-m", "edgestitch", *command],
        stdout=pipe,
        stderr=pipe,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        assert "live view: http://127.0.0.1:" in process.stdout.readline()
        assert "topology" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.split("\n") == ["", "edgestitch: interrupted; nothing half-written is left", ""]
    assert len(load_run_log(path).frames) > 10


def test_the_verb_runs_live_and_says_what_it_did(arguments, tmp_path):
    live = ["--live", "--frames", "12", "--rate-hz", "0", "--budget-ms", "1000", "--json"]
    found = CliRunner().invoke(cli, [*arguments, *live, "--log", str(tmp_path / "run.json")])
    assert (found.exit_code, json.loads(found.stdout)["frames"]) == (0, 12)
    assert "live view: http://127.0.0.1:" in found.stderr
    assert len(load_run_log(tmp_path / "run.json").frames) == 12


def test_without_live_the_verb_writes_a_log_as_well(arguments, tmp_path):
    path = tmp_path / "run.json"
    found = CliRunner().invoke(cli, [*arguments, "--budget-ms", "1000", "--log", str(path)])
    assert found.exit_code == 0
    assert len(load_run_log(path).frames) == len(IMAGES)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--port", "8000"], "--port is for a run with --live"),
        (["--frames", "5"], "--frames is for a run with --live"),
        (["--live", "--budget-ms", "1", "--budget-ms", "2"], "begins with one --budget-ms"),
        (["--live", "--port", "70000"], "not in the range"),
        (["--live", "--rate-hz", "fast"], "'fast' is not a valid float"),
    ],
)
def test_the_verb_says_what_goes_together(arguments, more, why):
    found = CliRunner().invoke(cli, [*arguments, *more])
    assert found.exit_code == 2
    assert why in found.stderr


# --- in a browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Opened:
    """A page with what it complained of and where it went."""

    def __init__(self, browser: Any, url: str) -> None:
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.page = browser.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.goto(url)
        self.until(lambda: self.text("#topology") != "")

    def text(self, selector: str) -> str:
        text = self.page.locator(selector).inner_text()
        assert isinstance(text, str)
        return text

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(400):
            if condition():
                return
            self.page.wait_for_timeout(50)
        pytest.fail("did not happen within twenty seconds")


@pytest.fixture
def opened(browser, fed):
    opened = Opened(browser, fed.url)
    yield opened
    opened.page.close()
    assert opened.complaints == []
    assert opened.hosts == {urlsplit(fed.url).netloc}


def ran_next(recorder: Recorder) -> set[str]:
    """Topologies of the frames that begin from now on."""
    number = recorder.count
    soon(lambda: recorder.count >= number + 5)
    return {frame.topology for frame in recorder.since(number + 1)[1]}


def test_the_slider_changes_what_the_next_frames_run(opened, runtime, recorder):
    assert ran_next(recorder) == {"b:0:3"}
    for place, topology in ((0, "a:0:3"), (550, "a:0:1+b:1:3"), (1000, "b:0:3")):
        opened.page.locator("#slider").fill(str(place))
        opened.until(lambda topology=topology: opened.text("#topology") == topology)
        assert ran_next(recorder) == {topology}
        low, high = about(runtime).range_ms
        expected = low * (high / low) ** (place / 1000)
        assert runtime.budget_ms == pytest.approx(expected, abs=0.006)
        assert float(opened.page.locator("#number").input_value()) == runtime.budget_ms
        assert opened.text("#rows tr.now th") == topology
        assert opened.text("#top1") == f"{words_top1(runtime)} %"


def words_top1(runtime: Runtime) -> str:
    plan = runtime.deployment.plan
    return next(f"{c.top1:.2f}" for c in plan.resident if c.topology == runtime.topology)


def test_the_slider_is_moved_by_the_keyboard(opened, runtime, recorder):
    slider = opened.page.locator("#slider")
    slider.focus()
    for key, topology in (("Home", "a:0:3"), ("End", "b:0:3")):
        opened.page.keyboard.press(key)
        opened.until(lambda topology=topology: runtime.topology == topology)
        assert ran_next(recorder) == {topology}
        assert slider.get_attribute("aria-valuetext") == f"{runtime.budget_ms:g} ms"
    before = runtime.budget_ms
    opened.page.keyboard.press("ArrowLeft")
    opened.until(lambda: runtime.budget_ms < before)


def test_a_number_may_be_typed_and_what_is_none_is_said(opened, runtime):
    number = opened.page.locator("#number")
    for text in ("fast", "-3", "0"):
        number.fill(text)
        number.press("Enter")
        opened.until(lambda text=text: f"{text} is no budget" in opened.text("#said"))
        assert number.get_attribute("aria-invalid") == "true"
        assert runtime.budget_ms == 5.0
    number.fill("2,5")
    number.press("Enter")
    opened.until(lambda: runtime.budget_ms == 2.5)
    assert opened.text("#said") == ""


def test_a_deadline_can_be_taken_away(opened, runtime):
    opened.page.get_by_role("button", name="No deadline").click()
    opened.until(lambda: runtime.budget_ms is None)
    opened.until(
        lambda: opened.page.locator("#slider").get_attribute("aria-valuetext") == "no deadline"
    )


def test_two_pages_see_the_same(opened, browser, fed, runtime):
    other = Opened(browser, fed.url)
    opened.page.locator("#slider").fill("0")
    opened.until(lambda: runtime.topology == "a:0:3")
    other.until(lambda: other.text("#topology") == "a:0:3")
    other.until(lambda: other.page.locator("#slider").input_value() == "0")
    assert other.page.locator("#number").input_value() == f"{runtime.budget_ms:g}"
    opened.until(lambda: opened.text("#pages") == "2 pages open")
    other.page.close()
    opened.until(lambda: opened.text("#pages") == "")


def test_both_pictures_are_drawn(opened):
    painted = """(id) => {
      const canvas = document.getElementById(id), context = canvas.getContext("2d");
      return new Set(new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size;
    }"""
    for picture in ("steps", "times"):
        opened.until(lambda picture=picture: opened.page.evaluate(painted, picture) > 10)


def test_average_power_is_steered_where_energy_was_measured(browser):
    deployment = fake_deployment(COSTS, energies_mj=ENERGIES)
    with Runtime(deployment, meter=NoMeter("none"), miss_rate=None) as runtime:
        recorder = Recorder(runtime)
        with Server(runtime, recorder) as server:
            recorder.frame(runtime.infer(IMAGE))
            opened = Opened(browser, server.url)
            opened.page.locator("#slider-w").fill("500")
            opened.until(lambda: runtime.budget_w is not None)
            low, high = 0.8 * 6, 1.25 * 8
            assert runtime.budget_w == pytest.approx((low * high) ** 0.5, abs=0.01)
            opened.page.get_by_role("button", name="No limit").click()
            opened.until(lambda: runtime.budget_w is None)
            assert opened.complaints == []
            opened.page.close()


def test_the_page_says_that_the_run_is_over(browser, runtime, recorder):
    with Server(runtime, recorder) as server:
        opened = Opened(browser, server.url)
    opened.until(lambda: "the run has ended" in opened.text("#level"))
    assert opened.page.locator("#slider").is_disabled()
    assert opened.complaints == []
    opened.page.close()


def test_page_fits_a_narrow_screen(opened):
    opened.page.set_viewport_size({"width": 360, "height": 740})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_its_ground(opened, scheme):
    """WCAG 2.2, contrast of text: 4.5 to 1."""
    opened.page.emulate_media(color_scheme=scheme)
    colors = opened.page.evaluate(
        """() => {
          const style = getComputedStyle(document.documentElement), canvas = document.createElement("canvas");
          const context = canvas.getContext("2d", {willReadFrequently: true});
          const rgb = (color) => {
            context.fillStyle = color;
            context.fillRect(0, 0, 1, 1);
            return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
          };
          const of = (name) => style.getPropertyValue(`--${name}`).trim();
          const names = ["page", "card", "ink", "muted", "pick", "pick-wash", "ok", "ok-wash", "warn",
                         "warn-wash", "error", "error-wash", "accent"];
          const found = Object.fromEntries(names.map((name) => [name, rgb(of(name))]));
          for (const hue of ["fast", "accurate"]) {
            found[hue] = rgb(`hsl(${of(hue)} ${of("saturation")} ${of("lightness")})`);
          }
          return found;
        }"""
    )
    pairs = [("ink", "page"), ("ink", "card"), ("ink", "pick-wash"), ("muted", "page")]
    pairs += [("muted", "card"), ("muted", "pick-wash"), ("error", "card"), ("error", "pick-wash")]
    pairs += [(level, f"{level}-wash") for level in ("ok", "warn", "error")]
    pairs += [("muted", f"{level}-wash") for level in ("ok", "warn", "error")]
    pairs += [("card", "fast"), ("card", "accurate"), ("accent", "card"), ("pick", "card")]
    found = {pair: contrast(colors[pair[0]], colors[pair[1]]) for pair in pairs}
    assert {pair: ratio for pair, ratio in found.items() if ratio < 4.5} == {}


def contrast(one: list[int], other: list[int]) -> float:
    """WCAG 2.2: relative luminances, the lighter over the darker."""

    def luminance(color: list[int]) -> float:
        shares = [value / 255 for value in color]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)
