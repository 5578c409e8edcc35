"""Would the candidate have earned less than the champion on what was served?"""

from __future__ import annotations

from pipelines.gating.evidence import Evidence, Finding
from schemas.off_policy import OffPolicyReport

PREFERRED = ("dr", "sndr", "snips", "ips")
"""The first of these that a report has decides: the one of least variance that right propensities keep unbiased."""


def off_policy(evidence: Evidence) -> Finding:
    """The interval of the difference must not lie wholly below 0, and enough rows must stand behind both estimates."""
    if evidence.is_first:
        return Finding(passed=True, reasons=("Before the first generation nothing was served to estimate from.",))
    rules = evidence.rules
    report = evidence.report(OffPolicyReport, "off_policy.json", made_by="headrace estimate --champion RELEASE")
    files = (evidence.candidate / "off_policy.json",)
    bad, good = [], []
    if report.users < rules.min_users:
        bad.append(
            f"The log has requests of {report.users:,} users, {rules.min_users:,} are asked for: intervals over fewer "
            "are too narrow. Serve longer."
        )
    released = {"candidate": evidence.release().id, "champion": evidence.release_of_champion().id}
    if report.champion is None or not report.difference:
        bad.append("The report holds no champion: estimate again with `headrace estimate --champion RELEASE`.")
    for name, one in (("candidate", report.candidate), ("champion", report.champion)):
        if one is None:
            continue
        if one.policy.split(" ")[0] != released[name]:
            bad.append(
                f"The report's {name} is {one.policy.split(' ')[0]}, not {released[name]}: run `headrace estimate` on "
                "the releases that are held against each other."
            )
        said = f"The {name}'s estimate stands on {one.effective_rows:,.0f} effective rows of {one.rows:,}"
        if one.effective_rows < rules.min_effective_rows:
            bad.append(
                f"{said}, {rules.min_effective_rows:,.0f} are asked for: serve longer, explore more (exploration in "
                "wheel.yaml), or train closer to what is in service."
            )
        else:
            good.append(f"{said}.")
    differences = {one.estimator: one for one in report.difference}
    chosen = next((differences[name] for name in PREFERRED if name in differences), None)
    if chosen is not None:
        low, high = chosen.interval
        said = (
            f"{report.candidate.reward} an item shown, candidate minus champion ({chosen.estimator}): "
            f"{chosen.value:+.5f}, 95 % from {low:+.5f} to {high:+.5f}"
        )
        if high < 0:
            bad.append(f"{said}: the candidate would have earned less: keep the champion.")
        else:
            good.append(f"{said}.")
    return Finding(passed=not bad, reasons=(*bad, *good), files=files)
