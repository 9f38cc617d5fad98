"""The table and the verdicts in words, computed from the numbers."""

from __future__ import annotations

from statistics import fmean, median

from weit.compare import Comparison
from weit.compare.config import LONGER, WEIT
from weit.compare.summary import SAME, SEEN, Outcome, Row, spread
from weit.tasks import Metric

LABELS = {
    "scratch": "scratch",
    LONGER: "scratch, same total work",
    "weight_selection": "weight selection",
    "ligo": "LiGO",
    "bert2bert": "bert2BERT",
    "mimetic": "mimetic",
    "tleg": "TLEG",
    "distillation": "distillation",
    WEIT: "WeiT",
}

_MADE = {
    "bank": "for the bank",
    "source": "for the larger dense model that rivals take from",
    "small": "for the smaller one",
    "fitting": "to fit the scalers of all targets and seeds",
}


def headings(comparison: Comparison) -> tuple[str, ...]:
    """Of the table's columns."""
    metric, *others = comparison.metrics
    return (
        *("target", "change", "parameters", "start", "lr", "step 0", metric.label),
        *(other.label for other in others),
        *("scratch's final after", "in total work"),
    )


def cells(comparison: Comparison) -> list[tuple[Row, Outcome | None, tuple[str, ...]]]:
    """The table: a line for each target and start, under ``headings``; scores on the test split."""
    lines: list[tuple[Row, Outcome | None, tuple[str, ...]]] = []
    metric, *others = comparison.metrics
    for row in comparison.rows:
        for name in comparison.config.starts:
            outcome, first = row.outcomes.get(name), (row.target, row.kind, f"{row.parameters:,}", LABELS[name])
            if outcome is None:
                lines.append((row, None, (*first, "", "", "does not apply", *[""] * (len(others) + 2))))
                continue
            finals = [_final(metric, outcome.tests), *(_final(each, outcome.others[each.name]) for each in others)]
            begun = metric.show(outcome.curve[0][1])
            lines.append((row, outcome, (*first, f"{outcome.lr:g}", begun, *finals, *_reached(outcome))))
    return lines


def _final(metric: Metric, values: list[float]) -> str:
    return f"{metric.show(fmean(values))} ± {metric.show(spread(values))}" if values else "none"


def table(comparison: Comparison) -> str:
    """The table as text of fixed width."""
    lines: list[tuple[str, ...]] = [headings(comparison)]
    previous = None
    for row, _, texts in cells(comparison):
        lines.append(texts if row is not previous else ("", "", "", *texts[3:]))
        previous = row
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    ragged = {0, 1, 3}  # words to the left, numbers to the right
    return "\n".join(
        "  ".join(
            text.ljust(width) if i in ragged else text.rjust(width) for i, (text, width) in enumerate(columns)
        ).rstrip()
        for columns in (list(zip(line, widths, strict=True)) for line in lines)
    )


def verdicts(comparison: Comparison) -> list[str]:
    """What the numbers say about WeiT, good or bad, one sentence each, and which starts do not apply, and why."""
    rows, config = comparison.rows, comparison.config
    after = f"after {config.steps} training steps"
    lines = [
        _standing(comparison, name, f"Against {LABELS[name]}, {after}")
        for name in config.starts
        if name not in (WEIT, LONGER)
    ]
    if LONGER in config.rivals:
        lines.append(_standing(comparison, LONGER, "Against scratch that was trained longer, for the same total work"))
    lines = [line for line in lines if line]
    chosen = [_before(comparison, name) for name in config.starts if len(config.own_rates(name)) > 1]
    found = [*_means(comparison), *_speed(rows), _price(comparison), *_edges(comparison), *chosen, *_absences(rows)]
    return [*lines, *found]


def _before(comparison: Comparison, name: str) -> str:
    rates = {row.target: row.outcomes[name].start_lr for row in comparison.rows if name in row.outcomes}
    tried = ", ".join(f"{rate:g}" for rate in comparison.config.own_rates(name) if rate is not None)
    taken = ", ".join(f"{rate:g} ({target})" for target, rate in rates.items() if rate is not None)
    return f"Before step 0 {LABELS[name]} learned at the best rate of {tried} on validation data: {taken}."


