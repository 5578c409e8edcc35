"""Connections of uvicorn whose heads are bounded: it sets no limit to their size, nor to how slowly they come."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.limits import Limits

_TOO_LARGE = b"431 Request Header Fields Too Large"
_MALFORMED = b"400 Bad Request"
_TOO_SLOW = b"408 Request Timeout"


class BoundedConnection(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`.

    Bytes that bring neither a whole head nor a part of a body are counted: those of a head, of a chunk's extensions,
    of trailers. Who sends too many of them, or no whole head in time, is answered in one line and hung up on.
    """

    limits: ClassVar[Limits] = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._silent_bytes = 0
        self._progressed = False
        self._in_head = True
        self._deadline: asyncio.TimerHandle | None = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._progressed = False
        super().data_received(data)
        self._silent_bytes = 0 if self._progressed else self._silent_bytes + len(data)
        if self._silent_bytes > self.limits.head_bytes:
            self._hang_up(_TOO_LARGE, f"the head takes more than {self.limits.head_bytes} bytes")
        elif (self._in_head or self._is_idle()) and self._deadline is None and not self.transport.is_closing():
            self._expect_head()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One more than allowed is kept, for the guard to refuse by; trailers come this way too, and are not."""
        if self._in_head and len(self.headers) <= self.limits.num_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._progressed, self._in_head = True, False
        self._head_is_here()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._progressed = True
        super().on_message_complete()

    def _is_idle(self) -> bool:
        """Whether nothing is to be answered: bytes that begin no request have ended uvicorn's own wait for one."""
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(
            self.limits.head_s, self._hang_up, _TOO_SLOW, f"no whole request within {self.limits.head_s:g} s"
        )

    def _head_is_here(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _hang_up(self, status: bytes, detail: str) -> None:
        self._head_is_here()
        if self.transport.is_closing():
            return
        if self._is_idle():
            self._say(status, detail)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._say(_MALFORMED, msg)
        self.transport.close()

    def _say(self, status: bytes, detail: str) -> None:
        content = b'{"detail": "%s"}\n' % detail.encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(content)
        self.transport.write(b"HTTP/1.1 " + status + b"\r\n" + head + content)
