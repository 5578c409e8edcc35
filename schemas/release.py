"""A release: all that a server needs to answer, in one folder that never changes, and which one is in service.

release.json   written last: a folder without it does not exist for anyone
retriever/     bundle of the model that finds candidates
ranker/        bundle of the model that orders them, where there is one
users.arrow    by ascending `key` (xxhash64 of user_id): key, user_id, features, history, seen; as of the snapshot's end
items.arrow    by item_idx: item_id, title, count, features, and features of events that only the item decides
state/         what features of the past look up: key, tile, rows, labels
vocab/         vocabularies of the events' features: value, idx
"""

from __future__ import annotations

import json
from pathlib import Path

from schemas.contract import Contract
from schemas.errors import UserError
from schemas.features import FeatureTransform
from schemas.feedback import FeedbackRules
from schemas.manifest import Parent
from schemas.settings import Strict, digest_of, parse_model
from schemas.wheel import ServingSettings

RELEASE = "release.json"
RETRIEVER, RANKER = "retriever", "ranker"
USERS, ITEMS = "users.arrow", "items.arrow"


class Release(Strict):
    """`id` is the generation that impressions name."""

    id: str
    created_at: str
    code_version: str
    contract: Contract
    transform: FeatureTransform
    snapshot: Parent
    last_event_time_ms: int
    """Of the snapshot: what users did since then comes from the logs of actions."""
    bundles: dict[str, str]
    """Digest of each bundle, by its folder: `retriever`, and `ranker` where there is one."""
    files: dict[str, str]
    """SHA-256 of the other files, by their names."""
    serving: ServingSettings = ServingSettings()
    """What it answers with: those of the wheel as they were when it was made."""
    feedback: FeedbackRules | None = None
    """What becomes an event of what is shown and done, and which of its columns come from the item."""

    def digest(self) -> str:
        """Names the release and all that is in it: of one that was made again under the same id it is another."""
        return digest_of(self.model_dump(mode="json"))


class Champion(Strict):
    """The release in service, in a file that is replaced in one step: the server follows it."""

    release: str
    """Folder of the release; relative ones count from the file's own folder."""
    id: str
    promoted_at: str
    verdict: str | None = None
    """File of the verdict that let it in."""
    before: Champion | None = None
    """What was in service until then: where a rollback goes. Its own `before` goes on, to ten releases back."""


def read_release(folder: Path) -> Release:
    """The description alone; UserError where there is no release."""
    try:
        content = json.loads((folder / RELEASE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is no release: it has no {RELEASE}. `headrace release` makes one.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RELEASE} cannot be read: {str(error).splitlines()[0]}.") from None
    return parse_model(Release, content, where=f"{folder / RELEASE}")


def read_champion(path: Path) -> Champion | None:
    """None where nothing has been promoted; UserError where the file is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}.") from None
    return parse_model(Champion, content, where=str(path))
