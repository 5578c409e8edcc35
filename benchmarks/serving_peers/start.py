"""Starts BentoML's server on a free port, says where once it is ready, and ends with it."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
import urllib.request
from urllib.error import URLError


def main() -> int:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--release", required=True, help="folder of the release")
    command.add_argument("--service", choices=("Alone", "Batching"), default="Alone", help="(Alone)")
    given = command.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    environment = os.environ | {"HEADRACE_RELEASE": given.release, "BENTOML_DO_NOT_TRACK": "true"}
    words = [
        "serve",
        f"benchmarks.serving_peers.in_bentoml:{given.service}",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    server = subprocess.Popen([sys.executable, "-m", "bentoml", *words], env=environment)
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                break
        except (URLError, OSError):
            time.sleep(0.2)
    print(f"http://127.0.0.1:{port}", flush=True)
    return server.wait()


if __name__ == "__main__":
    sys.exit(main())
