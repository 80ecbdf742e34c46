"""Synthetic voxels for the measurements of fits, and the best known fits to them."""

import numpy as np
from numpy.typing import NDArray

from dmrifit import MODELS, FitResult, Protocol, SignalModel, fit_voxels

SEED = 20261120

T2IK = MODELS["t2-ivim-kurtosis"]
RELAXATION = Protocol(np.tile([0, 50, 100, 400, 900, 1200, 1600], 3), np.repeat([93, 105, 120], 7))
DIFFUSION = Protocol([0, 50, 100, 400, 900, 1200, 1600])

# Ranges that parameters are drawn from, evenly (of Dv in tissue, evenly in its logarithm), and
# those of the signal-to-noise ratio at b = 0 and the shortest TE.
TISSUE = {
    "f": (0.02, 0.35),
    "Dv": (8, 60),
    "T2v": (150, 250),
    "Dt": (0.5, 1.8),
    "K": (0.3, 1.8),
    "T2t": (35, 110),
}
HARD = {
    "f": (0, 1),
    "Dv": (4, 100),
    "T2v": (150, 250),
    "Dt": (0.2, 3),
    "K": (0, 2),
    "T2t": (20, 140),
}
SNR = {"tissue": (30, 60), "hard": (15, 60)}

# Where the box is cut into the parts that are searched one by one.
PARTS = {"Dv": 20.0, "Dt": 1.0, "K": 1.0}


class Data:
    """Synthetic signals of one kind, and the best known fits to them."""

    def __init__(
        self,
        model: SignalModel,
        protocol: Protocol,
        truth: NDArray,
        snr: tuple[float, float],
        seed: int,
    ):
        rng = np.random.default_rng(seed)
        clean = model.signal(truth, protocol)
        self.model, self.protocol, self.truth = model, protocol, truth
        self.sigma = clean[:, 0] / rng.uniform(*snr, len(truth))
        noise = rng.normal(size=(2, *clean.shape)) * self.sigma[:, None]
        self.signals = np.hypot(clean + noise[0], noise[1])
        self.seed = seed
        self.bounds: dict[str, tuple[float, float]] | None = None
        self.best: dict[bool, NDArray] = {}
        self.results: dict[str, FitResult] = {}

    def __len__(self) -> int:
        return len(self.signals)

    def fit(self, *, floor: bool = False, n: int | None = None, **options: object) -> FitResult:
        sigma = self.sigma[:n] if floor else None
        options.setdefault("bounds", self.bounds)
        return fit_voxels(
            self.signals[:n],
            self.protocol,
            self.model,
            method="nlls",
            sigma=sigma,
            n_threads=1,
            **options,
        )

    def cost(self, parameters: NDArray) -> NDArray:
        """Sum of squared residuals of parameters of the first voxels."""
        predicted = self.model.signal(parameters, self.protocol)
        return ((self.signals[: len(parameters)] - predicted) ** 2).sum(axis=1)

    def know(self, cost: NDArray, *, floor: bool = False) -> None:
        """Take costs of the first voxels into the best known ones."""
        best = self.best.setdefault(floor, np.full(len(self), np.inf))
        best[: len(cost)] = np.fmin(best[: len(cost)], cost)

    def search(self, *, floor: bool = False, parts: dict[str, float], **options: object) -> None:
        """Look for the best fits: many starts, and each part of the box by itself."""
        self.know(self.fit(floor=floor, n_starts=16, **options).cost, floor=floor)
        box = dict(zip(self.model.names, self.model.bounds, strict=True))
        for which in range(2 ** len(parts)):
            bounds = {}
            for bit, (name, middle) in enumerate(parts.items()):
                low, high = box[name]
                bounds[name] = (low, middle) if which >> bit & 1 else (middle, high)
            self.know(
                self.fit(floor=floor, n_starts=4, bounds=bounds, **options).cost, floor=floor
            )

    def share(self, cost: NDArray, *, floor: bool = False) -> dict[str, object]:
        """Shares of voxels close to the best known fit."""
        return shares(cost, self.best[floor])


def shares(cost: NDArray, best: NDArray) -> dict[str, object]:
    """Shares of the first voxels close to the best known cost."""
    excess = cost / best[: len(cost)] - 1
    return {
        "within_1e-3": round(float((excess <= 1e-3).mean()), 6),
        "within_1e-6": round(float((excess <= 1e-6).mean()), 6),
        "worst_excess": float(f"{excess.max():.3g}"),
        "n_voxels": len(cost),
    }


def draw(kind: str, n: int, seed: int) -> NDArray:
    """Draw parameters of the T2-IVIM-kurtosis model."""
    rng = np.random.default_rng([seed, 1])
    ranges = TISSUE if kind == "tissue" else HARD
    columns = {name: rng.uniform(low, high, n) for name, (low, high) in ranges.items()}
    if kind == "tissue":
        columns["Dv"] = np.exp(rng.uniform(*np.log(TISSUE["Dv"]), n))
    return np.column_stack([np.full(n, 1000.0), *columns.values()])
