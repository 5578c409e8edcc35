"""The steps of a turn in their order: from what was logged since the last one to a release in service.

Each is commands that anybody could give by hand. What they are is said when their turn comes, for it goes by what lies
in the wheel's folder then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.dataset as ds
import yaml

from pipelines.turning.files import sha256_of
from pipelines.turning.wheel_folder import GenerationFolder, WheelFolder, is_release
from pipelines.turning.work import Needless, Work
from schemas.bundle import BUNDLE
from schemas.contract import read_contract
from schemas.errors import UserError
from schemas.gate import Check
from schemas.generations import id_of
from schemas.manifest import MANIFEST, Manifest
from schemas.release import RANKER, RELEASE, RETRIEVER, Champion
from schemas.served_contract import contract_yaml, served_contract
from schemas.snapshot import open_snapshot
from schemas.version import VERSION
from schemas.wheel import LearnerSettings, WheelSettings

Command = tuple[str, ...]
_NO_CHAMPION = "no release is in service yet"


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a turn works, and on what."""

    wheel: WheelFolder
    settings: WheelSettings
    generation: GenerationFolder
    champion: Champion | None

    @property
    def champions(self) -> GenerationFolder | None:
        """The champion's generation, as long as its snapshot is there."""
        found = self.wheel.generation_of(self.champion) if self.champion is not None else None
        return found if found is not None and (found.snapshot / MANIFEST).is_file() else None

    @property
    def champions_release(self) -> Path | None:
        release = self.wheel.release_of(self.champion) if self.champion is not None else None
        return release if release is not None and is_release(release) else None

    @property
    def learners(self) -> dict[str, LearnerSettings]:
        both = {RETRIEVER: self.settings.retriever, RANKER: self.settings.ranker}
        return {name: learner for name, learner in both.items() if learner is not None}

    @property
    def id(self) -> str:
        return id_of(self.generation.number)

    @property
    def asked_of_learners(self) -> str:
        """What names the models and their inputs, as a text: settings, and of files also what is in them."""
        asked = self.settings.model_dump(mode="json", include={"contract", "features", "prepare", RETRIEVER, RANKER})
        files = [self.settings.contract, self.settings.features, *(one.recipe for one in self.learners.values())]
        digests = {name: sha256_of(Path(name)) for name in files if name is not None}
        return yaml.safe_dump({"headrace": VERSION, **asked, "sha256": digests}, sort_keys=False)

    def bundle_to_go_on_from(self, learner: str) -> Path | None:
        """The champion's, which a model warm-starts with."""
        if not self.settings.warm_start or self.champions_release is None:
            return None
        bundle = self.champions_release / learner
        return bundle if (bundle / BUNDLE).is_file() else None

    def all_go_on(self) -> bool:
        """Whether every model goes on from the champion's weights: a model that begins anew needs all events."""
        before = self.champions
        if before is None or not before.asked.is_file():
            return False
        if before.asked.read_text(encoding="utf-8") != self.asked_of_learners:
            return False
        return all(self.bundle_to_go_on_from(name) is not None for name in self.learners)

    def waived(self, check: Check) -> Needless | None:
        """A report that only a waived check would read costs a Spark start or more, and decides nothing."""
        return Needless(f"wheel.yaml waives the check {check}") if check in self.settings.gate.waived else None

    def champions_work(self) -> GenerationFolder | Needless:
        """What a candidate is held against, or why there is none."""
        if self.champion is None:
            return Needless(_NO_CHAMPION)
        return self.champions or Needless(f"the snapshot of {self.champion.release}, in service, is not in this wheel")

    def served_by_champion(self) -> bool:
        """Whether any response of the release in service has landed."""
        assert self.champion is not None
        if not self.wheel.has_served():
            return False
        landed = ds.dataset(self.wheel.landed / "impressions", format="parquet")
        return bool(landed.head(1, columns=["generation"], filter=ds.field("generation") == self.champion.id).num_rows)


def seed(site: Site) -> Work:
    wheel, settings = site.wheel, site.settings
    command = ("ingest", "--contract", settings.contract, "--raw", settings.raw, "--out", str(wheel.seed))
    local = [Path(place) for place in (settings.raw, settings.contract) if "://" not in place]
    return Work(
        # One version: the event store of both reads its files by their place.
        commands=((*command, "--keep-versions", "1"),),
        reads=tuple(path for path in local if path.exists()),
        lasting=() if "://" in settings.raw else (wheel.seed / MANIFEST,),
    )


def land(site: Site) -> Work | Needless:
    if not site.wheel.logs.exists():
        return Needless("no server has logged anything yet")
    return Work(commands=(("land", "--logs", str(site.wheel.logs), "--to", str(site.wheel.landed), "--seal"),))


