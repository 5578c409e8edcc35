"""What a caller may ask of the server: how often, how much, how slowly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Each is enforced by `serving.guard`, the heads of requests already by `serving.connection`."""

    requests_per_s: float = 500.0
    """Of one key, by each process of the server; a key may have its own in the keys file."""
    burst: float = 1000.0
    """Requests that a key may make at once after a rest."""
    keyless_per_s: float = 50.0
    """Of one address: pages, health checks, and requests whose key is missing or wrong."""
    keyless_burst: float = 300.0
    addresses: int = 4096
    """That are remembered; the one that was quiet for longest is forgotten first."""
    body_bytes: int = 1 << 20
    head_bytes: int = 16 << 10
    """Of the request line and all headers."""
    num_headers: int = 64
    head_s: float = 10.0
    """Until a request's head is whole, and a new connection has sent one."""
    body_s: float = 10.0
    """Until a request's body is whole."""
    connections: int = 900
    """At once, and requests under way; with more of them all are told to come again. Processes may often open 1,024."""
