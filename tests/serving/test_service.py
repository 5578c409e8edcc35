"""The app over a real release: what is answered is written down before, what cannot be is not answered."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.contract import Column
from schemas.release import Release
from schemas.served import Action, Impression
from schemas.wheel import Exploration, ServingSettings
from serving.app import build_app
from serving.engine import Engine, load_engine
from serving.recent import Recent
from serving.requests import bodies_of
from serving.scorer import Scorer
from serving.service import InService, Service
from tests.serving.releases import RULES


class Memory:
    """A log that keeps its lines; full or stuck on demand."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.full = self.stuck = False
        self.broken: str | None = None

    def append_many(self, lines: Sequence[bytes]) -> Future[None]:
        if self.full:
            raise OSError("no space left on device")
        self.lines += lines
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()
        if not self.stuck:
            done.set_result(None)
        return done


@pytest.fixture(scope="module")
def engine(released: tuple[Path, Release]) -> Engine:
    return load_engine(released[0])


SETTINGS = ServingSettings(exploration=Exploration(epsilon=0.5, pool=10), queue=4, timeout_ms=5000, max_items=20)


class Served:
    """A service over memory, and its app."""

    def __init__(self, engine: Engine, settings: ServingSettings = SETTINGS) -> None:
        self.impressions, self.actions = Memory(), Memory()
        logs = {"impressions": self.impressions, "actions": self.actions}
        self.service = Service(InService.of(engine, settings), logs, Recent(RULES), scorer=Scorer(seed=1))
        self.app = build_app(self.service)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    def ask(self, **body: Any) -> httpx.Response:
        return self.post("/recommend", {"user_id": "u3", **body})

    def post(self, route: str, body: Any) -> httpx.Response:
        async def posted() -> httpx.Response:
            async with self.client() as client:
                return await client.post(route, json=body)

        return asyncio.run(posted())

    def get(self, route: str) -> httpx.Response:
        async def got() -> httpx.Response:
            async with self.client() as client:
                return await client.get(route)

        return asyncio.run(got())


@pytest.fixture
def served(engine: Engine) -> Iterator[Served]:
    served = Served(engine)
    yield served
    served.service.scorer.close()


def test_an_answer_is_what_was_written_down(served):
    found = served.ask(k=5, context={"tab": 2}, blocked=["i1"]).json()
    (line,) = served.impressions.lines
    logged = Impression.model_validate_json(line)
    assert (found["request_id"], found["generation"]) == (logged.request_id, "0001")
    assert (logged.user_id, logged.context, logged.policy) == ("u3", {"tab": 2}, "epsilon_greedy(0.5, pool=10)")
    assert logged.num_candidates == 10
    shown = [{name: item[name] for name in ("item_id", "position", "score", "propensity")} for item in found["items"]]
    assert shown == [item.model_dump(include={"item_id", "position", "score", "propensity"}) for item in logged.items]
    assert [item["position"] for item in found["items"]] == [0, 1, 2, 3, 4]
    assert all(item["title"] == f"Item {item['item_id'][1:]}" for item in found["items"])
    assert logged.features["tab"] == 5
    assert all("item_count" in item.features for item in logged.items)


def test_what_was_shown_is_history_and_seen_from_then_on(served):
    first = served.ask(k=3).json()["items"]
    second = served.ask(k=20).json()["items"]
    assert not {item["item_id"] for item in first} & {item["item_id"] for item in second}
    logged = Impression.model_validate_json(served.impressions.lines[1])
    assert logged.features["history"][-3:] == [int(item["item_id"][1:]) + 3 for item in first]
    again = served.ask(k=20, exclude_seen=False).json()["items"]
    assert len(again) == 20


