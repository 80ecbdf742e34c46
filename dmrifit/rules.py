"""The rules that decide the claims of the study, and what their outcome comes from."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dmrifit.boards import Check, MissingEvidence, Relation, format_number
from dmrifit.evidence import ALPHA, Evidence, drop_metrics, lay_out, mean_over_patients
from dmrifit.statistics import MARGIN_SHARE, holm
from dmrifit.trials import POOLED

if TYPE_CHECKING:
    import pandas as pd

#: Mean relative error of predicted signals that the study stays below.
SIGNAL_ERROR = 0.12
#: Correlation of signals that the study stays above.
SIGNAL_CORRELATION = 0.8

BOTH = {"|BI|": "abs_bias", "DI": "dispersion"}
BI = {"|BI|": "abs_bias"}
DI = {"DI": "dispersion"}
SIGNED = {"BI (signed)": "bias"}
TRUTH = {"|BI| against the truth": "abs_bias_truth", "DI against the truth": "dispersion_truth"}

Rule = Callable[[Evidence], list[Check]]


# 1, 2: signals ------------------------------------------------------------------------------------------------------


def _signals_of(e: Evidence, region: str | None = None) -> pd.DataFrame:
    if region is not None and region != e.region:
        if region not in e.elsewhere:
            msg = f"scores of the {region} (score_mask)"
            raise MissingEvidence(msg)
        e = e.elsewhere[region]
    table = e.unseen
    table = table[table["strategy"] == "s2s"] if len(table) else table
    if not len(table):
        msg = "signals predicted by s2s"
        raise MissingEvidence(msg)
    return table


def _pooled(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[table["contrast"] == POOLED]
    if not len(rows):
        msg = "signals pooled over unseen contrasts"
        raise MissingEvidence(msg)
    return rows


def _single(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["contrast"] != POOLED]


def signal_error(column: str, name: str, region: str | None = None, worst: str = "") -> Rule:
    """Give the rule that an error of predicted signals is below 12 %, by cohort or for the worst of something."""

    def checks(e: Evidence) -> list[Check]:
        table = _single(_signals_of(e, region))
        values = mean_over_patients(table, column, "cohort", *([worst] if worst else []))
        values = values.abs().groupby("cohort", observed=True).max() if worst else values.abs()
        return [Check(name, float(values[cohort]), "<", SIGNAL_ERROR, cohort) for cohort in values.index]

    return checks


def explain_1(runs: Sequence[Evidence]) -> str:
    """Name what has the largest error."""
    table = _join(runs, lambda e: _single(_signals_of(e)))
    parts = []
    for what in ("algorithm", "contrast", "patient"):
        means = mean_over_patients(table, "relative_error", "cohort", what)
        cohort, name = means.idxmax()
        parts.append(f"{what} {name} of {cohort} {format_number(means.max())}")
    return "largest mean abs(E): " + ", ".join(parts)


def signal_correlation(kind: str, each_metric: bool = True, region: str | None = None) -> Rule:
    """Give the rule that signals correlate above 0.8 and metrics below signals."""

    def checks(e: Evidence) -> list[Check]:
        table = _signals_of(e, region)
        two = e.two_cohorts()
        # Median over patients, as the letter's boxes show; then the mean over algorithms.
        rows = _pooled(table) if kind == "pooled" else _single(table)
        if "pearson" not in rows or not np.isfinite(rows["pearson"]).any():
            msg = "pearson of signals"
            raise MissingEvidence(msg)
        own = rows.groupby(["cohort", "algorithm", "contrast"], observed=True)["pearson"].median()
        by_contrast = own.groupby(["cohort", "contrast"], observed=True).mean()
        images = by_contrast.groupby("cohort", observed=True)
        signal = images.min() if kind == "worst image" else images.mean()
        own = e.scores.groupby(["cohort", "strategy", "algorithm", "metric"], observed=True)["pearson"].median()
        by_metric = own.groupby(["cohort", "strategy", "metric"], observed=True).mean()
        both = by_metric.groupby(["cohort", "strategy"], observed=True)
        metric = both.max() if each_metric else both.mean()
        name = f"r of signals ({kind})"
        found = [Check(name, float(signal[c]), ">", SIGNAL_CORRELATION, c) for c in two]
        what = "highest r of a metric" if each_metric else "mean r of metrics"
        for cohort, strategy in metric.index:
            place = f"{cohort} {strategy}"
            found.append(Check(what, float(metric[cohort, strategy]), "<", float(signal[cohort]), place, "signals"))
        return found

    return checks


def explain_2(runs: Sequence[Evidence]) -> str:
    """Name the worst image, the best and the worst metric."""
    signals = _join(runs, lambda e: _single(_signals_of(e)))
    contrast = signals.groupby(["cohort", "contrast"], observed=True)["pearson"].median()
    (cohort, name), low = contrast.idxmin(), float(contrast.min())
    scores = _join(runs, lambda e: e.scores)
    metric = scores.groupby(["strategy", "metric"], observed=True)["pearson"].median()
    best, worst = metric.idxmax(), metric.idxmin()
    return (
        f"lowest r of signals {name} of {cohort} {format_number(low)}; of metrics highest {best[1]} in {best[0]} "
        f"{format_number(metric.max())}, lowest {worst[1]} in {worst[0]} {format_number(metric.min())}"
    )


# 3, 10, 11: s2s against m2m -----------------------------------------------------------------------------------------


def lower_in_s2s(
    columns: Mapping[str, str], *, without: Sequence[str] = (), only: Sequence[str] = (), higher: Sequence[str] = ()
) -> Rule:
    """Give the rule that indices are lower, or higher, in s2s than in m2m."""

    def checks(e: Evidence) -> list[Check]:
        found = []
        for metric, (label, column) in itertools.product(only or ("",), columns.items()):
            means = e.means(column, "cohort", "strategy", without=without, only=[metric] if metric else [])
            relation: Relation = ">" if label in higher else "<"
            for cohort in e.cohorts:
                s2s, m2m = _at(means, cohort, "s2s"), _at(means, cohort, "m2m")
                what = f"{metric} {label} of s2s".strip()
                found.append(Check(what, s2s, relation, m2m, cohort, "m2m"))
        return found

    return checks


def explain_3(runs: Sequence[Evidence]) -> str:
    """Count patients and algorithms for which s2s is lower; name the metrics where it is not."""
    parts = []
    for label, column in BOTH.items():
        means = (mean_over_patients(e.paired, column, "cohort", "patient", "strategy") for e in runs)
        patient = [lay_out(one, "strategy") for one in means]
        won = sum(int((t["s2s"] < t["m2m"]).sum()) for t in patient)
        total = sum(len(t) for t in patient)
        p = [_wilcoxon(t["s2s"] - t["m2m"]) for t in patient]
        table = _join(runs, lambda e: e.paired)
        algorithm = lay_out(mean_over_patients(table, column, "algorithm", "strategy"), "strategy")
        metric = lay_out(mean_over_patients(table, column, "metric", "strategy"), "strategy")
        ahead = int((algorithm["s2s"] < algorithm["m2m"]).sum())
        against = _most_against(metric)
        text = f"{label} of s2s is lower in {won} of {total} patients (Wilcoxon p {_median_p(p)}), for {ahead} of "
        text += f"{len(algorithm)} algorithms"
        if len(against):
            listed = (f"{name} ({_two(row['s2s'], row['m2m'])})" for name, row in against.iterrows())
            text += f"; not lower for {', '.join(listed)}"
        else:
            text += ", for every metric"
        parts.append(text)
    return "; ".join([*parts, *_bound(runs)])


def explain_10(runs: Sequence[Evidence]) -> str:
    """List what K and T2t are like in both strategies."""
    table = _join(runs, lambda e: e.paired)
    parts = []
    for name in ("K", "T2t"):
        part = table[table["metric"] == name]
        if not len(part):
            continue
        texts = []
        for label, column in {"median abs(E)": "median_abs_error", **BOTH, "r": "pearson"}.items():
            if column in part.columns and np.isfinite(part[column]).any():
                means = mean_over_patients(part, column, "strategy")
                texts.append(f"{label} {_two(means['s2s'], means['m2m'])}")
        parts.append(f"{name}: " + ", ".join(texts))
    return "s2s / m2m of " + "; ".join(parts)


def varies_less(columns: Mapping[str, str], without: Sequence[str] = ()) -> Rule:
    """Give the rule that a patient's indices vary less over algorithms in s2s than in m2m."""

    def checks(e: Evidence) -> list[Check]:
        table = drop_metrics(e.paired, without)
        _three_algorithms(table)
        found = []
        for label, column in columns.items():
            means = mean_over_patients(_between_algorithms(table, column), column, "cohort", "strategy")
            for cohort in e.cohorts:
                s2s, m2m = _at(means, cohort, "s2s"), _at(means, cohort, "m2m")
                found.append(Check(f"sd of {label} over algorithms, s2s", s2s, "<", m2m, cohort, "m2m"))
        return found

    return checks


