"""The server's HTTP side: checks what is asked, hands it to the service, and says what came of it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ValidationError

from schemas.version import VERSION
from serving.guard import has_key
from serving.requests import Feedback, Recommend
from serving.scorer import Overloaded
from serving.service import LogFailed, Service

JSON = "application/json"
RETRY_AFTER_S = 1
_PLACE_CHARACTERS = 200  # a key that is not known may be as long as a body


class Recommended(BaseModel):
    item_id: str
    title: str
    position: int
    score: float
    propensity: float


class Recommendation(BaseModel):
    request_id: str
    generation: str
    fallback: str | None
    items: list[Recommended]


class Accepted(BaseModel):
    accepted: int
    action_ids: list[str]


class Refused(BaseModel):
    detail: str


class Refusal(Exception):
    """An answer that is none; `outcome` is what metrics count it by."""

    def __init__(self, status: int, outcome: str, detail: Any) -> None:
        super().__init__(detail)
        self.status, self.outcome, self.detail = status, outcome, detail


Handler = Callable[[Request], Awaitable[tuple[dict[str, Any], str]]]
_NOTHING_TAKEN = "the log cannot be written; nothing was taken"
_UNCERTAIN = "the log does not answer; it may have been taken: send actions again with the action_id that they had"
_UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    422: {"model": Refused, "description": "The request is not as it is to be"},
    503: {
        "model": Refused,
        "description": "Too much waits, or the log cannot be written: `detail` says which",
    },
}


def build_app(
    service: Service,
    *,
    lifespan: Any = None,
    pages: Callable[[FastAPI, Service], None] | None = None,
    guard: Callable[[FastAPI], None] | None = None,
) -> FastAPI:
    """The app. `pages` adds routes of its own; `guard` hangs middleware before all of it."""
    app = FastAPI(
        title="Headrace", version=VERSION, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan
    )

    @app.post("/recommend", response_model=Recommendation, responses=_UNAVAILABLE)
    async def recommend(request: Request) -> Response:
        """Items for a user, best first, as logged."""
        return await _answered(service, "/recommend", request, _recommend(service))

    @app.post("/feedback", response_model=Accepted, responses=_UNAVAILABLE)
    async def feedback(request: Request) -> Response:
        """Take down what somebody did with items that were shown. The same action_id again is the same action."""
        return await _answered(service, "/feedback", request, _feedback(service))

    @app.get("/healthz")
    async def healthz(request: Request) -> dict[str, Any]:
        """Which release answers, and whether the champion is it; who asks with a key is told why it is not."""
        engine = service.in_service.engine
        return {
            "status": "ok" if service.problem is None else "degraded",
            "generation": engine.release.id,
            "problem": service.problem if service.problem is None or has_key(request) else "told to who has a key",
            "index": {"kind": engine.index.kind, "recall": round(engine.index.recall, 4)},
            "ranker": engine.has_ranker,
            "queue": service.scorer.waiting,
        }

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    if pages is not None:
        pages(app, service)
    app.openapi = lambda: _openapi(app, service)  # type: ignore[method-assign]
    if guard is not None:
        guard(app)
    return app


def _recommend(service: Service) -> Handler:
    async def handle(request: Request) -> tuple[dict[str, Any], str]:
        in_service = service.in_service  # one release from the check to the answer
        wanted: Recommend = _checked(in_service.bodies.recommend, await request.body())
        impression, titles = await service.recommend(wanted, in_service)
        items = [
            {
                "item_id": item.item_id,
                "title": title,
                "position": item.position,
                "score": item.score,
                "propensity": item.propensity,
            }
            for item, title in zip(impression.items, titles, strict=True)
        ]
        said = {"request_id": impression.request_id, "generation": impression.generation}
        outcome = "ok" if impression.fallback is None else "fallback"
        return {**said, "fallback": impression.fallback, "items": items}, outcome

    return handle


def _feedback(service: Service) -> Handler:
    async def handle(request: Request) -> tuple[dict[str, Any], str]:
        told: Feedback = _checked(service.in_service.bodies.feedback, await request.body())
        actions = await service.feedback(told.actions)
        return {"accepted": len(actions), "action_ids": [action.action_id for action in actions]}, "ok"

    return handle


async def _answered(service: Service, route: str, request: Request, handle: Handler) -> Response:
    begun = time.perf_counter()
    try:
        content, outcome = await handle(request)
        response = Response(orjson.dumps(content), media_type=JSON)
    except Overloaded:
        outcome, response = "shed", _refusal(503, "too many requests wait; try again", retry=True)
    except LogFailed as error:
        outcome, response = "log_failed", _refusal(503, _UNCERTAIN if error.uncertain else _NOTHING_TAKEN, retry=True)
    except Refusal as refusal:
        outcome, response = refusal.outcome, _refusal(refusal.status, refusal.detail)
    service.metrics.requests.labels(route, outcome).inc()
    service.metrics.seconds.labels(route).observe(time.perf_counter() - begun)
    return response


def _refusal(status: int, detail: Any, *, retry: bool = False) -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if retry else {}
    return Response(orjson.dumps({"detail": detail}), status_code=status, media_type=JSON, headers=headers)


def _checked(model: type[Any], body: bytes) -> Any:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:_PLACE_CHARACTERS]
        raise Refusal(422, "invalid", f"{place}: {first['msg']}" if place else first["msg"]) from None


def _openapi(app: FastAPI, service: Service) -> dict[str, Any]:
    """As the release in service takes requests; made anew each time, for releases follow one another."""
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    bodies = service.in_service.bodies
    for route, model in (("/recommend", bodies.recommend), ("/feedback", bodies.feedback)):
        described = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.setdefault("components", {}).setdefault("schemas", {}).update(described.pop("$defs", {}))
        schema["paths"][route]["post"]["requestBody"] = {"required": True, "content": {JSON: {"schema": described}}}
    return schema
