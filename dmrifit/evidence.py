"""The tables that the claims of the study are decided by: by condition and seed, algorithms only."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.algorithms import ALGORITHMS
from dmrifit.boards import MissingEvidence, Run
from dmrifit.controls import CONTROLS
from dmrifit.statistics import study_statistics

if TYPE_CHECKING:
    import pandas as pd

    from dmrifit.evaluation import Evaluation

__all__ = [
    "ALPHA",
    "PRESETS",
    "REGIONS",
    "Evidence",
    "condition_name",
    "drop_metrics",
    "lay_out",
    "mean_over_patients",
    "study_runs",
]

#: Level of significance; the letter names none.
ALPHA = 0.05
#: Regions to train on.
REGIONS = ("body", "lesion")
#: Kinds of cohort that must be there together.
PRESETS = ("synthetic easy", "synthetic mixed")

_KEYS = ["cohort", "patient", "strategy", "algorithm", "n_train", "repeat"]
_TEXT = ("cohort", "patient", "strategy", "algorithm", "metric", "contrast")
_ORDER = ("f", "Dv", "T2v", "Dt", "K", "T2t")
_PARTS = re.compile(r"(\d+)")


def condition_name(kind: str, region: str) -> str:
    """Name a kind of cohort and the region that was trained on."""
    return f"{kind}, trained on {region}"


@dataclass(frozen=True, eq=False)
class Evidence:
    """
    Tables of one seed and condition: algorithms only, trained within the cohort, without S0.

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
    seed : str
        Name of the run.
    predictions : tuple of mapping
        Predicted maps by cohort and patient, where they were kept.
    elsewhere : mapping of str to Evidence
        The same with other regions scored.
    """

    kind: str
    cohorts: tuple[str, ...]
    curve: pd.DataFrame
    signals: pd.DataFrame
    region: str
    seed: str = ""
    predictions: tuple[Mapping[Any, Any], ...] = ()
    elsewhere: Mapping[str, Evidence] = field(default_factory=dict)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Rows at the largest training size of each cohort."""
        return _largest(self.curve)

    @cached_property
    def sizes(self) -> list[int]:
        """Training sizes that all cohorts have."""
        have = [set(part["n_train"]) for _, part in self.curve.groupby("cohort", observed=True)]
        return sorted(set.intersection(*have))

    @cached_property
    def curves(self) -> dict[Any, pd.DataFrame]:
        """Learning curves that were made already."""
        return {}

    @cached_property
    def _means(self) -> dict[Any, pd.Series]:
        return {}

    def means(
        self, column: str, *by: str, paired: bool = True, without: Sequence[str] = (), only: Sequence[str] = ()
    ) -> pd.Series:
        """Average scores at the largest training size as `mean_over_patients` does; each average is made once."""
        key = column, by, paired, tuple(without), tuple(only)
        if key not in self._means:
            table = drop_metrics(self.paired if paired else self.scores, without)
            for name in only:
                if name not in self.metrics:
                    msg = f"metric {name}"
                    raise MissingEvidence(msg)
            table = table[table["metric"].isin(only)] if only else table
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
            missing = [name for name in ("s2s", "m2m") if not self.algorithms(name)]
            msg = f"scores of {' and '.join(missing)}" if missing else "an algorithm in both strategies"
            raise MissingEvidence(msg)
        return self.scores[self.scores["algorithm"].isin(names)]

    def algorithms(self, strategy: str) -> set[str]:
        """Names of the algorithms of a strategy."""
        return set(self.scores.loc[self.scores["strategy"] == strategy, "algorithm"])

    @cached_property
    def metrics(self) -> list[str]:
        """Parameters that are scored, in the model's order."""
        found = set(self.scores["metric"])
        return [name for name in _ORDER if name in found] + sorted(found - set(_ORDER))

    def two_cohorts(self) -> tuple[str, str]:
        """Names of the first and the second cohort."""
        if len(self.cohorts) != 2:
            msg = f"two cohorts (there {'is one' if len(self.cohorts) == 1 else f'are {len(self.cohorts)}'})"
            raise MissingEvidence(msg)
        return self.cohorts[0], self.cohorts[1]

    @cached_property
    def _tests(self) -> dict[tuple[str, bool], dict[str, pd.DataFrame]]:
        return {}

    def tests(self, index: str, without_t2v: bool) -> dict[str, pd.DataFrame]:
        """Tests between algorithms; made once."""
        key = index, without_t2v
        if key not in self._tests:
            metrics = [name for name in self.metrics if not (without_t2v and name == "T2v")]
            if not metrics:
                msg = "a metric other than T2v"
                raise MissingEvidence(msg)
            try:
                self._tests[key] = study_statistics(
                    self.scores.assign(train_on="same"),
                    order=ALGORITHMS,
                    index=index,
                    metrics=metrics,
                    tables=("friedman", "pairs", "equivalence"),
                    alpha=ALPHA,
                    n_bootstrap=1,
                )
            except ImportError as error:
                raise MissingEvidence(str(error)) from error
        return self._tests[key]

    @cached_property
    def map_spread(self) -> pd.DataFrame:
        """Spread of the maps between algorithms: cohort, patient, strategy, metric, spread."""
        import pandas as pd

        named = self.paired.drop_duplicates("estimator") if "estimator" in self.paired else None
        rows = []
        for one in itertools.chain.from_iterable(mapping.values() for mapping in self.predictions):
            if named is None or one.cohort not in self.cohorts:
                continue
            for strategy, part in named.groupby("strategy", observed=True):
                maps = [one.maps[name] for name in part["estimator"] if name in one.maps]
                if len(maps) < 2:
                    continue
                spread = np.std(np.stack([np.asarray(m, dtype=float) for m in maps]), axis=0, ddof=1)
                reference = np.abs(np.asarray(one.reference, dtype=float))
                for j, metric in enumerate(one.names):
                    usable = np.isfinite(spread[:, j]) & (reference[:, j] > 0)
                    if metric in self.metrics and usable.any():
                        relative = float(np.median(spread[usable, j] / reference[usable, j]))
                        keys = {"cohort": one.cohort, "patient": one.patient, "strategy": strategy}
                        rows.append(keys | {"metric": metric, "spread": relative})
        if not rows or len({row["strategy"] for row in rows}) < 2:
            msg = "predicted maps (keep_predictions)"
            raise MissingEvidence(msg)
        return pd.DataFrame(rows)


