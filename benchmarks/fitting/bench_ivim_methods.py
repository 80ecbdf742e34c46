"""
Does the method that the noise chooses fit best, do its intervals hold, and what does a learned prior cost?

Synthetic magnitudes with Rician noise: a fresh grid of tissues, protocols and SNRs, where the choice stands beside each
single method; the coverage of 95 % intervals; water, which has no kurtosis. OSIPI's seven tissues, with its Gaussian
noise, stand beside the published figures of 19 algorithms; each of the seven is fitted as a lesion among the others
with a prior that was learned from all. Needs DMRIFIT_DATA. Run from the project's root:

    .venv/bin/python -m benchmarks.fitting.bench_ivim_methods
"""

import argparse
import json
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import gmean

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit import MODELS, Protocol, SignalModel, fit_voxels

RESULT = measure.RESULTS / "ivim_methods.json"
SEED = 20261192
SNRS = (10, 15, 20, 30, 40, 50, 60, 80, 100)
PROTOCOLS = {
    "few": Protocol([0, 50, 100, 200, 400, 600, 800]),
    "medium": Protocol([0, 10, 20, 40, 60, 100, 150, 200, 400, 600, 800, 1000]),
    "many": Protocol([0, 5, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400, 500, 700, 900]),
    "abdomen": Protocol([0, 0, 10, 25, 50, 80, 120, 200, 350, 500, 800, 800]),
}
N_TISSUES, N_REPEATS = 500, 30
N_REGION, N_LESION = 1000, 50
METHODS: dict[str, dict] = {"chosen": {}, "one step": {"method": "nlls"}} | {
    f"two steps, b ≥ {b}": {"method": "segmented", "threshold": float(b)}
    for b in (40, 60, 80, 100, 120, 150, 200)
}
IVIM = MODELS["ivim"]
COLUMNS = {"f": 1, "Dv": 2, "Dt": 3}
SUMMARIES = {"rmse": np.median, "all": gmean}  # over tissues
PUBLISHED = {"f": "f", "Dv": "Dp", "Dt": "D"}  # columns of OSIPI's table
TO_UM2_PER_MS = 1e3
COVERAGE_SNRS, N_COVERAGE = (20, 30, 60), 6000
RELAXATION = Protocol(np.tile([0, 10, 30, 60, 100, 200, 400, 800, 1500], 3), te=np.repeat([50, 80, 120], 9))
# Protocol, and range of each parameter; K stays below its upper bound 3/(b·D).
TISSUES = {
    "adc": (Protocol([0, 100, 400, 900]), {"ADC": (0.4, 2.5)}),
    "kurtosis": (Protocol([0, 0, 300, 700, 1000, 1400, 2000]), {"D": (0.5, 1.3), "K": (0.1, 1.1)}),
    "ivim": (PROTOCOLS["medium"], {"f": (0.05, 0.4), "Dv": (8, 60), "Dt": (0.4, 2.0)}),
    "t2-ivim-kurtosis": (
        RELAXATION,
        {"f": (0.05, 0.4), "Dv": (8, 60), "T2v": (160, 240), "Dt": (0.5, 1.5), "K": (0.1, 1.1), "T2t": (50, 110)},
    ),
}
WATER = {
    "5 b-values": Protocol([0, 500, 1000, 1500, 2000]),
    "8 b-values to 2500": Protocol([0, 0, 300, 700, 1000, 1400, 2000, 2500]),
    "5 b-values, 12 volumes": Protocol(np.repeat([0, 500, 1000, 1500, 2000], [3, 2, 2, 2, 3])),
    "3 b-values": Protocol([0, 1000, 2000]),
}


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


def noisy(parameters: np.ndarray, protocol: Protocol, snr: float, rng: np.random.Generator) -> np.ndarray:
    signals = IVIM.signal(parameters, protocol)
    return np.abs(signals + rng.normal(scale=1 / snr, size=signals.shape))


