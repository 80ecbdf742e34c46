"""A plain opponent: Levenberg–Marquardt on all voxels at once, in numpy."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.fitting._fitting_data import TISSUE, Data

TYPICAL = (3.8, 0.2, 20.0, 200.0, 1.0, 0.8, 70.0)

N_ATOMS = 3000
MAX_ITER = 200
TOLERANCE = 1e-9

#: A step that fails this often, with a damping ten times as high each time, cannot be improved.
MAX_DAMPING = 1e12


def signals_and_slopes(p: NDArray, b: NDArray, te: NDArray) -> tuple[NDArray, NDArray]:
    """T2-IVIM-kurtosis of (n, 7) parameters: (n, m) signals and (n, m, 7) derivatives."""
    s0, f, dv, t2v, dt, k, t2t = p.T[:, :, None]
    x = b * dt
    fast = np.exp(-b * dv - te / t2v)
    slow = np.exp(-x + k * x**2 / 6 - te / t2t)
    slopes = np.empty((*fast.shape, 7))
    slopes[..., 0] = f * fast + (1 - f) * slow
    slopes[..., 1] = s0 * (fast - slow)
    slopes[..., 2] = -s0 * f * b * fast
    slopes[..., 3] = s0 * f * te / t2v**2 * fast
    slopes[..., 4] = s0 * (1 - f) * slow * b * (k * x / 3 - 1)
    slopes[..., 5] = s0 * (1 - f) * slow * x**2 / 6
    slopes[..., 6] = s0 * (1 - f) * te / t2t**2 * slow
    return s0 * slopes[..., 0], slopes


def search(measured: NDArray, start: NDArray, b: NDArray, te: NDArray, box: NDArray) -> NDArray:
    """Search from (n, 7) start points inside the box (2, 7); the sums of squares, (n,)."""
    low, high = box
    points = np.clip(start, low, high)
    predicted, slopes = signals_and_slopes(points, b, te)
    residuals = measured - predicted
    cost = (residuals**2).sum(axis=1)
    damping = np.full(len(points), 1e-2)
    moving = np.arange(len(points))
    for _ in range(MAX_ITER):
        if not moving.size:
            break
        point = points[moving]
        gradient = np.einsum("nmi,nm->ni", slopes[moving], residuals[moving])
        normal = slopes[moving].transpose(0, 2, 1) @ slopes[moving]
        # A parameter at a bound that the gradient pushes outward stays there in this step.
        pressed = ((point <= low) & (gradient < 0)) | ((point >= high) & (gradient > 0))
        gradient[pressed] = 0
        normal[pressed[:, :, None] | pressed[:, None, :]] = 0
        diagonal = np.einsum("nii->ni", normal)
        diagonal[...] = np.where(pressed, 1.0, diagonal * (1 + damping[moving, None]) + 1e-300)
        step = np.linalg.solve(normal, gradient[..., None])[..., 0]
        candidate = np.clip(point + step, low, high)
        new_predicted, new_slopes = signals_and_slopes(candidate, b, te)
        new_residuals = measured[moving] - new_predicted
        new_cost = (new_residuals**2).sum(axis=1)
        is_better = new_cost < cost[moving]
        gain = np.where(is_better, cost[moving] - new_cost, np.inf)
        is_done = gain <= TOLERANCE * cost[moving]
        accepted = moving[is_better]
        points[accepted] = candidate[is_better]
        residuals[accepted] = new_residuals[is_better]
        slopes[accepted] = new_slopes[is_better]
        cost[accepted] = new_cost[is_better]
        damping[moving] *= np.where(is_better, 0.1, 10.0)
        moving = moving[~is_done & (damping[moving] < MAX_DAMPING)]
    return cost


class BatchedNumpy:
    """The first voxels of a set, by their largest signal, in the box of our own fit."""

    def __init__(self, data: Data, n: int, *, chunk: int = 1000) -> None:
        self.top = data.signals[:n].max(axis=1)
        self.measured = data.signals[:n] / self.top[:, None]
        self.b, self.te = data.protocol.b_ms_per_um2, data.protocol.te
        self.box = np.array(data.model.bounds).T
        self.chunk = chunk

    def one_start(self) -> NDArray:
        """Search from one typical point."""
        return self._costs(lambda measured: np.tile(TYPICAL, (1, len(measured), 1)))

    def best_of_dictionary(self, n_starts: int, seed: int) -> NDArray:
        """Search from the entries of a dictionary of tissue that fit best, S0 aside."""
        rng = np.random.default_rng(seed)
        atoms = np.column_stack(
            [np.ones(N_ATOMS), *(rng.uniform(*TISSUE[name], N_ATOMS) for name in TISSUE)]
        )
        shapes, _ = signals_and_slopes(atoms, self.b, self.te)
        squares = (shapes**2).sum(axis=1)

        def starts(measured: NDArray) -> NDArray:
            products = measured @ shapes.T
            best = np.argpartition(-(products**2) / squares, n_starts, axis=1)[:, :n_starts]
            points = atoms[best]
            points[..., 0] = np.take_along_axis(products / squares, best, axis=1)
            return points.transpose(1, 0, 2)

        return self._costs(starts)

    def _costs(self, starts: object) -> NDArray:
        """Sum of squares of each voxel, the least over its starts, in units of the signals."""
        costs = []
        # Voxels of one chunk fit into the cache of the processor.
        for first in range(0, len(self.measured), self.chunk):
            measured = self.measured[first : first + self.chunk]
            with np.errstate(over="ignore", invalid="ignore"):
                ends = [
                    search(measured, point, self.b, self.te, self.box)
                    for point in starts(measured)
                ]
            costs.append(np.min(ends, axis=0))
        return np.concatenate(costs) * self.top**2
