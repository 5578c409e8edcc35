"""People at a server: what they are shown, and what they rate of it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.serving.running_server import Running


def reactions(server: Running, users: Sequence[str]) -> tuple[dict[str, list[str]], int]:
    """Everybody is shown ten items and rates the second and the fifth; what they were shown, and how many ratings."""
    shown, rated = {}, 0
    with server.client() as client:
        for user in users:
            answer = client.post("/recommend", json={"user_id": user}).raise_for_status().json()
            shown[user] = [item["item_id"] for item in answer["items"]]
            acts = [
                {"request_id": answer["request_id"], "user_id": user, "item_id": shown[user][place], "action": "rating"}
                for place in (1, 4)
            ]
            told = client.post("/feedback", json={"actions": [{**act, "value": 4} for act in acts]}).raise_for_status()
            rated += told.json()["accepted"]
    return shown, rated
