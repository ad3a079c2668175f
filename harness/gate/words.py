"""The verdict in one sentence, and the whole procedure in words (``--explain``)."""

from __future__ import annotations

from collections.abc import Sequence

from harness.gate.procedure import levels_of
from harness.gate.spending import plan_for, smallest_p
from harness.results.gate import JudgeSpec, RuleResult, Verdict


def headline_of(
    verdict: Verdict, rules: Sequence[RuleResult], reasons: Sequence[str], pairs: int, is_wrong: bool
) -> str:
    """One sentence: what was decided, about what, and how sure."""
    if is_wrong:
        return f"FAIL: the candidate is not correct, so its speed does not count. {_begin(reasons[0])}"
    if verdict == "FAIL":
        failed = [rule for rule in rules if rule.verdict == "FAIL"]
        worst = max(failed, key=lambda rule: (rule.worse_by or 0.0) / max(rule.rule.limit, 1e-3))
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        if worst.change is None or worst.method == "none":
            return f"FAIL: {worst.rule.label} is {worst.reason}{more}."
        return (
            f"FAIL after {pairs} pairs: {worst.rule.label} {signed(worst.change)}{interval(worst)}, "
            f"limit {worst.rule.limit:.1%}{more}."
        )
    if verdict == "PASS":
        judged = [rule for rule in rules if rule.verdict == "PASS"]
        closest = max(judged, key=lambda rule: (rule.bound or 0.0) - rule.rule.limit)
        bound = max(0.0, closest.bound or 0.0)
        return (
            f"PASS after {pairs} pairs: no metric is worse than its limit; closest is {closest.rule.label}, "
            f"at most {bound:.1%} worse (limit {closest.rule.limit:.1%})."
        )
    if reasons:
        return f"INCONCLUSIVE after {pairs} pairs: {reasons[0]}."
    return f"INCONCLUSIVE after {pairs} pairs: nothing was judged."


def signed(share: float) -> str:
    return f"{share:+.1%}"


def interval(rule: RuleResult) -> str:
    """`` [-3.1%, -1.2%]``, or nothing where there is none."""
    if rule.low is None or rule.high is None:
        return ""
    return f" [{signed(rule.low)}, {signed(rule.high)}]"


def _begin(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:] + ("" if sentence.endswith((".", ")")) else ".")


def explain(spec: JudgeSpec) -> str:
    """What this gate would decide, and why, for people.  Plain text."""
    timing = [rule for rule in spec.rules if rule.kind == "timing"]
    counts = [rule for rule in spec.rules if rule.kind == "count"]
    plan = plan_for(spec.looks)
    lines = ["What this gate does", ""]
    lines += [
        f"Both builds get the same requests, run for run, in interleaved pairs; up to {plan.looks[-1]} pairs.",
        "For each metric and pair it takes log(candidate / baseline), turned so that more is worse.",
        "",
        "Metrics and limits:",
    ]
    for rule in spec.rules:
        how = "exactly, where the two ranges do not overlap" if rule.kind == "count" else "by Wilcoxon's signed ranks"
        lines.append(f"  {rule.label}: may get worse by {rule.limit:.1%}; {rule.better} is better; compared {how}")
        if rule.min_samples:
            lines.append(f"    judged only from {rule.min_samples} samples a run on")
    lines += ["", "It FAILS as soon as one metric is significantly worse and its estimate lies beyond its limit:"]
    if timing:
        for levels in levels_of(plan, len(timing), spec.fail_rate, spec.pass_rate):
            strict, lone = levels.fail[-1], levels.fail[0]
            possible = "" if smallest_p(levels.pairs) <= strict else "; no p so small exists with so few pairs"
            if strict <= 0:
                lines.append(f"  after {levels.pairs:>3} pairs: it cannot fail yet, only pass")
            else:
                lines.append(
                    f"  after {levels.pairs:>3} pairs: smallest p <= {strict:.2g} (Holm: the last metric {lone:.2g}){possible}"
                )
        lines.append(
            f"  Two equal builds fail in at most {spec.fail_rate:.1%} of all gates, "
            f"{len(timing)} metrics and all looks together."
        )
    lines += ["", "It PASSES when every metric's upper bound lies below its limit:"]
    for levels in levels_of(plan, 1, spec.fail_rate, spec.pass_rate):
        lines.append(f"  after {levels.pairs:>3} pairs: one-sided bound at {1 - levels.clear:.2%}")
    lines.append(f"  A build exactly at a limit passes that metric in at most {spec.pass_rate:.0%} of all gates.")
    if counts:
        lines.append("  A count passes when no candidate run exceeds any baseline run by more than its limit.")
    lines += [
        "",
        "Otherwise it is INCONCLUSIVE, and says the smallest change that it would have seen nine times in ten.",
        "A candidate that fails requests, or never gives answers that the baseline always gives, FAILS at any speed"
        + ("." if spec.answers == "identical" else "; different answers are only reported here (`answers: report`)."),
        "Runs that cannot be trusted (late client, errors, wrong lengths, throttling, foreign load) are repeated at most "
        f"twice and never counted; more than {spec.max_void_share:.0%} of them: INCONCLUSIVE.",
        "A metric that is missing fails its rule.",
    ]
    return "\n".join(lines)
