"""
Are advanced maps of human tumors predicted from clinical ones, in patients that were not trained on?

    DMRIFIT_DATA=… .venv/bin/python -m benchmarks.prediction.bench_meningiomas [--quick --out FILE]

Voxels of 30 meningiomas, one patient left out at a time: kurtosis and microscopic anisotropy, which need
tensor-valued diffusion encoding, from the mean diffusivity (MD) of any clinical scan, with FA and conventional images beside
it. The table has no coordinates, so algorithms that look at neighborhoods take no part. A patient is the unit of every
interval. Intensities of T1w and FLAIR have no unit; they are tried as stored and divided by the patient's median. The headline, a
ridge regression with squares from MD and FA, was tried on these patients before the others; all differences are to it.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks.prediction.bench_people import interval
from dmrifit import ConformalIntervals, make_regressor
from dmrifit.predict.algorithms import VOXELWISE
from dmrifit.stats.metrics import best_constants, skill_scores

RESULT = measure.RESULTS / "meningiomas.json"
SEED = 20261127
TARGETS = ["MKT", "MKI", "uFA"]
INPUTS = {"MD": ["MD"], "MD, FA": ["MD", "FA"]}
IMAGES = ["T1w", "FLAIR"]
INPUTS["MD, FA, T1w, FLAIR as stored"] = [*INPUTS["MD, FA"], *IMAGES]
INPUTS["MD, FA, T1w, FLAIR by patient"] = [*INPUTS["MD, FA"], *(f"{name} by patient" for name in IMAGES)]
RIDGE, SHUFFLED = "ridge with squares", "shuffled"
METHODS = (RIDGE, *VOXELWISE, SHUFFLED)
HEADLINE = "MD, FA"
SAME_SIZE = 200  # voxels of each patient, where patients and not voxels weigh the same in training
COVERAGE = 0.9


def read() -> pd.DataFrame:
    """Read the voxels, and divide the images by each patient's median."""
    table = pd.read_csv(measure.data_folder("meningiomas") / "voxels.csv.gz")
    medians = table.groupby("patient")[IMAGES].transform("median")
    return table.join((table[IMAGES] / medians).add_suffix(" by patient"))


def regressor(method: str) -> Any:
    """Make an algorithm of the study, or a ridge regression on inputs, their squares and products."""
    if method in VOXELWISE:
        return make_regressor(method, random_state=SEED)
    squares = PolynomialFeatures(2, include_bias=False)
    return make_pipeline(StandardScaler(), squares, StandardScaler(), RidgeCV(np.logspace(-2, 4, 13), alpha_per_target=True))


def left_out(table: pd.DataFrame, inputs: str, method: str, *, weigh: str) -> Iterator[dict[str, Any]]:
    """Predict each patient from the others, and score each target beside the best constant."""
    rng = np.random.default_rng(SEED)
    for patient, own in table.groupby("patient"):
        train = table[table.patient != patient]
        if weigh == "patients":
            train = train.groupby("patient").sample(SAME_SIZE, replace=True, random_state=rng.integers(2**31))
        X, Y = train[INPUTS[inputs]].to_numpy(), train[TARGETS].to_numpy()
        constants = best_constants(Y, relative=False)
        trained_on = rng.permutation(Y) if method == SHUFFLED else Y
        predicted = regressor(method).fit(X, trained_on).predict(own[INPUTS[inputs]].to_numpy())
        for i, target in enumerate(TARGETS):
            measured = own[target].to_numpy()
            skill, error, constant, n = skill_scores(predicted[:, i], measured, constants[i], relative=False)
            yield {
                "inputs": inputs, "method": method, "weigh": weigh, "target": target, "patient": patient,
                "skill": skill, "error": error * n, "constant_error": constant * n,
            }  # fmt: skip