def _largest(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["n_train"] == table.groupby("cohort", observed=True)["n_train"].transform("max")]


def mean_over_patients(table: pd.DataFrame, column: str, *by: str) -> pd.Series:
    """Average within patients first, then over patients."""
    if column not in table.columns or not np.isfinite(table[column]).any():
        what = "the truth of synthetic scans" if column.endswith("_truth") else column
        raise MissingEvidence(what)
    within = list(dict.fromkeys([*by, "cohort", "patient"]))
    return table.groupby(within, observed=True)[column].mean().groupby(list(by), observed=True).mean()


def lay_out(means: pd.Series, *columns: str) -> pd.DataFrame:
    """Lay levels of the index out as columns."""
    rows = [name for name in means.index.names if name not in columns]
    return means.to_frame("mean").pivot_table(index=rows, columns=list(columns), values="mean", observed=True)


def drop_metrics(table: pd.DataFrame, without: Sequence[str]) -> pd.DataFrame:
    """Leave metrics out; nothing left is missing evidence."""
    rest = table[~table["metric"].isin(without)] if without else table
    if not len(rest):
        msg = f"a metric other than {', '.join(without)}"
        raise MissingEvidence(msg)
    return rest


def study_runs(evaluations: Sequence[Evaluation]) -> list[Run]:
    """Sort what evaluations hold by condition and seed; raise ValueError if that is nothing."""
    regions: dict[tuple[str, str, str], dict[str, list[tuple[Evaluation, list[str]]]]] = {}
    for one in evaluations:
        settings = one.study.get("settings", {})
        for kind, cohorts in _kinds(one).items():
            seeds = sorted({str(_simulation(one, name).get("seed", "")) for name in cohorts} - {"", "None"})
            own = str(settings.get("seed", "not known"))
            name = own if seeds in ([], [own]) else f"{own} (cohorts {', '.join(seeds)})"
            key = kind, str(settings.get("train_mask", "body")), name
            regions.setdefault(key, {}).setdefault(str(settings.get("score_mask", "lesion")), []).append((one, cohorts))
    if not regions:
        msg = "no evaluation has scores of an algorithm trained within its cohort"
        raise ValueError(msg)
    runs = []
    for (kind, train_mask, seed), by_region in regions.items():
        found = {region: _evidence(kind, region, seed, parts) for region, parts in by_region.items()}
        # The study scores tumors; other regions are readings of two claims.
        first = "lesion" if "lesion" in found else next(iter(found))
        evidence = _with_elsewhere(found.pop(first), found)
        runs.append(Run(condition_name(kind, train_mask), seed, evidence))
    order = {name: i for i, name in enumerate(condition_name(k, r) for k in PRESETS for r in REGIONS)}
    return sorted(runs, key=lambda run: (order.get(run.condition, len(order)), run.condition, _natural(run.name)))