def magnitudes(
    model: SignalModel, parameters: np.ndarray, protocol: Protocol, snr: float, rng: np.random.Generator
) -> np.ndarray:
    """Add Rician noise, of the mean largest signal over the SNR."""
    signals = model.signal(parameters, protocol)
    noise = rng.normal(scale=signals.max(axis=1).mean() / snr, size=(2, *signals.shape))
    return np.hypot(signals + noise[0], noise[1])


def errors_of(truth: np.ndarray, signals: np.ndarray, protocol: Protocol, methods: Any) -> dict[str, dict]:
    """Fit repeats of every tissue by every method: median and geometric mean over tissues of the relative RMSE."""
    rows = {}
    for name in methods:
        result = fit_voxels(signals, protocol, "ivim", n_threads=1, **METHODS[name])
        relative = result.parameters.reshape(len(truth), -1, 4) / truth[:, None] - 1
        rows[name] = {"steps": "one" if result.threshold is None else f"two, b ≥ {result.threshold:g}"}
        for parameter, j in COLUMNS.items():
            errors = np.sqrt((relative[..., j] ** 2).mean(axis=1))
            rows[name][parameter] = {key: round(float(over(errors)), 4) for key, over in SUMMARIES.items()}
    return rows


def compare(name: str, snr: int, n_tissues: int, n_repeats: int) -> dict:
    """Compare what was chosen at one SNR with the best single method: all parameters together, and each."""
    rng = np.random.default_rng([SEED, snr, len(name)])
    truth = np.column_stack([
        np.ones(n_tissues), *np.exp(rng.uniform(np.log([0.03, 8]), np.log([0.5, 100]), (n_tissues, 2))).T,
        rng.uniform(0.4, 2.2, n_tissues),
    ])  # fmt: skip
    signals = magnitudes(IVIM, np.repeat(truth, n_repeats, axis=0), PROTOCOLS[name], snr, rng)
    rows = errors_of(truth, signals, PROTOCOLS[name], METHODS)
    table = {method: np.array([row[parameter]["rmse"] for parameter in COLUMNS]) for method, row in rows.items()}
    chosen = table.pop("chosen")
    together = {method: float(np.exp(np.log(errors).mean())) for method, errors in table.items()}
    best = min(together, key=together.__getitem__)
    ratio = float(np.exp(np.log(chosen).mean())) / together[best]
    return {
        "protocol": name, "snr": snr, **rows["chosen"], "best": best, "ratio": round(ratio, 3),
        "ratio_each": round(float((chosen / np.min(list(table.values()), axis=0)).max()), 3),
        "ratio_one_step": round(together["one step"] / together[best], 3),
    }  # fmt: skip


def beside_published(protocol: Protocol, tissues: dict, table: pd.DataFrame, snr: int, n_repeats: int) -> dict:
    """Rank what is chosen at one SNR among the published algorithms, by median and by geometric mean over the seven tissues."""
    seven = np.array(list(tissues.values()))
    signals = noisy(np.repeat(seven, n_repeats, axis=0), protocol, snr, np.random.default_rng([SEED, snr]))
    rows = errors_of(seven, signals, protocol, ("chosen", "one step"))
    table = table[(table.f > 0) & (snr == table.SNR)].drop_duplicates(["Algorithm", "f", "Dp", "D"])
    chosen = rows["chosen"]
    for parameter, column in PUBLISHED.items():
        bias, spread = table[f"{column}_mu"] / table[column] - 1, table[f"{column}_std"] / table[column]
        for key, over in SUMMARIES.items():
            errors = np.hypot(bias, spread).groupby(table.Algorithm).agg(over)
            chosen[parameter][f"{key}_rank"] = 1 + int((errors < chosen[parameter][key]).sum())
            chosen[parameter][f"{key}_best"] = round(float(errors.min()), 4)
            chosen[parameter][f"{key}_one_step"] = rows["one step"][parameter][key]
    return {"snr": snr, "n": 1 + table.Algorithm.nunique(), **chosen}


