"""Compare placements with those of experts: the tables of the study."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._optional import import_optional
from dmrifit._utils.randomness import RandomState, seed_for, seed_from
from dmrifit.stats.agreement import ICC_FORMS, bland_altman, icc
from dmrifit.stats.method_tests import holm, rank_biserial
from placement.box.voxel import MM3_PER_ML, Voxel
from placement.search.objective import tumor_fraction
from placement.search.scene import Scene

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CONTROLS",
    "EXPERTS",
    "MEASURES",
    "case_folds",
    "control_placements",
    "cross_validate_placements",
    "evaluate_placements",
    "format_summary",
]

#: The row of the experts.
EXPERTS = "experts"
#: Rows that no method should fall short of.
CONTROLS = ("centroid box", "random box")
#: What is measured in each case.
MEASURES = (
    *(
        "f_tumor",
        "volume",
        "dice_closest",
        "dice_mean",
        "dice_fair",
        "rotated_axes",
        "rotated_angles",
        "difference",
    ),
)

#: Values that differ by less than this part of them are equal but for rounding.
LEVEL = 1e-12

_TESTED = ("dice_mean", "volume", "f_tumor")


def evaluate_placements(
    scenes: Sequence[Scene],
    experts: ArrayLike,
    placements: Mapping[str, Any],
    *,
    folds: ArrayLike | None = None,
    seconds: Mapping[str, ArrayLike] | None = None,
    controls: bool = True,
    random_state: RandomState = 0,
) -> dict[str, pd.DataFrame]:
    """
    Compare placements with those of experts, as the study did and as it could have.

    Parameters
    ----------
    scenes : sequence of Scene
        The cases.
    experts : array_like of shape (n_cases, n_experts, 9)
        Experts' boxes as `Voxel.as_array` gives them; NaN where an expert placed none.
    placements : mapping of str to array_like of shape (n_cases, 9) or sequence of Voxel
        Boxes by the name of the method; NaN where it gave none.
    folds : array_like of int, shape (n_cases,), default=None
        In which fold each case was held out, from 1. The summary then has the parts "fold 1",
        which the study chose its settings on, and "other folds", too.
    seconds : mapping of str to array_like of shape (n_cases,), default=None
        How long a method took for each case.
    controls : bool, default=True
        Whether the rows of `CONTROLS` are added; see `control_placements`.
    random_state : int, RandomState or None, default=0
        Seed of the random box.

    Returns
    -------
    dict of str to DataFrame
        ``"cases"``: a row for each case and method with ``case``, ``name``, ``fold``,
        ``tumor_volume`` (mL), ``method``, ``seconds`` and `MEASURES`: part of the box that is
        tumor, volume (mL), Dice with the closest expert, the mean over experts, the fair one,
        turned axes (invariant, and the study's count of angles) and volume minus the experts' mean
        (mL). ``dice_fair`` is the mean, over leaving one expert out, of the closest of the others,
        for experts and methods alike: the closest of two experts is a maximum of two, an expert
        has only one other. For experts, measures are means over them, Dice is between them, and
        the difference is that of the first two. ``"summary"``: ``part``, ``method``, ``measure``,
        ``n``, ``mean``, ``sd``, ``median``; the method "single experts" pools their boxes.
        ``"icc"``: of volumes, ``method`` with ``against`` each expert in every form, with
        interval. ``"bland_altman"``: of volumes, against each expert and the mean of experts, with
        intervals, and the slope of the difference over the mean. ``"anova"``: one-way, as
        published, repeated-measures and Friedman's, over experts and methods, for mean Dice,
        volume and f_tumor. The same cases are in every group, so the one-way test is not the right
        one. ``"paired"``: for two groups at a time, paired t and Wilcoxon tests, Holm's correction
        of the latter, and the rank-biserial correlation with interval. ``"correlations"``: of each
        measure with tumor volume, Pearson (with interval) and Spearman.

    Raises
    ------
    ValueError
        If a scene is none, numbers of cases differ, a box is none, no expert placed any, a fold is
        below 1, or there is no method.

    References
    ----------
    Lee et al., MICCAI 2024, table 1 and figures; Shrout and Fleiss, Psychol Bull 86:420–428, 1979;
    Bland and Altman, Lancet 327:307–310, 1986.
    """
    import pandas as pd

    strangers = [i for i, scene in enumerate(scenes) if not isinstance(scene, Scene)]
    if strangers:
        raise ValueError(
            f"scenes must be a sequence of Scene; case {strangers[0]} is a "
            f"{type(scenes[strangers[0]]).__name__}"
        )
    boxes = _expert_boxes(experts, len(scenes))
    if not any(box is not None for pair in boxes for box in pair):
        raise ValueError(
            f"there is nothing to compare with: no expert placed a box in the {len(scenes)} scenes"
        )
    named = {name: _boxes(value, len(scenes), name) for name, value in placements.items()}
    taken = [name for name in named if name in (EXPERTS, *(CONTROLS if controls else ()))]
    if not named or taken:
        raise ValueError(f"placements need names of their own, not {taken or 'none at all'}")
    if controls:
        made = control_placements(scenes, boxes, random_state=random_state)
        named |= {name: _boxes(value, len(scenes), name) for name, value in made.items()}
    held_out = _fold_numbers(folds, len(scenes))
    times = {name: _times(value, len(scenes), name) for name, value in (seconds or {}).items()}
    unknown = [name for name in times if name not in named]
    if unknown:
        raise ValueError(
            f"seconds name {unknown}, which are not among the placements {list(named)}"
        )
    rows, single = [], []
    for i, scene in enumerate(scenes):
        keys = {
            "case": i,
            "name": scene.name,
            "fold": int(held_out[i]),
            "tumor_volume": scene.tumor_volume,
        }
        own = [box for box in boxes[i] if box is not None]
        rows.append({**keys, "method": EXPERTS, "seconds": np.nan, **_expert_measures(own, scene)})
        single += [
            {**keys, "method": "single experts", **_box_measures(box, scene)} for box in own
        ]
        for name, found in named.items():
            took = times[name][i] if name in times else np.nan
            rows.append(
                {**keys, "method": name, "seconds": took, **_measures(found[i], own, scene)}
            )
    cases = pd.DataFrame(rows)
    volumes = {name: _volumes(found) for name, found in named.items()}
    by_expert = np.array([_volumes(pair) for pair in boxes])
    groups = [EXPERTS, *(name for name in named if name not in CONTROLS)]
    return {
        "cases": cases,
        "summary": _summary(
            pd.concat([cases, pd.DataFrame(single)], ignore_index=True), folds is not None
        ),
        "icc": _icc_table(by_expert, volumes),
        "bland_altman": _agreement_table(by_expert, volumes),
        "anova": _anova_table(cases, groups),
        "paired": _paired_table(cases, groups),
        "correlations": _correlation_table(cases),
    }


def control_placements(
    scenes: Sequence[Scene], experts: Any, *, random_state: RandomState = 0
) -> dict[str, NDArray[np.float64]]:
    """
    Place boxes without looking: at the centroid, and anywhere in the tumor.

    Shapes: `experts` (n_cases, n_experts, 9); returns (n_cases, 9).
    """
    boxes = experts if isinstance(experts, list) else _expert_boxes(experts, len(scenes))
    seed = seed_from(random_state)
    side = (
        np.mean([box.volume for pair in boxes for box in pair if box is not None]) * MM3_PER_ML
    ) ** (1 / 3)
    centered, scattered = np.empty((len(scenes), 9)), np.empty((len(scenes), 9))
    for i, scene in enumerate(scenes):
        others = [
            box for j, pair in enumerate(boxes) for box in pair if box is not None and j != i
        ]
        others = others or [box for box in boxes[i] if box is not None]
        centered[i] = [*scene.centroid, side, side, side, 0, 0, 0]
        rng = np.random.default_rng(seed_for(seed, "random box", i))
        like = others[rng.integers(len(others))]
        weights = scene.occupancy.ravel().astype(np.float64)
        place = np.unravel_index(
            rng.choice(len(weights), p=weights / weights.sum()), scene.occupancy.shape
        )
        index = np.array(place) + np.array(scene.origin)
        scattered[i] = [
            *(scene.affine[:3, :3] @ index + scene.affine[:3, 3]),
            *like.size,
            *like.angles,
        ]
    return dict(zip(CONTROLS, (centered, scattered), strict=True))


def case_folds(
    n_cases: int,
    *,
    n_folds: int = 5,
    groups: ArrayLike | None = None,
    random_state: RandomState = 0,
) -> NDArray[np.intp]:
    """Deal cases into folds."""
    patients = (
        np.arange(n_cases)
        if groups is None
        else np.unique(np.asarray(groups), return_inverse=True)[1]
    )
    if patients.shape != (n_cases,):
        raise ValueError(
            f"groups need one patient for each of the {n_cases} cases, not shape {patients.shape}"
        )
    n_patients = len(np.unique(patients))
    if not 2 <= n_folds <= n_patients:
        raise ValueError(
            f"{n_patients} patients cannot be dealt into {n_folds} folds; "
            f"use from 2 to {n_patients}"
        )
    order = np.random.default_rng(seed_for(seed_from(random_state), "folds")).permutation(
        n_patients
    )
    fold = np.empty(n_patients, dtype=np.intp)
    fold[order] = np.arange(n_patients) % n_folds + 1
    return fold[patients]


def cross_validate_placements(
    placers: Mapping[str, Any], scenes: Sequence[Scene], experts: ArrayLike, *, folds: ArrayLike
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """
    Place each case by methods that were fitted without it.

    Shapes: `experts` (n_cases, n_experts, 9); returns placements (n_cases, 9).
    """
    from sklearn.base import clone

    boxes = np.asarray(experts, dtype=np.float64)
    held_out = _fold_numbers(folds, len(scenes))
    without = (
        np.isnan(boxes).all(axis=tuple(range(1, boxes.ndim)))
        if len(boxes)
        else np.empty(0, dtype=bool)
    )
    if len(boxes) != len(scenes) or len(np.unique(held_out)) < 2:
        n_folds = len(np.unique(held_out))
        raise ValueError(
            f"{len(scenes)} scenes need boxes (got {len(boxes)}) and two folds or more (got "
            f"{n_folds})"
        )
    placements = {name: np.empty((len(scenes), 9)) for name in placers}
    seconds = {name: np.empty(len(scenes)) for name in placers}
    for fold in np.unique(held_out):
        train, test = (
            np.flatnonzero((held_out != fold) & ~without),
            np.flatnonzero(held_out == fold),
        )
        for name, placer in placers.items():
            fitted = clone(placer).fit([scenes[int(i)] for i in train], boxes[train])
            for i in map(int, test):
                start = time.perf_counter()
                placements[name][i] = fitted.place(scenes[i]).as_array()
                seconds[name][i] = time.perf_counter() - start
    return placements, seconds


def format_summary(tables: Mapping[str, pd.DataFrame], *, part: str = "all") -> pd.DataFrame:
    """Write the summary as the study's table 1, a line for each method."""
    summary = tables["summary"]
    chosen = summary[summary["part"] == part]
    if not len(chosen):
        raise ValueError(
            f"part must be one of {', '.join(summary['part'].unique())}, not {part!r}"
        )
    # What rounding leaves of a spread or a mean of zero is not shown.
    sizes = chosen[["mean", "sd"]].abs().max(axis=1)
    shown = chosen[["mean", "sd"]].where(
        chosen[["mean", "sd"]].abs().gt(LEVEL * sizes.clip(lower=1), axis=0), 0.0
    )
    numbers = zip(shown["mean"], shown["sd"].where(chosen["sd"].notna()), chosen["n"], strict=True)
    text = chosen.assign(text=[f"{mean:.3g} ± {sd:.2g}" if n else "–" for mean, sd, n in numbers])
    wide = text.pivot_table(
        index="method", columns="measure", values="text", aggfunc="first", sort=False
    )
    return wide[[name for name in (*MEASURES, "seconds") if name in wide.columns]]


# Measures of one case


def _box_measures(box: Voxel, scene: Scene) -> dict[str, float]:
    return {
        "f_tumor": tumor_fraction(box, scene),
        "volume": box.volume,
        "rotated_axes": float(box.rotated_axes),
        "rotated_angles": float(box.rotated_angles),
    }


def _measures(box: Voxel | None, experts: list[Voxel], scene: Scene) -> dict[str, float]:
    if box is None:
        return dict.fromkeys(MEASURES, float("nan"))
    found = _box_measures(box, scene)
    dice = [box.dice(other) for other in experts]
    found |= {
        "dice_closest": np.nan,
        "dice_mean": np.nan,
        "dice_fair": np.nan,
        "difference": np.nan,
    }
    if dice:
        found["dice_closest"], found["dice_mean"] = max(dice), float(np.mean(dice))
        found["difference"] = box.volume - float(np.mean([other.volume for other in experts]))
    if len(dice) > 1:
        found["dice_fair"] = float(
            np.mean([max(dice[:j] + dice[j + 1 :]) for j in range(len(dice))])
        )
    return found


def _expert_measures(experts: list[Voxel], scene: Scene) -> dict[str, float]:
    if not experts:
        return dict.fromkeys(MEASURES, float("nan"))
    each = [_box_measures(box, scene) for box in experts]
    found = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    found |= {
        "dice_closest": np.nan,
        "dice_mean": np.nan,
        "dice_fair": np.nan,
        "difference": np.nan,
    }
    if len(experts) > 1:
        dice = np.full((len(experts), len(experts)), -np.inf)
        for i, j in itertools.combinations(range(len(experts)), 2):
            dice[i, j] = dice[j, i] = experts[i].dice(experts[j])
        between = dice[np.triu_indices(len(experts), 1)]
        found["dice_closest"] = found["dice_fair"] = float(dice.max(axis=1).mean())
        found["dice_mean"] = float(between.mean())
        found["difference"] = experts[0].volume - experts[1].volume
    return found


# Tables


def _summary(cases: pd.DataFrame, has_folds: bool) -> pd.DataFrame:
    import pandas as pd

    parts = {"all": cases}
    if has_folds:
        parts |= {"fold 1": cases[cases["fold"] == 1], "other folds": cases[cases["fold"] != 1]}
    rows = []
    for part, table in parts.items():
        for method, own in table.groupby("method", sort=False):
            for measure in (*MEASURES, "seconds"):
                values = own[measure].dropna().to_numpy()
                n = len(values)
                if not n and (measure == "seconds" or method == "single experts"):
                    continue
                rows.append(
                    {
                        "part": part,
                        "method": method,
                        "measure": measure,
                        "n": n,
                        "mean": float(values.mean()) if n else np.nan,
                        "sd": float(values.std(ddof=1)) if n > 1 else np.nan,
                        "median": float(np.median(values)) if n else np.nan,
                    }
                )
    return pd.DataFrame(rows)


def _pairs_of_raters(
    by_expert: NDArray[np.float64], volumes: Mapping[str, NDArray[np.float64]]
) -> Iterable[tuple[str, str, NDArray[np.float64], NDArray[np.float64]]]:
    n_experts = by_expert.shape[1]
    for i, j in itertools.combinations(range(n_experts), 2):
        yield f"expert {i + 1}", f"expert {j + 1}", by_expert[:, i], by_expert[:, j]
    for name, values in volumes.items():
        for j in range(n_experts):
            yield name, f"expert {j + 1}", values, by_expert[:, j]


def _icc_table(
    by_expert: NDArray[np.float64], volumes: Mapping[str, NDArray[np.float64]]
) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for name, against, a, b in _pairs_of_raters(by_expert, volumes):
        for form in ICC_FORMS:
            found = icc(np.stack([a, b], axis=1), form)
            keys = {"method": name, "against": against, "measure": "volume", "form": form}
            rows.append(
                keys | {key: getattr(found, key) for key in ("value", "low", "high", "statistic", "df1", "df2", "p")}
                | {"n": found.n_targets, "reason": found.reason}
            )  # fmt: skip
    return pd.DataFrame(rows)


def _agreement_table(
    by_expert: NDArray[np.float64], volumes: Mapping[str, NDArray[np.float64]]
) -> pd.DataFrame:
    import pandas as pd
    from scipy.stats import linregress

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a case without experts has no mean
        mean = np.nanmean(by_expert, axis=1)
    pairs = list(_pairs_of_raters(by_expert, volumes))
    pairs += [(name, "mean of experts", values, mean) for name, values in volumes.items()]
    rows = []
    for name, against, a, b in pairs:
        found = bland_altman(a, b)
        row: dict[str, Any] = {
            "method": name,
            "against": against,
            "measure": "volume",
            "n": found.n,
        }
        row |= {key: getattr(found, key) for key in ("bias", "sd", "lower", "upper")}
        for key in ("bias", "lower", "upper"):
            row[f"{key}_low"], row[f"{key}_high"] = getattr(found, f"{key}_interval")
        usable = ~np.isnan(a + b)
        x, y = (a + b)[usable] / 2, (a - b)[usable]
        row |= {"slope": np.nan, "slope_p": np.nan}
        if len(x) > 2 and np.ptp(x) > 0:
            line = linregress(x, y)
            row |= {"slope": float(line.slope), "slope_p": float(line.pvalue)}
        rows.append(row | {"reason": found.reason})
    return pd.DataFrame(rows)


def _wide(cases: pd.DataFrame, measure: str, groups: Sequence[str]) -> pd.DataFrame:
    """Give cases that all groups have a value of."""
    wide = cases.pivot_table(index="case", columns="method", values=measure, dropna=False)
    return wide.reindex(columns=list(groups)).dropna()


def _anova_table(cases: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    import pandas as pd
    from scipy.stats import f_oneway, friedmanchisquare

    rows = []
    for measure in _TESTED:
        wide = _wide(cases, measure, groups)
        n, k = wide.shape
        values = wide.to_numpy().T
        few = n < 3 or bool(_is_level(values).all())
        # Groups that are alike in every case leave nothing to tests of differences within cases.
        alike = not few and bool(_is_level(values, axis=0).all())
        keys = {"measure": measure, "groups": ", ".join(groups), "n": n}
        nothing = {"statistic": np.nan, "df1": np.nan, "df2": np.nan, "p": np.nan}
        reason = f"{n} cases have all values and differ; three are needed" if few else ""
        one_way, repeated, ranks = ({**nothing, "reason": reason} for _ in range(3))
        if not few:
            found = f_oneway(*values)
            one_way |= {
                "statistic": float(found[0]),
                "df1": k - 1.0,
                "df2": float(n * k - k),
                "p": float(found[1]),
            }
            if alike:
                repeated["reason"] = ranks["reason"] = "the groups are alike in every case"
            elif find_spec("statsmodels") is None:
                repeated["reason"] = 'needs statsmodels: pip install "dmrifit[stats]"'
            else:
                repeated |= _repeated_measures(wide)
            if k > 2 and not alike:
                found = friedmanchisquare(*values)
                ranks |= {"statistic": float(found[0]), "df1": k - 1.0, "p": float(found[1])}
            elif k <= 2:
                ranks["reason"] = "two groups; see the paired tests"
        tests = {"one-way ANOVA": one_way, "repeated-measures ANOVA": repeated, "Friedman": ranks}
        rows += [{**keys, "test": test, **row} for test, row in tests.items()]
    return pd.DataFrame(rows)


def _is_level(values: NDArray[np.float64], axis: int | None = None) -> NDArray[np.bool_]:
    """Tell where values differ by no more than rounding errors."""
    return np.asarray(np.ptp(values, axis=axis) <= LEVEL * np.abs(values).max(axis=axis))


def _repeated_measures(wide: pd.DataFrame) -> dict[str, float]:
    anova = import_optional("statsmodels.stats.anova")
    long = (
        wide.rename_axis(columns="method").reset_index().melt(id_vars="case", value_name="value")
    )
    table = anova.AnovaRM(long, "value", "case", within=["method"]).fit().anova_table.iloc[0]
    return {
        "statistic": float(table["F Value"]),
        "df1": float(table["Num DF"]),
        "df2": float(table["Den DF"]),
        "p": float(table["Pr > F"]),
    }


def _paired_table(cases: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    import pandas as pd
    from scipy.stats import ttest_rel, wilcoxon

    rows: list[dict[str, Any]] = []
    for measure in ("dice_closest", *_TESTED, "dice_fair"):
        own = []
        for a, b in itertools.combinations(groups, 2):
            wide = _wide(cases, measure, (a, b))
            x, y = wide[a].to_numpy(), wide[b].to_numpy()
            row: dict[str, Any] = {"measure": measure, "a": a, "b": b, "n": len(x)}
            row |= {"difference": float(np.mean(x - y)) if len(x) else np.nan}
            row |= dict.fromkeys(
                ("t", "t_p", "wilcoxon", "wilcoxon_p", "rank_biserial", "low", "high"), np.nan
            )
            if len(x) > 2 and np.ptp(x - y) > 1e-12:
                t, w = ttest_rel(x, y), wilcoxon(x, y, method="approx")
                row |= {
                    "t": float(t[0]),
                    "t_p": float(t[1]),
                    "wilcoxon": float(w[0]),
                    "wilcoxon_p": float(w[1]),
                }
                row["rank_biserial"], row["low"], row["high"] = rank_biserial(
                    x, y, n_bootstrap=500
                )
                row["reason"] = ""
            else:
                row["reason"] = f"{len(x)} cases whose differences vary; three are needed"
            own.append(row)
        for row, p in zip(own, holm([row["wilcoxon_p"] for row in own]), strict=True):
            row["holm_p"] = p
        rows += own
    return pd.DataFrame(rows)


def _correlation_table(cases: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd
    from scipy.stats import pearsonr, spearmanr

    rows = []
    tables = cases.assign(absolute_difference=cases["difference"].abs())
    for method, own in tables.groupby("method", sort=False):
        for measure in (*MEASURES[:5], "absolute_difference"):
            pair = own[["tumor_volume", measure]].dropna().to_numpy()
            row = {"method": method, "measure": measure, "n": len(pair)}
            row |= dict.fromkeys(("pearson", "low", "high", "p", "spearman", "spearman_p"), np.nan)
            if len(pair) > 3 and (np.ptp(pair, axis=0) > 1e-12).all():
                found, ranks = pearsonr(*pair.T), spearmanr(*pair.T)
                interval = found.confidence_interval(0.95)
                row |= {
                    "pearson": float(found[0]),
                    "low": float(interval.low),
                    "high": float(interval.high),
                }
                row |= {
                    "p": float(found[1]),
                    "spearman": float(ranks[0]),
                    "spearman_p": float(ranks[1]),
                }
            rows.append(row)
    return pd.DataFrame(rows)


# What is given


def _boxes(value: Any, n: int, name: str) -> list[Voxel | None]:
    items = list(value)
    if len(items) != n:
        raise ValueError(f"{name}: {len(items)} boxes for {n} scenes")
    return [_box(item, f"{name}, case {i}") for i, item in enumerate(items)]


def _box(item: Any, where: str) -> Voxel | None:
    if item is None or isinstance(item, Voxel):
        return item
    numbers = np.asarray(item, dtype=np.float64)
    if numbers.shape == (9,) and np.isnan(numbers).all():
        return None
    try:
        return Voxel.from_array(numbers)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _volumes(boxes: Sequence[Voxel | None]) -> NDArray[np.float64]:
    return np.array([np.nan if box is None else box.volume for box in boxes])


def _expert_boxes(experts: ArrayLike, n: int) -> list[list[Voxel | None]]:
    array = np.asarray(experts, dtype=np.float64)
    if array.ndim != 3 or array.shape[0] != n or array.shape[2] != 9:
        raise ValueError(
            f"experts' boxes for {n} scenes need the shape ({n}, n_experts, 9), not {array.shape}"
        )
    return [
        [_box(box, f"expert {j + 1}, case {i}") for j, box in enumerate(pair)]
        for i, pair in enumerate(array)
    ]


def _fold_numbers(folds: ArrayLike | None, n: int) -> NDArray[np.intp]:
    if folds is None:
        return np.zeros(n, dtype=np.intp)
    numbers = np.asarray(folds)
    if numbers.shape == (n,) and numbers.dtype.kind in "iu" and (numbers < 1).any():
        raise ValueError(
            f"folds count from 1, for the first is reported apart; the smallest is {numbers.min()}"
        )
    if numbers.shape != (n,) or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"folds need one whole number for each of the {n} scenes, not {numbers.dtype} of "
            f"shape {numbers.shape}"
        )
    return numbers.astype(np.intp)


def _times(value: ArrayLike, n: int, name: str) -> NDArray[np.float64]:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim == 0:
        array = np.full(n, array)
    if array.shape != (n,):
        raise ValueError(f"{name}: {array.shape} seconds for {n} scenes")
    return array
