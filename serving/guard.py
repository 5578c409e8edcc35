"""What stands between the network and the app: keys, rates, sizes, times, kinds of content, headers of answers.

One ASGI layer outside of the app, so that nothing that the app routes can be reached around it. It reads a request's
body whole before the app sees the request: a slow or endless one costs a buffer of bounded size and no worker.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import Request

from serving.keys import Key, Keys
from serving.limits import Limits
from serving.rate import TokenBuckets

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_LOG = logging.getLogger("headrace.guard")
KEY_HEADER = "X-API-Key"
KEY_NAME = "key_name"
"""Where the app finds who asks: `request.state.key_name`."""
NOBODY = "-"
PUBLIC = frozenset({"/", "/dashboard", "/healthz", "/favicon.ico"})
PUBLIC_FOLDER = "/static/"

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
_NOT_KEPT = (b"cache-control", b"no-store")
_LENGTH, _ENCODED = b"content-length", b"transfer-encoding"


class Refusal(Exception):
    """A request that the app never sees; `reason` is what metrics count it by."""

    def __init__(self, status: int, reason: str, detail: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail, self.headers = status, reason, detail, headers


class Guard:
    """Refusals are one line of JSON; `refused` is told the reason and the key's name, for metrics."""

    def __init__(
        self,
        app: App,
        keys: Keys,
        limits: Limits | None = None,
        *,
        refused: Callable[[str, str], None] = lambda reason, who: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._keys, self._limits = app, keys, limits or Limits()
        self._refused, self._clock = refused, clock
        self._by_key = TokenBuckets(names=2048)
        self._by_address = TokenBuckets(names=self._limits.addresses)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        has_body = any(name in (_LENGTH, _ENCODED) and value != b"0" for name, value in headers)
        who = NOBODY
        try:
            self._bound_head(scope, headers)
            key = self._key(headers)
            who = key.name if key else NOBODY
            self._admit(scope, key)
            scope.setdefault("state", {})[KEY_NAME] = who
            if has_body:
                _only_json(headers)
                receive = _replay(await self._body(headers, receive), receive)
        except Refusal as refusal:
            self._refused(refusal.reason, who)
            await _answer(refusal, send, close=has_body)
            return
        await self._pass(scope, receive, send)

    async def _pass(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """To the app; an error that it did not expect is told to the log, and not to who asked."""
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, _with_headers(sending))
        except Exception:
            _LOG.exception("%s %s failed", scope["method"], repr(scope["path"]))
            if not begun:
                await _answer(Refusal(500, "error", "the server failed; its log says why"), send, close=True)

    def _bound_head(self, scope: MutableMapping[str, Any], headers: list[tuple[bytes, bytes]]) -> None:
        line = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        if len(headers) > self._limits.num_headers:
            raise Refusal(431, "headers", f"more than {self._limits.num_headers} headers")
        if line + sum(len(name) + len(value) + 4 for name, value in headers) > self._limits.head_bytes:
            raise Refusal(431, "headers", f"path and headers take more than {self._limits.head_bytes} bytes")

    def _key(self, headers: list[tuple[bytes, bytes]]) -> Key | None:
        """Of `X-API-Key`, or of `Authorization: Bearer`, which scrapers of metrics can send."""
        given = [value for name, value in headers if name == b"x-api-key"]
        given += [v[7:].strip() for name, v in headers if name == b"authorization" and v[:7].lower() == b"bearer "]
        return self._keys.whose(given[0]) if len(given) == 1 else None

    def _admit(self, scope: MutableMapping[str, Any], key: Key | None) -> None:
        limits, now = self._limits, self._clock()
        if key is not None:
            per_s, burst = key.requests_per_s or limits.requests_per_s, limits.burst
            if key.requests_per_s:
                burst = max(1.0, 2 * key.requests_per_s)
            wait = self._by_key.wait(key.name, per_s=per_s, burst=burst, now=now)
        else:
            address = (scope.get("client") or ("unknown", 0))[0]
            per_s = limits.keyless_per_s
            wait = self._by_address.wait(address, per_s=per_s, burst=limits.keyless_burst, now=now)
        if wait:
            after = (b"retry-after", str(wait).encode())
            raise Refusal(429, "rate", f"more than {per_s:g} requests a second", after)
        if key is None and not is_public(scope["method"], scope["path"]):
            challenge = (b"www-authenticate", b"ApiKey")
            raise Refusal(401, "key", f"a valid key is needed in the header {KEY_HEADER}", challenge)

    async def _body(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes:
        most = self._limits.body_bytes
        too_large = Refusal(413, "body", f"the body takes more than {most} bytes")
        lengths = [value for name, value in headers if name == _LENGTH]
        if lengths and (not lengths[0].isdigit() or int(lengths[0][:20]) > most):
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "disconnect", "the connection ended before the body did")
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise too_large
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(408, "slow", f"the body took longer than {self._limits.body_s:g} s") from None


def is_public(method: str, path: str) -> bool:
    """The page's files and the health check, which say nothing of anybody."""
    return method in ("GET", "HEAD") and (path in PUBLIC or path.startswith(PUBLIC_FOLDER))


def has_key(request: Request) -> bool:
    """Whether who asks is known; so is everybody where no guard stands before the app."""
    return getattr(request.state, KEY_NAME, None) != NOBODY


def _only_json(headers: list[tuple[bytes, bytes]]) -> None:
    kinds = [value for name, value in headers if name == b"content-type"]
    kind = kinds[0].split(b";")[0].strip().lower() if len(kinds) == 1 else b""
    if kind != b"application/json":
        raise Refusal(415, "content", "the body must be application/json")
    if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers):
        raise Refusal(415, "content", "the body must not be compressed")


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting = [body]

    async def replayed() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replayed


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = list(message.get("headers", ()))
            keeps = any(name.lower() == b"cache-control" for name, _ in own)
            message = {**message, "headers": [*own, *SECURITY_HEADERS, *(() if keeps else (_NOT_KEPT,))]}
        await send(message)

    return sending


async def _answer(refusal: Refusal, send: Send, *, close: bool) -> None:
    """`close` where a body may still come: nothing of it is taken for the next request."""
    content = json.dumps({"detail": refusal.detail}).encode() + b"\n"
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *refusal.headers,
        *(((b"connection", b"close"),) if close else ()),
    ]
    start = {"type": "http.response.start", "status": refusal.status, "headers": headers}
    await _with_headers(send)(start)
    await send({"type": "http.response.body", "body": content})
