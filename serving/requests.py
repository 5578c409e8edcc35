"""What may be asked of the server, checked before all else: bounds from the settings, types from the contract."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, conlist, create_model

from schemas.contract import Column, Contract, Role
from schemas.wheel import ServingSettings

MAX_ID, MAX_TEXT, MAX_BLOCKED, MAX_ACTIONS = 128, 256, 1000, 1000
_NO_CONTROLS = r"^[^\x00-\x1f\x7f]*$"
_WHOLE_NUMBER = r"^(0|-?[1-9][0-9]{0,18})$"
_KNOWN_AFTERWARDS: tuple[Role, ...] = ("user", "item", "event_time", "valid_from", "label", "weight", "propensity")
_OF_THE_RESPONSE = ("position", "request_id", "propensity")
_INTEGERS = {"int32": 31, "int64": 63, "timestamp_ms": 63}
_FLOAT32_MAX = (2 - 2**-23) * 2.0**127


class Body(BaseModel):
    """A request's JSON: types are taken as they stand, and keys that are not known are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Recommend(Body):
    """What every release asks of `/recommend`; `for_recommend` makes the model of one."""

    user_id: str
    k: int
    context: Any
    blocked: list[str]
    exclude_seen: bool | None


class Act(Body):
    request_id: str
    item_id: str
    user_id: str
    action: str
    value: float | None = None
    action_id: str | None = None


class Feedback(Body):
    actions: list[Act]


@dataclass(frozen=True)
class Bodies:
    """The models of one release's requests."""

    recommend: type[Recommend]
    feedback: type[Feedback]


def bodies_of(contract: Contract, settings: ServingSettings, made: Iterable[str] = ()) -> Bodies:
    """The requests that a release of this contract takes, without the columns that feedback rules have `made`."""
    user_id, item_id = _id_of(contract.events.the("user")), _id_of(contract.events.the("item"))
    name: Any = Annotated[str, Field(min_length=1, max_length=MAX_ID, pattern=_NO_CONTROLS)]
    context = _context(contract, set(made))
    count = Field(ge=1, le=settings.max_items, description="How many items")
    asked: dict[str, Any] = {
        "user_id": (user_id, ...),
        "k": (Annotated[int, count], min(10, settings.max_items)),
        "context": (context, Field(default_factory=context, description="What is known of the event beforehand")),
        "blocked": (conlist(item_id, max_length=MAX_BLOCKED), Field(default=[], description="Items not to show")),
        "exclude_seen": (bool, settings.exclude_seen),
    }
    action = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$", description="click, view, like, ...")
    done: dict[str, Any] = {
        "request_id": (name, ...),
        "item_id": (item_id, ...),
        "user_id": (user_id, ...),
        "action": (Annotated[str, action], ...),
        "value": (Annotated[float, Field(allow_inf_nan=False)] | None, None),
        "action_id": (name | None, None),
    }
    recommend = create_model("Recommend", __base__=Recommend, **asked)
    act = create_model("Act", __base__=Act, **done)
    told: dict[str, Any] = {"actions": (conlist(act, min_length=1, max_length=MAX_ACTIONS), ...)}
    feedback = create_model("Feedback", __base__=Feedback, **told)
    return Bodies(recommend, feedback)


def context_columns(contract: Contract, made: Iterable[str] = ()) -> list[Column]:
    """Columns of events that a caller may know beforehand."""
    left_out = {*_OF_THE_RESPONSE, *made}
    return [
        column
        for column in contract.events.columns
        if column.role not in _KNOWN_AFTERWARDS and column.name not in left_out and column.type != "list<string>"
    ]


def _id_of(column: Column) -> Any:
    """Ids are text here; those of whole numbers as Spark writes them, so that one user is one text."""
    pattern = _NO_CONTROLS if column.type == "string" else _WHOLE_NUMBER
    described = Field(min_length=1, max_length=MAX_ID, pattern=pattern, description=column.meaning)
    if column.type in _INTEGERS:
        return Annotated[str, described, AfterValidator(_number_of(_INTEGERS[column.type]))]
    return Annotated[str, described]


def _number_of(bits: int) -> Any:
    def check(value: str) -> str:
        if not -(2**bits) <= int(value) < 2**bits:
            raise ValueError(f"is no whole number of {bits + 1} bits")
        return value

    return check


def _context(contract: Contract, made: set[str]) -> type[Body]:
    fields: dict[str, Any] = {
        column.name: (_type_of(column) | None, Field(default=None, description=column.meaning))
        for column in context_columns(contract, made)
    }
    return create_model("Context", __base__=Body, **fields)


def _type_of(column: Column) -> Any:
    checks: list[Any] = []
    if column.one_of is not None:
        checks.append(AfterValidator(_one_of(column.one_of)))
    low = column.range.min if column.range is not None else None
    high = column.range.max if column.range is not None else None
    if column.type == "string":
        return Annotated[str, Field(max_length=MAX_TEXT, pattern=_NO_CONTROLS), *checks]
    if column.type == "boolean":
        return bool
    if column.type in _INTEGERS:
        most = 2 ** _INTEGERS[column.type]
        low, high = (-most if low is None else int(low)), (most - 1 if high is None else int(high))
        return Annotated[int, Field(ge=low, le=high), *checks]
    # Models compute in float32: beyond it a number would be infinite, and scores no numbers.
    low, high = (-_FLOAT32_MAX if low is None else low), (_FLOAT32_MAX if high is None else high)
    return Annotated[float, Field(ge=low, le=high, allow_inf_nan=False), *checks]


def _one_of(allowed: tuple[str, ...]) -> Any:
    def check(value: Any) -> Any:
        if str(value) not in allowed:
            raise ValueError(f"is none of {', '.join(allowed[:20])}")
        return value

    return check
