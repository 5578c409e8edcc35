"""The guard's rules, each on an app of a few lines; no server runs here."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import uvicorn

from schemas.errors import UserError
from serving.connection import BoundedConnection
from serving.guard import SECURITY_HEADERS, Guard
from serving.keys import Key, Keys, keys_for, make_key, read_keys
from serving.limits import Limits
from serving.rate import TokenBuckets

JSON = ("content-type", "application/json")


class Answer:
    def __init__(self, messages: list[Any]) -> None:
        self.status: int = messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it got to see: who asked, and the body."""
    message = await receive() if scope["method"] == "POST" else {"body": b""}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": scope["state"]["key_name"].encode() + b" " + message["body"]})


def ask(
    guard: Guard,
    path: str = "/recommend",
    *,
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    body: Iterable[bytes] = (),
    pause_s: float = 0,
    client: str = "10.0.0.1",
) -> Answer:
    """One request, its body in parts with a pause before each."""
    parts, sent = list(body), []

    async def receive() -> Any:
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": parts.pop(0) if parts else b"", "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "client": (client, 1),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
    }
    asyncio.run(guard(scope, receive, send))
    return Answer(sent)


def post(guard: Guard, secret: str, body: Iterable[bytes], *headers: tuple[str, str], **more: Any) -> Answer:
    kept = headers or (JSON,)
    given = (("x-api-key", secret), ("transfer-encoding", "chunked"), *kept)
    return ask(guard, method="POST", headers=given, body=body, **more)


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def secret(keys_file: Path) -> str:
    return make_key("page", keys_file)


@pytest.fixture
def guard(keys_file: Path, secret: str) -> Guard:
    return Guard(echo, Keys(file=keys_file), Limits(body_bytes=100, body_s=0.2, head_bytes=2000, num_headers=20))


def test_the_app_learns_the_name_of_the_key_and_never_the_key(guard: Guard, secret: str) -> None:
    answer = ask(guard, headers=[("X-API-Key", secret)])
    assert (answer.status, answer.body) == (200, b"page ")


def test_scrapers_may_send_the_key_as_a_bearer_token(guard: Guard, secret: str) -> None:
    assert ask(guard, "/metrics", headers=[("Authorization", f"Bearer {secret}")]).status == 200


@pytest.mark.parametrize("given", [[], ["wrong"], [""], ["{secret}x"], ["{secret}", "{secret}"]])
def test_without_the_right_key_once_nothing_reaches_the_app(guard: Guard, secret: str, given: list[str]) -> None:
    answer = ask(guard, headers=[("x-api-key", value.replace("{secret}", secret)) for value in given])
    assert answer.status == 401
    assert answer.body.count(b"\n") == 1
    assert "X-API-Key" in json.loads(answer.body)["detail"]


@pytest.mark.parametrize("path", ["/", "/dashboard", "/healthz", "/static/page.js"])
def test_the_pages_and_the_health_check_need_no_key(guard: Guard, path: str) -> None:
    assert ask(guard, path).status == 200
    assert ask(guard, path, method="POST").status == 401


@pytest.mark.parametrize("path", ["/metrics", "/openapi.json", "/api/users", "/healthz/x", "/statics", "//", "/static"])
def test_all_else_needs_one(guard: Guard, path: str) -> None:
    assert ask(guard, path).status == 401


def test_the_hash_is_kept_and_the_key_is_not(keys_file: Path, secret: str) -> None:
    assert secret not in keys_file.read_text()
    assert stat.S_IMODE(keys_file.stat().st_mode) == 0o600
    assert [key.name for key in read_keys(keys_file).keys] == ["page"]


def test_a_name_is_given_once_and_is_plain(keys_file: Path, secret: str) -> None:
    with pytest.raises(UserError, match="there is a key named page"):
        make_key("page", keys_file)
    with pytest.raises(UserError, match="small letters"):
        make_key("../x\n", keys_file)