def _absences(rows: list[Row]) -> list[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, why in row.absent.items():
            found.setdefault((name, why), []).append(row.target)
    return [f"{LABELS[name]} does not apply to {', '.join(targets)}: {why}." for (name, why), targets in found.items()]


def _standing(comparison: Comparison, rival: str, opening: str) -> str:
    metric = comparison.metrics[0]
    rows = [row for row in comparison.rows if rival in row.outcomes]
    groups: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for row in rows:
        ours, theirs = row.outcomes[WEIT], row.outcomes[rival]
        groups[ours.ahead_of(theirs)].append(f"{row.target} {metric.show(ours.mean - theirs.mean, '+')}")
    words = {1: "ahead on", 0: "level (not told apart at 95 %) on", -1: "behind on"}
    found = [f"{words[key]} {len(group)} of {len(rows)} ({', '.join(group)})" for key, group in groups.items() if group]
    return f"{opening}, WeiT is {'; '.join(found)} (difference in {metric.label})." if found else ""


def _means(comparison: Comparison) -> list[str]:
    """The mean over targets, and over those of sizes that the pre-training did not run at, if there are others too."""
    rows = comparison.rows
    new = [row for row in rows if row.kind != SAME and not row.kind.endswith(SEEN)]
    lines = [_mean(comparison, rows, f"the {len(rows)} targets")]
    if 0 < len(new) < len(rows):
        lines.append(_mean(comparison, new, f"the {len(new)} that the pre-training did not run at"))
    return lines


def _mean(comparison: Comparison, rows: list[Row], over: str) -> str:
    """Of each start; beside one that serves some of the targets only, WeiT's mean over the same."""
    metric = comparison.metrics[0]
    found = []
    for name in comparison.config.starts:
        served = [row for row in rows if name in row.outcomes]
        if not served:
            continue
        mean = metric.show(fmean(row.outcomes[name].mean for row in served))
        if len(served) < len(rows):
            ours = metric.show(fmean(row.outcomes[WEIT].mean for row in served))
            mean += f" (on {len(served)} of them, WeiT {ours} there)"
        found.append(f"{LABELS[name]} {mean}")
    better = "higher" if metric.higher else "lower"
    return f"Mean over {over} of {metric.label}, {better} is better: {', '.join(found)}."


def _speed(rows: list[Row]) -> list[str]:
    reached = [(row, row.outcomes[WEIT]) for row in rows if row.outcomes[WEIT].reached is not None]
    missed = [row.target for row in rows if row.outcomes[WEIT].reached is None]
    lines = []
    if reached:
        shares = [(outcome.reached or 0) / row.outcomes["scratch"].steps for row, outcome in reached]
        totals = [
            ((outcome.reached or 0) + outcome.extra_steps) / row.outcomes["scratch"].steps for row, outcome in reached
        ]
        lines.append(
            f"WeiT is at scratch's final score after {_percent(shares)} of scratch's steps. With the fitting of "
            f"scalers and an equal share of the pre-training counted, that is {_percent(totals)} of scratch's work: "
            + ("less work" if median(totals) < 1 else "no saving of work")
            + f" in the median of {len(reached)} targets."
        )
    if missed:
        lines.append(f"WeiT does not come to scratch's final score on {', '.join(missed)}.")
    return lines


def _percent(shares: list[float]) -> str:
    if len(shares) == 1:
        return f"{100 * shares[0]:.0f} %"
    return f"{100 * median(shares):.0f} % ({100 * min(shares):.0f} to {100 * max(shares):.0f} %)"


def _price(comparison: Comparison) -> str:
    pretraining, scratch = (
        comparison.pretraining[WEIT],
        comparison.config.steps * sum(row.flops for row in comparison.rows),
    )
    if not pretraining:
        return "The work of the pre-training is not recorded in the bank, so it is not counted."
    seconds = {word: comparison.seconds.get(kind) for kind, word in _MADE.items()}
    times = ", ".join(f"{value:.0f} s {word}" for word, value in seconds.items() if value is not None)
    return (
        f"The bank's pre-training took {pretraining / 1e12:.2f} Tflop, {100 * pretraining / scratch:.0f} % of what "
        f"training all {len(comparison.rows)} targets once from scratch takes; further targets would share it. "
        f"A worker took {times}."
    )


def _edges(comparison: Comparison) -> list[str]:
    """Where a wider list of learning rates might have been better for a start."""
    lowest, highest = min(comparison.config.lrs), max(comparison.config.lrs)
    lines = []
    for edge, word in ((lowest, "lowest"), (highest, "highest")):
        found: dict[str, list[str]] = {}
        for row in comparison.rows:
            for name, outcome in row.outcomes.items():
                if outcome.lr == edge and name != LONGER and lowest < highest:
                    found.setdefault(LABELS[name], []).append(row.target)
        if found:
            where = "; ".join(f"{label}: {', '.join(targets)}" for label, targets in found.items())
            lines.append(f"The {word} learning rate tried was the best, so one beyond it may be better, for {where}.")
    return lines


def _reached(outcome: Outcome) -> tuple[str, str]:
    if outcome.reached is None:
        return "not", "not"
    return f"{outcome.reached}", f"{outcome.reached + outcome.extra_steps:.0f}"
