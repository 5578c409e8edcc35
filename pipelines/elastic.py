"""Elastic jobs: ranks may die and come while training goes on. What horovodrun is told of them."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Elastic:
    """From how few ranks to how many; `discover` prints the hosts there are, a line `host:slots` each.

    Without `discover` all ranks are on this machine.
    """

    min_ranks: int
    max_ranks: int
    discover: Path | None = None
    interfaces: str | None = None
    max_restarts: int = 100

    @property
    def is_local(self) -> bool:
        return self.discover is None

    def options(self, scratch: Path) -> Sequence[str]:
        """Of horovodrun; a script is written to `scratch` where the user gave none."""
        words = ["--min-np", str(self.min_ranks), "--max-np", str(self.max_ranks)]
        words += ["--reset-limit", str(self.max_restarts)]
        if self.discover is not None:
            # A host where a rank has died is taken again after some 20 s, at its later deaths after longer.
            words += ["--host-discovery-script", str(self.discover), "--blacklist-cooldown-range", "10", "600"]
            return [*words, *(["--network-interfaces", self.interfaces] if self.interfaces else [])]
        script = scratch / "hosts.sh"
        script.write_text("#!/bin/sh\n" + "".join(f"echo {name}:1\n" for name in names_of_here(self.max_ranks)))
        script.chmod(stat.S_IRWXU)
        words += ["--host-discovery-script", str(script), "--blacklist-cooldown-range", "1", "20"]
        return [*words, "--network-interfaces", self.interfaces or "lo"]


def names_of_here(count: int) -> list[str]:
    """Different names of this machine, one a rank: when a rank dies, Horovod shuns its host, ranks and all.

    Each number of a dotted address may have leading zeros (inet_aton(3)), so that 127.0.0.01 is 127.0.0.1 too.
    """
    return ["127.0.0." + "0" * zeros + "1" for zeros in range(count)]
