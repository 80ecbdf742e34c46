"""Score tables that decide the claims: by condition and seed, algorithms only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.claims.claim_board import MissingEvidence, Run
from dmrifit.predict.controls import CONTROLS
from dmrifit.stats.metrics import AT_BOUND, NO_TISSUE

if TYPE_CHECKING:
    import pandas as pd

    from dmrifit.study.comparison import Evaluation

__all__ = [
    "PRESETS",
    "REGIONS",
    "STRATEGIES",
    "Evidence",
    "condition_name",
    "lay_out",
    "mean_over_patients",
    "study_runs",
]

#: Regions to train on.
REGIONS = ("body", "lesion")
#: Kinds of cohort that are needed together.
PRESETS = ("synthetic easy", "synthetic mixed")
STRATEGIES = ("s2s", "m2m")

# No property of the tissue, and a parameter that mostly sits at a bound: in no mean, as in reports.
_LEFT_OUT = (*NO_TISSUE, AT_BOUND)
_KEYS = ["cohort", "patient", "strategy", "algorithm", "n_train", "repeat"]
_TEXT = ("cohort", "patient", "strategy", "algorithm", "metric", "contrast")
_DIGITS = re.compile(r"(\d+)")


def condition_name(kind: str, region: str) -> str:
    """Name a kind of cohort and the region that was trained on."""
    return f"{kind}, trained on {region}"


@dataclass(frozen=True, eq=False)
class Evidence:
    """
    Tables of one seed and condition: algorithms only, trained within the cohort, without S0 and T2v.

    Attributes
    ----------
    kind : str
        What the cohorts are: a synthetic preset, synthetic otherwise, or measured.
    cohorts : tuple of str
        Their names, in order.
    curve : DataFrame
        Scores at all training sizes, with ``abs_bias``.
    signals : DataFrame
        Scores of signals at all training sizes; empty without any.
    region : str
        The region that was scored.
    elsewhere : mapping of str to Evidence
        The same with other regions scored.
    """

    kind: str
    cohorts: tuple[str, ...]
    curve: pd.DataFrame
    signals: pd.DataFrame
    region: str
    elsewhere: Mapping[str, Evidence] = field(default_factory=dict)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Rows at the largest training size of each cohort."""
        return _largest(self.curve)

    @cached_property
    def sizes(self) -> list[int]:
        """Training sizes that all cohorts have."""
        by_cohort = self.curve.groupby("cohort", observed=True)["n_train"]
        return sorted(set.intersection(*(set(sizes) for _, sizes in by_cohort)))

    @cached_property
    def curves(self) -> dict[Any, pd.DataFrame]:
        """Learning curves that were computed before."""
        return {}

    @cached_property
    def _means(self) -> dict[Any, pd.Series]:
        return {}

    def means(
        self,
        column: str,
        *by: str,
        paired: bool = True,
        metric: str = "",
    ) -> pd.Series:
        """Average at the largest training size as `mean_over_patients` does, each mean once."""
        key = column, by, paired, metric
        if key not in self._means:
            table = self.paired if paired else self.scores
            if metric:
                table = table[table["metric"] == metric]
            if not len(table):
                raise MissingEvidence(f"metric {metric}")
            self._means[key] = mean_over_patients(table, column, *by)
        return self._means[key]

    @cached_property
    def unseen(self) -> pd.DataFrame:
        """Signals at the largest training size."""
        return _largest(self.signals) if len(self.signals) else self.signals

    @cached_property
    def paired(self) -> pd.DataFrame:
        """Scores of the algorithms that both strategies have."""
        names = self.algorithms("s2s") & self.algorithms("m2m")
        if not names:
            missing = [strategy for strategy in STRATEGIES if not self.algorithms(strategy)]
            msg = "an algorithm in both strategies"
            if missing:
                msg = f"scores of {' and '.join(missing)}"
            raise MissingEvidence(msg)
        return self.scores[self.scores["algorithm"].isin(names)]

    def algorithms(self, strategy: str) -> set[str]:
        """Names of the algorithms of a strategy."""
        return set(self.scores.loc[self.scores["strategy"] == strategy, "algorithm"])

    @cached_property
    def metrics(self) -> set[str]:
        """Parameters that are scored."""
        return set(self.scores["metric"])

    def two_cohorts(self) -> tuple[str, str]:
        """Names of the first and the second cohort."""
        if len(self.cohorts) != 2:
            count = "is one" if len(self.cohorts) == 1 else f"are {len(self.cohorts)}"
            raise MissingEvidence(f"two cohorts (there {count})")
        return self.cohorts[0], self.cohorts[1]


def _largest(table: pd.DataFrame) -> pd.DataFrame:
    largest = table.groupby("cohort", observed=True)["n_train"].transform("max")
    return table[table["n_train"] == largest]


def mean_over_patients(table: pd.DataFrame, column: str, *by: str) -> pd.Series:
    """Average within patients first, then over patients."""
    if column not in table.columns or not np.isfinite(table[column]).any():
        what = "the truth of synthetic scans" if column.endswith("_truth") else column
        raise MissingEvidence(what)
    within = list(dict.fromkeys([*by, "cohort", "patient"]))
    patients = table.groupby(within, observed=True)[column].mean()
    return patients.groupby(list(by), observed=True).mean()


