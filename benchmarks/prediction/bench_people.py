"""
How well are contrasts of real people predicted that were not measured?

    DMRIFIT_DATA=… .venv/bin/python -m benchmarks.prediction.bench_people [--quick --out FILE]
    .venv/bin/python -m benchmarks.prediction.bench_people --regions TABLE --source-b 10,60,200,800 --out FILE

Seven volunteers, whose kidneys were measured at 20 b-values and four echo times (medians over
kidney and slice, each curve divided by its own b = 0), are left out one at a time. Predicted are
the other b-values of the inputs' echo time, and apart from them the other echo times. The headline
is a ridge regression, whose penalty is chosen by leaving out one training person at a time; that
rule was settled on the first choice of inputs, and the second was not looked at before. The
signals of volunteer 3 at the inputs' echo time are of two series with different gain: nobody
learns from him, and he is scored by himself. A person is the unit of every interval. Legs of one
person, 14 muscles, show only whether muscles predict each other.

The second form does the same with a table of one's own: columns patient, region, b, te, signal.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy.stats import t as student
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks.prediction._people_controls import (
    FAST_B,
    CurveMetricsToMaps,
    InputFit,
    Interpolation,
)
from dmrifit import (
    ALGORITHMS,
    Cohort,
    Protocol,
    SignalToSignal,
    average_directions,
    compare,
    write_report,
)
from dmrifit.cohort.participants_table import read_regions
from dmrifit.predict.controls import CONTROLS
from dmrifit.stats.metrics import best_constants, skill_scores
from dmrifit.stats.patient_summary import percentile_interval

RESULT = measure.RESULTS / "people.json"
SEED = 20261121
HEADLINE = "ridge"
OWN_CURVE = {"interpolation": Interpolation, "input fit": InputFit}
#: Inputs at the shortest echo time beside b = 0, in s/mm²; the second shares none with the first.
SOURCES = ((10.0, 60.0, 200.0, 800.0), (2.0, 25.0, 70.0, 700.0))
APART = "3"
LEG_SOURCE = (10.0, 200.0, 600.0)
SCORING = "neg_mean_squared_error"
LEVEL = 0.95
N_DRAWS = 2000
MODELS_OF = {"other b": "ivim", "other TE": "t2-ivim-relative"}
KIDNEYS = (
    "Kidneys of seven volunteers, medians over kidney and slice: mlh98/Hase-und-b, GPL-3.0; "
    "the data are no part of this project."
)
LEG = "Legs of one person, 14 muscles: DemoData of mfroeling/QMRITools, BSD-3-Clause."


@dataclass(frozen=True, eq=False)
class Curves:
    """Signals of regions of people, (n_regions, n_measurements)."""

    signals: np.ndarray
    protocol: Protocol
    patients: list[str]
    regions: list[str]

    def divided(self, b: float) -> "Curves":
        """Divide each curve by its own value at a b-value, echo time by echo time."""
        signals = self.signals.copy()
        te = echo_times(self.protocol)
        if b not in self.shared_b():
            raise SystemExit(f"b = {b:g} s/mm² was not measured at every echo time")
        for one in np.unique(te):
            same = te == one
            signals[:, same] /= signals[:, same & (self.protocol.b == b)]
        return replace(self, signals=signals)

    def shared_b(self) -> np.ndarray:
        """Find the b-values that were measured at every echo time."""
        te = echo_times(self.protocol)
        b_by_te = [set(self.protocol.b[te == one]) for one in np.unique(te)]
        return np.array(sorted(set.intersection(*b_by_te)))

    def cohort(self, name: str, patients: list[str]) -> Cohort:
        """Make a cohort of some of the people."""
        rows = [row for row, patient in enumerate(self.patients) if patient in patients]
        return Cohort.from_signals(
            self.signals[rows],
            self.protocol,
            [self.patients[row] for row in rows],
            name=name,
            regions=[self.regions[row] for row in rows],
        )


def echo_times(protocol: Protocol) -> np.ndarray:
    return np.zeros(len(protocol)) if protocol.te is None else protocol.te


def kidneys() -> Curves:
    """Read the kidneys' curves."""
    folder = measure.data_folder("kidney_multi_te")
    table = pd.read_csv(folder / "curves.csv").pivot_table(
        index=["volunteer", "kidney", "slice"],
        columns=["te_ms", "b_s_mm2"],
        values="signal_over_own_b0",
    )
    te, b = np.array(list(table.columns)).T
    patients = [str(volunteer) for volunteer, _, _ in table.index]
    regions = [f"{kidney} {number}" for _, kidney, number in table.index]
    return Curves(table.to_numpy(), Protocol(b, te), patients, regions)


