"""One training of a comparison, tested and scored on the patients held out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from dmrifit._utils.randomness import derived_seed, seed_for
from dmrifit._utils.threads import one_thread
from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.models import SignalModel
from dmrifit.predict.base import Design
from dmrifit.predict.controls import (
    CONSTANT,
    COPY,
    REPEAT,
    SHUFFLED,
    TRUTH,
    UNTRAINED,
    nearest_contrasts,
)
from dmrifit.predict.strategies import Clinical, SignalToSignal
from dmrifit.stats.metrics import (
    METRICS,
    pearson,
    relative_error_counts,
    skill_scores,
)
from dmrifit.study.contestants import Entrant
from dmrifit.study.splits import Cell
from dmrifit.study.voxel_bank import Constants, HeldOut

#: The row of `Evaluation.signals` over all unseen contrasts together.
POOLED = "all unseen"

#: Columns of `Evaluation.scores` after the keys; those of further metrics follow.
SCORE_COLUMNS = (
    "metric", "bias", "dispersion", "pearson", "spearman", "n_voxels", "seconds", "unit",
    "median_abs_error", "n_undefined", "n_failed", "at_bound",
)  # fmt: skip

#: Columns of `Evaluation.signals`.
SIGNAL_COLUMNS = (
    "cohort", "patient", "strategy", "algorithm", "train_on", "n_train", "repeat", "estimator",
    "contrast", "b", "te", "relative_error", "median_relative_error", "signed_relative_error",
    "n_voxels", "n_undefined", "pearson", "constant_error", "skill",
)  # fmt: skip

_NAN = float("nan")


def run_trial(
    cell: Cell,
    features: NDArray,
    targets: NDArray,
    rows: Sequence[slice],
    n_dropped: int | None,
    tests: Sequence[HeldOut],
    clinical: Sequence[Clinical | None],
    constants: Constants,
) -> dict[str, Any]:
    """Train once, test on every held-out patient; `n_dropped` voxels only for strategies."""
    content: dict[str, Any] = {"scores": [], "signals": []}
    if cell.keep:
        content["predictions"] = {}
    with one_thread():
        try:
            start = time.perf_counter()
            estimator = None
            if cell.entrant.control not in UNTRAINED:
                n_columns = tests[0].X.shape[1]
                estimator = _trained(cell, features, targets, rows, n_dropped, n_columns)
            # Patients that share a training share its time.
            training_seconds = (time.perf_counter() - start) / len(tests)
            for test, metrics in zip(tests, clinical, strict=True):
                start = time.perf_counter()
                if cell.entrant.control in UNTRAINED:
                    signals, maps = _untrained_answers(cell, test, metrics, constants)
                else:
                    signals, maps = _answers(estimator, cell, test, metrics)
                seconds = training_seconds + time.perf_counter() - start
                keys = _keys(cell, test)
                for row in _score_maps(maps, test, cell.entrant, seconds, constants):
                    content["scores"].append(keys | row)
                for row in _score_signals(signals, test, cell, constants):
                    content["signals"].append(keys | row)
                if cell.keep:
                    content["predictions"][test.patient] = {
                        "maps": maps[test.shown].astype(np.float32),
                        "signals": signals[test.shown].astype(np.float32),
                    }
        # Estimators may be anyone's: whatever they raise gets the patient and cohort it happened
        # at.
        except Exception as error:
            patients = cell.test[0] if len(cell.test) == 1 else f"the {len(cell.test)} patients"
            raise RuntimeError(
                f"estimator {cell.entrant.name!r} failed for {patients} of cohort "
                f"{cell.cohort!r}, trained on {len(cell.train)} patients ({cell.train_on}): "
                f"{error}"
            ) from error
    return content


def _keys(cell: Cell, test: HeldOut) -> dict[str, Any]:
    return {
        "cohort": test.cohort,
        "patient": test.patient,
        "strategy": cell.entrant.strategy,
        "algorithm": cell.entrant.algorithm,
        "train_on": cell.train_on,
        "n_train": len(cell.train),
        "repeat": cell.repeat,
        "estimator": cell.entrant.name,
    }


def _trained(
    cell: Cell,
    features: NDArray,
    targets: NDArray,
    rows: Sequence[slice],
    n_dropped: int | None,
    n_columns: int,
) -> Any:
    """Train a copy of the cell's estimator on the rows of its training patients."""
    estimator = clone(cell.entrant.estimator)
    estimator.set_params(**_completed(estimator, cell))
    x = np.concatenate([features[patient_rows] for patient_rows in rows])
    y = np.concatenate([targets[patient_rows] for patient_rows in rows])
    if cell.entrant.control == SHUFFLED:
        generator = np.random.default_rng(seed_for(cell.seed, "shuffle"))
        y = y[generator.permutation(len(y))]
    if n_dropped is None:
        return estimator.fit(x, y)
    groups = np.repeat(cell.train, [r.stop - r.start for r in rows])
    return estimator.fit_design(Design(x, y, n_dropped, n_columns, groups=groups))


