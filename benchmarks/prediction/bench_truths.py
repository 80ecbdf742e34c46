"""
Do fits, intervals and the study's board say the same where the signals know nothing of the formula?

    .venv/bin/python -m benchmarks.prediction.bench_truths [--seeds 1 2 3] [--work FOLDER] [--only fits]
    [--size quick --out FILE]

Signals of random walks (`simulate_cohort(..., truth="walk")`) are fitted without noise and with it,
and compared with what they were made of; intervals are counted against that and against the fit
without noise. Then the study's board is run on the same synthetic patients under both truths, with
the settings, seeds and margins of bench_claims.py: rank correlation of the algorithms between the
two, and whether the verdict on every claim says the same. Each board is kept as a JSON of its own
in results/claims (the formula's, shared with bench_claims.py) and results/truths. The fits take
half a minute, forty boards of full size half an hour of one processor.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from benchmarks import _boards as boards
from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks.claims.claim_board import OPEN
from benchmarks.claims.macarro.board import decide_claims
from benchmarks.prediction import bench_claims
from benchmarks.prediction.bench_claims import RANKED
from dmrifit import MODELS, Protocol, fit_voxels
from dmrifit.simulate.walk_table import (
    FAMILIES,
    Microstructure,
    walk_parameters,
    walk_rows,
    walk_signals,
)

RESULT = measure.RESULTS / "truths.json"
MODEL = MODELS["t2-ivim-kurtosis"]
PROTOCOL = Protocol.preset("cohort1")
TRUTHS = ("formula", "walk")
SNRS = (np.inf, 60.0, 30.0)
LEVELS = (0.68, 0.95)
SEED = 20261121
#: Ranges of tissue that parameters are drawn from.
RANGES = {
    "f": (0.03, 0.25),
    "Dv": (8, 60),
    "T2v": (150, 250),
    "Dt": (0.5, 1.6),
    "K": (0.5, 2.0),
    "T2t": (50, 90),
}
#: Sizes of the boards, and tissues and noise draws of the fits.
BOARD_SIZES = {
    "full": bench_claims.FULL,
    "quick": bench_claims.QUICK,
}
FIT_SIZES = {"full": (200, 50), "quick": (20, 5)}
#: Where the boards of each truth are kept, beside the result: the formula's are those of the claims.
CLAIM_FOLDERS = {"formula": "claims", "walk": "truths"}


def drawn_tissue(family: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw parameters of voxels of one family and compute their signals."""
    n_bloods = len(walk_rows()["blood"])
    columns = [np.ones(n), *(rng.uniform(*RANGES[name], n) for name in MODEL.names[1:])]
    parameters = walk_parameters(np.column_stack(columns), Microstructure(family, 0))
    bloods = rng.integers(n_bloods, size=n)
    signals = np.concatenate(
        [
            walk_signals(row[None], Microstructure(family, int(blood)), PROTOCOL)
            for row, blood in zip(parameters, bloods, strict=True)
        ]
    )
    return parameters, signals


def fit_biases(n_tissues: int, n_repeats: int) -> dict[str, object]:
    """Fit walks of each family; medians and quartiles of the relative error, and coverage."""
    rng = np.random.default_rng(SEED)
    errors, coverage, residuals = [], [], []
    for family in FAMILIES:
        truth, signals = drawn_tissue(family, n_tissues, rng)
        without_noise = fit_voxels(signals, PROTOCOL, MODEL, n_threads=1)
        exact = without_noise.parameters
        residuals.append(np.sqrt(without_noise.cost / len(PROTOCOL)) / signals[:, 0])
        for snr in SNRS:
            repeats = 1 if np.isinf(snr) else n_repeats
            clean = np.tile(signals, (repeats, 1))
            # Measured at the lowest b and shortest echo time of each voxel.
            sigma = clean[:, :1] / snr
            noisy = np.hypot(
                clean + sigma * rng.standard_normal(clean.shape),
                sigma * rng.standard_normal(clean.shape),
            )
            result = fit_voxels(noisy, PROTOCOL, MODEL, n_threads=1)
            fitted = result.parameters.reshape(repeats, *truth.shape)
            for i, name in enumerate(MODEL.names):
                # Over the noise first, so that the spread is that of the tissues.
                middle = np.median(fitted[:, :, i], axis=0)
                errors.append(
                    pd.DataFrame(
                        {
                            "family": family,
                            "snr": snr,
                            "parameter": name,
                            "error": middle / truth[:, i] - 1,
                            "fitted": middle,
                            "truth": truth[:, i],
                        }
                    )
                )
            if np.isfinite(snr):
                coverage += covered(result, truth, exact, family, snr, repeats)
    percent = 100 * np.concatenate(residuals)
    return {
        "residual_percent": {
            "median": round(float(np.median(percent)), 3),
            "largest": round(float(percent.max()), 3),
        },
        "biases": summarized(pd.concat(errors)),
        "coverage": pooled(pd.DataFrame(coverage)),
    }


def covered(
    result: object, truth: np.ndarray, exact: np.ndarray, family: str, snr: float, repeats: int
) -> Iterator[dict[str, object]]:
    """Count how often intervals hold the truth of the walk and the fit without noise."""
    for level in LEVELS:
        intervals = result.intervals(level)
        for i, name in enumerate(MODEL.names):
            low, high = np.moveaxis(intervals[:, i], -1, 0)
            row = {"family": family, "snr": snr, "parameter": name, "level": level}
            for target, values in (("truth", truth), ("fit without noise", exact)):
                value = np.tile(values[:, i], repeats)
                row[target] = float(np.mean((low <= value) & (value <= high)))
            yield row


