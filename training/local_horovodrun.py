"""horovodrun for ranks on this machine alone: its rendezvous listens on the loopback interface.

Horovod's own listens on all of them, and that of an elastic job unpickles what reaches it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from horovod.runner.http import http_server
from horovod.runner.launch import run_commandline
from horovod.runner.util import network


def find_local_port(server: Callable[[tuple[str, int]], Any]) -> Any:
    """A server of that kind on a free port of 127.0.0.1, and the port."""
    return network.find_port(lambda address: server(("127.0.0.1", address[1])))


def main() -> None:
    http_server.find_port = find_local_port
    sys.exit(run_commandline())


if __name__ == "__main__":
    main()
