"""Which voxels need more than one start: a score learned from simulated voxels, kept on disk."""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.models import signal_for_starts

if TYPE_CHECKING:
    from dmrifit.engine.fit_problem import Problem

_N_VOXELS = 16_384
_SNR = (15.0, 80.0)  # over the largest signal, evenly in the logarithm
# Share of the simulated voxels that get all starts. With 0.2, tissue loses 0.04 % of best fits;
# with a noise floor 0.4 loses 0.1 % where the signal sinks into it.
_SHARE, _SHARE_FLOORED = 0.4, 0.5
_BETTER = 1e-4  # relative gain in cost that makes another start worth its time
_RIDGE = 1e-5

_known: dict[str, NDArray[np.float64]] = {}
_lock = threading.Lock()


def routing_weights(problem: Problem, *, floored: bool) -> NDArray[np.float64]:
    """
    Get the weights of the score that sends a voxel to its other starts; none where all get all.

    They belong to a model, a protocol and a box, and are made where they are not on disk.
    """
    if not problem.is_routed:
        return np.empty(0)
    # What it needs of numba is loaded by now.
    from dmrifit._utils.code_store import CodeStore

    with _lock:
        key = _key(problem, floored)
        if key not in _known:
            path = Path(problem.kernel.__file__ or "").with_name(f"dmrifit_starts_{key}")
            # A kernel may not be on disk.
            store = None
            if path.is_absolute():
                title = f"fit of model {problem.model.name}"
                store = CodeStore(path, title, "DMRIFIT_CACHE")
            content = None if store is None else store.read(path)
            if content is not None and content.startswith(key.encode()):
                # A copy: for numba, an array that cannot be written to is another type.
                weights = np.frombuffer(content[len(key) :], "<f8").astype(np.float64)
            else:
                weights = _calibrate(problem, floored)
                if store is not None:
                    # A fit does not need them on disk.
                    with suppress(OSError):
                        store.write(path, key.encode() + weights.astype("<f8").tobytes())
            _known[key] = weights
        return _known[key]


def _key(problem: Problem, floored: bool) -> str:
    """Identify everything that weights depend on."""
    dictionary = problem.dictionary
    arrays = (
        dictionary.atoms.signals,
        dictionary.atoms.points,
        problem.contrasts.pairs,
        problem.settings_of_steps,
        problem.inner_low,
        problem.inner_high,
        problem.pinned,
    )
    facts = [
        # The name of a kernel holds a hash of the compiled code, the model and the processor.
        problem.kernel.__name__.encode(),
        Path(__file__).read_bytes(),
        repr((dictionary.atoms.n_first, problem.n_starts, problem.regularized, floored)).encode(),
        *(np.ascontiguousarray(array).tobytes() for array in arrays),
    ]
    return hashlib.sha256(b"\0".join(facts)).hexdigest()[:24]


def _calibrate(problem: Problem, floored: bool) -> NDArray[np.float64]:
    """Learn from simulated voxels how a first end looks that another start improves on."""
    signals, sigma = _simulate(problem)
    noise = sigma if floored else None
    starts = problem.prepare(signals)
    n_smooth = problem.dictionary.n_strata + problem.kernel.N
    n_weights = 1 + n_smooth + 2 * problem.kernel.N + n_smooth * (n_smooth + 1) // 2
    only_first, all_starts = np.zeros((2, n_weights))
    only_first[0], all_starts[0] = -1.0, 1.0
    first = problem.search(starts, problem.pinned, noise, only_first)
    best = problem.search(starts, problem.pinned, noise, all_starts)
    features = np.empty((len(starts.usable), problem.dictionary.n_strata + 3 * problem.kernel.N))
    problem.shared.describe_all(
        problem.common, first.points, starts.ratings, first.squares, features
    )
    improved = first.squares > best.squares * (1.0 + _BETTER)
    usable = np.isfinite(features).all(axis=1) & np.isfinite(first.squares)
    weights = np.zeros(n_weights)
    if improved[usable].sum() < 8:
        # One start finds the best end nearly everywhere.
        weights[0] = -1.0
        return weights
    columns = features[usable]
    # With the products of pairs of the first features, in the order of `shared.score`.
    products = [columns[:, i] * columns[:, j] for i in range(n_smooth) for j in range(i + 1)]
    columns = np.column_stack([columns, *products])
    weights[1:] = _logistic_weights(columns, improved[usable])
    score = columns @ weights[1:]
    weights[0] = -np.quantile(score, 1.0 - (_SHARE_FLOORED if floored else _SHARE))
    # Other processors add in another order; the digits that are left agree.
    return np.array([float(f"{weight:.9g}") for weight in weights])


def _simulate(problem: Problem) -> tuple[NDArray, NDArray]:
    """
    Simulate magnitudes from the whole box, most of them with a small share of the fast component.

    Shapes: returns (n_voxels, n_measurements) and the standard deviation of the noise (n_voxels,).
    """
    rng = np.random.default_rng(20_251)
    parameters = problem.random_parameters(rng, _N_VOXELS)
    clean = signal_for_starts(problem.model, parameters, problem.protocol)
    largest = np.abs(clean).max(axis=1, keepdims=True)
    usable = np.isfinite(largest[:, 0]) & (largest[:, 0] > 0) & (largest[:, 0] < 1e6)
    clean = clean[usable] / largest[usable]
    low, high = np.log(_SNR)
    sigma = np.exp(-rng.uniform(low, high, len(clean)))
    noise = rng.normal(size=(2, *clean.shape)) * sigma[:, None]
    return np.hypot(clean + noise[0], noise[1]), sigma


def _logistic_weights(columns: NDArray, improved: NDArray) -> NDArray:
    """Fit a logistic regression by Newton steps; returns the weights without the constant."""
    n = len(columns)
    center, spread = columns.mean(axis=0), columns.std(axis=0)
    spread[spread < 1e-9] = np.inf
    scaled = np.column_stack([np.ones(n), (columns - center) / spread])
    weights = np.zeros(scaled.shape[1])
    ridge = np.full(len(weights), _RIDGE)
    for _ in range(25):
        chance = 1.0 / (1.0 + np.exp(-np.clip(scaled @ weights, -30.0, 30.0)))
        gradient = scaled.T @ (improved - chance) / n - ridge * weights
        curvature = (scaled.T * (chance * (1.0 - chance))) @ scaled / n + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        # Far from the end the curvature is too small, and whole steps would overshoot.
        step *= min(1.0, 3.0 / np.abs(scaled[::16] @ step).max())
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    return weights[1:] / spread
