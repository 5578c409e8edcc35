"""The web pages and what they ask for: titles for a person, what was logged of it, the wheel's generations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from schemas.features import NUM_RESERVED
from schemas.generations import GENERATIONS, Generation, Generations
from schemas.wheel import WHEEL, read_wheel
from serving.app import Refused
from serving.engine import Engine
from serving.items import Items
from serving.log_tail import last_of_user
from serving.page_data import (
    ActionKind,
    FoundUsers,
    GenerationsView,
    GenerationView,
    LoggedImpression,
    LoggedImpressions,
    LoggedItem,
    PageSettings,
    Title,
    Titles,
    Watched,
    WatchedTitle,
)
from serving.policy import policy_name
from serving.service import Service
from serving.static_files import static_files
from serving.user_search import starting_with

MOST_GENERATIONS = 50
_MOST_ACTIONS = 500

Id = Annotated[str, Query(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Prefix = Annotated[str, Query(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
Most = Annotated[int, Query(ge=1, le=50)]


@dataclass(frozen=True)
class PageSource:
    """Where pages get what they show."""

    service: Service
    logs: Path
    wheel: Path | None = None

    @property
    def engine(self) -> Engine:
        """That answers now."""
        return self.service.in_service.engine


def add_pages(app: FastAPI, source: PageSource) -> None:
    app.include_router(page_router())
    app.include_router(api_router(source))
    app.add_exception_handler(RequestValidationError, _in_one_line)


def _in_one_line(request: Request, error: Exception) -> Response:
    """What is wrong and where, without what was sent."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"detail": f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"}, status_code=422)


