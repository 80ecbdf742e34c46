"""What is the same for all voxels of a fit, as the kernel takes it, and the routing of starts."""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.threads import one_thread
from dmrifit.engine.fit_settings import Box, FitSettings
from dmrifit.engine.kernels import compiler
from dmrifit.engine.kernels.layout import (
    LANES,
    NO_VOXEL_YET,
    UNROLL,
    Common,
    Contrasts,
    Ends,
    Layout,
    Starts,
    zeros_of_lanes,
)
from dmrifit.engine.models import SignalModel
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.results import FitResult
from dmrifit.engine.starting_points import Dictionary, to_inner

#: Fields of a result in the order of `shared.finish`.
COLUMNS = (
    "parameters", "standard_errors", "cost", "status", "n_iter", "at_low", "at_high",
    "starts_disagree",
)  # fmt: skip
_FORMS = ("plain", "log", "inverse")  # in the order of `shared`
_TOLERANCE = 1e-8
# With a penalty the last promised step is not taken, so the search must end nearer. Fits of two
# parameters do so too: predictors take differences of ADCs, which multiply their errors.
_STRICT_TOLERANCE = 1e-9

# Routing of starts: a score learned from simulated voxels, kept on disk.
_N_VOXELS = 16_384
_SNR = (15.0, 80.0)  # of the largest signal, drawn evenly in the logarithm
# Share of the simulated voxels that get all starts. With 0.2, tissue loses 0.04 % of best fits;
# with a noise floor 0.4 loses 0.1 % where the signal sinks into it.
_SHARE, _SHARE_FLOORED = 0.4, 0.5
_BETTER = 1e-4  # relative gain in cost that makes another start worth its time
_RIDGE = 1e-5

_known: dict[str, NDArray[np.float64]] = {}
_lock = threading.Lock()


