"""HTML that is escaped by construction: text becomes markup only through `tag`, which escapes it.

What a page shows comes from logs, which anyone may have written into. A template engine would do, and is one more
thing that a Spark driver may lack. The pages of profiles, drift, evaluations and generations are made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_EMPTY = {"br", "col", "hr", "input", "link", "meta", "circle", "line", "path", "polyline", "rect"}


class Html(str):
    """Markup; any other text is escaped where it meets markup."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """One element. `cls` is class, `for_` is for, `_` in a name is `-`; None leaves an attribute out, True is bare."""
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in _EMPTY:
        assert not children, f"<{name}> has no content"
        return Html(
            f"<{name}{written}>" if name in ("br", "col", "hr", "input", "link", "meta") else f"<{name}{written}/>"
        )
    return Html(f"<{name}{written}>{joined(children)}</{name}>")


def joined(children: object) -> Html:
    """Children one after the other: markup as it is, text escaped, None left out."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, str | int | float):
        return Html(escape(str(children)))
    assert isinstance(children, Iterable), f"{type(children).__name__} is no content"
    return Html("".join(joined(child) for child in children))


def document(title: str, style: str, *content: object, allowed: Sequence[str] = ()) -> str:
    """A whole page that needs nothing else; `content` is that of its body.

    Its policy lets nothing be fetched, sent or run, but for what the directives in `allowed` say.
    """
    policy = ("default-src 'none'", "style-src 'unsafe-inline'", *allowed, "base-uri 'none'", "form-action 'none'")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content="; ".join(policy)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(style)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *content), lang='en')}\n"


def _attribute(key: str, value: object) -> str:
    name = {"cls": "class", "for_": "for", "view_box": "viewBox", "aspect": "preserveAspectRatio"}.get(
        key, key.replace("_", "-")
    )
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
