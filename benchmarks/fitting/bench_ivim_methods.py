"""
Which method fits IVIM best, and what does a learned prior cost?

Synthetic signals with Gaussian noise, as in OSIPI's comparison of algorithms: a fresh grid of tissues decides which
method is the default; OSIPI's seven tissues stand beside the published figures of 19 algorithms; each of the seven is
fitted with a prior that was learned from a mixture of the other six. Needs DMRIFIT_DATA. Run from the project's root:

    .venv/bin/python -m benchmarks.fitting.bench_ivim_methods
"""

import argparse
import json
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit import MODELS, Protocol, fit_voxels
from dmrifit.engine.fit_settings import FitSettings
from dmrifit.engine.fitting import learn_prior

RESULT = measure.RESULTS / "ivim_methods.json"
SEED = 20261191
SNRS = (20, 30, 40, 60)
N_TISSUES, N_REPEATS = 150, 60
N_REGION, N_TESTED, LESION_SHARE = 1000, 600, 0.05
METHODS = {
    "nlls": {"method": "nlls"},
    "segmented, b ≥ 100": {"method": "segmented", "threshold": 100.0},
    "segmented, b ≥ 150": {"method": "segmented", "threshold": 150.0},
    "segmented, b ≥ 250": {"method": "segmented", "threshold": 250.0},
    "segmented, b ≥ 150, S0 measured": {
        "method": "segmented",
        "threshold": 150.0,
        "fixed": {"S0": "measured"},
    },
}
REFERENCE = "segmented, b ≥ 150"
IVIM = MODELS["ivim"]
COLUMNS = {"f": 1, "Dt": 3}
TO_UM2_PER_MS = 1e3


def osipi() -> tuple[Protocol, dict[str, np.ndarray], pd.DataFrame]:
    """Read b-values and tissues of OSIPI's signals, and the published figures."""
    folder = measure.data_folder("osipi_ivim")
    cases = json.loads((folder / "generic.json").read_text(encoding="utf-8"))
    protocol = Protocol(cases.pop("config")["bvalues"])
    tissues = {
        name: np.array([1.0, case["f"], case["Dp"] * TO_UM2_PER_MS, case["D"] * TO_UM2_PER_MS])
        for name, case in cases.items()
    }
    return protocol, tissues, pd.read_csv(folder / "reference_output.csv")


def noisy(
    parameters: np.ndarray, protocol: Protocol, snr: float, rng: np.random.Generator
) -> np.ndarray:
    signals = IVIM.signal(parameters, protocol)
    return np.abs(signals + rng.normal(scale=1 / snr, size=signals.shape))


def errors_of(
    truth: np.ndarray, protocol: Protocol, snr: float, n: int, seed: int
) -> dict[str, dict]:
    """Fit repeats of every tissue by every method; relative bias and RMSE of f and Dt by tissue."""
    signals = noisy(np.repeat(truth, n, axis=0), protocol, snr, np.random.default_rng([seed, snr]))
    errors = {}
    for name, options in METHODS.items():
        result = fit_voxels(signals, protocol, "ivim", n_threads=1, **options)
        relative = result.parameters.reshape(len(truth), n, 4) / truth[:, None] - 1
        errors[name] = {
            parameter: (
                relative[..., j].mean(axis=1),
                np.sqrt((relative[..., j] ** 2).mean(axis=1)),
            )
            for parameter, j in COLUMNS.items()
        }
    return errors


def ranks(errors: dict[str, dict], snr: int) -> list[dict]:
    """Medians over tissues, and the bootstrap interval of the ratio to the RMSE of `REFERENCE`."""
    rows = []
    for name, by_parameter in errors.items():
        row = {"snr": snr, "method": name}
        for parameter, (bias, rmse) in by_parameter.items():
            ratio = np.log(rmse / errors[REFERENCE][parameter][1])
            chosen = np.random.default_rng(SEED).integers(0, len(ratio), (1000, len(ratio)))
            low, high = np.exp(np.percentile(np.median(ratio[chosen], axis=1), (2.5, 97.5)))
            row[parameter] = {
                "rmse": round(float(np.median(rmse)), 4),
                "bias": round(float(np.median(np.abs(bias))), 4),
                "ratio_low": round(float(low), 3),
                "ratio_high": round(float(high), 3),
            }
        rows.append(row)
    return rows


