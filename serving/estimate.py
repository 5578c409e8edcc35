"""What a release would have earned on the log of others: IPS, SNIPS and DR with intervals, from landed logs.

Each logged request is asked again, as of its time, and each item shown is weighed by how likely the release would have
shown it, or would have put it there given the items above it. docs/gate.md says what that assumes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from schemas.durable import write_text
from schemas.errors import UserError
from schemas.manifest import Parent
from schemas.off_policy import Estimate, OffPolicyReport, PolicyEstimates
from schemas.programs import Parser, answering_mistakes
from schemas.release import Release, read_release
from schemas.snapshot import open_snapshot
from schemas.storage import absolute
from serving import off_policy
from serving.inclusion import is_known
from serving.logged_requests import Requests, Take, newest_ms, read_requests, rewards
from serving.off_policy import Estimated, Policy, along_slates, importance_weights
from serving.replayed_policy import LoggedItems, Replayed, replay
from serving.reward_model import FOLDS, fit

_HOUR_MS = 3_600_000
_SAME = 1e-6
_FEWEST_REPRODUCED = 0.95
_FEWEST_USERS = 30
Weights = Literal["item", "position"]
Floats = NDArray[np.float64]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be estimated, and how."""

    landed: Path
    release: Path
    champion: Path | None
    reward: str
    take: Take = "happened"
    window_hours: float | None = None
    max_requests: int = 10_000
    from_time: str = "auto"
    weights: Weights | None = None
    """By item where that can be known, else by position."""
    slates: bool = False
    """Weigh whole slates from the top, and not each item alone."""
    clip: float | None = None
    resamples: int = 1000
    seed: int = 0


def report_of(wanted: Wanted, say: Say) -> OffPolicyReport:
    """Estimates of the candidate, of the champion where there is one, and of what lies between them."""
    releases = {folder: read_release(folder) for folder in filter(None, (wanted.release, wanted.champion))}
    weights = weights_of(wanted, [*releases.values()])
    from_ms, notes = beginning(wanted.from_time, releases[wanted.release].snapshot)
    window_ms = round(wanted.window_hours * _HOUR_MS) if wanted.window_hours is not None else None
    # Of a younger request the rewards are not all in, and it would seem to have earned less.
    until_ms = newest_ms(wanted.landed) - window_ms if window_ms is not None else None
    requests = read_requests(
        wanted.landed,
        max_requests=wanted.max_requests,
        seed=wanted.seed,
        from_ms=from_ms,
        until_ms=until_ms,
        generations=[release.id for release in releases.values()] if weights == "item" else None,
    )
    reward = rewards(wanted.landed, requests, wanted.reward, take=wanted.take, window_ms=window_ms)
    say(f"{len(requests):,} of {requests.found:,} requests, {len(reward):,} items shown")
    notes += [f"{requests.fallbacks:,} requests that no model answered are left out."] if requests.fallbacks else []
    if requests.young:
        notes.append(
            f"{requests.young:,} requests of the last {wanted.window_hours:g} hours that have landed are left out: "
            "what they earned is not known yet."
        )
    logged = items_of(requests, reward)
    if (num_users := len(set(requests.user_id))) < _FEWEST_USERS:
        notes.append(f"Intervals over {num_users} users are too narrow: {_FEWEST_USERS} or more are asked for.")
    users = np.repeat(pd.factorize(np.array(requests.user_id, dtype=object))[0], np.diff(requests.starts))
    replays: dict[str, Replayed] = {}
    for name, folder in (("candidate", wanted.release), ("champion", wanted.champion)):
        if folder is not None:
            replays[name] = replay(folder, wanted.landed, requests, logged, _progress(say, name, len(requests)))
            notes += unlike_its_log(replays[name], requests)
    if weights == "item":
        policies = policies_by_item(replays, requests, logged, wanted)
    else:
        policies = {name: policy_of(replayed, requests, logged, wanted) for name, replayed in replays.items()}
    found = {name: (replayed, policies[name]) for name, replayed in replays.items()}
    at_random = {"resamples": wanted.resamples, "seed": wanted.seed}
    estimates = {name: off_policy.estimate(reward, users, policy, **at_random) for name, (_, policy) in found.items()}
    difference: dict[str, Estimated] = {}
    if "champion" in found:
        difference = off_policy.difference(reward, users, found["candidate"][1], found["champion"][1], **at_random)
    described = {
        name: PolicyEstimates(
            policy=f"{replayed.release_id} {replayed.policy}",
            reward=wanted.reward,
            rows=len(reward),
            effective_rows=off_policy.effective_rows(policy.weights),
            matched_share=off_policy.matched_share(policy.weights),
            mean_weight=float(policy.weights.mean()),
            estimates=tuple(as_record(k, one) for k, one in estimates[name].items() if k != "mean"),
        )
        for name, (replayed, policy) in found.items()
    }
    return OffPolicyReport(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        logged=as_record("mean", estimates["candidate"]["mean"]),
        candidate=described["candidate"],
        champion=described.get("champion"),
        difference=tuple(as_record(name, one) for name, one in difference.items()),
        weights=weights,
        requests=len(requests),
        users=num_users,
        from_ms=from_ms,
        notes=tuple(notes),
    )