def _between_algorithms(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Give the standard deviation over algorithms for each patient and metric."""
    keys = ["cohort", "patient", "strategy", "metric"]
    means = table.groupby([*keys, "algorithm"], observed=True)[column].mean()
    return means.groupby(keys, observed=True).std().rename(column).reset_index()


def means_vary_less(e: Evidence) -> list[Check]:
    """Compare how the means over patients vary over algorithms."""
    _three_algorithms(e.paired)
    found = []
    for label, column in BOTH.items():
        means = mean_over_patients(e.paired, column, "cohort", "strategy", "algorithm")
        spread = means.groupby(["cohort", "strategy"], observed=True).std()
        for cohort in e.cohorts:
            s2s, m2m = _at(spread, cohort, "s2s"), _at(spread, cohort, "m2m")
            found.append(Check(f"sd of mean {label} over algorithms, s2s", s2s, "<", m2m, cohort, "m2m"))
    return found


def maps_vary_less(e: Evidence) -> list[Check]:
    """Compare how the maps vary over algorithms, voxel by voxel."""
    means = mean_over_patients(e.map_spread, "spread", "cohort", "strategy")
    return [
        Check("relative sd of maps over algorithms, s2s", _at(means, c, "s2s"), "<", _at(means, c, "m2m"), c, "m2m")
        for c in e.cohorts
        if (c, "s2s") in means.index and (c, "m2m") in means.index
    ]


def explain_11(runs: Sequence[Evidence]) -> str:
    """Name the metrics where s2s varies more, and the algorithm farthest from the others."""
    table = _join(runs, lambda e: e.paired)
    parts = []
    for label, column in (*SIGNED.items(), *DI.items()):
        between = _between_algorithms(table, column)
        spread = lay_out(mean_over_patients(between, column, "metric", "strategy"), "strategy")
        more = _most_against(spread)
        listed = [f"{name} ({_two(row['s2s'], row['m2m'])})" for name, row in more.iterrows()]
        varies = f"more in s2s for {', '.join(listed)}" if listed else "less in s2s for every metric"
        means = mean_over_patients(table[table["strategy"] == "s2s"], column, "algorithm")
        far = (means - means.median()).abs().idxmax()
        farthest = f"{far} ({format_number(means[far])}, median {format_number(means.median())})"
        parts.append(f"{label} varies {varies}; farthest from the other algorithms in s2s: {farthest}")
    return "; ".join(parts)


def _three_algorithms(table: pd.DataFrame) -> None:
    n = table.groupby("strategy", observed=True)["algorithm"].nunique().min()
    if not n >= 3:
        msg = f"three algorithms (there {'is one' if n == 1 else f'are {n}'})"
        raise MissingEvidence(msg)


# 4: metrics against algorithms --------------------------------------------------------------------------------------


def metrics_vary_more(columns: Mapping[str, str], *, without: Sequence[str] = (), more_in_m2m: bool = True) -> Rule:
    """Give the rule that indices vary more over metrics than over algorithms."""

    def checks(e: Evidence) -> list[Check]:
        table = drop_metrics(e.paired, without)
        _three_algorithms(table)
        if table["metric"].nunique() < 2:
            msg = "two metrics"
            raise MissingEvidence(msg)
        found = []
        for (label, column), cohort in itertools.product(columns.items(), e.cohorts):
            ratio = _ratios(e, column, without)
            s2s, m2m = _at(ratio, cohort, "s2s"), _at(ratio, cohort, "m2m")
            what = f"sd over metrics / over algorithms of {label}"
            found += [Check(what, value, ">", 1.0, f"{cohort} {s}") for s, value in (("s2s", s2s), ("m2m", m2m))]
            if more_in_m2m:
                found.append(Check(f"{what}, m2m", m2m, ">", s2s, cohort, "s2s"))
        return found

    return checks


def _ratios(e: Evidence, column: str, without: Sequence[str]) -> pd.Series:
    """Divide the standard deviation over metrics by that over algorithms, for each cohort and strategy."""
    by = ["cohort", "strategy"]
    metrics, algorithms = (
        e.means(column, *by, what, without=without).groupby(by, observed=True).std() for what in ("metric", "algorithm")
    )
    # Without any difference between algorithms the ratio has no bound.
    return metrics / algorithms


def explain_4(runs: Sequence[Evidence]) -> str:
    """Name the highest and lowest metrics, and both standard deviations."""
    table = _join(runs, lambda e: e.paired)
    parts = []
    for label, column in BOTH.items():
        for strategy in ("s2s", "m2m"):
            own = table[table["strategy"] == strategy]
            means = mean_over_patients(own, column, "metric")
            over_algorithms = mean_over_patients(own, column, "algorithm").std()
            parts.append(
                f"{label} in {strategy}: sd {format_number(means.std())} over metrics ({means.idxmax()} highest, "
                f"{means.idxmin()} lowest), {format_number(over_algorithms)} over algorithms"
            )
    return "; ".join(parts)


# 5: cohorts ---------------------------------------------------------------------------------------------------------


def first_better(
    columns: Mapping[str, str], *, without: Sequence[str] = (), strategies: Sequence[str] = ("s2s", "m2m")
) -> Rule:
    """Give the rule that indices are lower in the first cohort."""

    def checks(e: Evidence) -> list[Check]:
        one, two = e.two_cohorts()
        found = []
        for (label, column), strategy in itertools.product(columns.items(), strategies):
            means = e.means(column, "strategy", "cohort", paired=False, without=without)
            if (strategy, one) not in means.index or (strategy, two) not in means.index:
                msg = f"scores of {strategy} in both cohorts"
                raise MissingEvidence(msg)
            first, second = float(means[strategy, one]), float(means[strategy, two])
            found.append(Check(f"{label} of {one}", first, "<", second, strategy, two))
        return found

    return checks


def explain_5(runs: Sequence[Evidence]) -> str:
    """Name the metrics where the first cohort is not lower, and test over patients."""
    from scipy.stats import mannwhitneyu

    one, two = runs[0].two_cohorts()
    parts = []
    for (label, column), strategy in itertools.product(BOTH.items(), ("s2s", "m2m")):
        p = []
        for e in runs:
            part = e.scores[e.scores["strategy"] == strategy]
            own = part.groupby(["cohort", "patient"], observed=True)[column].mean()
            a, b = (own[name].dropna().to_numpy() for name in e.two_cohorts())
            if len(a) and len(b) and len({*a, *b}) > 1:
                p.append(float(mannwhitneyu(a, b).pvalue))
        table = _join(runs, lambda e: e.scores)
        means = lay_out(mean_over_patients(table[table["strategy"] == strategy], column, "metric", "cohort"), "cohort")
        worse = [str(name) for name, row in means.iterrows() if not row[one] < row[two]]
        where = f"{one} not lower for {', '.join(worse)}" if worse else f"{one} lower for every metric"
        parts.append(f"{label} in {strategy}: Mann–Whitney p over patients {_median_p(p)}, {where}")
    return "; ".join(parts)


# 6: no difference between algorithms --------------------------------------------------------------------------------


def no_difference(columns: Mapping[str, str], *, without_t2v: bool = False, equivalence: bool = True) -> Rule:
    """Give the rule that no test separates algorithms and all pairs are equivalent."""

    def checks(e: Evidence) -> list[Check]:
        _three_algorithms(e.scores)
        friedman, pairs, verdicts = _tests(e, columns, without_t2v)
        reasons = [text for text in friedman["reason"] if text]
        if len(reasons) == len(friedman):
            raise MissingEvidence(reasons[0])
        found = [
            Check("lowest p of Friedman's tests", _lowest(friedman["p_holm"]), ">=", ALPHA),
            Check("lowest p of Wilcoxon's pairs", _lowest(pairs["p_holm"]), ">=", ALPHA),
        ]
        if equivalence:
            share = float((verdicts["verdict"] == "equivalent").mean())
            found.append(Check("share of pairs equivalent", share, ">=", 1.0, fails=False))
        return found

    return checks


def _lowest(p: pd.Series) -> float:
    return float(p.min()) if p.notna().any() else float("nan")


def _tests(e: Evidence, columns: Mapping[str, str], without_t2v: bool) -> tuple[pd.DataFrame, ...]:
    """Test all cells of a run; correct p values over them."""
    import pandas as pd

    tables = {label: e.tests(column, without_t2v) for label, column in columns.items()}
    friedman, pairs, verdicts = (
        pd.concat([found[name].assign(label=label) for label, found in tables.items()], ignore_index=True)
        for name in ("friedman", "pairs", "equivalence")
    )
    friedman["p_holm"], pairs["p_holm"] = holm(friedman["p"]), holm(pairs["p"])
    return friedman, pairs, verdicts


def explain_6(runs: Sequence[Evidence]) -> str:
    """Count equivalent pairs; name the two algorithms that differ most."""
    import pandas as pd

    found = [_tests(e, BOTH, False) for e in runs]
    pairs = pd.concat([tables[1] for tables in found], ignore_index=True)
    verdicts = pd.concat([tables[2] for tables in found], ignore_index=True)
    n = int(pairs["n_patients"].min()) if len(pairs) else 0
    counts = verdicts["verdict"].value_counts()
    text = ", ".join(f"{int(counts.get(name, 0))} {name}" for name in ("equivalent", "different", "undecided"))
    parts = [f"of {len(verdicts)} pairs {text} within {MARGIN_SHARE:.0%} of the median index (TOST, {n} patients)"]
    if pairs["p_holm"].notna().any():
        row = pairs.loc[pairs["p_holm"].idxmin()]
        parts.append(
            f"largest difference {row['a']} {format_number(row['mean_a'])}, {row['b']} {format_number(row['mean_b'])} "
            f"({row['label']}, {row['cohort']} {row['strategy']}, Holm p {_p(row['p_holm'])}, rank-biserial "
            f"{format_number(row['rank_biserial'])})"
        )
    return "; ".join(parts)


# Words --------------------------------------------------------------------------------------------------------------


def _join(runs: Sequence[Evidence], table: Callable[[Evidence], pd.DataFrame]) -> pd.DataFrame:
    """Put the tables of several seeds together; patients of two seeds are two patients."""
    import pandas as pd

    if len(runs) == 1:
        return table(runs[0])
    named = []
    for e in runs:
        own = table(e)
        named.append(own.assign(patient=[f"{name} (seed {e.seed})" for name in own["patient"]]))
    return pd.concat(named, ignore_index=True)


def _most_against(means: pd.DataFrame) -> pd.DataFrame:
    """Rows in which s2s is not lower, the largest difference first."""
    against = means[means["s2s"] >= means["m2m"]]
    return against.loc[(against["m2m"] - against["s2s"]).sort_values(kind="stable").index]


def _at(means: pd.Series, cohort: str, strategy: str) -> float:
    return float(means.get((cohort, strategy), np.nan))


def _wilcoxon(difference: pd.Series) -> float:
    from scipy.stats import wilcoxon

    values = np.sort(difference.dropna().to_numpy())
    if len(values) < 3 or not values.any():
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(wilcoxon(values).pvalue)


def _median_p(p: Sequence[float]) -> str:
    finite = [value for value in p if np.isfinite(value)]
    return _p(float(np.median(finite))) if finite else "–"


def _p(value: float) -> str:
    return "< 0.001" if value < 1e-3 else f"{value:.3f}"


def _two(s2s: float, m2m: float) -> str:
    return f"{format_number(s2s)} / {format_number(m2m)}"


def _bound(runs: Sequence[Evidence]) -> list[str]:
    """Say how often the reference of T2v sits at a bound."""
    shares = []
    for e in runs:
        own = e.scores[e.scores["metric"] == "T2v"]
        if "at_bound" in own and own["at_bound"].notna().any():
            # All rows of a patient have one reference.
            shares.append(float(own.groupby(["cohort", "patient"], observed=True)["at_bound"].first().mean()))
    return [f"the reference of T2v sits at a bound in {np.mean(shares):.0%} of the voxels"] if shares else []