def summarized(errors: pd.DataFrame) -> list[dict[str, object]]:
    rows = []
    for (snr, parameter), table in errors.groupby(["snr", "parameter"], sort=False):
        low, middle, high = np.percentile(100 * table["error"], [25, 50, 75])
        by_family = 100 * table.groupby("family", sort=False)["error"].median()
        # The truth of S0 is 1 everywhere.
        r = np.nan if parameter == "S0" else np.corrcoef(table["fitted"], table["truth"])[0, 1]
        rows.append(
            {
                "snr": None if np.isinf(snr) else snr,
                "parameter": parameter,
                "median_percent": round(middle, 1),
                "quartiles_percent": [round(low, 1), round(high, 1)],
                "by_family_percent": by_family.round(1).to_dict(),
                "r": measure.rounded(r, 2),
            }
        )
    return rows


def pooled(coverage: pd.DataFrame) -> list[dict[str, object]]:
    """Average coverage over the families."""
    targets = ["truth", "fit without noise"]
    table = coverage.groupby(["snr", "level", "parameter"], sort=False)[targets].mean()
    return table.round(3).reset_index().to_dict("records")


def rank_correlations(scores: dict[str, pd.DataFrame]) -> list[dict[str, object]]:
    """Correlate the ranks of algorithms between the truths, for each score and strategy."""
    means = {
        truth: table.groupby(["strategy", "cohort", "algorithm"])[[*RANKED]].mean()
        for truth, table in scores.items()
    }
    rows = []
    for score in RANKED:
        both = pd.concat([means[truth][score] for truth in TRUTHS], axis=1, keys=TRUTHS).dropna()
        for (strategy, cohort), cells in both.groupby(["strategy", "cohort"]):
            rows.append(
                {
                    "score": score,
                    "strategy": strategy,
                    "cohort": cohort,
                    "n_algorithms": len(cells),
                    "rank_correlation": rank_correlation(cells["formula"], cells["walk"]),
                    "formula": cells["formula"].droplevel([0, 1]).round(3).to_dict(),
                    "walk": cells["walk"].droplevel([0, 1]).round(3).to_dict(),
                }
            )
    return rows


def rank_correlation(one: pd.Series, other: pd.Series) -> float | None:
    """Correlate ranks; None where all are equal."""
    if min(one.nunique(), other.nunique()) < 2:
        return None
    return round(float(spearmanr(one, other)[0]), 2)


def verdicts(figures: dict[str, pd.DataFrame]) -> list[dict[str, object]]:
    """Lay the verdicts on each claim side by side."""
    tables = {truth: decide_claims(figures[truth]).set_index("claim") for truth in TRUTHS}
    rows = []
    for claim, row in tables["formula"].iterrows():
        pair = [tables[truth].loc[claim, "verdict"] for truth in TRUTHS]
        rows.append(
            {
                "claim": int(claim),
                "statement": row["statement"],
                "formula": pair[0],
                "walk": pair[1],
                "agreement": agreement(*pair),
            }
        )
    return rows


def agreement(by_formula: str, by_walk: str) -> str:
    """Compare two verdicts; two that leave a claim open agree on nothing."""
    if by_formula != by_walk:
        return "differs"
    return "both open" if by_formula == OPEN else "same"


def run_boards(seeds: list[int], folder: Path, work: Path, size: str) -> dict[str, object]:
    """Finish the boards under both truths and compare them."""
    board_size = BOARD_SIZES[size]
    paths = {
        truth: bench_claims.finished(
            seeds, folder / CLAIM_FOLDERS[truth], work / truth, board_size, truth
        )
        for truth in TRUTHS
    }
    # The first boards kept no scores.
    ranked = {path.name for path in paths["formula"] if "ranks" in measure.stored(path)}
    ranks = {
        truth: boards.read_tables(
            [path for path in paths[truth] if path.name in ranked], "ranks"
        )
        for truth in TRUTHS
    }
    figures = {truth: boards.read_tables(paths[truth], "figures") for truth in TRUTHS}
    every = [path for truth in TRUTHS for path in paths[truth]]
    return {
        "board": board_size,
        "seeds": seeds,
        "commits_of_boards": sorted({measure.stored(path)["commit"] for path in every}),
        "boards_ranked": sorted(Path(name).stem for name in ranked),
        "ranks": rank_correlations(ranks),
        "verdicts": verdicts(figures),
    }


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Fit, and run the boards, or one of both."""
    result = {"synthetic": True, "size": chosen.size}
    if chosen.only != "boards":
        result |= fit_biases(*FIT_SIZES[chosen.size])
    if chosen.only != "fits":
        result |= run_boards(chosen.seeds, chosen.out.parent, chosen.work, chosen.size)
    return result


def markdown(result: dict[str, Any]) -> str:
    """Write the tables of what was run."""
    return runs.page("truths", result, families=FAMILIES)


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        markdown=markdown,
        code=("dmrifit", "benchmarks/claims/macarro"),
        seeds=bench_claims.SEEDS,
        quick=False,
        options={
            "--size": {"choices": BOARD_SIZES, "default": "full", "help": "of the boards"},
            "--only": {"choices": ("fits", "boards"), "help": "run one part alone"},
        },
    )
