"""What the network meets first: the guard and the pages, hung before and beside the app."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from serving.guard import KEY_HEADER, Guard, is_public
from serving.keys import Keys
from serving.limits import Limits
from serving.metrics import Metrics

_REFUSALS = {
    "400": "The connection ended before the body did, or the request is no HTTP",
    "401": f"The header {KEY_HEADER} is missing, or holds no key that the server knows",
    "408": "The body came too slowly",
    "413": "The body is too large",
    "415": "The body is not application/json, or compressed",
    "429": "Too many requests of this key, or of this address without one; Retry-After says when to come again",
    "431": "Too many headers, or too large ones",
}
_DETAIL = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}


def stand_before(app: FastAPI, keys: Keys, limits: Limits, metrics: Metrics) -> None:
    """Hang the guard before all routes, and say in the API's description what it may answer."""
    app.add_middleware(
        Guard, keys=keys, limits=limits, refused=lambda reason, who: metrics.refused.labels(reason, who).inc()
    )
    describe = app.openapi
    app.openapi = lambda: with_refusals(describe())  # type: ignore[method-assign]


def with_refusals(schema: dict[str, Any]) -> dict[str, Any]:
    """The description with the key, and with the guard's answers where an operation names none of its own."""
    components = schema.setdefault("components", {})
    components["securitySchemes"] = {"key": {"type": "apiKey", "in": "header", "name": KEY_HEADER}}
    components.setdefault("schemas", {})["Refusal"] = _DETAIL
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            operation["security"] = [] if is_public(method.upper(), path) else [{"key": []}]
            for status, description in _REFUSALS.items():
                operation["responses"].setdefault(status, {"description": description, "content": content})
    return schema
