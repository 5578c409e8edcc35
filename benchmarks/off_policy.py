"""Off-policy estimates against the truth: on Open Bandit Data, and on simulated logs.

Open Bandit Data: what Bernoulli Thompson sampling earns (clicks an item shown) is estimated from the log of the random
policy of the same week, and held against the click rate of its own log. Simulated: how often a 95 % interval holds the
value that is known, over many logs.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.off_policy_simulation import World, draws, left_over, world
from benchmarks.open_bandit import CAMPAIGNS, Campaign, read_campaign, reward_model
from pipelines.data import fetch
from schemas.errors import UserError
from schemas.programs import Parser, answering_mistakes
from schemas.storage import absolute
from serving.off_policy import ESTIMATORS, Policy, effective_rows, estimate, importance_weights, matched_share

Found = dict[str, Any]
SIMULATED = {
    "model right": lambda click_ZA: click_ZA,
    "model wrong": lambda click_ZA: 1 - click_ZA,
}


def judged(of: Campaign, resamples: int) -> Found:
    """Thompson sampling's own click rate, and each estimate of it from the random log."""
    weights = importance_weights(of.target, of.propensity)
    model_NA, rows = reward_model(of), np.arange(len(of.reward))
    policy = Policy(weights=weights, predicted=model_NA[rows, of.item], expected=(of.targets * model_NA).sum(axis=1))
    found = estimate(of.reward, rows, policy, resamples=resamples)
    own = estimate(
        of.own_reward, np.arange(len(of.own_reward)), Policy(weights=np.ones(len(of.own_reward))), resamples=resamples
    )["mean"]
    return {
        "rows": len(rows),
        "clicks": int(of.reward.sum()),
        "effective_rows": round(effective_rows(weights)),
        "matched_share": round(matched_share(weights), 4),
        "mean_weight": round(float(weights.mean()), 4),
        "own_log": {"value": own.value, "interval": own.interval},
        "estimates": {
            name: {
                "value": one.value,
                "interval": one.interval,
                "normal_interval": one.normal_interval,
                "holds_own": bool(one.interval[0] <= own.value <= one.interval[1]),
            }
            for name, one in found.items()
        },
    }


def coverage(of: World, *, wrong: bool, simulations: int, users: int, resamples: int) -> dict[str, dict[str, float]]:
    """By estimator: mean and spread over simulated logs of a first position, and how many intervals hold the truth."""
    rhat = SIMULATED["model wrong" if wrong else "model right"](of.click)
    truth = replace(of, examined=of.examined[:1]).value(of.target)
    rows: dict[str, list[tuple[float, ...]]] = {}
    for number, log in enumerate(draws(of, times=simulations, users=users, requests_per_user=4, seed=11)):
        policy = Policy(
            weights=importance_weights(log.target[:, 0], log.propensity[:, 0]),
            predicted=rhat[log.kind, log.items[:, 0]],
            expected=(left_over(of.target, log.kind, log.items, 0) * rhat[log.kind]).sum(1),
        )
        for name, one in estimate(log.reward[:, 0], log.user, policy, resamples=resamples, seed=number).items():
            normal = one.normal_interval or one.interval
            rows.setdefault(name, []).append((one.value, *one.interval, *normal))
    found = {}
    for name, listed in rows.items():
        value, low, high, normal_low, normal_high = np.array(listed).T
        found[name] = {
            "truth": truth,
            "bias": float(value.mean() - truth),
            "spread": float(value.std(ddof=1)),
            "coverage": float(((low <= truth) & (truth <= high)).mean()),
            "normal_coverage": float(((normal_low <= truth) & (truth <= normal_high)).mean()),
        }
    return found


def show_campaigns(found: dict[str, Found]) -> None:
    table = Table(
        title="Open Bandit Data: clicks per 1,000 items of Thompson sampling, from the random log", title_justify="left"
    )
    for name in ("campaign", "own log", "random log", "ips", "snips", "dr", "sndr", "effective rows", "mean weight"):
        table.add_column(name, justify="left" if name == "campaign" else "right")
    for campaign, one in found.items():
        cells = [_per_thousand(one["own_log"])]
        cells += [_per_thousand(one["estimates"][name]) for name in ESTIMATORS]
        table.add_row(campaign, *cells, f"{one['effective_rows']:,} of {one['rows']:,}", f"{one['mean_weight']:.3f}")
    Console(width=150).print(table)


def show_coverage(found: dict[str, dict[str, dict[str, float]]], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("reward model", "estimator", "truth", "bias", "spread", "bootstrap holds it", "normal holds it"):
        table.add_column(name, justify="left" if name in ("reward model", "estimator") else "right")
    for model, estimators in found.items():
        for name, one in estimators.items():
            table.add_row(
                model, name, f"{one['truth']:.4f}", f"{one['bias']:+.4f}", f"{one['spread']:.4f}",
                f"{one['coverage']:.1%}", f"{one['normal_coverage']:.1%}",
            )  # fmt: skip
        table.add_section()
    Console(width=120).print(table)


def _per_thousand(one: Found) -> str:
    low, high = one["interval"]
    return f"{1000 * one['value']:.2f} ({1000 * low:.2f}-{1000 * high:.2f})"


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="headrace benchmark off_policy", description=__doc__)
    command.add_argument("--to", default="runs/open-bandit", help="folder of the data (runs/open-bandit)")
    command.add_argument("--resamples", type=int, default=2000, help="of the rows of Open Bandit Data (2000)")
    command.add_argument("--simulations", type=int, default=1000, help="logs for the coverage of intervals (1000)")
    command.add_argument("--users", type=int, default=300, help="of a simulated log, each with four requests (300)")
    given = command.parse_args(arguments)

    def work() -> None:
        if given.resamples < 100 or given.simulations < 1 or given.users < 2:
            raise UserError("--resamples takes 100 or more, --simulations 1 or more, --users 2 or more.")
        folder = Path(absolute(given.to))
        print(fetch("open-bandit", folder), flush=True)
        campaigns = {name: judged(read_campaign(folder, name), given.resamples) for name in CAMPAIGNS}
        show_campaigns(campaigns)
        simulated = {
            model: coverage(
                world(), wrong=model == "model wrong", simulations=given.simulations, users=given.users, resamples=400
            )
            for model in SIMULATED
        }
        logs = f"{given.simulations:,} simulated logs of {given.users:,} users"
        show_coverage(simulated, f"95 % intervals on {logs}")
        line = {"benchmark": "off_policy", "campaigns": campaigns, "simulated": simulated}
        print(json.dumps({**line, "simulations": given.simulations, "users": given.users}))

    return answering_mistakes("benchmark", work)


if __name__ == "__main__":
    sys.exit(main())
