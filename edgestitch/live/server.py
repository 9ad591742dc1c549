"""The live view's server: one page, one stream of what happens, one way to change the budgets.

GET  /?token=...          the page
GET  /events?token=...    server-sent events: status and points, ten times a second
POST /budget?token=...    {"budget_ms": 5} or {"budget_w": 12}; null takes a bound away

Who may: the one who has the token. A page of somebody else's in the same browser may not, even where
a name of its own leads here (DNS rebinding): such requests carry that name as their Host, or that page
as their Origin, and both are refused.
"""

import asyncio
import hmac
import ipaddress
import logging
import secrets
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from importlib.resources import files
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from edgestitch.artifact import Value
from edgestitch.errors import DeviceError, EdgestitchError
from edgestitch.runlog import Recorder
from edgestitch.runtime import Runtime
from edgestitch.schedule import Budget

from .view import Point, View, about

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger(__name__)

PUSH_S = 0.1
"""From push to push: faster than the eye asks for, and no work for a small board."""
HISTORY = 600
"""Pushes whose points a page gets that is opened later: a minute."""
MOST_BYTES = 1024
"""Of a change of the budgets."""
START_S = 10.0
"""Within which the server has started, or something is wrong."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Change(Value, frozen=True, kw_only=True):
    """What a page asks for; what is left out stays."""

    budget_ms: float | msgspec.UnsetType | None = msgspec.UNSET
    budget_w: float | msgspec.UnsetType | None = msgspec.UNSET


class Server:
    """Serves the live view of a runtime from a thread of its own while its context is open.

    Args:
        runtime: what the pages show and steer.
        recorder: what its frames are told to.
        bind: an address of this machine. Other than loopback, whoever gets hold of the URL can steer
            from elsewhere, and nothing is encrypted.
        port: 0 for any that is free.

    Raises:
        DeviceError: the port or the address cannot be had.
        EdgestitchError: the libraries of the extra `live` are not installed.
    """

    def __init__(
        self, runtime: Runtime, recorder: Recorder, *, bind: str = "127.0.0.1", port: int = 0
    ) -> None:
        self._runtime = runtime
        self._view = View(runtime, recorder)
        self._about = about(runtime)
        self._token = secrets.token_urlsafe(24)
        self._socket = _listen(bind, port)
        self._bind = bind
        self.port: int = self._socket.getsockname()[1]
        self._names = _names(self._socket.getsockname()[0])
        self._pushes: deque[tuple[int, bytes, tuple[Point, ...]]] = deque(maxlen=HISTORY)
        self._pushed = 0
        self._over = False
        self.clients = 0
        """Pages that follow now."""
        try:
            self._server = self._assembled()
        except BaseException:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="edgestitch-live", daemon=True)

    @property
    def url(self) -> str:
        """What to open in a browser; it holds the token."""
        host = self._bind
        if self.exposed and ipaddress.ip_address(self._socket.getsockname()[0]).is_unspecified:
            host = socket.gethostname()  # all of its addresses; the name is the one people know
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/?token={self._token}"

    @property
    def exposed(self) -> bool:
        """Whether it can be reached from other machines."""
        return not ipaddress.ip_address(self._socket.getsockname()[0]).is_loopback

    def __enter__(self) -> "Server":
        if self.exposed:
            log.warning(
                "the live view listens on %s: anyone who has the address and its token can change "
                "the budgets, and nothing is encrypted; without --bind, only this machine can",
                self._bind,
            )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Tells the pages that the run is over and ends; nothing of it is left."""
        self._over = True
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(START_S)
        self._socket.close()

    # --- in its own thread --------------------------------------------------------------------

    def _serve(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        # Made here, as an event of Python 3.10 belongs to the loop that runs when it is first used.
        self._news = asyncio.Event()
        pushing = asyncio.create_task(self._push())
        await self._server.serve(sockets=[self._socket])
        self._over = True
        await pushing

    async def _push(self) -> None:
        """Looks at the run and wakes those who stream, until the run is over."""
        try:
            while not self._over:
                status, points = self._view.look()
                message = {"status": status, "points": points, "pages": self.clients}
                self._pushed += 1
                self._pushes.append((self._pushed, _event(message), points))
                self._wake()
                await asyncio.sleep(PUSH_S)
        finally:  # a page must not wait for news that nobody brings any more
            self._over = self._server.should_exit = True
            self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _stream(self) -> AsyncIterator[bytes]:
        """Everything so far, then each push; a page that is slow skips what is no longer kept."""
        self.clients += 1
        try:
            seen = self._pushed
            points = [point for _, _, points in self._pushes for point in points]
            yield _event({"about": self._about, "points": points})
            while not self._over:
                await self._news.wait()
                new = [(number, event) for number, event, _ in self._pushes if number > seen]
                seen = self._pushed
                for _, event in new:
                    yield event
            yield b"event: over\ndata: {}\n\n"
        finally:
            self.clients -= 1

    def _assembled(self) -> "uvicorn.Server":
        try:
            import uvicorn
            from starlette.applications import Starlette
            from starlette.routing import Route
        except ImportError as error:
            raise EdgestitchError(
                f"the live view needs starlette and uvicorn ({error}); "
                "pip install 'edgestitch[live]'"
            ) from error
        routes = [
            Route("/", self._page, methods=["GET"]),
            Route("/events", self._events, methods=["GET"]),
            Route("/budget", self._change, methods=["POST"]),
        ]
        config = uvicorn.Config(
            self._guarded(Starlette(routes=routes)),
            http="h11",  # in Python: nothing to build where no wheels are
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="error",  # who sends nonsense, or goes away, is no news
            access_log=False,  # it would hold the token
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        config.load()  # here, so that what is missing is said to the caller
        return uvicorn.Server(config)

    # --- who may ------------------------------------------------------------------------------

    def _guarded(self, app: Any) -> Any:
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse

        async def guard(scope: Scope, receive: Receive, send: Send) -> None:
            # Nothing but HTTP comes here: there are no WebSockets, and no lifespan.
            refusal = self._refusal(Request(scope))
            if refusal is None:
                await app(scope, receive, send)
            else:
                await PlainTextResponse(f"{refusal}\n", 403)(scope, receive, send)

        return guard

    def _refusal(self, request: "Request") -> str | None:
        """Why a request is refused; `None`: it is not."""
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not self._known(host):
            return f"this live view is not at {host[:100]!r}; open the URL that it was started with"
        # A browser says where a request comes from that changes something; a script has no origin.
        if origin is not None and origin != f"http://{host}":
            return "requests from other sites are refused"
        token = request.query_params.get("token", "")
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return "wrong token; open the URL that this live view was started with, all of it"
        return None

    def _known(self, host: str) -> bool:
        """Whether a Host leads here without anybody's name server: the port may be a forwarded one."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        name = name.removeprefix("[").removesuffix("]").lower()
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or self.exposed

    # --- what is served -----------------------------------------------------------------------

    async def _page(self, request: "Request") -> "Response":
        from starlette.responses import HTMLResponse

        nonce = secrets.token_urlsafe(16)
        template = (files(__package__) / "page.html").read_text(encoding="utf-8")
        return HTMLResponse(
            template.replace("{{nonce}}", nonce), headers={**_HEADERS, **_policy(nonce)}
        )

    async def _events(self, request: "Request") -> "Response":
        from starlette.responses import StreamingResponse

        return StreamingResponse(
            self._stream(), media_type="text/event-stream", headers={**_HEADERS}
        )

    async def _change(self, request: "Request") -> "Response":
        """Changes the budgets; the answer has those that hold, or why not."""
        # A form of another site cannot send this type without asking first.
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return _answer(415, {"error": "a change of the budgets is sent as application/json"})
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                return _answer(413, {"error": f"more than the {MOST_BYTES} bytes of a budget"})
        try:
            self._set(msgspec.json.decode(body, type=Change))
        except (msgspec.MsgspecError, EdgestitchError, TypeError, ValueError) as error:
            return _answer(400, {"error": " ".join(str(error).split())})
        budget = self._runtime.budget
        return _answer(200, {"budget_ms": budget.latency_ms, "budget_w": budget.power_w})

    def _set(self, change: Change) -> None:
        latency_ms, power_w = change.budget_ms, change.budget_w
        # Both or none: what is no budget is refused before either is set.
        Budget(latency_ms=latency_ms or None, power_w=power_w or None)
        if power_w is not msgspec.UNSET:
            self._runtime.budget_w = power_w
        if latency_ms is not msgspec.UNSET:
            self._runtime.budget_ms = latency_ms


_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the URL holds the token
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def _policy(nonce: str) -> dict[str, str]:
    """The browser itself sees to it that the page loads nothing but this server's events."""
    return {
        "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; connect-src 'self'; img-src data:; script-src 'nonce-{nonce}'; "
        f"style-src 'nonce-{nonce}'"
    }


def _answer(status: int, value: dict[str, object]) -> "Response":
    from starlette.responses import Response

    content = msgspec.json.encode(value)
    return Response(content, status, headers=_HEADERS, media_type="application/json")


def _event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _listen(bind: str, port: int) -> socket.socket:
    """A socket that listens, so that whoever gets the URL can open it at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            bind, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise DeviceError(
            f"cannot listen on {bind!r}: {error}; give an address of this machine with --bind, or none"
        ) from error
    listening = socket.socket(family, kind, protocol)
    try:
        # The port of a run that has just ended can be had again; one in use cannot.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        raise DeviceError(
            f"cannot listen on {bind}, port {port}: {error.strerror}; give another port with --port, "
            "or --port 0 for any that is free"
        ) from error
    return listening


def _names(address: str) -> set[str]:
    """Names that this machine has for itself at an address."""
    if ipaddress.ip_address(address).is_loopback:
        return {"localhost"}
    name = socket.gethostname().lower()
    return {"localhost", name, f"{name}.local", socket.getfqdn().lower()}
