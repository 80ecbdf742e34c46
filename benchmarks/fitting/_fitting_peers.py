"""Fits by other programs, one voxel at a time, for comparison."""

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import _measure as measure
from benchmarks.fitting._fitting_data import Data
from dmrifit import Protocol


def jacobian(p: NDArray, b: NDArray, te: NDArray) -> NDArray:
    """Derivatives of the T2-IVIM-kurtosis signal, (n_measurements, 7)."""
    # Of one voxel, without signals: a fair opponent computes no more than it needs.
    s0, f, dv, t2v, dt, k, t2t = p
    x = b * dt
    fast, slow = np.exp(-b * dv - te / t2v), np.exp(-x + k * x**2 / 6 - te / t2t)
    return np.stack(
        [
            f * fast + (1 - f) * slow,
            s0 * (fast - slow),
            -s0 * f * b * fast,
            s0 * f * te / t2v**2 * fast,
            s0 * (1 - f) * slow * b * (k * x / 3 - 1),
            s0 * (1 - f) * slow * x**2 / 6,
            s0 * (1 - f) * te / t2t**2 * slow,
        ],
        axis=1,
    )


class Scipy:
    """scipy's least_squares with the analytic Jacobian on single voxels, in the box of our own fit."""

    def __init__(self, data: Data, *, floor: bool = False) -> None:
        from scipy.optimize import least_squares

        self._solve = least_squares
        self.data, self.floor = data, floor
        self.b, self.te = data.protocol.b_ms_per_um2, data.protocol.te
        self.low, self.high = np.array(data.model.bounds).T

    def __call__(self, i: int, start: NDArray, **options: float) -> tuple[NDArray, float]:
        top = self.data.signals[i].max()
        measured = self.data.signals[i] / top
        floor2 = np.pi / 2 * (self.data.sigma[i] / top) ** 2 if self.floor else 0.0

        def predicted(p: NDArray) -> NDArray:
            x = self.b * p[4]
            return p[0] * (
                p[1] * np.exp(-self.b * p[2] - self.te / p[3])
                + (1 - p[1]) * np.exp(-x + p[5] * x**2 / 6 - self.te / p[6])
            )

        def residual(p: NDArray) -> NDArray:
            s = predicted(p)
            return (np.sqrt(s**2 + floor2) if floor2 else s) - measured

        def derivatives(p: NDArray) -> NDArray:
            j = jacobian(p, self.b, self.te)
            if floor2:
                s = predicted(p)
                j *= (s / np.sqrt(s**2 + floor2))[:, None]
            return j

        done = self._solve(
            residual,
            start,
            derivatives,
            (self.low, self.high),
            x_scale=[3, 0.2, 20, 200, 1, 1, 70],
            **options,
        )
        return done.x * [top, 1, 1, 1, 1, 1, 1], 2 * done.cost * top**2

    def typical(self, n: int) -> NDArray:
        """Fit the first voxels from one typical point each, with scipy's own tolerances."""
        return np.array(
            [self(i, np.array([3.8, 0.2, 20, 200, 1, 0.8, 70.0]))[1] for i in range(n)]
        )

    def best(self, n: int, n_starts: int, seed: int) -> NDArray:
        """Best of random starts, to the last digit."""
        rng = np.random.default_rng(seed)
        costs = np.full(n, np.inf)
        low, high = self.low.copy(), self.high.copy()
        low[0], high[0] = 0.8, 12.0
        tight = {"ftol": 1e-12, "xtol": 1e-12, "gtol": 1e-12, "max_nfev": 1000}
        for i in range(n):
            for _ in range(n_starts):
                with np.errstate(over="ignore"):
                    costs[i] = min(costs[i], self(i, rng.uniform(low, high), **tight)[1])
        return costs


def agreement(ours: NDArray, theirs: NDArray) -> dict[str, object]:
    """How the best known cost stands to the best of another's starts."""
    excess = ours / theirs - 1
    return {
        "n_voxels": len(ours),
        "equal_within_1e-9": round(float((np.abs(excess) <= 1e-9).mean()), 4),
        "equal_within_1e-6": round(float((np.abs(excess) <= 1e-6).mean()), 4),
        "ours_not_worse_within_1e-9": round(float((excess <= 1e-9).mean()), 4),
        "ours_not_worse_within_1e-6": round(float((excess <= 1e-6).mean()), 4),
        "largest_excess_of_ours": float(f"{excess.max():.3g}"),
        "largest_excess_of_theirs": float(f"{(theirs / ours - 1).max():.3g}"),
    }


def lmfit_costs(data: Data, n: int, method: str) -> NDArray:
    """Fit the first voxels by lmfit, as its manual shows, from one typical point."""
    import lmfit

    b, te = data.protocol.b_ms_per_um2, data.protocol.te

    def signal(b: NDArray, te: NDArray, S0, f, Dv, T2v, Dt, K, T2t):
        return S0 * (
            f * np.exp(-b * Dv - te / T2v)
            + (1 - f) * np.exp(-b * Dt + K * (b * Dt) ** 2 / 6 - te / T2t)
        )

    model = lmfit.Model(signal, independent_vars=["b", "te"])
    start = {"S0": 3.8, "f": 0.2, "Dv": 20, "T2v": 200, "Dt": 1, "K": 0.8, "T2t": 70}
    costs = np.empty(n)
    for i in range(n):
        top = data.signals[i].max()
        parameters = lmfit.Parameters()
        for described in data.model.parameters:
            parameters.add(
                described.name, start[described.name], min=described.low, max=described.high
            )
        fit = model.fit(data.signals[i] / top, parameters, b=b, te=te, method=method)
        costs[i] = fit.chisqr * top**2
    return costs


def run_script(script: str, signals: NDArray, protocol: Protocol) -> tuple[NDArray, float]:
    """Run the published script on voxels laid out as an image; its parameters and processor seconds."""
    import nibabel

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        image = signals[:, None, None, :].astype(np.float64)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), path / "signal.nii")
        np.savetxt(path / "scheme.txt", np.stack([protocol.b, protocol.te]), fmt="%g")
        command = [
            os.fspath(Path(script).resolve()),
            "signal.nii",
            "scheme.txt",
            "out",
            "--ncpu",
            "1",
        ]
        code = f"import runpy, sys; sys.argv = {command!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        child = measure.run_child(code, single, path)
        maps = [
            np.asarray(nibabel.load(path / f"out_{name}.nii").dataobj).ravel()
            for name in ("s0", "fv", "dv", "t2v", "dt", "kt", "t2t")
        ]
    return np.stack(maps, axis=1), child["cpu_s"]
