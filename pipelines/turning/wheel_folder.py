"""Where things lie in a wheel's folder, and which of its generations are there; schemas/wheel.py draws the layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UserError
from schemas.generations import FOLDER, GENERATION, TURN, Generation, Turn, id_of
from schemas.manifest import MANIFEST
from schemas.release import RELEASE, Champion, read_champion
from schemas.settings import parse_model
from schemas.wheel import CHAMPION, WHEEL, WheelSettings, read_wheel


@dataclass(frozen=True)
class GenerationFolder:
    """generations/NNNN/."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def snapshot(self) -> Path:
        return self.path / "snapshot"

    @property
    def release(self) -> Path:
        return self.path / "release"

    @property
    def verdict(self) -> Path:
        return self.path / "verdict.json"

    @property
    def asked(self) -> Path:
        """What its models were asked to be, and from what inputs."""
        return self.path / "learners.yaml"

    def run(self, learner: str) -> Path:
        """Of the retriever or the ranker."""
        return self.path / learner

    def turn(self) -> Turn | None:
        """None where a folder has none: nobody's, or of a turn that was killed before it began."""
        path = self.path / TURN
        if not path.is_file():
            return None
        return parse_model(Turn, json.loads(path.read_text(encoding="utf-8")), where=str(path))

    def generation(self) -> Generation | None:
        """What was last found to have come of it."""
        path = self.path / GENERATION
        if not path.is_file():
            return None
        return parse_model(Generation, json.loads(path.read_text(encoding="utf-8")), where=str(path))


@dataclass(frozen=True)
class WheelFolder:
    """A wheel, by its folder (absolute)."""

    path: Path

    def settings(self) -> WheelSettings:
        """Relative paths in it count from the wheel's folder."""
        found = read_wheel(self.path)
        changed = {"raw": self.from_here(found.raw)}
        for key in ("contract", "features"):
            value = getattr(found, key)
            if value is not None and Path(value).suffix in (".yaml", ".yml"):
                changed[key] = self.from_here(value)
        for key in ("retriever", "ranker"):
            learner = getattr(found, key)
            if learner is not None and Path(learner.recipe).suffix in (".yaml", ".yml"):
                changed[key] = learner.model_copy(update={"recipe": self.from_here(learner.recipe)})
        return found.model_copy(update=changed)

    def from_here(self, path_or_url: str) -> str:
        return path_or_url if "://" in path_or_url else str(self.path / Path(path_or_url).expanduser())

    @property
    def wheel(self) -> Path:
        return self.path / WHEEL

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def landed(self) -> Path:
        return self.path / "landed"

    @property
    def seed(self) -> Path:
        return self.path / "seed"

    @property
    def served(self) -> Path:
        return self.path / "served"

    @property
    def contract(self) -> Path:
        return self.path / "contract.yaml"

    @property
    def events(self) -> Path:
        return self.path / "events"

    @property
    def champion(self) -> Path:
        return self.path / CHAMPION

    def generation(self, number: int) -> GenerationFolder:
        return GenerationFolder(self.path / FOLDER / id_of(number))

    def generations(self) -> list[GenerationFolder]:
        """The oldest first."""
        folder = self.path / FOLDER
        found = (
            [GenerationFolder(entry) for entry in folder.iterdir() if entry.name.isdigit()] if folder.exists() else []
        )
        return sorted(found, key=lambda one: one.number)

    def in_service(self) -> Champion | None:
        return read_champion(self.champion)

    def release_of(self, champion: Champion) -> Path:
        return self.path / champion.release

    def generation_of(self, champion: Champion) -> GenerationFolder | None:
        """Where the champion's runs and snapshot lie; None where its release was brought from elsewhere."""
        folder = self.release_of(champion).parent
        ours = folder.parent == self.path / FOLDER and folder.name.isdigit()
        return GenerationFolder(folder) if ours else None

    def check_champion(self) -> None:
        """UserError where no candidate could be held against what is in service: the gate would refuse them all."""
        champion = self.in_service()
        ours = self.generation_of(champion) if champion is not None else None
        if champion is not None and (ours is None or not (ours.snapshot / MANIFEST).is_file()):
            raise UserError(
                f"{champion.id}, in service ({champion.release}), has no snapshot in {self.path / FOLDER}, and the "
                "gate would refuse every candidate beside it: promote a generation that has one (`headrace promote`), "
                f"or take {self.champion} away, and the next candidate is let in as the first."
            )

    def releases_in_use(self) -> Iterator[Path]:
        """The release in service, and those that a rollback would go to."""
        champion = self.in_service()
        while champion is not None:
            yield self.release_of(champion)
            champion = champion.before

    def has_served(self) -> bool:
        """Whether any response has landed."""
        return any((self.landed / "impressions").glob("day=*/*.parquet"))

    def events_digest(self) -> str | None:
        """Names the rows of the event store, whatever the runs that led there."""
        path = self.events / MANIFEST
        if not path.is_file():
            return None
        digest: str = json.loads(path.read_text(encoding="utf-8"))["config_digest"]
        return digest


def is_release(folder: Path) -> bool:
    return (folder / RELEASE).is_file()