def leg() -> Curves:
    """Read the mean signals of the legs' muscles, each divided by its own b = 0."""
    folder = measure.data_folder("leg_ivim")
    protocol = Protocol.read(folder / "dwi.bval", bvec=folder / "dwi.bvec")
    labels = np.asanyarray(nib.load(folder / "labels.nii.gz").dataobj)
    signals = np.asanyarray(nib.load(folder / "dwi.nii.gz").dataobj)
    numbers = [int(number) for number in np.unique(labels) if number]
    means = np.array([signals[labels == number].mean(axis=0) for number in numbers])
    averaged, contrasts = average_directions(means, protocol, mean="arithmetic", tolerance=0)
    names = [f"muscle {number}" for number in numbers]
    curves = Curves(averaged, Protocol(contrasts.b), names, ["mean"] * len(names))
    return curves.divided(0.0)


def own_curves(table: Path) -> Curves:
    """Read a table of regions of one cohort, each curve divided by its own lowest b-value."""
    try:
        cohorts = read_regions(table)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    if len(cohorts) > 1:
        raise SystemExit(f"{table} has the cohorts {', '.join(cohorts)}; give a table of one")
    (rows,) = cohorts.values()
    curves = Curves(rows["signals"], rows["protocol"], rows["patients"], rows["regions"])
    return curves.divided(curves.protocol.b.min())


def parts(curves: Curves, source_b: tuple[float, ...], base: float) -> dict[str, tuple]:
    """Give the inputs, at the shortest echo time, and the contrasts to predict from them."""
    b, te = curves.protocol.b, echo_times(curves.protocol)
    shortest = te == te.min()
    is_source = shortest & np.isin(b, (base, *source_b))
    if is_source.sum() != len({base, *source_b}):
        raise SystemExit(f"not all inputs {sorted({base, *source_b})} were measured")
    # What is divided by itself says nothing.
    others = {"other b": shortest & ~is_source, "other TE": ~shortest & (b != base)}
    return {
        name: (np.flatnonzero(is_source), np.flatnonzero(is_source | is_target))
        for name, is_target in others.items()
        if is_target.any()
    }


def regressor(name: str) -> Any:
    """Make the ridge regression; other algorithms have their names."""
    if name != HEADLINE:
        return name
    penalties = {"alpha": np.logspace(-4, 3, 15).tolist()}
    return GridSearchCV(Ridge(), penalties, cv=LeaveOneGroupOut(), scoring=SCORING)


def estimators(
    algorithms: tuple[str, ...], source: Protocol, target: Protocol, model: str
) -> dict[str, Any]:
    """Make all contestants; the neighbors of a region in a table are no neighbors in space."""
    options = {"source": source, "target": target, "model": model}
    contestants: dict[str, Any] = {}
    is_fast = source.b <= FAST_B
    # Two points of each part make two lines.
    with_maps = is_fast.sum() >= 2 and not is_fast.all()
    for name in (HEADLINE, *algorithms):
        patch = {"patch_shape": (1, 1, 1)} if name == "CNN" else {}
        contestants[f"{name} s2s"] = SignalToSignal(regressor(name), **options, **patch)
        # The metrics have no patients to choose a penalty by.
        if with_maps and name != HEADLINE:
            contestants[f"{name} m2m"] = CurveMetricsToMaps(regressor(name), **options, **patch)
    for name, control in OWN_CURVE.items():
        contestants[f"{name} s2s"] = control(**options)
    return contestants


def interval(values: np.ndarray) -> dict[str, Any]:
    """Mean over people with the percentile bootstrap of studies, widened for few, and a t interval."""
    values = np.asarray(values, float)
    n = len(values)
    draws = values[np.random.default_rng(0).integers(n, size=(N_DRAWS, n))].mean(axis=1)
    low, high = percentile_interval(draws, n, LEVEL)
    half = student.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    mean = values.mean()
    numbers = {"mean": mean, "low": low, "high": high, "t_low": mean - half, "t_high": mean + half}
    return {name: round(float(value), 4) for name, value in numbers.items()}