def feedback(site: Site) -> Work:
    """Also the contract of both logs, which is there before anything was served."""
    wheel, rules = site.wheel, site.generation.path / "feedback.yaml"
    if not wheel.has_served():
        weighted = site.settings.feedback.young == "weight"
        both = served_contract(read_contract(site.settings.contract), weighted=weighted)
        return Work(commands=(), files={wheel.contract: contract_yaml(both)})
    places = {
        "--landed": wheel.landed,
        "--seed": wheel.seed,
        "--contract": site.settings.contract,
        "--rules": rules,
        "--out": wheel.served,
        "--contract-out": wheel.contract,
    }
    text = yaml.safe_dump(site.settings.feedback.model_dump(mode="json"), sort_keys=False)
    return Work(commands=(_with("feedback", places),), files={rules: text})


def ingest(site: Site) -> Work:
    wheel = site.wheel
    places = {"--contract": wheel.contract, "--raw": wheel.path, "--out": wheel.events}
    return Work(
        commands=(_with("ingest", places),),
        reads=(wheel.contract, wheel.seed / MANIFEST, wheel.served),
        lasting=(wheel.events / MANIFEST,),
    )


def prepare(site: Site) -> Work:
    snapshot = site.generation.snapshot
    command = _with("prepare", {"--events": site.wheel.events, "--out": snapshot})
    if site.settings.features is not None:
        command = (*command, "--features", site.settings.features)
    for name, value in site.settings.prepare.items():
        command = (*command, f"--{name}", str(value))
    if site.settings.train_days is not None and site.all_go_on():
        days, share = site.settings.train_days, site.settings.past_share
        command = (*command, "--train-days", str(days), "--past-share", str(share), *_since_champion(site))
    files = (Path(site.settings.features),) if site.settings.features and Path(site.settings.features).exists() else ()
    return Work(commands=(command,), reads=(site.wheel.events / MANIFEST, *files), writes=(snapshot,))


def _since_champion(site: Site) -> Command:
    """What came after the champion's train is learned, too, however long ago its turn was."""
    assert site.champions is not None
    last_ms = _last_of_train(open_snapshot(str(site.champions.snapshot)).manifest)
    return ("--train-since", _moment(last_ms)) if last_ms is not None else ()


def _last_of_train(manifest: Manifest) -> float | None:
    return manifest.statistics.get("train", {}).get("last_event_time_ms")


def _moment(time_ms: float) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")


def drift(site: Site) -> Work | Needless:
    snapshot, out = site.generation.snapshot, site.generation.path / "drift"
    before = site.waived("drift") or site.champions_work()
    if isinstance(before, Needless):
        return replace(before, writes=(out,))
    command = _with("drift", {"--reference": before.snapshot, "--current": snapshot, "--out": out})
    command = (*command, *_alike(before.snapshot, snapshot))
    return Work(commands=(command,), reads=(before.snapshot / MANIFEST, snapshot / MANIFEST), writes=(out,))


def _alike(*snapshots: Path) -> Command:
    """Where one holds the last days of train alone, each is looked at from as long before the end of its train on."""
    found = [open_snapshot(str(snapshot)).manifest for snapshot in snapshots if (snapshot / MANIFEST).is_file()]
    days = [one.config["train_days"] for one in found if one.config.get("train_days")]
    ends = [end for one in found if (end := _last_of_train(one)) is not None]
    if not days or len(ends) < len(snapshots):
        return ()
    froms = [f"{_moment(end - min(days) * 86_400_000)}," for end in ends]
    return ("--reference-window", froms[0], "--current-window", froms[1])


def skew(site: Site) -> Work | Needless:
    out = site.generation.path / "skew"
    before = site.waived("skew") or site.champions_work()
    if isinstance(before, Needless):
        return replace(before, writes=(out,))
    release = site.champions_release
    if release is None:
        return Needless("the release in service is gone", writes=(out,))
    if not site.served_by_champion():
        return Needless("nothing that the release in service answered has landed", writes=(out,))
    places = {
        "--landed": site.wheel.landed,
        "--release": release,
        "--events": site.wheel.events,
        "--snapshot": before.snapshot,
        "--out": out,
    }
    return Work(
        commands=(_with("skew", places),),
        reads=(release / RELEASE, site.wheel.events / MANIFEST),
        writes=(out,),
        may_lack=True,
    )


def retriever(site: Site) -> Work | Needless:
    return _train(site, RETRIEVER)


def ranker(site: Site) -> Work | Needless:
    return _train(site, RANKER)


def _train(site: Site, name: str) -> Work | Needless:
    run = site.generation.run(name)
    if name not in site.learners:
        return Needless(f"wheel.yaml names no {name}", writes=(run,))
    learner = site.learners[name]
    command = _with("train", {"--snapshot": site.generation.snapshot, "--recipe": learner.recipe, "--run": run})
    command = (*command, "--ranks", str(site.settings.ranks), "--no-tensorboard")
    for override in learner.set:
        command = (*command, "--set", override)
    reads = [site.generation.snapshot / MANIFEST]
    if Path(learner.recipe).is_file():
        reads.append(Path(learner.recipe))
    if (before := site.bundle_to_go_on_from(name)) is not None:
        command = (*command, "--warm-start", str(before))
        reads.append(before / BUNDLE)
    if not site.all_go_on():
        _refuse_last_days(site.generation.snapshot)
        command = (*command, "--or-anew") if before is not None else command
    return Work(commands=(command,), reads=tuple(reads), writes=(run,))


