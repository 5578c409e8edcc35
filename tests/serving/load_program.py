"""Asks a server for items and tells it of clicks, from several threads, and says of what it was promised.

Where the server does not answer it asks again, with other ids: what was asked before may be written down or not.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
import uuid


def ask(connection: http.client.HTTPConnection, key: str, route: str, body: object) -> dict:
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    connection.request("POST", route, json.dumps(body), headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise ConnectionError(f"{answer.status} {content!r}")
    return json.loads(content)


def promised(kind: str, record_id: str) -> None:
    os.write(1, f"{kind} {record_id}\n".encode())


def work(port: int, key: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    # Who has seen all items would be shown none.
    user_id = "u3"
    wanted = {"user_id": user_id, "k": 3, "exclude_seen": False}
    while True:
        try:
            shown = ask(connection, key, "/recommend", wanted)
            promised("impressions", shown["request_id"])
            click = {
                "request_id": shown["request_id"],
                "item_id": shown["items"][0]["item_id"],
                "user_id": wanted["user_id"],
            }
            click |= {"action": "click", "action_id": uuid.uuid4().hex}
            ask(connection, key, "/feedback", {"actions": [click]})
            promised("actions", click["action_id"])
        except (OSError, http.client.HTTPException) as error:
            print(error, file=sys.stderr)
            connection.close()
            time.sleep(0.05)


def main() -> None:
    port, key, threads = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    for _ in range(threads):
        threading.Thread(target=work, args=(port, key)).start()


if __name__ == "__main__":
    main()