def published(table: pd.DataFrame, snr: int) -> list[dict]:
    """Medians over the same seven tissues of the published algorithms."""
    table = table[(table.f > 0) & (snr == table.SNR)]
    table = table.drop_duplicates(["Algorithm", "f", "Dp", "D"])
    rows = []
    for name, group in table.groupby("Algorithm"):
        row = {"method": name}
        for parameter, column in (("f", "f"), ("Dt", "D")):
            bias = group[f"{column}_mu"] / group[column] - 1
            rmse = np.hypot(bias, group[f"{column}_std"] / group[column])
            row[parameter] = {
                "rmse": round(float(rmse.median()), 4),
                "bias": round(float(bias.abs().median()), 4),
            }
        rows.append(row)
    return sorted(rows, key=lambda row: row["f"]["rmse"])


def price(protocol: Protocol, tissues: dict[str, np.ndarray], snr: int) -> list[dict]:
    """Fit each tissue with a prior of the others, and as a lesion among them."""
    rows = []
    for k, (name, tissue) in enumerate(tissues.items()):
        rng = np.random.default_rng([SEED, k])
        others = np.array([values for other, values in tissues.items() if name != other])
        region = others[rng.integers(0, len(others), N_REGION)] * rng.lognormal(
            0, 0.1, (N_REGION, 4)
        )
        region[:, 1] = np.clip(region[:, 1], 0.01, 0.95)
        prior = learn_prior(
            noisy(region, protocol, snr, rng), protocol, IVIM, FitSettings(method="map")
        )
        tested = noisy(tissue[None].repeat(N_TESTED, axis=0), protocol, snr, rng)
        result = fit_voxels(tested, protocol, IVIM, method="map", prior=prior)
        n_lesion = int(LESION_SHARE * N_REGION)
        region[:n_lesion] = tissue
        signals = noisy(region, protocol, snr, rng)
        fits = {
            method: fit_voxels(signals, protocol, IVIM, method=method).parameters
            for method in ("map", "nlls")
        }
        row = {"tissue": name}
        for parameter, j in COLUMNS.items():
            contrast = contrast_of(region[:, j], n_lesion)
            row[parameter] = {
                "truth": round(float(tissue[j]), 4),
                "bias": round(float(result.parameters[:, j].mean() / tissue[j] - 1), 4),
                "contrast": round(float(contrast), 4),
                "kept_map": round(float(contrast_of(fits["map"][:, j], n_lesion) / contrast), 3),
                "kept_nlls": round(float(contrast_of(fits["nlls"][:, j], n_lesion) / contrast), 3),
            }
        rows.append(row)
    return rows


def contrast_of(values: np.ndarray, n_lesion: int) -> float:
    return values[:n_lesion].mean() - values[n_lesion:].mean()


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Compare methods on a grid of tissues and on those of OSIPI."""
    n_tissues, n_repeats = (6, 4) if chosen.quick else (N_TISSUES, N_REPEATS)
    protocol, tissues, table = osipi()
    rng = np.random.default_rng(SEED)
    truth = np.column_stack([
        np.ones(n_tissues), rng.uniform(0.05, 0.5, n_tissues),
        np.exp(rng.uniform(np.log(10), np.log(80), n_tissues)), rng.uniform(0.4, 2.2, n_tissues),
    ])  # fmt: skip
    grid = []
    for snr in SNRS:
        grid += ranks(errors_of(truth, protocol, snr, n_repeats, SEED), snr)
    seven = np.array(list(tissues.values()))
    return {
        "data": "synthetic signals with Gaussian noise, b-values and tissues of OSIPI TF2.4",
        "seed": SEED,
        "grid": grid,
        "osipi": ranks(errors_of(seven, protocol, 30, 25 * n_repeats, SEED + 1), 30),
        "published": published(table, 30),
        "price": price(protocol, tissues, 30),
    }


if __name__ == "__main__":
    runs.main(run, RESULT, packages=("numpy", "numba", "scipy"))