def _completed(estimator: Any, cell: Cell) -> dict[str, Any]:
    """Fill in parameters that the user did not set: contrasts, and every seed."""
    parameters = estimator.get_params(deep=True)
    unset = [name for name, value in sorted(parameters.items()) if value is None]
    completed: dict[str, Any] = {}
    for name in unset:
        if name == "source":
            completed[name] = cell.view.source
        elif name == "target":
            completed[name] = cell.view.target
        elif name.split("__")[-1] == "random_state":
            # From the parameter's name: another parameter without a value moves no seed.
            completed[name] = derived_seed(cell.seed, name)
    return completed


def _answers(
    estimator: Any, cell: Cell, test: HeldOut, clinical: Clinical | None
) -> tuple[NDArray, NDArray]:
    """Predict signals and maps; voxels without a usable source signal stay NaN."""
    model, target = cell.entrant.model, cell.view.target
    if clinical is not None:
        maps = estimator.maps_from(clinical)
        return model.signal(maps, target), maps
    usable = np.isfinite(test.X).all(axis=1)
    signals = np.full((len(test.X), len(target)), np.nan)
    maps = np.full((len(test.X), len(model.names)), np.nan)
    if not usable.any():
        return signals, maps
    x = test.X[usable]
    signals[usable] = estimator.predict(x)
    if type(estimator) is SignalToSignal:
        # `predict_maps` would predict the signals again.
        maps[usable] = estimator.maps_of(signals[usable])
    else:
        maps[usable] = estimator.predict_maps(x)
    return signals, maps


def _untrained_answers(
    cell: Cell, test: HeldOut, clinical: Clinical | None, constants: Constants
) -> tuple[NDArray, NDArray]:
    """Give the signals and maps of a control that learns nothing."""
    model, target, control = cell.entrant.model, cell.view.target, cell.entrant.control
    if control == COPY and clinical is None:
        signals = test.X[:, nearest_contrasts(cell.view.source, target)]
        estimator = clone(cell.entrant.estimator)
        return signals, estimator.set_params(**_completed(estimator, cell)).maps_of(signals)
    if control == COPY:
        assert clinical is not None
        maps = _copied_maps(clinical, model, constants)
        return model.signal(maps, target), maps
    signals, maps = test.Y, test.reference
    if control == TRUTH:
        assert test.repeat is not None
        signals, truth = test.repeat.noise_free, test.truth
        # Of regions, or in the symbols of another model, true parameters may not be known.
        maps = fit_voxels(signals, target, model).parameters if truth is None else truth
    if control == REPEAT:
        assert test.repeat is not None
        signals, maps = test.repeat.signals, test.repeat.reference
    if cell.entrant.strategy != "s2s":
        signals = model.signal(maps, target)
    return signals, maps


def _copied_maps(
    clinical: Clinical, model: SignalModel, constants: Constants
) -> NDArray[np.float64]:
    """Take clinical metrics for parameters; what has none like it, from the best constants."""
    adc_fast, adc_slow, fraction = clinical.features.T
    copies = {
        "S0": clinical.s0,
        "f": fraction,
        "Dv": adc_fast,
        "Dt": adc_slow,
        "D": adc_slow,
        "ADC": adc_slow,
    }
    maps = np.tile(constants.relative, (len(clinical.s0), 1))
    for j, parameter in enumerate(model.parameters):
        if parameter.name in copies:
            unit = clinical.largest if parameter.is_amplitude else 1.0
            values = copies[parameter.name]
            maps[:, j] = np.clip(values, parameter.low * unit, parameter.high * unit)
    return maps


