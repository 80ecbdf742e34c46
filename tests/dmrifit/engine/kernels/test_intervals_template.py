"""The compiled intervals against the same steps in plain numpy, one voxel at a time."""

import numpy as np
import pytest
from scipy.special import stdtrit

from dmrifit import MODELS, Protocol, fit_voxels
from dmrifit.engine.design.precision import signal_jacobian

T2IK = MODELS["t2-ivim-kurtosis"]
PROTOCOL = Protocol.preset("cohort1")
KINDS = ["amplitude", "share", "inverse", "inverse", "plain", "plain", "inverse"]
TISSUE = [
    [1000.0, 0.15, 20, 200, 1.1, 0.8, 80],
    [1000.0, 0.02, 40, 170, 0.6, 1.2, 60],
    [1000.0, 0.3, 10, 240, 1.7, 0.4, 100],
]


@pytest.fixture(scope="module")
def signals():
    rng = np.random.default_rng(11)
    clean = np.tile(T2IK.signal(TISSUE, PROTOCOL), (7, 1))
    noise = rng.normal(size=(2, *clean.shape)) * clean[:, :1] / rng.uniform(20, 70, (len(clean), 1))
    signals = np.hypot(clean + noise[0], noise[1])
    signals[5, [3, 8, 9]] = np.nan
    signals[12] = np.nan
    return signals


class Voxel:
    """The intervals of one voxel, step by step."""

    def __init__(self, signal, box, floor2, free):
        self.measured = np.isfinite(signal)
        self.signal, self.floor2, self.free = signal[self.measured], floor2, free
        self.ends = np.sort([self.into(end) for end in box], axis=0)
        width = np.ptp(self.ends, axis=0)
        self.weight = np.where(free & np.isfinite(width), 12 / width**2, 0.0)
        self.weight[0] = 0.0
        self.center = np.where(self.weight > 0, self.ends.mean(axis=0), 0.0)

    def into(self, values):
        pairs = zip(values, KINDS, strict=True)
        with np.errstate(divide="ignore"):
            return np.array([1 / x if k == "inverse" else np.sqrt(x + 0.02) if k == "share" else x for x, k in pairs])

    def out_of(self, point):
        pairs = zip(point, KINDS, strict=True)
        return np.array([1 / u if k == "inverse" else u * u - 0.02 if k == "share" else u for u, k in pairs])

    def derivatives(self, point):
        values = self.out_of(point)
        slopes = {"inverse": -(values**2), "share": 2 * point}
        slopes = [slopes.get(kind, np.ones(len(point)))[j] for j, kind in enumerate(KINDS)]
        signal = T2IK.signal(values, PROTOCOL)[0, self.measured]
        jacobian = signal_jacobian(T2IK, values, PROTOCOL)[0, self.measured] * slopes * self.free
        magnitude = np.sqrt(signal**2 + self.floor2)
        return self.signal - magnitude, jacobian * (signal / magnitude)[:, None]

    def intervals(self, estimate, levels):
        u = self.into(estimate)
        residual, jacobian = self.derivatives(u)
        keep = self.free
        rss, n_usable = residual @ residual, len(self.signal)
        dof = max(n_usable - keep.sum(), 1)
        for after_count in (False, True):
            variance = max(rss / dof, (1e-9 * np.abs(self.signal).max()) ** 2)
            precision = jacobian.T @ jacobian / variance + np.diag(self.weight)
            covariance = np.zeros_like(precision)
            covariance[np.ix_(keep, keep)] = np.linalg.inv(precision[np.ix_(keep, keep)])
            sd = np.sqrt(np.diag(covariance))
            if not after_count:
                wide = 2 * stdtrit(dof, 0.975) * sd >= 0.75 * np.ptp(self.ends, axis=0)
                dof = min(dof + (keep & wide).sum(), max(n_usable - 1, 1))
        away = u - self.center
        slope = jacobian.T @ residual / variance - self.weight * away
        middle = u + covariance @ slope
        least = rss / variance + self.weight @ away**2 - slope @ covariance @ slope
        ends = np.full((len(levels), len(u), 2), np.nan)
        for j in np.flatnonzero(keep):
            for side, sign in enumerate((-1, 1)):
                length = np.array([stdtrit(dof, (1 + level) / 2) for level in levels]) * sd[j]
                if KINDS[j] in ("plain", "share"):
                    room = max(sign * (self.ends[side, j] - middle[j]), 0.1 * sd[j])
                    distance = min(stdtrit(dof, 0.975) * sd[j], room)
                    rest = keep & (np.arange(len(u)) != j)
                    probe = middle + sign * distance * covariance[j] / covariance[j, j]
                    probe = np.where(rest, np.clip(probe, *self.ends), probe)
                    bend = self.bend(probe, rest, variance, least, sd[j], distance)
                    length = np.array([bent(x, distance, bend) for x in length])
                end = np.clip(middle[j] + sign * length, *self.ends[:, j])
                place = 1 - side if KINDS[j] == "inverse" else side
                for level, x in enumerate(end):
                    value = self.out_of(np.where(np.arange(len(u)) == j, x, u))[j]
                    ends[level, j, place] = (max if place else min)(value, estimate[j])
        return ends

    def bend(self, probe, rest, variance, least, sd, distance):
        residual, jacobian = self.derivatives(probe)
        away = probe - self.center
        right = (jacobian.T @ residual / variance - self.weight * away)[rest]
        precision = (jacobian.T @ jacobian / variance + np.diag(self.weight))[np.ix_(rest, rest)]
        rise = residual @ residual / variance + self.weight @ away**2 - least
        rise -= right @ np.linalg.solve(precision, right)
        return (np.sqrt(max(rise, 0)) * sd / distance - 1) / distance


def bent(linear, distance, bend):
    """Solve x(1 + c·x) = linear, at most twice as long."""
    bend = np.clip(bend, -0.5 / distance, 50 / distance)
    root = 1 + 4 * bend * linear
    if abs(bend) * linear < 1e-9:
        return linear
    return 2 * linear if root < 0 else min((np.sqrt(root) - 1) / (2 * bend), 2 * linear)


@pytest.mark.parametrize("case", ["plain", "floor", "fixed", "monotonic"])
def test_intervals_are_those_of_plain_numpy(signals, case):
    sigma = 12.0 if case == "floor" else None
    options = {"fixed": {"fixed": {"T2v": 200.0, "K": 0.7}}, "monotonic": {"bounds": {"K": (0, "monotonic")}}}
    result = fit_voxels(signals, PROTOCOL, T2IK, sigma=sigma, **options.get(case, {}))
    levels = (0.68, 0.95)
    ours = np.stack([result.intervals(level) for level in levels])
    free = np.array([name not in result.fixed for name in T2IK.names])
    assert np.isnan(ours[:, 12]).all()
    for i in np.flatnonzero(np.isfinite(result.cost)):
        estimate = result.parameters[i]
        box = np.array(result.bounds).T
        box[:, 0] *= np.nanmax(signals[i])
        if case == "monotonic":
            box[1, 5] = min(box[1, 5], 3 / (1.6 * estimate[4]))
        floor2 = 0.0 if sigma is None else np.pi / 2 * sigma**2
        expected = Voxel(signals[i], box, floor2, free).intervals(estimate, levels)
        np.testing.assert_allclose(ours[:, i], expected, rtol=1e-6, atol=1e-9)