def covered(table: pd.DataFrame, inputs: str, patient: str) -> pd.DataFrame:
    """Put intervals around predictions of a patient by the errors in the others; give coverage and width."""
    train, own = table[table.patient != patient], table[table.patient == patient]
    estimator = ConformalIntervals(regressor(RIDGE), coverage=COVERAGE, random_state=SEED)
    estimator.fit(train[INPUTS[inputs]].to_numpy(), train[TARGETS].to_numpy(), train.patient.to_numpy())
    low, high = np.moveaxis(estimator.predict_interval(own[INPUTS[inputs]].to_numpy()), 2, 0)
    measured = own[TARGETS].to_numpy()
    share = ((low <= measured) & (measured <= high)).mean(axis=0)
    spread = np.ptp(np.quantile(train[TARGETS].to_numpy(), [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0), axis=0)
    width = (high - low).mean(axis=0) / spread
    return pd.DataFrame({"patient": patient, "target": TARGETS, "covered": share, "width": width})


def summarized(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Give the skill over patients, that over all voxels, and the difference to the headline by patient."""
    headline = scores[(scores.inputs == HEADLINE) & (scores.method == RIDGE) & (scores.weigh == "patients")]
    rows = []
    for key, group in scores.groupby(["target", "inputs", "method", "weigh"], sort=False):
        skill = group.set_index("patient").skill
        reference = headline[headline.target == key[0]].set_index("patient").skill
        rows.append({
            **dict(zip(("target", "inputs", "method", "weigh"), key, strict=True)),
            "skill": interval(skill),
            "minus_headline": interval(skill - reference),
            "by_patient": skill.round(4).to_dict(),
            "n_above_0": int((skill > 0).sum()),
            "n": len(skill),
            "pooled": measure.rounded(1 - group.error.sum() / group.constant_error.sum()),
        })  # fmt: skip
    return rows


def figure(scores: pd.DataFrame, path: Any) -> None:
    """Draw the skill of each patient by target and inputs."""
    shown = scores[(scores.method == RIDGE) & (scores.weigh == "patients")]
    drawing, axes = plt.subplots(1, len(TARGETS), figsize=(10, 3.4), sharey=True, layout="constrained")
    rng = np.random.default_rng(SEED)
    for ax, target in zip(axes, TARGETS, strict=True):
        for i, inputs in enumerate(INPUTS):
            skill = shown[(shown.target == target) & (shown.inputs == inputs)].skill
            ax.plot(i + rng.uniform(-0.15, 0.15, len(skill)), skill.clip(-1, 1), ".", color=f"C{i}", alpha=0.6)
            ax.plot([i - 0.3, i + 0.3], [skill.mean()] * 2, color=f"C{i}", lw=2)
        ax.axhline(0, color="gray", lw=0.8)
        labels = [name.replace(", T1w", ",\nT1w").replace(" as", "\nas").replace(" by", "\nby") for name in INPUTS]
        ax.set(title=target.replace("u", "µ"), ylim=(-1.05, 1.05), xticks=range(len(INPUTS)), xticklabels=labels)
        ax.tick_params(axis="x", labelsize=7)
    axes[0].set_ylabel("skill in a patient left out")
    drawing.savefig(path, dpi=110)


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Compare inputs and algorithms, and test intervals."""
    table = read()
    if chosen.quick:
        few = table.patient.isin(sorted(table.patient.unique())[:8])
        table = table[few].groupby("patient").head(60)
    with_weights = [(inputs, method, "patients") for inputs in INPUTS for method in METHODS]
    with_weights += [(inputs, RIDGE, "voxels") for inputs in INPUTS]
    parts = Parallel(-1)(
        delayed(lambda inputs, method, weigh: list(left_out(table, inputs, method, weigh=weigh)))(*each)
        for each in with_weights
    )
    scores = pd.DataFrame([row for part in parts for row in part])
    patients = sorted(table.patient.unique())
    shares = pd.concat(Parallel(-1)(delayed(covered)(table, HEADLINE, one) for one in patients))
    if not chosen.quick:
        figure(scores, RESULT.with_suffix(".png"))
    coverage = [
        {
            "target": target, "mean": interval(own.covered), "worst": measure.rounded(own.covered.min()),
            "n_below": int((own.covered < COVERAGE - 0.1).sum()), "width": measure.rounded(own.width.mean()),
            "by_patient": own.set_index("patient").covered.round(4).to_dict(),
        }
        for target, own in shares.groupby("target", sort=False)
    ]  # fmt: skip
    return {"seed": SEED, "n_voxels": len(table), "n": len(patients), "rows": summarized(scores), "coverage": coverage}


if __name__ == "__main__":
    runs.main(run, RESULT, packages=("scikit-learn", "xgboost-cpu"), seeds=(SEED,))
