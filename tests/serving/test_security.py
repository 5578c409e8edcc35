"""What a hostile caller and a hostile catalogue get out of a real server: a short no."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.guard import SECURITY_HEADERS
from tests.serving.running_server import Running

pytestmark = pytest.mark.slow


def raw(server: Running, request: bytes, *, wait_s: float = 5) -> bytes:
    """All that comes back on a connection of its own until the server ends it, or says no more."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait_s) as connection:
        answer = io.BytesIO()
        try:
            connection.sendall(request)
            while part := connection.recv(65536):
                answer.write(part)
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            pass
        return answer.getvalue()


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", answer)]


def head(server: Running, line: str, *headers: str) -> bytes:
    return "\r\n".join([line, "Host: x", f"X-API-Key: {server.key}", *headers, "", ""]).encode()


def test_the_api_is_what_its_description_says_whatever_is_asked(server: Running, tmp_path: Path) -> None:
    """Schemathesis: no 5xx, answers of the shapes described, wrong requests refused, nothing without a key."""
    program = Path(sys.executable).parent / "schemathesis"
    command = [
        *(str(program), "run", f"{server.url}/openapi.json", "--no-color", "--header", f"X-API-Key: {server.key}"),
        # One worker: Python 3.11 cannot parse source in several threads at once, which hypothesis does.
        *("--phases", "coverage,fuzzing", "--max-examples", "5", "--workers", "1", "--seed", "7"),
        # JSON Schema calls 3.0 an integer; the server wants 3.
        *("--exclude-checks", "positive_data_acceptance"),
    ]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None
    assert int(generated[1]) > 100