def lay_out(means: pd.Series, *columns: str) -> pd.DataFrame:
    """Lay levels of the index out as columns."""
    rows = [name for name in means.index.names if name not in columns]
    table = means.to_frame("mean")
    return table.pivot_table(index=rows, columns=list(columns), values="mean", observed=True)


def study_runs(evaluations: Sequence[Evaluation]) -> list[Run]:
    """Sort tables of evaluations by condition and seed; raise ValueError if there are none."""
    by_run: dict[tuple[str, str, str], dict[str, list[tuple[Evaluation, list[str]]]]] = {}
    for evaluation in evaluations:
        settings = evaluation.study.get("settings", {})
        train_mask = str(settings.get("train_mask", "body"))
        score_mask = str(settings.get("score_mask", "lesion"))
        for kind, cohorts in _kinds(evaluation).items():
            key = kind, train_mask, _run_name(evaluation, cohorts)
            parts = by_run.setdefault(key, {})
            parts.setdefault(score_mask, []).append((evaluation, cohorts))
    if not by_run:
        raise ValueError("no evaluation has scores of an algorithm trained within its cohort")
    runs = []
    for (kind, train_mask, name), parts in by_run.items():
        regions = {region: _evidence(kind, region, part) for region, part in parts.items()}
        # The study scores tumors; other regions are alternative readings of two claims.
        first = "lesion" if "lesion" in regions else next(iter(regions))
        evidence = regions.pop(first)
        runs.append(
            Run(condition_name(kind, train_mask), name, replace(evidence, elsewhere=regions))
        )
    return sorted(runs, key=_run_order)


def _run_name(evaluation: Evaluation, cohorts: Sequence[str]) -> str:
    """Name the seed of the study, and those of its cohorts where they differ from it."""
    seed = str(evaluation.study.get("settings", {}).get("seed", "not known"))
    simulated = {str(_simulation(evaluation, name).get("seed", "")) for name in cohorts}
    simulated -= {"", "None"}
    if simulated in (set(), {seed}):
        return seed
    return f"{seed} (cohorts {', '.join(sorted(simulated))})"


def _run_order(run: Run) -> tuple[int, str, Any]:
    conditions = [condition_name(kind, region) for kind in PRESETS for region in REGIONS]
    place = len(conditions)
    if run.condition in conditions:
        place = conditions.index(run.condition)
    return place, run.condition, _natural(run.name)


def _natural(text: str) -> list[tuple[int, int, str]]:
    parts = [part for part in _DIGITS.split(text) if part]
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _simulation(evaluation: Evaluation, cohort: str) -> dict[str, Any]:
    return evaluation.study.get("cohorts", {}).get(cohort, {}).get("simulation") or {}


def _kinds(evaluation: Evaluation) -> dict[str, list[str]]:
    """Sort the cohorts with scores of algorithms: a preset, synthetic otherwise, or measured."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(set(_within_cohort(evaluation.scores)["cohort"]), key=_natural):
        difficulty = _simulation(evaluation, name).get("difficulty")
        kind = "measured"
        if difficulty:
            kind = f"synthetic {difficulty}"
        elif evaluation.study.get("cohorts", {}).get(name, {}).get("synthetic"):
            kind = "synthetic"
        kinds.setdefault(kind, []).append(name)
    return kinds


def _within_cohort(table: pd.DataFrame) -> pd.DataFrame:
    """Keep algorithms trained within their cohort."""
    return table[(table["train_on"] == "same") & ~table["algorithm"].isin(CONTROLS)]


def _evidence(kind: str, region: str, parts: Sequence[tuple[Evaluation, list[str]]]) -> Evidence:
    import pandas as pd

    names: set[str] = set()
    scores, signals = [], []
    for evaluation, cohorts in parts:
        names |= set(cohorts)
        table = _within_cohort(evaluation.scores)
        scores.append(table[table["cohort"].isin(cohorts) & ~table["metric"].isin(_LEFT_OUT)])
        if len(evaluation.signals):
            table = _within_cohort(evaluation.signals)
            signals.append(table[table["cohort"].isin(cohorts)])
    return Evidence(
        kind=kind,
        cohorts=tuple(sorted(names, key=_natural)),
        curve=_tidy(pd.concat(scores), "metric"),
        signals=_tidy(pd.concat(signals), "contrast") if signals else pd.DataFrame(),
        region=region,
    )


def _tidy(table: pd.DataFrame, what: str) -> pd.DataFrame:
    """Order rows, so that sums have the same bits in any order; count repeated rows once."""
    keys = [*_KEYS, what]
    table = table.drop_duplicates(keys).sort_values(keys, ignore_index=True)
    if "pearson" in table:
        # A constant prediction has no correlation: it counts as none.
        table["pearson"] = table["pearson"].fillna(0.0)
    if "bias" in table:
        table["abs_bias"] = table["bias"].abs()
    # Groups of categories are several times faster than groups of text.
    return table.astype({name: "category" for name in _TEXT if name in table})