def summary_rows(evaluation: Any, apart: Any | None, *, intervals: bool = True) -> list[dict]:
    """Write the rows of a study's summary, with the skill of each person and differences."""
    summary = evaluation.summary(LEVEL)
    pooled = evaluation.signals[evaluation.signals["contrast"] == "all unseen"]
    by_person = pooled.pivot_table("skill", ["strategy", "algorithm"], "patient")
    headline = by_person.loc["s2s", HEADLINE]
    rows = []
    for (strategy, algorithm), skills in by_person.iterrows():
        mine = summary[(summary.strategy == strategy) & (summary.algorithm == algorithm)]
        signals = mine[mine.parameters == "signals"].iloc[0]
        tissue = mine[mine.parameters == "tissue"].iloc[0]
        row: dict[str, Any] = {
            "strategy": strategy,
            "algorithm": algorithm,
            "pooled_skill": round(float(signals["pooled_skill"]), 4),
            "relative_error": round(float(signals["relative_error"]), 4),
            "map_skill": measure.rounded(tissue["skill"]),
            "by_person": {person: round(float(v), 4) for person, v in skills.items()},
        }
        if intervals:
            row["skill"] = interval(skills.to_numpy())
            row["headline_minus"] = interval((headline - skills).to_numpy())
        else:
            row["skill"] = {"mean": round(float(skills.mean()), 4)}
        if apart is not None:
            chosen = apart.signals
            chosen = chosen[
                (chosen.strategy == strategy)
                & (chosen.algorithm == algorithm)
                & (chosen.contrast == "all unseen")
                & (chosen.cohort == "apart")
            ]
            row["apart"] = measure.rounded(chosen["skill"].iloc[0])
        rows.append(row)
    return sorted(rows, key=lambda row: -row["skill"]["mean"])


def board(
    curves: Curves,
    source_b: tuple[float, ...],
    base: float,
    algorithms: tuple[str, ...],
    apart: tuple[str, ...],
    pages: Path | None,
    *,
    intervals: bool = True,
) -> dict[str, list[dict]]:
    """Compare all contestants on the other b-values and on the other echo times."""
    people = [patient for patient in dict.fromkeys(curves.patients) if patient not in apart]
    together = curves.cohort("together", people)
    rows = {}
    for name, (source, target) in parts(curves, source_b, base).items():
        contestants = estimators(
            algorithms,
            curves.protocol.take(source),
            curves.protocol.take(target),
            MODELS_OF[name],
        )
        options = {"train_mask": "body", "random_state": SEED}
        evaluation = compare(contestants, together, **options)
        alone = None
        if apart:
            cohorts = [together, curves.cohort("apart", list(apart))]
            alone = compare(contestants, cohorts, train_on="pooled", **options)
        if pages is not None:
            folder = pages / f"{name} from {', '.join(f'{b:g}' for b in source_b)}"
            evaluation.write(folder)
            write_report(evaluation, folder)
            print(f"{folder}/report.html", flush=True)
        rows[name] = summary_rows(evaluation, alone, intervals=intervals)
    return rows


def skills_without(
    curves: Curves, contestants: dict[str, Any], source: np.ndarray, target: np.ndarray
) -> dict[str, np.ndarray]:
    """Leave out one person at a time, without the scale of a patient: the denominator is one."""
    people = np.array(curves.patients)
    X, Y = curves.signals[:, source], curves.signals[:, target]
    unseen = ~np.isin(target, source)
    skills: dict[str, list[float]] = {name: [] for name in contestants}
    for person in dict.fromkeys(curves.patients):
        train = people != person
        constants = best_constants(Y[train], relative=True)
        measured = Y[~train][:, unseen]
        constant = np.broadcast_to(constants[unseen], measured.shape).ravel()
        for name, contestant in contestants.items():
            estimator = clone(contestant).set_params(random_state=SEED)
            estimator.fit(X[train], Y[train], groups=people[train])
            predicted = estimator.predict(X[~train])[:, unseen]
            skill = skill_scores(predicted.ravel(), measured.ravel(), constant, relative=True)[0]
            skills[name].append(skill)
    return {name: np.array(values) for name, values in skills.items()}


def denominators(
    curves: Curves,
    source_b: tuple[float, ...],
    algorithms: tuple[str, ...],
    apart: tuple[str, ...],
) -> dict[str, list[dict]]:
    """Divide the curves by each b-value in turn, and compare signals again."""
    rows_of_people = [i for i, patient in enumerate(curves.patients) if patient not in apart]
    together = Curves(
        curves.signals[rows_of_people],
        curves.protocol,
        [curves.patients[row] for row in rows_of_people],
        [curves.regions[row] for row in rows_of_people],
    )
    skills: dict[str, dict[str, dict[float, np.ndarray]]] = {}
    for base in curves.shared_b():
        divided = together.divided(base)
        for name, (source, target) in parts(divided, source_b, base).items():
            # Other echo times are decided by the boards.
            shown = algorithms if name == "other b" else ()
            contestants = estimators(
                shown, divided.protocol.take(source), divided.protocol.take(target), "ivim"
            )
            contestants = {key: c for key, c in contestants.items() if key.endswith(" s2s")}
            for key, values in skills_without(divided, contestants, source, target).items():
                by_base = skills.setdefault(name, {}).setdefault(key.removesuffix(" s2s"), {})
                by_base[float(base)] = values
        print(f"divided by b = {base:g}", flush=True)
    rows: dict[str, list[dict]] = {}
    lowest = float(curves.protocol.b.min())
    for name, by_algorithm in skills.items():
        # Where the lowest b-value alone is shared, there is no other denominator.
        if all(set(by_base) == {lowest} for by_base in by_algorithm.values()):
            continue
        rows[name] = []
        for algorithm, by_base in by_algorithm.items():
            others = {base: values for base, values in by_base.items() if base != lowest}
            each = {base: interval(values) for base, values in others.items()}
            least = min(each, key=lambda base: each[base]["low"])
            rows[name].append({
                "algorithm": algorithm,
                "b0": interval(by_base[lowest]),
                "mean_over_others": interval(np.mean(list(others.values()), axis=0)),
                "n_others": len(others),
                "n_above_0": sum(row["low"] > 0 for row in each.values()),
                "least": {"b": least} | each[least],
            })  # fmt: skip
    return rows


