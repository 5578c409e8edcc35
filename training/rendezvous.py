"""Horovod's rendezvous as a program, for ranks that something other than horovodrun starts: Spark's barrier tasks.

Its first line is JSON: for each host, in the order of its local ranks, the environment that makes a process that rank.
It serves until its standard input ends, so that it does not outlive who started it. Like horovodrun's it takes any
process that can reach its port for a rank: run it in a network that is yours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
from horovod.runner.gloo_run import create_run_env_vars, create_slot_env_vars
from horovod.runner.http.http_server import RendezvousServer

from schemas.programs import Parser

# Ranks on hosts that load their libraries from a slow disk come late; Horovod's own 30 s are short for them.
_GLOO_TIMEOUT_S = 120


def serve(hosts: Sequence[tuple[str, int, str]], address: str) -> dict[str, list[dict[str, str]]]:
    """Start to serve, in threads of this process; give the ranks' environments by host.

    A host is its name, its number of ranks and the network interface by which it reaches the others; `address` is
    where the ranks reach this process. Ranks are numbered host by host.
    """
    slots = get_host_assignments([HostInfo(name, ranks) for name, ranks, _ in hosts], sum(n for _, n, _ in hosts))
    server = RendezvousServer()
    port = server.start()
    server.init(slots)
    interface = {name: one for name, _, one in hosts}
    environments: dict[str, list[dict[str, str]]] = {name: [] for name, _, _ in hosts}
    for slot in slots:
        common = create_run_env_vars(address, [interface[slot.hostname]], port)
        common["HOROVOD_GLOO_TIMEOUT_SECONDS"] = _GLOO_TIMEOUT_S
        values = create_slot_env_vars(slot) | common
        environments[slot.hostname].append({name: str(value) for name, value in values.items()})
    return environments


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="python -m training.rendezvous", description=__doc__)
    command.add_argument("--address", required=True, help="where the ranks reach this host")
    command.add_argument(
        "--host",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "RANKS", "INTERFACE"),
        help="a host, how many ranks it has, and its network interface towards the others",
    )
    given = command.parse_args(arguments)
    hosts = [(name, int(ranks), interface) for name, ranks, interface in given.host]
    print(json.dumps(serve(hosts, given.address)), flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