def test_a_key_that_is_struck_from_the_file_is_refused(
    keys_file: Path, secret: str, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_key("other", keys_file)
    monkeypatch.setattr("serving.keys._LOOK_AGAIN_S", 0)
    assert ask(guard, headers=[("x-api-key", other)]).status == 200
    keys_file.write_text('{"keys": []}')
    assert ask(guard, headers=[("x-api-key", other)]).status == 401


def test_a_keys_file_that_breaks_while_the_server_runs_leaves_the_keys_as_they_are(
    keys_file: Path, secret: str, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.keys._LOOK_AGAIN_S", 0)
    for broken in ('{"keys": [', '{"keys": [{"name": "x"}]}'):
        keys_file.write_text(broken)
        assert ask(guard, headers=[("x-api-key", secret)]).status == 200
    keys_file.unlink()
    assert ask(guard, headers=[("x-api-key", secret)]).status == 200


def test_a_keys_file_that_others_may_write_to_is_refused(keys_file: Path, secret: str) -> None:
    keys_file.chmod(0o620)
    with pytest.raises(UserError, match="others may write to it"):
        Keys(file=keys_file)


def test_without_a_keys_file_only_this_machine_may_ask(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "10.1.2.3", "example.org"):
        with pytest.raises(UserError, match="lets other machines ask"):
            keys_for(host, None, logs=tmp_path)
    for host in ("127.0.0.1", "::1", "localhost"):
        keys, local = keys_for(host, None, logs=tmp_path)
        assert local is not None
        assert stat.S_IMODE(local.stat().st_mode) == 0o600
        assert keys.whose(local.read_text().strip().encode()).name == "local"
    assert len(os.listdir(tmp_path)) == 1


def test_a_local_key_that_others_can_read_or_put_there_is_refused(tmp_path: Path) -> None:
    keys_for("127.0.0.1", None, logs=tmp_path)
    (tmp_path / "local.key").chmod(0o644)
    with pytest.raises(UserError, match="only its owner can read"):
        keys_for("127.0.0.1", None, logs=tmp_path)
    (tmp_path / "local.key").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o600)
    (tmp_path / "local.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="only its owner can read"):
        keys_for("127.0.0.1", None, logs=tmp_path)


def test_an_empty_keys_file_is_a_mistake(keys_file: Path, tmp_path: Path) -> None:
    keys_file.write_text('{"keys": []}')
    keys_file.chmod(0o600)
    with pytest.raises(UserError, match="holds no key"):
        keys_for("0.0.0.0", keys_file, logs=tmp_path)


def test_a_bucket_gives_a_burst_then_so_many_a_second() -> None:
    buckets = TokenBuckets(names=2)
    waits = [buckets.wait("a", per_s=2, burst=3, now=0.0) for _ in range(4)]
    assert waits == [0, 0, 0, 1]
    assert buckets.wait("a", per_s=2, burst=3, now=0.5) == 0
    assert buckets.wait("a", per_s=2, burst=3, now=0.5) == 1
    assert buckets.wait("b", per_s=0.1, burst=1, now=0.0) == 0
    assert buckets.wait("b", per_s=0.1, burst=1, now=0.0) == 10


def test_buckets_remember_a_bounded_number_of_names_and_forget_the_quietest() -> None:
    buckets = TokenBuckets(names=2)
    for name in ("a", "b", "a", "c"):
        buckets.wait(name, per_s=0.1, burst=2, now=0.0)
    assert len(buckets) == 2
    assert buckets.wait("a", per_s=0.1, burst=2, now=0.0) > 0, "it was not the quietest"


def test_a_key_over_its_rate_is_told_when_to_come_again_and_others_are_served(keys_file: Path, secret: str) -> None:
    told = []
    slow = make_key("slow", keys_file, requests_per_s=1)
    limits = Limits(requests_per_s=1, burst=2)
    guard = Guard(echo, Keys(file=keys_file), limits, refused=lambda *what: told.append(what), clock=lambda: 5.0)
    answers = [ask(guard, headers=[("x-api-key", secret)]) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[2].headers["retry-after"] == "1"
    assert [ask(guard, headers=[("x-api-key", slow)]).status for _ in range(3)] == [200, 200, 429]
    assert told == [("rate", "page"), ("rate", "slow")]


def test_guesses_at_keys_are_limited_by_address_and_do_not_hinder_who_has_one(keys_file: Path, secret: str) -> None:
    limits = Limits(keyless_per_s=1, keyless_burst=2)
    guard = Guard(echo, Keys(file=keys_file), limits, clock=lambda: 5.0)
    assert [ask(guard, headers=[("x-api-key", "guess")]).status for _ in range(3)] == [401, 401, 429]
    assert ask(guard, headers=[("x-api-key", secret)]).status == 200
    assert ask(guard, "/healthz", client="10.0.0.2").status == 200


def test_a_body_comes_to_the_app_whole(guard: Guard, secret: str) -> None:
    assert post(guard, secret, [b'{"a"', b":1}"]).body == b'page {"a":1}'


def test_a_body_is_bounded_when_its_length_is_told_and_when_it_is_not(guard: Guard, secret: str) -> None:
    told = ask(
        guard, method="POST", headers=[("x-api-key", secret), JSON, ("content-length", "101")], body=[b"x" * 101]
    )
    chunked = post(guard, secret, [b"x" * 60, b"x" * 60])
    absurd = ask(guard, method="POST", headers=[("x-api-key", secret), JSON, ("content-length", "9" * 5000)])
    assert [told.status, chunked.status, absurd.status] == [413, 413, 431]
    assert told.headers["connection"] == "close"


def test_a_slow_body_is_given_up(guard: Guard, secret: str) -> None:
    assert post(guard, secret, [b"x"] * 20, pause_s=0.05).status == 408


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
def test_a_body_is_json_or_refused(guard: Guard, secret: str, kind: str) -> None:
    assert post(guard, secret, [b"{}"], ("content-type", kind)).status == 415
    assert post(guard, secret, [b"{}"], JSON, JSON).status == 415
    assert post(guard, secret, [b"{}"], JSON, ("content-encoding", "gzip")).status == 415
    assert post(guard, secret, [b"{}"], ("content-type", "Application/JSON; charset=utf-8")).status == 200


def test_headers_are_bounded_in_number_and_size(guard: Guard, secret: str) -> None:
    key = ("x-api-key", secret)
    assert ask(guard, headers=[key, *[("x-a", "b")] * 20]).status == 431
    assert ask(guard, headers=[key, ("x-a", "b" * 2000)]).status == 431
    assert ask(guard, "/" + "a" * 2000, headers=[key]).status == 431


def test_every_answer_carries_the_security_headers_and_none_lets_other_sites_read_it(guard: Guard, secret: str) -> None:
    for answer in (ask(guard), ask(guard, headers=[("x-api-key", secret), ("origin", "https://evil.example")])):
        for name, value in SECURITY_HEADERS:
            assert answer.headers[name.decode()] == value.decode()
        assert answer.headers["cache-control"] == "no-store"
        assert not [name for name in answer.headers if name.startswith("access-control")]
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_an_error_of_the_app_is_told_in_one_line_without_a_trace(
    keys_file: Path, secret: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("secret innards")

    answer = ask(Guard(fails, Keys(file=keys_file)), headers=[("x-api-key", secret)])
    assert answer.status == 500
    assert b"innards" not in answer.body
    assert answer.body.count(b"\n") == 1
    assert "innards" in caplog.text


class HastyConnection(BoundedConnection):
    limits: ClassVar[Limits] = Limits(head_s=0.3, head_bytes=4096)


@contextmanager
def hasty_server() -> Iterator[int]:
    """An app on a real port, whose connections have to say what they want within 0.3 s; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            hello, http=HastyConnection, ws="none", lifespan="off", log_level="error", timeout_keep_alive=60
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(0.5)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


def all_of(connection: socket.socket) -> bytes:
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b"408"),
        (b"GET / HTTP/1.1\r\nHost:", b"408"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 8192, b"431"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
    ids=["nothing", "half a head", "too long a head", "no HTTP"],
)
def test_connections_without_a_whole_head_in_time_and_size_are_hung_up_on(sent: bytes, status: bytes) -> None:
    with hasty_server() as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent)
        answer = all_of(connection)
        assert answer.startswith(b"HTTP/1.1 " + status), answer
        assert answer.endswith(b"}\n")


def test_an_answer_may_take_longer_than_a_head_and_a_connection_may_rest_between_requests() -> None:
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with hasty_server() as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for _ in range(2):
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b"hi"):
                answer += connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(0.4)
        connection.sendall(request[:20])
        assert all_of(connection).startswith(b"HTTP/1.1 408")


def test_a_bare_line_after_an_answer_does_not_keep_a_connection() -> None:
    with hasty_server() as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"hi"):
            answer += connection.recv(4096)
        connection.sendall(b"\r\n")
        assert all_of(connection).startswith(b"HTTP/1.1 408")


def test_keys_are_compared_with_every_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append(b) or a == b)
    digests = [f"{number:064x}" for number in range(3)]
    keys = Keys(tuple(Key(name=f"k{number}", sha256=digest, made_at="") for number, digest in enumerate(digests)))
    assert keys.whose(b"none of them") is None
    assert len(compared) == 3