def beginning(from_time: str, snapshot: Parent) -> tuple[int | None, list[str]]:
    """The time from which requests count, and what is to be said of it.

    `auto`: after the last event that the candidate's models were fitted on. On requests of before that it would be
    judged by clicks that it has learned by heart.
    """
    if from_time == "log":
        return None, ["All requests were taken, those too that the candidate may have been trained on."]
    if from_time != "auto":
        try:
            at = datetime.fromisoformat(from_time)
        except ValueError:
            raise UserError(f"--from {from_time!r}: auto, log, or a time such as 2026-01-31T12:00+00:00.") from None
        return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000), []
    unknown = "so all requests were taken, those too that it may have been trained on."
    try:
        manifest = open_snapshot(snapshot.url).manifest
    except UserError:
        return None, [f"The candidate's snapshot {snapshot.url} is gone, {unknown}"]
    last_ms = manifest.statistics.get("train", {}).get("last_event_time_ms")
    if last_ms is None or not str(manifest.config.get("split", "")).startswith("time"):
        return None, [f"The candidate's snapshot is not split by time, {unknown}"]
    return int(last_ms) + 1, []


def items_of(requests: Requests, reward: Floats) -> LoggedItems:
    """The reward model of the log, cross-fitted over users."""
    codes, ids = pd.factorize(np.array(requests.item_id, dtype=object))
    users = pd.util.hash_array(np.array(requests.user_id, dtype=object), categorize=False)
    fold = (users % FOLDS).astype(np.int64)
    rates = fit(reward, codes.astype(np.int64), requests.position, np.repeat(fold, np.diff(requests.starts)))
    return LoggedItems(codes={item_id: code for code, item_id in enumerate(ids)}, rates=rates, fold=fold)


def policy_of(replayed: Replayed, requests: Requests, logged: LoggedItems, wanted: Wanted) -> Policy:
    """Weights of the rows, with what the reward model says of them."""
    weights = importance_weights(replayed.target, requests.propensity, clip=wanted.clip)
    fold_N = np.repeat(logged.fold, np.diff(requests.starts))
    item_N = np.array([logged.codes[item_id] for item_id in requests.item_id], dtype=np.int64)
    rates = logged.rates
    predicted = rates.by_position[fold_N, requests.position] * rates.lift[fold_N, item_N]
    expected = replayed.expected
    if wanted.slates:
        weights, before = along_slates(weights, requests.position)
        expected = expected * before
    return Policy(weights=weights, predicted=predicted, expected=expected)


def weights_of(wanted: Wanted, releases: list[Release]) -> Weights:
    """What is asked for, or by item where that can be known. UserError where it cannot, and is asked for."""
    lacking = [one.id for one in releases if not is_known(one.serving.exploration)]
    can_be = wanted.champion is not None and not lacking and not wanted.slates
    if wanted.weights == "item" and not can_be:
        why = f"{', '.join(lacking)} explores by plackett_luce" if lacking else "there is no --champion, or --slates is"
        raise UserError(f"--weights item: {why}, and how likely a list holds an item is not known: take position.")
    return wanted.weights or ("item" if can_be else "position")


def policies_by_item(
    replays: dict[str, Replayed], requests: Requests, logged: LoggedItems, wanted: Wanted
) -> dict[str, Policy]:
    """Weights by how likely the list holds the item, where the log's own list is that of the release that answered.

    An item that the release, asked again, would not have shown at all has the weight 0.
    """
    generation = np.repeat(np.array(requests.generation), np.diff(requests.starts))
    own = np.zeros(len(generation))
    for replayed in replays.values():
        own = np.where(generation == replayed.release_id, replayed.included, own)
    fold_N = np.repeat(logged.fold, np.diff(requests.starts))
    item_N = np.array([logged.codes[item_id] for item_id in requests.item_id], dtype=np.int64)
    request_N = np.repeat(np.arange(len(requests)), np.diff(requests.starts))
    usual_N = logged.rates.by_position[fold_N, requests.position]
    mean_N = (np.bincount(request_N, weights=usual_N) / np.diff(requests.starts))[request_N]
    predicted = mean_N * logged.rates.lift[fold_N, item_N]
    return {
        name: Policy(
            weights=importance_weights(
                np.where(own > 0, replayed.included, 0.0), np.where(own > 0, own, 1.0), clip=wanted.clip
            ),
            predicted=predicted,
            expected=replayed.expected_of_list,
        )
        for name, replayed in replays.items()
    }