def judged(boards: list[dict], denominator_rows: dict[str, list[dict]]) -> list[dict]:
    """Say which of the aims that were fixed beforehand are met."""
    first = {row["algorithm"]: row for row in boards[0]["other b"] if row["strategy"] == "s2s"}
    head = first[HEADLINE]
    goals = [{
        "what": f"{HEADLINE}, divided by b = 0: lower limit of the skill over people",
        **measure.goal(0.15, head["skill"]["low"], "skill", at_least=True),
    }]  # fmt: skip
    for control in OWN_CURVE:
        goals.append({
            "what": f"{HEADLINE} minus {control}: lower limit of the difference",
            **measure.goal(0.0, first[control]["headline_minus"]["low"], "skill", at_least=True),
        })  # fmt: skip
    least = next(r for r in denominator_rows["other b"] if r["algorithm"] == HEADLINE)["least"]
    goals.append({
        "what": f"{HEADLINE}, least lower limit over all other denominators (b = {least['b']:g})",
        **measure.goal(0.0, least["low"], "skill", at_least=True),
    })  # fmt: skip
    return goals


def b_values(text: str) -> tuple[float, ...]:
    """Read b-values between commas."""
    try:
        return tuple(float(b) for b in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"b-values in s/mm² between commas are needed, such as 10,60,200,800, not {text!r}"
        ) from None


def of_kidneys(*, quick: bool, pages: Path | None) -> dict[str, Any]:
    """Measure the kidneys and the legs."""
    algorithms = ("LR",) if quick else ALGORITHMS
    curves = kidneys()
    boards = [
        {"source_b": list(source), **board(curves, source, 0.0, algorithms, (APART,), pages)}
        for source in SOURCES
    ]
    by_denominator = denominators(curves, SOURCES[0], algorithms, (APART,))
    muscles = leg()
    leg_rows = board(muscles, LEG_SOURCE, 0.0, algorithms, (), None, intervals=False)
    return {
        "synthetic": False,
        "data": [KIDNEYS, LEG],
        "apart": APART,
        "kidneys": boards,
        "denominators": {"source_b": list(SOURCES[0]), **by_denominator},
        "leg": {"source_b": list(LEG_SOURCE), "n_muscles": len(muscles.patients), **leg_rows},
        "goals": judged(boards, by_denominator),
    }


def of_own_table(
    table: Path, source_b: tuple[float, ...], *, quick: bool, pages: Path | None
) -> dict[str, Any]:
    """Do the same with a table of regions, without a verdict on aims that were not made for it."""
    curves = own_curves(table)
    base = float(curves.protocol.b.min())
    algorithms = ("LR",) if quick else ALGORITHMS
    source = {"source_b": list(source_b)}
    return {
        "kidneys": [source | board(curves, source_b, base, algorithms, (), pages)],
        "denominators": source | denominators(curves, source_b, algorithms, ()),
    }


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure the kidneys, or a table of one's own."""
    options = {"quick": chosen.quick, "pages": chosen.pages}
    if chosen.regions is None:
        result = of_kidneys(**options)
    elif chosen.out == RESULT:
        raise SystemExit("a table of one's own needs --out")
    else:
        result = of_own_table(chosen.regions, chosen.source_b, **options)
    return {"seed": SEED, "level": LEVEL, "headline": HEADLINE, **result}


def markdown(result: dict[str, Any]) -> str:
    """Write the result as tables."""
    heads = [
        row["skill"]
        for boards in result["kidneys"]
        for row in boards["other b"]
        if (row["strategy"], row["algorithm"]) == ("s2s", HEADLINE)
    ]
    return runs.page("people", result, heads=heads, targets=MODELS_OF, controls=CONTROLS)


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        markdown=markdown,
        code=("dmrifit", "benchmarks/prediction/_people_controls.py"),
        packages=("numpy", "numba", "scikit-learn"),
        options={
            "--regions": {"type": Path, "help": "a table of one's own, which needs --out"},
            "--source-b": {"type": b_values, "default": SOURCES[0], "help": "its inputs, in s/mm²"},
            "--pages": {"type": Path, "help": "folder for a page of each comparison"},
        },
    )
