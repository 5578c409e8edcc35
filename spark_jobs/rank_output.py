"""How ranks on executors are heard on the driver's terminal: lines over a socket that only this job's tasks can open.

An executor's own output goes into its log. So each task keeps a connection to the driver for as long as its rank runs:
what the rank prints comes over it line by line, and where it ends, at either end, the rank ends too.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

MOST_BYTES = 16 << 10
"""Of a line of a rank; longer ones come in pieces."""
_MOST_MESSAGE_BYTES = 8 * MOST_BYTES  # JSON writes a character in six where it is not ASCII
_HANDSHAKE_S = 20.0


def _answer(secret: str, challenge: bytes) -> bytes:
    """What proves that one knows the secret, which itself never goes over the wire."""
    return hmac.new(secret.encode(), challenge, "sha256").hexdigest().encode() + b"\n"


class Listener:
    """The driver's end: prints the lines of all ranks, and keeps how each of them ended."""

    def __init__(self, address: str, say: Callable[[str], None]) -> None:
        self.secret = secrets.token_hex(32)
        self.exit_codes: dict[int, int] = {}
        self.refusals: list[str] = []
        self._say, self._lock = say, threading.Lock()
        self._open: set[socket.socket] = set()
        listener = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    listener._hear(self.connection, self.rfile)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads, block_on_close, request_queue_size = True, False, 128

        self._server = Server((address, 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def close(self) -> None:
        """Hang up, upon which every task ends its rank."""
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _hear(self, connection: socket.socket, lines: Any) -> None:
        connection.settimeout(_HANDSHAKE_S)
        challenge = secrets.token_hex(32).encode()
        connection.sendall(challenge + b"\n")
        if not hmac.compare_digest(lines.readline(256), _answer(self.secret, challenge)):
            return
        connection.settimeout(None)
        with self._lock:
            self._open.add(connection)
        try:
            while (text := lines.readline(_MOST_MESSAGE_BYTES)).endswith(b"\n"):
                if self._is_report(json.loads(text)):
                    connection.sendall(b".")
        finally:
            with self._lock:
                self._open.discard(connection)

    def _is_report(self, message: dict[str, Any]) -> bool:
        """Take a message; give whether it is one whose sender waits until it has been taken."""
        with self._lock:
            if "line" in message:
                self._say(message["line"])
            elif "refusal" in message:
                self.refusals.append(message["refusal"])
            else:
                self.exit_codes[int(message["rank"])] = int(message["exit_code"])
        return "line" not in message


@contextmanager
def listening(address: str, say: Callable[[str], None]) -> Iterator[Listener]:
    listener = Listener(address, say)
    try:
        yield listener
    finally:
        listener.close()


class Line:
    """A task's end."""

    def __init__(self, address: str, port: int, secret: str) -> None:
        self._socket = socket.create_connection((address, port), timeout=_HANDSHAKE_S)
        challenge = self._socket.makefile("rb").readline(256).rstrip(b"\n")
        self._socket.sendall(_answer(secret, challenge))
        self._socket.settimeout(None)
        self._heard, self._hung_up = threading.Event(), threading.Event()
        self._when_hung_up: Callable[[], None] = lambda: None
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def own_address(self) -> str:
        """This host's, on the way to the driver."""
        address: str = self._socket.getsockname()[0]
        return address

    def when_hung_up(self, do: Callable[[], None]) -> None:
        """Do this once the driver has hung up or is gone; at once where it has."""
        self._when_hung_up = do
        if self._hung_up.is_set():
            do()

    def say(self, line: str) -> None:
        self._send({"line": line})

    def refuse(self, why: str) -> None:
        self._report({"refusal": why})

    def ended(self, rank: int, exit_code: int) -> None:
        self._report({"rank": rank, "exit_code": exit_code})

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _report(self, message: dict[str, Any]) -> None:
        """Send, and wait until the driver has it: the task may fail next, and the driver asks at once why."""
        self._heard.clear()
        self._send(message)
        self._heard.wait(_HANDSHAKE_S)

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _watch(self) -> None:
        with suppress(OSError):
            while self._socket.recv(1):
                self._heard.set()
        self._hung_up.set()
        self._heard.set()
        self._when_hung_up()