def unlike_its_log(replayed: Replayed, requests: Requests) -> list[str]:
    """A note where a release, asked again, gives other propensities than it logged itself."""
    own = np.repeat(np.array(requests.generation) == replayed.release_id, np.diff(requests.starts))
    if not own.any():
        return []
    same = float((np.abs(replayed.target[own] - requests.propensity[own]) <= _SAME).mean())
    if same >= _FEWEST_REPRODUCED:
        return []
    return [
        f"{replayed.release_id} gives {same:.1%} of the propensities again that it logged: requests blocked items, or "
        "the server had settings that the release does not hold, or events have not landed."
    ]


def as_record(name: str, one: Estimated) -> Estimate:
    return Estimate(estimator=name, value=one.value, interval=one.interval, normal_interval=one.normal_interval)


def table_of(report: OffPolicyReport) -> Table:
    asked = f"{report.candidate.reward} an item shown, weights by {report.weights}"
    title = f"{asked}, {report.requests:,} requests of {report.users:,} users"
    table = Table(title=title, title_justify="left")
    for name in ("policy", "estimator", "value", "95 % over users", "effective rows", "matched", "mean weight"):
        table.add_column(name, justify="left" if name in ("policy", "estimator") else "right")
    table.add_row("as logged", "mean", *_cells(report.logged), f"{report.candidate.rows:,}", "", "")
    for one in filter(None, (report.candidate, report.champion)):
        weights = (f"{one.effective_rows:,.0f}", f"{one.matched_share:.1%}", f"{one.mean_weight or 0:.3f}")
        for estimate in one.estimates:
            table.add_row(one.policy, estimate.estimator, *_cells(estimate), *weights)
    for estimate in report.difference:
        table.add_row("candidate - champion", estimate.estimator, *_cells(estimate, "+"), "", "", "")
    return table


def _cells(one: Estimate, sign: str = "") -> tuple[str, str]:
    low, high = one.interval
    return f"{one.value:{sign}.5f}", f"{low:{sign}.5f} to {high:{sign}.5f}"


def _progress(say: Say, name: str, requests: int) -> Callable[[int], None]:
    """Says each tenth."""
    step = max(1, requests // 10)
    said = [0]

    def progress(done: int) -> None:
        if done // step > said[0]:
            said[0] = done // step
            say(f"{name}: {done:,} of {requests:,} requests asked again")

    return progress


def estimate(wanted: Wanted, out: Path) -> None:
    torch.set_num_threads(1)
    report = report_of(wanted, lambda text: print(f"estimate: {text}", flush=True))
    try:
        write_text(out, report.model_dump_json(indent=1))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}.") from None
    Console(markup=False, emoji=False, width=130).print(table_of(report))
    for note in report.notes:
        print(f"estimate: note: {note}")
    print(f"estimate: {out}")


def main(arguments: list[str] | None = None) -> int:
    command = Parser(
        prog="headrace estimate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = command.add_argument
    add("--landed", required=True, metavar="DIR", help="what `headrace land` wrote: impressions/ and actions/ by day")
    add("--release", required=True, metavar="DIR", help="the candidate")
    add("--champion", metavar="DIR", help="the release to hold it against, on the same rows")
    add("--reward", required=True, metavar="ACTION", help="action that counts as a reward: click, like, ...")
    add("--out", required=True, metavar="FILE", help="report to write, off_policy.json")
    add("--take", choices=get_args(Take), default="happened", help="1 where it happened, its value, or their sum")
    add("--window-hours", type=float, help="after a response, in which actions count; younger ones wait (all)")
    add("--max-requests", type=int, default=10_000, help="sampled by a hash of their ids (10000)")
    add("--from", dest="from_time", default="auto", metavar="TIME",
        help="requests from then on; auto: after what the candidate learned from; log: all (auto)")  # fmt: skip
    add("--weights", choices=get_args(Weights), help="by how likely a list holds the item, wherever, or by how likely "
        "it stands there (item, where both releases are epsilon-greedy)")  # fmt: skip
    add("--slates", action="store_true", help="weigh slates from the top: for clicks that depend on the items above")
    add("--clip", type=float, help="largest weight of an item; lowers the variance, and the estimates (none)")
    add("--resamples", type=int, default=1000, help="of the users, for intervals (1000)")
    add("--seed", type=int, default=0, help="of sample and resamples (0)")
    given = command.parse_args(arguments)
    for name in ("window_hours", "max_requests", "clip"):
        if getattr(given, name) is not None and getattr(given, name) <= 0:
            command.error(f"--{name.replace('_', '-')} is more than 0")
    if given.resamples < 100:
        command.error("fewer than 100 resamples give no interval of 95 %: --resamples takes 100 or more")
    wanted = Wanted(
        landed=Path(absolute(given.landed)),
        release=Path(absolute(given.release)),
        champion=Path(absolute(given.champion)) if given.champion else None,
        **{name: getattr(given, name) for name in (
            "reward", "take", "window_hours", "max_requests", "from_time", "weights", "slates", "clip", "resamples",
            "seed",
        )},
    )  # fmt: skip
    return answering_mistakes("estimate", lambda: estimate(wanted, Path(absolute(given.out))))


if __name__ == "__main__":
    sys.exit(main())