def _refuse_last_days(snapshot: Path) -> None:
    """Between two steps given one at a time the champion may have become another."""
    if (snapshot / MANIFEST).is_file() and open_snapshot(str(snapshot)).manifest.config.get("train_days"):
        raise UserError(
            f"{snapshot} holds the last days of train, and its models would begin anew: the champion or wheel.yaml has "
            "changed since. Turn without --only, and the snapshot is made again."
        )


def evaluate(site: Site) -> Work:
    """Candidate and champion on the held-out rows of the candidate's snapshot."""
    here, before = site.generation, site.champions
    slices = [part for column in site.settings.gate.slice_by for part in ("--slice", column)]
    asked = (*slices, "--ranks", str(site.settings.ranks))
    commands: list[Command] = []
    reads, writes = [], []
    champions = {name: here.path / f"champion-{name}.json" for name in (RETRIEVER, RANKER)}
    for name in site.learners:
        run = here.run(name)
        commands.append((*_with("evaluate", {"--run": run, "--split": "test"}), *asked))
        reads.append(run / "bundle" / BUNDLE)
        writes.append(run / "evaluation-test.json")
    for name in site.learners:
        bundle = before.run(name) / "bundle" / BUNDLE if before is not None else None
        if before is not None and bundle is not None and bundle.is_file():
            out = champions[name]
            places = {"--run": before.run(name), "--snapshot": here.snapshot, "--split": "test", "--out": out}
            commands.append((*_with("evaluate", places), *asked))
            reads.append(bundle)
            writes.append(out)
    return Work(
        commands=tuple(commands), reads=tuple(reads), writes=tuple(writes), might_write=tuple(champions.values())
    )


def release(site: Site) -> Work:
    here = site.generation
    runs = {f"--{name}": here.run(name) for name in site.learners}
    places: dict[str, object] = {**runs, "--id": site.id, "--out": here.release, "--settings": site.wheel.wheel}
    bundles = tuple(run / "bundle" / BUNDLE for run in runs.values())
    serving = yaml.safe_dump(site.settings.serving.model_dump(mode="json"))
    return Work(
        commands=(_with("release", places),),
        # The file is read by the command; that of it which counts here is `serving`, not the gate's rules.
        files={here.path / "serving.yaml": serving, here.asked: site.asked_of_learners},
        reads=bundles,
        writes=(here.release,),
        afresh=True,
    )


def estimate(site: Site) -> Work | Needless:
    out = site.generation.path / "off_policy.json"
    if (waived := site.waived("off_policy")) is not None:
        return replace(waived, writes=(out,))
    if not site.wheel.has_served():
        return Needless("nothing that was served has landed", writes=(out,))
    rules = site.settings.feedback
    label = next(iter(rules.labels.values()))
    reward = ("--reward", label.action, "--take", label.take, "--window-hours", str(rules.window_hours))
    places = {"--landed": site.wheel.landed, "--release": site.generation.release}
    if site.champions_release is not None:
        places["--champion"] = site.champions_release
    command = (*_with("estimate", places), *reward, "--out", str(out))
    return Work(commands=(command,), reads=(site.generation.release / RELEASE,), writes=(out,), may_lack=True)


def gate(site: Site) -> Work:
    here = site.generation
    places = {"--candidate": here.path, "--rules": site.wheel.wheel, "--out": here.verdict}
    before = site.wheel.generation_of(site.champion) if site.champion is not None else None
    if before is not None:
        places["--champion"] = before.path
    reports = (
        "drift/drift.json",
        "skew/skew.json",
        "off_policy.json",
        "champion-retriever.json",
        "champion-ranker.json",
    )
    runs = tuple(here.run(name) / "evaluation-test.json" for name in site.learners)
    reads = (*(here.path / report for report in reports), *runs, here.release / RELEASE, site.wheel.wheel)
    command = (*_with("gate", places), *_registry(site))
    return Work(commands=(command,), reads=reads, writes=(here.verdict,), may_refuse=True)


def promote(site: Site) -> Work | Needless:
    now = site.wheel.in_service()
    if now is not None and site.wheel.release_of(now) == site.generation.release:
        return Needless(f"{now.release} is in service")
    places = {"--release": site.generation.release, "--to": site.wheel.champion, "--verdict": site.generation.verdict}
    return Work(commands=((*_with("promote", places), *_registry(site)),))


def _registry(site: Site) -> Command:
    registry = site.settings.registry
    return ("--track", registry.track, "--model", registry.model) if registry is not None else ()


def _with(command: str, options: Mapping[str, object]) -> Command:
    return (command, *(str(part) for option in options.items() for part in option))


Plan = Callable[[Site], Work | Needless]
STEPS: dict[str, Plan] = {
    "seed": seed,
    "land": land,
    "feedback": feedback,
    "ingest": ingest,
    "prepare": prepare,
    "drift": drift,
    "skew": skew,
    "retriever": retriever,
    "ranker": ranker,
    "evaluate": evaluate,
    "release": release,
    "estimate": estimate,
    "gate": gate,
    "promote": promote,
}