def test_without_a_key_only_the_pages_files_and_the_health_check_answer(server: Running) -> None:
    with server.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
        assert {"/recommend", "/feedback", "/metrics", "/api/users", "/api/impressions"} <= set(paths)
        client.headers.pop("X-API-Key")
        open_ones = {path for path in paths if client.get(path).status_code != 401}
        assert open_ones == {"/healthz"}
        assert client.post("/recommend", json={"user_id": "u1"}).status_code == 401
        assert client.get("/metrics", params={"key": server.key, "X-API-Key": server.key}).status_code == 401
        for path in ("/", "/dashboard", "/static/page.js", "/static/page.css", "/static/icon.svg"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert {name.decode() for name, _ in SECURITY_HEADERS} <= set(answer.headers)
            again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")


HOSTILE_BODIES = {
    "nothing": b"",
    "half": b'{"user_id": "u1"',
    "another kind": b'["u1"]',
    "null": b"null",
    "not UTF-8": b'{"user_id": "u\xff1"}',
    "UTF-16": '{"user_id": "u1"}'.encode("utf-16"),
    "NUL": b'{"user_id": "u\\u0000"}',
    "half a surrogate": b'{"user_id": "\\ud800"}',
    "control character": b'{"user_id": "u\\u001b[31m"}',
    "line end": b'{"user_id": "u\\n1"}',
    "NaN": b'{"user_id": "u1", "k": NaN}',
    "Infinity": b'{"user_id": "u1", "context": {"tab": Infinity}}',
    "beyond a float": b'{"user_id": "u1", "k": 1e999}',
    "beyond an integer": b'{"user_id": "u1", "k": 99999999999999999999999999}',
    "a million digits": b'{"user_id": "u1", "k": ' + b"9" * 900_000 + b"}",
    "beyond int32": b'{"user_id": "u1", "context": {"tab": 4294967296}}',
    "below": b'{"user_id": "u1", "k": -1}',
    "too many": b'{"user_id": "u1", "k": 100000}',
    "truth for a number": b'{"user_id": "u1", "k": true}',
    "deep": b"[" * 500_000,
    "deep within": b'{"user_id": "u1", "context": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "long id": b'{"user_id": "' + b"u" * 500_000 + b'"}',
    "many blocked": json.dumps({"user_id": "u1", "blocked": ["i1"] * 100_000}).encode(),
    "keys that nobody knows": b'{"user_id": "u1", "__proto__": {"k": 1}}',
    "context that nobody knows": b'{"user_id": "u1", "context": {"__class__": "x"}}',
}


@pytest.mark.parametrize("route", ["/recommend", "/feedback"])
def test_hostile_bodies_are_refused_in_one_line_and_nothing_is_logged(server: Running, route: str) -> None:
    def logged() -> int:
        return sum(path.stat().st_size for path in (server.wheel / "logs").rglob("*.open"))

    with server.client(**{"Content-Type": "application/json"}) as client:
        before = logged()
        for name, body in HOSTILE_BODIES.items():
            if route == "/feedback":
                body = b'{"actions": [' + body + b"]}"
            answer = client.post(route, content=body)
            assert answer.status_code in (413, 422), (name, answer.status_code, answer.text[:200])
            assert answer.text.strip().count("\n") == 0, name
            assert len(answer.text) < 1000, f"{name}: what was sent does not come back"
            assert "Traceback" not in answer.text
        assert logged() == before
        assert client.post("/recommend", json={"user_id": "u1"}).status_code == 200


def test_bodies_that_are_too_large_or_no_json_are_not_read(server: Running) -> None:
    with server.client() as client:
        for kind in ("text/plain", "application/xml", "multipart/form-data; boundary=x", "application/json-patch+json"):
            answer = client.post("/recommend", content=b'{"user_id": "u1"}', headers={"Content-Type": kind})
            assert answer.status_code == 415, kind
    post = "POST /recommend HTTP/1.1"
    told = raw(server, head(server, post, "Content-Type: application/json", "Content-Length: 99999999999"))
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    chunked = head(server, post, "Content-Type: application/json", "Transfer-Encoding: chunked") + chunk * 17
    assert statuses(told) == [413]
    assert statuses(raw(server, chunked)) == [413]


def test_heads_that_have_no_end_are_hung_up_on(server: Running) -> None:
    many = head(server, "GET /healthz HTTP/1.1", *(f"X-{number}: 1" for number in range(500)))
    assert statuses(raw(server, many, wait_s=1)) == [431]
    for endless in (
        b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 300_000,
        b"GET /" + b"a" * 300_000,
        b"GET / HTTP/1.1\r\n" * 9000,
    ):
        answer = raw(server, endless)
        assert set(statuses(answer)) <= {400, 431}, answer[:200]
        assert len(statuses(answer)) <= 1
    extension = head(server, "POST /recommend HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked")
    assert len(statuses(raw(server, extension + b"1;" + b"a" * 300_000))) <= 1
    with server.client() as client:
        assert client.get("/healthz").status_code == 200


SMUGGLED = "GET /api/settings HTTP/1.1"
AMBIGUOUS = {
    "length and chunks": ("Content-Length: 4", "Transfer-Encoding: chunked"),
    "two lengths": ("Content-Length: 4", "Content-Length: 400"),
    "a list of lengths": ("Content-Length: 4, 4",),
    "a signed length": ("Content-Length: +4",),
    "a negative length": ("Content-Length: -4",),
    "a hexadecimal length": ("Content-Length: 0x4",),
    "a space before the colon": ("Transfer-Encoding : chunked",),
    "a coding that is none": ("Transfer-Encoding: xchunked",),
    "chunks first, then another": ("Transfer-Encoding: chunked, identity",),
    "folded lines": ("Transfer-Encoding:", " chunked"),
    "a vertical tab": ("Transfer-Encoding: \x0bchunked",),
    "NUL in a header": ("X-A: a\x00b", "Content-Length: 4"),
    "a bare line end": ("X-A: a\nTransfer-Encoding: chunked",),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_request_whose_length_can_be_read_two_ways_gets_no_second_one_past(server: Running, name: str) -> None:
    inner = head(server, SMUGGLED)
    outer = head(server, "POST /recommend HTTP/1.1", "Content-Type: application/json", *AMBIGUOUS[name])
    answer = raw(server, outer + b"0\r\n\r\n" + inner, wait_s=1)
    assert len(statuses(answer)) <= 1, answer
    assert set(statuses(answer)) <= {400, 413, 415, 422}, answer
    assert b"num_users" not in answer


def test_chunks_of_a_wrong_size_are_refused(server: Running) -> None:
    outer = head(server, "POST /recommend HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked")
    for chunk in (b"-1\r\nx", b"fffffffffffffffff\r\nx", b"0x1\r\nx\r\n0\r\n\r\n", b"1\r\nxyz\r\n0\r\n\r\n"):
        assert set(statuses(raw(server, outer + chunk, wait_s=1))) <= {400}, chunk


def test_connections_that_say_nothing_or_little_do_not_keep_others_waiting(server: Running) -> None:
    half = head(server, "POST /recommend HTTP/1.1", "Content-Type: application/json", "Content-Length: 100") + b'{"us'
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(150)]
    try:
        for number, connection in enumerate(idle):
            connection.sendall((b"", b"POST /recommend HT", half)[number % 3])
        with server.client() as client:
            begun = time.monotonic()
            for _ in range(5):
                assert client.post("/recommend", json={"user_id": "u1"}).status_code == 200
            assert time.monotonic() - begun < 5
    finally:
        for connection in idle:
            connection.close()


TRAVERSALS = (
    "/static/../keys.py",
    "/static/../../pyproject.toml",
    "/static/..%2f..%2fpyproject.toml",
    "/static/%2e%2e/%2e%2e/pyproject.toml",
    "/static/..%252f..%252fpyproject.toml",
    "/static/....//....//pyproject.toml",
    "/static/..\\..\\pyproject.toml",
    "/static/..%5c..%5cpyproject.toml",
    "/static//etc/passwd",
    "/static/%2fetc%2fpasswd",
    "/static/page.js%00.html",
    "/static/page.js/",
    "/static/page.html/../../../../etc/passwd",
    "/static/..%c0%af..%c0%afetc/passwd",
    "/static/file:///etc/passwd",
    "/static/local.key",
    "//static/page.js",
    "http://other.example/static/../keys.py",
)


def test_no_name_leads_out_of_the_pages_files(server: Running) -> None:
    for path in TRAVERSALS:
        for with_key in (True, False):
            request = head(server, f"GET {path} HTTP/1.1", "Connection: close")
            answer = raw(server, request if with_key else request.replace(server.key.encode(), b"none"))
            assert len(statuses(answer)) == 1, path
            assert set(statuses(answer)) <= {400, 401, 404, 405}, (path, answer[:300])
            assert b"root:" not in answer
            assert b"[project]" not in answer


def test_ids_are_text_and_lead_nowhere(server: Running) -> None:
    before = {path for path in server.wheel.rglob("*") if "logs" not in path.parts}
    with server.client() as client:
        for text in (
            "../../../etc/passwd",
            "/etc/passwd",
            "%2e%2e%2f",
            "'; DROP TABLE users; --",
            "{{7*7}}",
            "${jndi:x}",
            "ü" * 60,
        ):
            answer = client.post("/recommend", json={"user_id": text, "k": 2, "blocked": [text]})
            assert answer.status_code == 200
            shown = client.get("/api/impressions", params={"user_id": text}).json()
            assert shown["user_id"] == text
            assert shown["impressions"][0]["request_id"] == answer.json()["request_id"]
            assert client.get("/api/users", params={"prefix": text}).json()["users"] == []
            acted = {"request_id": "../x", "item_id": text, "user_id": text, "action": "click", "action_id": text}
            assert client.post("/feedback", json={"actions": [acted]}).status_code == 200
            assert client.get("/api/watched", params={"user_id": text}).json()["items"][0]["item_id"] == text
        for name, text in (("prefix", "\0"), ("user_id", "a\nb"), ("user_id", "x" * 5000), ("user_id", "")):
            path = "/api/users" if name == "prefix" else "/api/impressions"
            assert client.get(path, params={name: text}).status_code == 422
    assert {path for path in server.wheel.rglob("*") if "logs" not in path.parts} == before