class Problem:
    """The values common to all voxels, and the three steps of the kernel."""

    def __init__(
        self,
        model: SignalModel,
        protocol: Protocol,
        settings: FitSettings,
        box: Box,
        fixed: dict[str, NDArray],
    ) -> None:
        self.model = model
        self.protocol = protocol
        self.kernel = compiler.load(model)
        self.shared = compiler.load(None)
        self.n_free = len(model.names) - len(fixed)
        self._set_bounds(protocol, box)
        # Fixed values in inner coordinates, one row for all voxels or one for each; NaN for the
        # parameters that are fitted.
        outer = np.ones((max([1, *(value.size for value in fixed.values())]), len(model.names)))
        for name, value in fixed.items():
            if value.size:
                outer[:, model.names.index(name)] = value
        pinned = to_inner(outer, self.kernel.FORMS)
        pinned[:, [name not in fixed for name in model.names]] = np.nan
        self.pinned = np.ascontiguousarray(pinned)
        self.regularized = bool(settings.regularization)
        self.penalty = settings.penalty(self.low, self.high)
        self.contrasts = Contrasts.of(protocol.b_ms_per_um2, protocol.te)
        common = tuple(sorted((n, float(value)) for n, value in fixed.items() if value.ndim == 0))
        n_starts = settings.starts(self.n_free)
        self.dictionary = _cached_dictionary(
            self.kernel, model, protocol, tuple(self.low), tuple(self.high), common, self.turn_up,
            n_starts,
        )  # fmt: skip
        self.n_starts = min(n_starts, self.dictionary.n_strata)
        # A function that is called from the kernel costs more to calibrate than starts cost.
        self.is_routed = (
            settings.routed
            and self.n_starts > 1
            and not self.kernel.CALLED
            and all(value.ndim == 0 for value in fixed.values())
        )
        weights = settings.measurement_weights(len(protocol))
        self.roots = np.ones(len(protocol)) if weights is None else np.sqrt(weights)
        self._set_common()

    def _set_bounds(self, protocol: Protocol, box: Box) -> None:
        self.low, self.high = np.empty((2, len(self.model.names)))
        self.turn_up = np.inf
        b_max = float(protocol.b_ms_per_um2.max())
        for j, parameter in enumerate(self.model.parameters):
            self.low[j], upper = box[parameter.name]
            if upper == "monotonic":
                # The limit 3/(b_max·D) moves with D; the search needs a fixed bound beside it.
                upper = parameter.high if np.isfinite(parameter.high) else 1e3
                if b_max > 0:
                    self.turn_up = 3.0 / b_max
            self.high[j] = upper
        ends = np.stack([self.low, self.high])
        # The inverse of a relaxation time swaps its bounds.
        self.inner_low, self.inner_high = np.sort(to_inner(ends, self.kernel.FORMS), axis=0)

    def _set_common(self) -> None:
        """Write as arrays what the compiled code asks of the model and the settings."""
        kernel = self.kernel
        numbers = [kernel.N, kernel.AMPLITUDE, kernel.MIXTURE, kernel.KURTOSIS, kernel.DIFFUSIVITY]
        middle = np.full(kernel.N, np.nan)
        for j in range(kernel.N):
            stays = j in (kernel.AMPLITUDE, *kernel.FIRST)
            if not stays and np.isfinite(self.inner_low[j]) and np.isfinite(self.inner_high[j]):
                middle[j] = (self.inner_low[j] + self.inner_high[j]) / 2
        self.common = Common(
            np.array(numbers),
            np.array([_FORMS.index(form) for form in kernel.FORMS]),
            self.inner_low,
            self.inner_high,
            self.low,
            self.high,
            np.array([parameter.is_amplitude for parameter in self.model.parameters]),
            self.n_free,
            self.regularized,
            self.turn_up,
            # With two components, the stratum that most often ends in the best minimum.
            self.n_starts - 1 if self.is_routed and self.dictionary.atoms.n_first else -1,
            middle,
            self.roots,
        )
        tolerance = _STRICT_TOLERANCE if self.regularized or self.n_free <= 2 else _TOLERANCE
        self.settings_of_steps = np.concatenate(
            [np.zeros(2 * UNROLL), [self.turn_up, tolerance], self.penalty, self.low]
        )

    def random_parameters(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        """Draw `n` sets of parameters from the part of the box that a protocol can resolve."""
        kernel = self.kernel
        parameters = np.ones((n, kernel.N))
        for j in range(kernel.N):
            shares = rng.uniform(size=n)
            fixed = self.pinned[0, j]
            if not np.isnan(fixed):
                parameters[:, j] = 1.0 / fixed if kernel.FORMS[j] == "inverse" else fixed
                if kernel.FORMS[j] == "log":
                    parameters[:, j] = np.exp(fixed)
            elif j == kernel.MIXTURE:
                parameters[:, j] = self.low[j] + (self.high[j] - self.low[j]) * shares**2
            elif j != kernel.AMPLITUDE:
                parameters[:, j] = self.dictionary.spread(j, shares)
        k, d = kernel.KURTOSIS, kernel.DIFFUSIVITY
        if k >= 0 and np.isnan(self.pinned[0, k]):
            # Beyond 6/(b·D) the signal at the highest b-value would exceed that at b = 0.
            limit = 6.0 / (max(self.protocol.b_ms_per_um2.max(), 1e-9) * parameters[:, d])
            limit = np.minimum(np.maximum(limit, self.low[k]), self.high[k])
            parameters[:, k] = self.low[k] + (limit - self.low[k]) * rng.uniform(size=n)
        return parameters

    def prepare(self, signals: NDArray) -> Starts:
        """
        Find the voxels that can be fitted, and their starting points.

        Shapes: `signals` (n_voxels, n_measurements).
        """
        dictionary, n = self.dictionary, len(signals)
        values = np.ascontiguousarray(signals, dtype=np.float64)
        if not values.flags.writeable:
            # For numba that is another type, for which it would compile everything again.
            values = values.copy()
        n_atoms, n_measurements = dictionary.atoms.signals.shape
        starts = Starts(
            values,
            scales=np.empty(n),
            usable=np.empty(n, np.int64),
            n_measured=np.empty(n, np.int64),
            points=np.empty((n, self.n_starts, self.kernel.N)),
            residual_squares=np.empty((n, dictionary.n_strata)),
        )
        work = (
            zeros_of_lanes(dictionary.n_strata, 2 * LANES),
            zeros_of_lanes(n_atoms, LANES),
            zeros_of_lanes(n_measurements * LANES),
            np.empty((n_atoms, n_atoms)),
            np.zeros(1, np.int64),
        )
        n_usable = self.shared.prepare(self.common, dictionary.atoms, work, starts)
        rows: list[NDArray[Any]] = [values[:n_usable] for values in starts[1:]]
        return Starts(starts.signals, *rows)

    def search(
        self, starts: Starts, pinned: NDArray, sigma: NDArray | None, weights: NDArray
    ) -> Ends:
        """
        Minimize from the starting points.

        Shapes: `pinned` (1 or n_voxels, n_parameters), `sigma` (1 or n_voxels,), `weights` of
        `routing_weights`, or (0,) for all starts in all voxels.
        """
        n, n_slots, layout = self.kernel.N, len(starts.usable), Layout(self.kernel.N)
        ends = Ends(
            points=np.ones((n_slots, n)),
            sums=np.empty((n_slots, len(layout.pairs))),
            # Stays NaN where no start has a finite signal.
            squares=np.full(n_slots, np.nan),
            converged=np.zeros(n_slots, bool),
            steps=np.zeros(n_slots, np.int64),
            disagree=np.zeros(n_slots, bool),
        )
        work = zeros_of_lanes(layout.n_rows, LANES)
        for name in ("Q", "T", "LO", "HI"):
            # An idle lane works on ones; its numbers go nowhere.
            row = layout.offset[name]
            work[row : row + n] = 1.0
        kernel, contrasts = self.kernel, self.contrasts
        n_tabulated = kernel.N_BY_B * len(contrasts.b) + kernel.N_BY_TE * len(contrasts.te)
        n_padded = len(contrasts.pairs) // 2 * LANES
        arrays = (
            work,
            self.settings_of_steps.copy(),
            zeros_of_lanes(n_padded),
            zeros_of_lanes(n_padded),
            zeros_of_lanes(max(n_tabulated, (n + 1) * UNROLL) * LANES),
            np.zeros(1 + 2 * UNROLL, np.int64),
            np.full(LANES, NO_VOXEL_YET),
            np.zeros(LANES, np.int64),
            np.zeros(n),
            np.zeros(self.dictionary.n_strata + 3 * n),
        )
        noise = np.zeros(1) if sigma is None else sigma
        floored = sigma is not None
        code, _ = kernel.addresses()
        self.shared.search(
            code, self.common, starts, noise, pinned, contrasts, weights, floored, arrays, ends
        )
        return ends

    def finish(
        self, starts: Starts, ends: Ends, pinned: NDArray, chunk: slice, result: FitResult
    ) -> None:
        """Write the ends into a chunk of the results, in the units of the model."""
        self.shared.finish(
            self.kernel.addresses()[1],
            self.common,
            starts,
            pinned,
            zeros_of_lanes(Layout(self.kernel.N).n_rows, LANES),
            self.settings_of_steps,
            np.zeros(1, np.int64),
            ends,
            tuple(getattr(result, name)[chunk] for name in COLUMNS),
        )


# A dictionary costs more than the fits where there are few voxels, and nothing changes one later.
_cached_dictionary = lru_cache(maxsize=32)(Dictionary)


def routing_weights(problem: Problem, *, floored: bool) -> NDArray[np.float64]:
    """
    Get the weights of the score by which voxels get further starts; empty where all get all.

    They belong to a model, a protocol and a box, and are learned where they are not on disk.
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
                store = CodeStore(path, f"fit of model {problem.model.name}", "DMRIFIT_CACHE")
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
    """Compute a hash of everything that the weights of the score depend on."""
    dictionary = problem.dictionary
    arrays = (
        dictionary.atoms.signals,
        dictionary.atoms.points,
        problem.contrasts.pairs,
        problem.settings_of_steps,
        problem.inner_low,
        problem.inner_high,
        problem.pinned,
        problem.roots,
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
    """Learn from simulated voxels the weights of a score for whether another start ends better."""
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
        problem.common, first.points, starts.residual_squares, first.squares, features
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
    # Threads of BLAS take longer to wake than these small products, and may add in another order.
    with one_thread():
        weights[1:] = _logistic_weights(columns, improved[usable])
    score = columns @ weights[1:]
    weights[0] = -np.quantile(score, 1.0 - (_SHARE_FLOORED if floored else _SHARE))
    # Other processors add in another order; the digits that are left agree.
    return np.array([float(f"{weight:.9g}") for weight in weights])


def _simulate(problem: Problem) -> tuple[NDArray, NDArray]:
    """
    Simulate magnitudes of random parameters, with small shares of the fast component preferred.

    Shapes: returns (n_voxels, n_measurements) and the standard deviation of the noise (n_voxels,).
    """
    rng = np.random.default_rng(20_251)
    parameters = problem.random_parameters(rng, _N_VOXELS)
    clean = problem.model.signal(parameters, problem.protocol)
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