def page_router() -> APIRouter:
    """The files: no key is asked for them, and none of them says anything of anybody."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    @router.head("/")
    def page(request: Request) -> Response:
        return _file(request, "page.html")

    @router.get("/dashboard")
    @router.head("/dashboard")
    def dashboard(request: Request) -> Response:
        return _file(request, "dashboard.html")

    @router.get("/static/{name}")
    @router.head("/static/{name}")
    def static(request: Request, name: str) -> Response:
        return _file(request, name)

    return router


def api_router(source: PageSource) -> APIRouter:
    """What the pages ask for; reads little and never writes."""
    router = APIRouter(
        prefix="/api", tags=["pages"], responses={422: {"model": Refused, "description": "Not as it is to be"}}
    )

    @router.get("/settings")
    def settings() -> PageSettings:
        engine = source.engine
        return PageSettings(
            wheel=_wheel_name(source.wheel),
            generation=engine.release.id,
            num_users=engine.users.num_users,
            num_items=len(engine.items),
            actions=_actions(engine),
            policy=policy_name(source.service.in_service.settings.exploration),
        )

    @router.get("/users")
    def users(prefix: Prefix = "", limit: Most = 12) -> FoundUsers:
        engine = source.engine
        return FoundUsers(
            generation=engine.release.id, users=starting_with(prefix, engine.users.id_columns(), most=limit)
        )

    @router.get("/popular")
    def popular(limit: Most = 12) -> Titles:
        engine = source.engine
        places = engine.items.by_count[:limit].tolist()
        return Titles(generation=engine.release.id, items=[_title(engine.items, place) for place in places])

    @router.get("/watched")
    def watched(user_id: Id, limit: Most = 12) -> Watched:
        engine = source.engine
        user = engine.users.find(user_id)
        places = user.history[::-1].tolist() if user is not None else []
        since = last_of_user(source.logs, "actions", user_id, most=limit)
        titles = [
            WatchedTitle(
                **_named(engine.items, done["item_id"]).model_dump(), action=done["action"], time_ms=done["time_ms"]
            )
            for done in since
        ]
        titles += [
            WatchedTitle(**_title(engine.items, idx - NUM_RESERVED).model_dump())
            for idx in places
            if idx >= NUM_RESERVED
        ]
        return Watched(generation=engine.release.id, known=user is not None, items=_each_once(titles)[:limit])

    @router.get("/impressions")
    def impressions(user_id: Id, limit: Most = 5) -> LoggedImpressions:
        items = source.engine.items
        shown = last_of_user(source.logs, "impressions", user_id, most=limit)
        done: dict[tuple[str, str], list[str]] = {}
        for action in last_of_user(source.logs, "actions", user_id, most=_MOST_ACTIONS):
            done.setdefault((action["request_id"], action["item_id"]), []).append(action["action"])
        return LoggedImpressions(user_id=user_id, impressions=[_logged(one, items, done) for one in shown])

    @router.get("/generations")
    def generations() -> GenerationsView:
        return _generations(source.wheel)

    return router


def _file(request: Request, name: str) -> Response:
    found = static_files().get(name)
    if found is None:
        raise HTTPException(404, "no such file")
    headers = {"etag": found.etag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.kind, headers=headers)


def _wheel_name(wheel: Path | None) -> str | None:
    return read_wheel(wheel).name if wheel is not None and (wheel / WHEEL).exists() else None


def _actions(engine: Engine) -> list[ActionKind]:
    rules = engine.release.feedback
    kinds = {rule.action: rule.take != "happened" for rule in rules.labels.values()} if rules else {"click": False}
    return [ActionKind(action=action, needs_value=needs_value) for action, needs_value in kinds.items()]


def _title(items: Items, place: int) -> Title:
    return Title(item_id=items.ids[place], title=items.titles[place])


def _named(items: Items, item_id: str) -> Title:
    """By id; one that this release does not know is named by its id."""
    place = items.place_of.get(item_id)
    return _title(items, place) if place is not None else Title(item_id=item_id, title=item_id)


def _each_once(titles: Iterable[WatchedTitle]) -> list[WatchedTitle]:
    first: dict[str, WatchedTitle] = {}
    for title in titles:
        first.setdefault(title.item_id, title)
    return list(first.values())


def _logged(shown: dict[str, Any], items: Items, done: dict[tuple[str, str], list[str]]) -> LoggedImpression:
    own = ("request_id", "time_ms", "generation", "policy", "num_candidates")
    return LoggedImpression(
        **{name: shown[name] for name in own},
        fallback=shown.get("fallback"),
        items=[
            LoggedItem(
                **_named(items, item["item_id"]).model_dump(),
                **{name: item[name] for name in ("position", "score", "propensity")},
                explored=item.get("explored", False),
                actions=sorted(done.get((shown["request_id"], item["item_id"]), [])),
            )
            for item in shown["items"]
        ],
    )


def _generations(wheel: Path | None) -> GenerationsView:
    if wheel is None:
        return _nothing(None, "This server serves one release; generations are those of a wheel (serve --wheel).")
    try:
        read = Generations.model_validate_json((wheel / GENERATIONS).read_bytes())
    except FileNotFoundError:
        return _nothing(_wheel_name(wheel), "The wheel has not turned yet: headrace turn makes its first generation.")
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return _nothing(_wheel_name(wheel), f"{GENERATIONS} cannot be read: {place}: {first['msg']}")
    shown = [_generation(one) for one in read.generations[-MOST_GENERATIONS:]]
    return GenerationsView(wheel=read.wheel, champion=read.champion, missing=None, generations=shown)


def _nothing(wheel: str | None, why: str) -> GenerationsView:
    return GenerationsView(wheel=wheel, champion=None, missing=why, generations=[])


def _generation(one: Generation) -> GenerationView:
    popularity = one.served.popularity if one.served else None
    return GenerationView(
        id=one.turn.id,
        started_at=one.turn.started_at,
        outcome=one.turn.outcome,
        in_service=one.in_service,
        events=one.events,
        new_events=one.new_events,
        served_events=one.served_events,
        metrics=list(one.metrics),
        drift=one.drift,
        skew=one.skew,
        verdict=one.verdict,
        served=one.served,
        popularity=popularity,
        explored_share=one.served.explored_share if one.served else None,
        amplification=popularity.amplification if popularity else None,
    )
