"""The space of a search: which settings of a recipe are tried, and from where to where."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml

from schemas.errors import UserError

Kind = Literal["log", "log-int", "float", "int", "one-of"]
FORMS = "log:1e-4:1e-1, float:0:0.5, int:8:64, int:8:64:8 (steps of 8), log-int:8:512 or one-of:8,16,32"
# Their values would be of different metrics, or of none that is better than another.
_NOT_SEARCHED = ("chosen_by", "ks")


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One setting and the values that it may take: from `low` to `high`, both included, or one of `choices`."""

    key: str
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: optuna.Trial) -> Any:
        """The trial's value, as the recipe takes it."""
        if self.kind == "one-of":
            return self.value(trial.suggest_categorical(self.key, [_stored(choice) for choice in self.choices]))
        if self.kind in ("int", "log-int"):
            low, high = int(self.low), int(self.high)
            return trial.suggest_int(self.key, low, high, step=int(self.step or 1), log=self.kind == "log-int")
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.kind == "log")

    def value(self, stored: Any) -> Any:
        """What a stored parameter stands for: stores hold no lists, which are kept as their text."""
        return next((choice for choice in self.choices if _stored(choice) == stored), stored)

    def samples(self) -> list[Any]:
        """The ends of a range, or all choices: what is checked before anything is trained."""
        if self.kind == "one-of":
            return [*self.choices]
        whole = self.kind in ("int", "log-int")
        return [int(end) if whole else end for end in (self.low, self.high)]

    def described(self) -> Any:
        """As JSON, to tell whether a search goes on in the same space."""
        if self.kind == "one-of":
            return [*self.choices]
        return ":".join([self.kind, repr(self.low), repr(self.high), *([repr(self.step)] if self.step else [])])


def override(key: str, value: Any) -> str:
    """As `--set` takes it."""
    # default_flow_style writes [64, 32]; a scalar alone ends in YAML's mark of a document's end.
    written = yaml.safe_dump(value, default_flow_style=True, width=1 << 30).removesuffix("...\n")
    return f"{key}={written.strip()}"


def candidates(space: tuple[Dimension, ...]) -> list[list[str]]:
    """Overrides that try every end and every choice at least once, the other settings at their first."""
    first = {dimension.key: dimension.samples()[0] for dimension in space}
    tried = [first] + [first | {one.key: sample} for one in space for sample in one.samples()[1:]]
    return [[override(key, value) for key, value in settings.items()] for settings in tried]


def read_space(file: str | None, searches: list[str], *, fixed: list[str]) -> tuple[Dimension, ...]:
    """The space of a YAML file ({key: spec or list of choices}) and of KEY=SPEC arguments; UserError names a fault."""
    pairs = [*_of_file(Path(file))] if file else []
    for search in searches:
        key, equals, spec = search.partition("=")
        if not equals or not key:
            raise UserError(f"--search {search!r}: write it as KEY=SPEC, with a spec such as {FORMS}.")
        pairs.append((key.strip(), spec.strip()))
    if not pairs:
        raise UserError(f"nothing to search: give --space FILE, or --search KEY=SPEC, with a spec such as {FORMS}.")
    keys = [key for key, _ in pairs]
    set_already = {setting.partition("=")[0].strip() for setting in fixed}
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{key} stands in the space twice: leave one of them out.")
        if key in set_already:
            raise UserError(f"{key} is both searched and given by --set: leave one of them out.")
        if key in _NOT_SEARCHED:
            raise UserError(f"{key} cannot be searched: trials judged by different metrics do not compare.")
    return tuple(dimension(key, spec) for key, spec in pairs)


def _of_file(path: Path) -> list[tuple[str, Any]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"space {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"space {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"space {path} is no mapping: write lines such as `optimizer.learning_rate: log:1e-4:1e-1`.")
    return [*content.items()]


def dimension(key: str, spec: Any) -> Dimension:
    """One setting's values; `spec` is text such as log:1e-4:1e-1, or a list of choices."""
    if isinstance(spec, list):
        return _one_of(key, spec)
    if not isinstance(spec, str):
        raise UserError(f"{key}: {spec!r} says no range: write {FORMS}.")
    kind, _, rest = spec.partition(":")
    if kind == "one-of":
        written = rest if rest.lstrip().startswith("[") else f"[{rest}]"
        try:
            choices = yaml.safe_load(written)
        except yaml.YAMLError:
            raise UserError(f"{key}: {rest!r} is no list in YAML.") from None
        return _one_of(key, choices)
    if kind not in ("log", "log-int", "float", "int"):
        raise UserError(f"{key}: {spec!r} is no spec that is known: write {FORMS}.")
    return _range(key, kind, spec, rest.split(":"))  # type: ignore[arg-type]


def _one_of(key: str, choices: Any) -> Dimension:
    texts = [json.dumps(choice, sort_keys=True, default=str) for choice in choices]
    if len(texts) < 2 or len({*texts}) < len(texts):
        raise UserError(f"{key}: one-of takes two or more different values, not {', '.join(texts) or 'none'}.")
    return Dimension(key=key, kind="one-of", choices=tuple(choices))


def _range(key: str, kind: Kind, spec: str, ends: list[str]) -> Dimension:
    whole, is_log = kind in ("int", "log-int"), kind in ("log", "log-int")
    if len(ends) not in ((2,) if is_log else (2, 3)):
        raise UserError(f"{key}: {spec!r} needs a lowest and a highest value: write {FORMS}.")
    try:
        low, high, *step = (float(int(end)) if whole else float(end) for end in ends)
    except ValueError:
        raise UserError(f"{key}: {spec!r} holds what is no {'whole ' if whole else ''}number: write {FORMS}.") from None
    if not low < high < float("inf") or low == float("-inf"):
        raise UserError(f"{key}: {spec!r} goes from {low:g} to {high:g}: the first must be the lower one.")
    if is_log and (low <= 0 or (whole and low < 1)):
        raise UserError(f"{key}: {spec!r} begins at {low:g}: a logarithmic range begins above 0.")
    if step and not 0 < step[0] <= high - low:
        raise UserError(f"{key}: {spec!r}: a step must be above 0 and fit between the ends.")
    if step and (high - low) % step[0] and whole:
        raise UserError(f"{key}: {spec!r}: {high:g} is not reached from {low:g} in steps of {step[0]:g}.")
    return Dimension(key=key, kind=kind, low=low, high=high, step=step[0] if step else None)


def _stored(choice: Any) -> Any:
    """Optuna's stores take None, booleans, numbers and text."""
    plain = choice is None or isinstance(choice, bool | int | float | str)
    return choice if plain else json.dumps(choice, sort_keys=True)
