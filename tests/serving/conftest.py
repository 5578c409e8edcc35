"""One release for all tests of serving: it is made once, and nothing changes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.release import Release
from tests.serving.generations import three_generations
from tests.serving.releases import make_release
from tests.serving.running_server import Running, copy_of, promote, running


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Release]:
    """A release's folder with retriever and ranker, and its description."""
    return make_release(tmp_path_factory.mktemp("served"))


EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>{{7*7}}"
"""A title that would be markup, script and template, were it anything but text."""


@pytest.fixture(scope="module")
def server(released: tuple[Path, Release], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Over a wheel that has turned three times; every third title of its release is EVIL.

    One for each module: what is shown counts as seen, and three answers have shown a user all of the thirty items.
    """
    wheel = tmp_path_factory.mktemp("wheel")
    titles = {place: EVIL for place in range(0, 30, 3)}
    promote(wheel, copy_of(released[0], wheel / "generations" / "0001" / "release", "0001", titles=titles), "0001")
    (wheel / "generations.json").write_text(three_generations(reason=EVIL).model_dump_json(), encoding="utf-8")
    with running(wheel) as started:
        yield started