def _score_maps(
    maps: NDArray, test: HeldOut, entrant: Entrant, seconds: float, constants: Constants
) -> list[dict[str, Any]]:
    """Score every parameter against the reference and, where known, the truth and a repeat."""
    repeated = None
    # Against itself a repeat would be perfect.
    if test.repeat is not None and entrant.control != REPEAT:
        repeated = test.repeat.reference
    parameters = entrant.model.parameters
    references = {"": test.reference, "_truth": test.truth, "_independent": repeated}
    columns: dict[str, NDArray] = {}
    for suffix, reference in references.items():
        for name, metric in METRICS.items():
            columns[name + suffix] = np.full(len(parameters), _NAN)
            if reference is not None:
                columns[name + suffix] = np.atleast_1d(metric.score(maps, reference))
    is_constant = entrant.control == CONSTANT
    rows = []
    for j, parameter in enumerate(parameters):
        _, n_undefined, n_failed = relative_error_counts(maps[:, j], test.reference[:, j])
        row = {
            "metric": parameter.name,
            "n_voxels": len(maps),
            "seconds": seconds,
            "unit": parameter.unit,
            "n_undefined": n_undefined,
            "n_failed": n_failed,
            "at_bound": float(test.at_bound[j]),
        }
        row |= {name: float(values[j]) for name, values in columns.items()}
        row = {name: row[name] for name in SCORE_COLUMNS} | row
        row |= _map_skills(maps[:, j], test.reference[:, j], constants, j, is_constant)
        independent = dict.fromkeys(("skill", "absolute_skill"), _NAN)
        if repeated is not None:
            independent = _map_skills(maps[:, j], repeated[:, j], constants, j, is_constant)
        for name in ("skill", "absolute_skill"):
            row[f"{name}_independent"] = independent[name]
        rows.append(row)
    return rows


def _map_skills(
    predicted: NDArray, reference: NDArray, constants: Constants, j: int, is_constant: bool
) -> dict[str, Any]:
    """Compare the errors of a parameter with those of the best constants."""
    scores: dict[str, Any] = {}
    for prefix, relative in (("", True), ("absolute_", False)):
        constant = float((constants.relative if relative else constants.absolute)[j])
        # Each score has a best constant of its own, and the control is that one.
        answer = np.full(len(predicted), constant) if is_constant else predicted
        skill, error, constant_error, n = skill_scores(
            answer, reference, constant, relative=relative
        )
        scores[f"{prefix}skill"] = skill
        scores[f"{prefix or 'relative_'}error"] = error
        scores[f"constant_{prefix}error"] = constant_error
    return scores | {"n_absolute": n}


def _score_signals(
    predicted: NDArray, test: HeldOut, cell: Cell, constants: Constants
) -> list[dict[str, Any]]:
    """Score every unseen contrast for itself, and all of them together."""
    unseen = cell.view.unseen()
    if not unseen:
        return []
    p, y = predicted[:, list(unseen)], test.Y[:, list(unseen)]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        error = (p - y) / y
    constant = np.broadcast_to(constants.signals[list(unseen)], y.shape)
    answer = constant if cell.entrant.control == CONSTANT else p
    target, labels = cell.view.target, cell.view.target.labels
    rows = []
    for column, j in enumerate([*unseen, None]):
        keys = {"contrast": POOLED, "b": _NAN, "te": _NAN}
        scored: Any = np.s_[:]
        if j is not None:
            te = _NAN if target.te is None else float(target.te[j])
            keys = {"contrast": labels[j], "b": float(target.b[j]), "te": te}
            scored = np.s_[:, column]
        measured = y[scored].ravel()
        skill, _, constant_error, _ = skill_scores(
            answer[scored].ravel(), measured, constant[scored].ravel(), relative=True
        )
        row = keys | _signal_errors(error[scored].ravel())
        row["pearson"] = float(pearson(p[scored].ravel(), measured))
        rows.append(row | {"constant_error": constant_error, "skill": skill})
    return rows


def _signal_errors(error: NDArray) -> dict[str, Any]:
    usable = np.isfinite(error)
    values = error[usable] if usable.any() else np.array([_NAN])
    size = np.abs(values)
    return {
        "relative_error": float(np.mean(size)),
        "median_relative_error": float(np.median(size)),
        "signed_relative_error": float(np.mean(values)),
        "n_voxels": len(error),
        "n_undefined": int((~usable).sum()),
    }