def coverage(name: str, snr: int, n_voxels: int) -> list[dict]:
    """Count how often the 95 % interval holds the truth, over all and in the worst third of the truths."""
    protocol, ranges = TISSUES[name]
    model, rng = MODELS[name], np.random.default_rng([SEED, snr])
    truth = np.column_stack([np.ones(n_voxels), *(rng.uniform(*ranges[one], n_voxels) for one in model.names[1:])])
    result = fit_voxels(magnitudes(model, truth, protocol, snr, rng), protocol, model, n_threads=1)
    low, high = np.moveaxis(result.intervals(), -1, 0)
    holds = (low <= truth) & (truth <= high)
    rows = []
    for j, parameter in enumerate(model.names[1:], 1):
        thirds = np.array_split(holds[np.argsort(truth[:, j]), j], 3)
        shares = [round(float(part.mean()), 3) for part in (holds[:, j], *thirds, result.doubt[:, j])]
        rows.append({"model": name, "snr": snr, "parameter": parameter, "all": shares[0], "thirds": shares[1:4], "doubted": shares[4]})
    return rows


def water(name: str, snr: int, n_voxels: int) -> dict:
    """Count the voxels of water (D 2 µm²/ms, K 0) whose interval of K excludes 0."""
    truth = np.tile([1.0, 2.0, 0.0], (n_voxels, 1))
    signals = magnitudes(MODELS["kurtosis"], truth, WATER[name], snr, np.random.default_rng([SEED, snr, 1]))
    row: dict[str, Any] = {"protocol": name, "snr": snr}
    for key, options in (("chosen", {}), ("one_step", {"method": "nlls"})):
        result = fit_voxels(signals, WATER[name], "kurtosis", n_threads=1, **options)
        excludes = result.intervals()[:, 2, 0] > 0
        row[key] = round(float(excludes.mean()), 3)
        row[f"{key}_believed"] = round(float((excludes & ~result.doubt[:, 2]).mean()), 3)
    return row


def price(protocol: Protocol, tissues: dict[str, np.ndarray], snr: int) -> list[dict]:
    """Fit each tissue as a lesion among the others by a prior of all, and without one; give its contrasts."""
    rows = []
    for k, (name, tissue) in enumerate(tissues.items()):
        rng = np.random.default_rng([SEED, k])
        others = np.array([values for other, values in tissues.items() if name != other])
        region = others[rng.integers(0, len(others), N_REGION)] * rng.lognormal(0, 0.1, (N_REGION, 4))
        region[:, 1] = np.clip(region[:, 1], 0.01, 0.95)
        region[:N_LESION] = tissue
        maps = {"truth": region}
        signals = noisy(region, protocol, snr, rng)
        for method in ("map", "nlls"):
            maps[method] = fit_voxels(signals, protocol, IVIM, method=method).parameters
        contrasts = {key: fitted[:N_LESION].mean(axis=0) - fitted[N_LESION:].mean(axis=0) for key, fitted in maps.items()}
        row = {parameter: {key: round(float(one[j]), 4) for key, one in contrasts.items()} for parameter, j in COLUMNS.items()}
        rows.append({"tissue": name, **row})
    return rows


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Compare methods on a grid of tissues and on those of OSIPI; count what intervals hold."""
    n_tissues, n_repeats = (6, 4) if chosen.quick else (N_TISSUES, N_REPEATS)
    n_voxels = 20 * n_tissues if chosen.quick else N_COVERAGE
    protocol, tissues, table = osipi()
    return {
        "data": "synthetic magnitudes; b-values and tissues of OSIPI TF2.4 with Gaussian noise",
        "seed": SEED,
        "grid": [compare(name, snr, n_tissues, n_repeats) for name in PROTOCOLS for snr in SNRS],
        "osipi": [beside_published(protocol, tissues, table, snr, 50 * n_repeats) for snr in (10, 30, 50, 100)],
        "coverage": [row for name in TISSUES for snr in COVERAGE_SNRS for row in coverage(name, snr, n_voxels)],
        "water": [water(name, snr, n_voxels) for name in WATER for snr in (30, 60, 90, 150)],
        "price": price(protocol, tissues, 30),
    }


if __name__ == "__main__":
    runs.main(run, RESULT, packages=("numpy", "numba", "scipy"))