def test_a_long_key_is_not_given_back(served):
    answer = served.ask(**{"x" * 100_000: 1})
    assert answer.status_code == 422
    assert len(answer.content) < 400


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"k": 0}, "k: Input should be greater than or equal to 1"),
        ({"k": 21}, "k: Input should be less than or equal to 20"),
        ({"k": "3"}, "k: Input should be a valid integer"),
        ({"user_id": ""}, "user_id: String should have at least 1 character"),
        ({"user_id": "x" * 129}, "user_id: String should have at most 128 characters"),
        ({"user_id": "a\x00b"}, "user_id: String should match pattern"),
        ({"blocked": ["i1"] * 1001}, "blocked: List should have at most 1000 items"),
        ({"context": {"tab": "1"}}, "context.tab: Input should be a valid integer"),
        ({"context": {"tab": 2**31}}, "context.tab: Input should be less than or equal to 2147483647"),
        ({"context": {"clicked": 1}}, "context.clicked: Extra inputs are not permitted"),
        ({"context": {"user_id": "x"}}, "context.user_id: Extra inputs are not permitted"),
        ({"contxt": {}}, "contxt: Extra inputs are not permitted"),
    ],
)
def test_a_request_out_of_bounds_is_refused_by_name_and_nothing_is_logged(served, body, says):
    answer = served.ask(**body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(says)
    assert served.impressions.lines == []


def test_actions_are_written_down_with_ids_and_the_servers_time(served):
    before = time.time_ns() // 1_000_000
    acts = [
        {"request_id": "r", "item_id": "i1", "user_id": "u3", "action": "click"},
        {"request_id": "r", "item_id": "i2", "user_id": "u3", "action": "view", "value": 12, "action_id": "mine"},
    ]
    answer = served.post("/feedback", {"actions": acts}).json()
    logged = [Action.model_validate_json(line) for line in served.actions.lines]
    assert answer == {"accepted": 2, "action_ids": [logged[0].action_id, "mine"]}
    assert [(a.item_id, a.action, a.value) for a in logged] == [("i1", "click", None), ("i2", "view", 12.0)]
    assert all(before <= action.time_ms <= time.time_ns() // 1_000_000 for action in logged)


@pytest.mark.parametrize(
    "act", [{"action": "Click!"}, {"value": "x"}, {"action_id": ""}, {"time_ms": 5}, {"request_id": "a\nb"}]
)
def test_an_action_out_of_bounds_is_refused(served, act):
    whole = {"request_id": "r", "item_id": "i1", "user_id": "u3", "action": "click"}
    assert served.post("/feedback", {"actions": [whole | act]}).status_code == 422
    assert served.post("/feedback", {"actions": []}).status_code == 422
    assert served.actions.lines == []


def test_what_cannot_be_written_is_not_answered(served):
    served.impressions.full = served.actions.full = True
    answer = served.ask()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "items" not in answer.json()
    act = {"request_id": "r", "item_id": "i1", "user_id": "u3", "action": "click"}
    assert served.post("/feedback", {"actions": [act]}).status_code == 503
    served.impressions.full = False
    items = served.ask(k=20).json()["items"]
    assert len(items) == 20, "what was not shown is not seen"


def test_a_log_that_does_not_answer_is_not_waited_for_and_nobody_says_that_nothing_was_taken(served, monkeypatch):
    monkeypatch.setattr("serving.service.WRITES_WITHIN_S", 0.05)
    served.actions.stuck = True
    act = {"request_id": "r", "item_id": "i1", "user_id": "u3", "action": "click"}
    answer = served.post("/feedback", {"actions": [act]})
    assert (answer.status_code, "may have been taken" in answer.json()["detail"]) == (503, True)
    served.actions.stuck, served.actions.full = False, True
    answer = served.post("/feedback", {"actions": [act]})
    assert (answer.status_code, "nothing was taken" in answer.json()["detail"]) == (503, True)


def test_a_log_that_has_ended_is_said_to_who_looks_after_the_server(served):
    assert served.get("/healthz").json()["status"] == "ok"
    served.actions.broken = "the log has ended"
    assert served.get("/healthz").json()["status"] == "degraded"
    assert served.service.problem == "the log has ended"


def fallbacks(served: Served, reason: str) -> float:
    return served.service.metrics.fallbacks.labels(reason)._value.get()


def test_a_model_that_fails_leaves_popular_items_that_are_logged_as_such(served, engine, monkeypatch, capsys):
    def broken(*_: object) -> None:
        raise RuntimeError("a weight is missing")

    monkeypatch.setattr(engine, "score", broken)
    found = served.ask(k=4, blocked=["i0"]).json()
    assert found["fallback"] == "model failure"
    logged = Impression.model_validate_json(served.impressions.lines[0])
    assert (logged.policy, logged.fallback, logged.num_candidates) == ("popularity", "model failure", 1)
    assert [item["propensity"] for item in found["items"]] == [1.0] * 4
    counts = [item["score"] for item in found["items"]]
    assert counts == sorted(counts, reverse=True)
    assert not {"i0", "i6", "i7", "i8"} & {item["item_id"] for item in found["items"]}
    assert fallbacks(served, "model failure") == 1
    assert "RuntimeError: a weight is missing" in capsys.readouterr().err


def test_models_that_are_late_or_too_much_asked_for(engine, monkeypatch):
    """Of ten requests at once on a stuck model four wait, then get popular items; the others are refused at once."""
    served = Served(engine, SETTINGS.model_copy(update={"timeout_ms": 300}))
    stuck, score = threading.Event(), engine.score
    began = threading.Event()

    def slow(*arguments: Any) -> Any:
        began.set()
        stuck.wait(10)
        return score(*arguments)

    monkeypatch.setattr(engine, "score", slow)

    async def run() -> list[httpx.Response]:
        async with served.client() as client:
            first = asyncio.create_task(client.post("/recommend", json={"user_id": "u1"}))
            await asyncio.to_thread(began.wait)
            ten = [client.post("/recommend", json={"user_id": f"u{i}"}) for i in range(10)]
            return [*await asyncio.gather(*ten), await first]

    begun = time.monotonic()
    answers = asyncio.run(run())
    assert time.monotonic() - begun < 5
    stuck.set()
    served.service.scorer.close()
    by_status = sorted(answer.status_code for answer in answers)
    assert by_status == [200] * 5 + [503] * 6
    assert {answer.json()["fallback"] for answer in answers if answer.status_code == 200} == {"timeout"}
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 503)
    assert len(served.impressions.lines) == 5
    text = served.get("/metrics").text
    assert 'headrace_requests_total{outcome="shed",route="/recommend"} 6.0' in text
    assert 'headrace_fallbacks_total{reason="timeout"} 5.0' in text


def test_a_request_that_no_model_can_score_leaves_those_that_wait_with_it_alone(served, engine, monkeypatch):
    began, go, score = threading.Event(), threading.Event(), engine.score
    groups = []

    def odd(asked: Any, candidates: Any) -> Any:
        groups.append(len(asked))
        began.set()
        go.wait(10)
        if any(one.user_id == "odd" for one in asked):
            raise ArithmeticError("a score of the models is no number")
        return score(asked, candidates)

    monkeypatch.setattr(engine, "score", odd)

    async def run() -> list[httpx.Response]:
        async with served.client() as client:
            first = asyncio.create_task(client.post("/recommend", json={"user_id": "u1"}))
            await asyncio.to_thread(began.wait)
            users = ("u2", "odd", "u4")
            others = [asyncio.create_task(client.post("/recommend", json={"user_id": user})) for user in users]
            while served.service.scorer.waiting < 3:
                await asyncio.sleep(0.01)
            go.set()
            return [await one for one in (first, *others)]

    answers = asyncio.run(run())
    assert [answer.json()["fallback"] for answer in answers] == [None, None, "model failure", None]
    assert groups == [1, 3, 1, 1, 1]


def test_a_number_of_the_context_that_no_model_can_take_is_refused(released):
    contract = released[1].contract
    price = Column(name="price", type="float64", nullable=True, meaning="asked")
    events = contract.events.model_copy(update={"columns": (*contract.events.columns, price)})
    body = bodies_of(contract.model_copy(update={"events": events}), ServingSettings()).recommend
    for fits in (3.4e38, -3.4e38):
        assert body.model_validate({"user_id": "u", "context": {"price": fits}}).context.price == fits
    for beyond in (1e308, -3.5e38):
        with pytest.raises(ValueError, match="price"):
            body.model_validate({"user_id": "u", "context": {"price": beyond}})


def test_a_request_under_way_ends_with_the_release_that_it_began_with(served, engine, released, monkeypatch):
    other = load_engine(released[0])
    other.release = other.release.model_copy(update={"id": "0002"})  # type: ignore[misc]
    began, go, score = threading.Event(), threading.Event(), engine.score

    def held(*arguments: Any) -> Any:
        began.set()
        go.wait(10)
        return score(*arguments)

    monkeypatch.setattr(engine, "score", held)

    async def run() -> tuple[httpx.Response, httpx.Response]:
        async with served.client() as client:
            old = asyncio.create_task(client.post("/recommend", json={"user_id": "u1"}))
            await asyncio.to_thread(began.wait)
            served.service.swap(InService.of(other, SETTINGS))
            new = asyncio.create_task(client.post("/recommend", json={"user_id": "u1"}))
            await asyncio.sleep(0.05)
            go.set()
            return await old, await new

    old, new = asyncio.run(run())
    assert (old.json()["generation"], new.json()["generation"]) == ("0001", "0002")
    assert (old.json()["fallback"], new.json()["fallback"]) == (None, None)
    assert served.get("/healthz").json()["generation"] == "0002"
    assert "headrace_swaps_total 1.0" in served.get("/metrics").text
    assert 'headrace_generation{id="0002"} 1.0' in served.get("/metrics").text


def test_the_described_requests_are_the_ones_that_are_taken(served):
    described = json.dumps(served.get("/openapi.json").json())
    assert '"tab"' in described
    assert '"clicked"' not in described
    assert '"maximum": 20' in described


@pytest.mark.parametrize(("kind", "most"), [("int64", 2**63 - 1), ("int32", 2**31 - 1)])
def test_ids_of_whole_numbers_are_one_text_each_and_fit_their_type(released, kind, most):
    contract = released[1].contract
    events = contract.events.model_copy(
        update={
            "columns": tuple(
                column.model_copy(update={"type": kind, "pattern": None}) if column.role == "user" else column
                for column in contract.events.columns
            )
        }
    )
    body = bodies_of(contract.model_copy(update={"events": events}), ServingSettings()).recommend
    for fits in ("7", str(most), str(-most - 1)):
        assert body.model_validate_json(json.dumps({"user_id": fits})).user_id == fits
    for other in ("07", "7.0", " 7", "+7", "seven"):
        with pytest.raises(ValueError, match="pattern"):
            body.model_validate_json(json.dumps({"user_id": other}))
    for other in (most + 1, -most - 2):
        with pytest.raises(ValueError, match="is no whole number of"):
            body.model_validate_json(json.dumps({"user_id": str(other)}))
