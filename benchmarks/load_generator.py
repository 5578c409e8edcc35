"""Requests at a given rate, whatever the server does: as users come, who do not wait for one another.

Arrivals are drawn beforehand (Poisson), and a latency counts from the moment that a request was due, so that a server
that stops for a second is charged for all who came in it (Tene: "coordinated omission"). Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_LATE_S = 0.005
_HTTP_OK, _HTTP_SHED = 200, 503


@dataclass
class Seen:
    """What became of the requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    """Of answers with status 200."""
    shed_s: list[float] = field(default_factory=list)
    late: int = 0
    """Sent more than 5 ms after they were due, for the generator's own reasons."""
    generations: Counter[str] = field(default_factory=Counter)
    fallbacks: int = 0


class Client:
    """Connections that are kept open; one is taken for each request in flight, and made where none is free."""

    def __init__(self, host: str, port: int, path: str, key: str, limit_s: float) -> None:
        self._address, self._path, self._limit_s = (host, port), path, limit_s
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nX-API-Key: {key}\r\n"
        )
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body; OSError or TimeoutError where there is none."""
        async with asyncio.timeout(self._limit_s):
            pair = self._unused() or await asyncio.open_connection(*self._address)
            reader, writer = pair
            try:
                writer.write(f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.partition("content-length:")[2].split("\r\n", 1)[0])
                answer = await reader.readexactly(length)
            except BaseException:
                writer.close()
                raise
            if "connection: close" in head:
                writer.close()
            else:
                self._free.append(pair)
            return int(head.split(" ", 2)[1]), answer

    def _unused(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """An open connection; a server closes those that were quiet for some seconds, as it may."""
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


async def offer(client: Client, bodies: list[bytes], due_s: np.ndarray) -> Seen:
    """Send body i at `due_s[i]` from now; give what was seen of all."""
    seen, began, running = Seen(), time.perf_counter(), set[asyncio.Task[None]]()

    async def one(body: bytes, due: float) -> None:
        seen.late += time.perf_counter() - due > _LATE_S
        try:
            status, answer = await client.post(body)
        except (OSError, TimeoutError, EOFError, asyncio.IncompleteReadError, ValueError) as error:
            seen.statuses[type(error).__name__] += 1
            return
        took = time.perf_counter() - due
        seen.statuses[str(status)] += 1
        if status == _HTTP_OK:
            seen.latencies_s.append(took)
            if answer.startswith(b"{"):
                content = json.loads(answer)
                seen.generations[str(content.get("generation"))] += 1
                seen.fallbacks += content.get("fallback") is not None
        elif status == _HTTP_SHED:
            seen.shed_s.append(took)

    for body, offset in zip(bodies, due_s.tolist(), strict=True):
        wait = began + offset - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(body, began + offset))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return seen


def summary(seen: Seen, rate: float, seconds: float) -> dict[str, object]:
    """Latencies in milliseconds; `failed` is whatever is neither an answer nor a refusal for load (503)."""
    answered, shed = seen.statuses[str(_HTTP_OK)], seen.statuses[str(_HTTP_SHED)]

    def ms(of: list[float], q: float) -> float | None:
        return round(float(np.percentile(of, q)) * 1000, 2) if of else None

    sent = sum(seen.statuses.values())
    times = os.times()
    return {
        "offered_per_s": rate,
        "sent": sent,
        "answered": answered,
        "answered_per_s": round(answered / seconds, 1),
        "shed": shed,
        "failed": sent - answered - shed,
        "statuses": dict(seen.statuses),
        "fallbacks": seen.fallbacks,
        "p50_ms": ms(seen.latencies_s, 50),
        "p90_ms": ms(seen.latencies_s, 90),
        "p99_ms": ms(seen.latencies_s, 99),
        "shed_p99_ms": ms(seen.shed_s, 99),
        "generations": dict(seen.generations),
        "late_share": round(seen.late / sent, 4) if sent else 0.0,
        "generator_cpu_s": round(times.user + times.system, 2),
    }


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(prog="python -m benchmarks.load_generator", description=__doc__)
    add = command.add_argument
    add("--port", type=int, required=True, help="of the server, on 127.0.0.1")
    add("--path", default="/recommend", help="(/recommend)")
    add("--key-file", type=Path, help="file that holds the API key")
    add("--bodies", type=Path, required=True, help="file of bodies, a line of JSON each, taken in turn")
    add("--rate", type=float, required=True, help="requests a second")
    add("--seconds", type=float, required=True, help="for so long")
    add("--limit", type=float, default=10.0, help="seconds after which a request has failed (10)")
    add("--seed", type=int, default=0, help="of the arrivals (0)")
    given = command.parse_args(arguments)
    lines = given.bodies.read_bytes().splitlines()
    random = np.random.default_rng(given.seed)
    gaps = random.exponential(1 / given.rate, int(given.rate * given.seconds * 1.5) + 50)
    due = np.cumsum(gaps)
    due = due[due < given.seconds]
    bodies = [lines[place % len(lines)] for place in range(len(due))]
    key = given.key_file.read_text().strip() if given.key_file else ""
    client = Client("127.0.0.1", given.port, given.path, key, given.limit)

    async def work() -> Seen:
        try:
            return await offer(client, bodies, due)
        finally:
            client.close()

    print(json.dumps(summary(asyncio.run(work()), given.rate, given.seconds)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