def _with_elsewhere(evidence: Evidence, others: Mapping[str, Evidence]) -> Evidence:
    return replace(evidence, elsewhere=dict(others))


def _natural(text: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in _PARTS.split(text) if part]


def _simulation(one: Evaluation, cohort: str) -> dict[str, Any]:
    return one.study.get("cohorts", {}).get(cohort, {}).get("simulation") or {}


def _kinds(one: Evaluation) -> dict[str, list[str]]:
    """Sort the cohorts with scores of algorithms by what they are: a preset, otherwise synthetic, or measured."""
    table = _own_rows(one.scores)
    kinds: dict[str, list[str]] = {}
    for name in sorted(set(table["cohort"]), key=_natural):
        difficulty = _simulation(one, name).get("difficulty")
        synthetic = bool(one.study.get("cohorts", {}).get(name, {}).get("synthetic", difficulty is not None))
        kind = f"synthetic {difficulty}" if difficulty else "synthetic" if synthetic else "measured"
        kinds.setdefault(kind, []).append(name)
    return kinds


def _own_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Keep algorithms trained within their cohort."""
    return table[(table["train_on"] == "same") & ~table["algorithm"].isin(CONTROLS)]


def _evidence(kind: str, region: str, seed: str, parts: Sequence[tuple[Evaluation, list[str]]]) -> Evidence:
    import pandas as pd

    cohorts = sorted({name for _, names in parts for name in names}, key=_natural)
    own = [(one.scores, names) for one, names in parts]
    scores = pd.concat([_own_rows(table[table["cohort"].isin(names)]) for table, names in own])
    told = [(one.signals, names) for one, names in parts if len(one.signals)]
    signals = pd.concat([_own_rows(table[table["cohort"].isin(names)]) for table, names in told]) if told else None
    return Evidence(
        kind=kind,
        cohorts=tuple(cohorts),
        curve=_tidy(scores[scores["metric"] != "S0"], "metric"),
        signals=pd.DataFrame() if signals is None else _tidy(signals, "contrast"),
        region=region,
        seed=seed,
        predictions=tuple(getattr(e, "predictions", None) or {} for e, _ in parts),
    )


def _tidy(table: pd.DataFrame, what: str) -> pd.DataFrame:
    """Order rows, so that sums have the same bits in any order; a row that came twice counts once."""
    keys = [*_KEYS, what]
    table = table.drop_duplicates(keys).sort_values(keys, ignore_index=True)
    # A constant prediction has no correlation: it counts as none.
    filled = {name: table[name].fillna(0.0) for name in ("pearson", "spearman") if name in table}
    if what == "metric":
        for name in ("bias", "bias_truth"):
            if name in table:
                filled[f"abs_{name}"] = table[name].abs()
    # Groups of categories are found several times faster than groups of text.
    text = {name: table[name].astype("category") for name in _TEXT if name in table}
    return table.assign(**filled, **text)
