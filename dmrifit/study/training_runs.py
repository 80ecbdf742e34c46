"""One training of a comparison, tested and scored on the patients held out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from dmrifit._utils.randomness import Seed
from dmrifit._utils.threads import one_thread
from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.models import SignalModel
from dmrifit.predict import controls
from dmrifit.predict.base import Design
from dmrifit.predict.strategies import Clinical, MapsToMaps, SignalToSignal
from dmrifit.stats.metrics import METRICS, pearson, relative_error_counts, skill_scores
from dmrifit.study.contestants import Entrant
from dmrifit.study.splits import Cell
from dmrifit.study.voxel_bank import Constants, HeldOut

#: The row of `Evaluation.signals` over all unseen contrasts together.
POOLED = "all unseen"

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
    n_dropped: int,
    tests: Sequence[HeldOut],
    constants: Sequence[Constants],
) -> dict[str, Any]:
    """Train once, score every held-out patient; a strategy has dropped `n_dropped` voxels."""
    content: dict[str, Any] = {"scores": [], "signals": []}
    if cell.keep:
        content["predictions"] = {}
    entrant = cell.entrant
    with one_thread():
        try:
            start = time.perf_counter()
            estimator = clone(entrant.estimator)
            estimator.set_params(**_completed(estimator, cell))
            if entrant.control not in controls.UNTRAINED:
                selected = np.r_[tuple(rows)]
                x, y = features[selected], targets[selected]
                if entrant.control == controls.SHUFFLED:
                    y = Seed(cell.seed).rng("shuffle").permutation(y)
                if entrant.recipe:
                    groups = np.repeat(cell.train, [r.stop - r.start for r in rows])
                    n_columns = tests[0].X.shape[1]
                    estimator.fit_design(Design(x, y, n_dropped, n_columns, groups=groups))
                else:
                    estimator.fit(x, y)
            # Patients that share a training share its time.
            training_seconds = (time.perf_counter() - start) / len(tests)
            for test, best in zip(tests, constants, strict=True):
                start = time.perf_counter()
                answer = _untrained_answers if entrant.control in controls.UNTRAINED else _answers
                signals, maps = answer(estimator, cell, test, best)
                seconds = training_seconds + time.perf_counter() - start
                keys = {
                    "cohort": test.cohort,
                    "patient": test.patient,
                    "strategy": entrant.strategy,
                    "algorithm": entrant.algorithm,
                    "train_on": cell.train_on,
                    "n_train": len(cell.train),
                    "repeat": cell.repeat,
                    "estimator": entrant.name,
                }
                for row in _score_maps(maps, test, entrant, seconds, best):
                    content["scores"].append(keys | row)
                for row in _score_signals(signals, test, cell, best):
                    content["signals"].append(keys | row)
                if cell.keep:
                    for kind, values in (("maps", maps), ("signals", signals)):
                        shown = values[test.shown].astype(np.float32)
                        content["predictions"][f"{kind}/{test.patient}"] = shown
        # Estimators may be anyone's: whatever they raise gets the patient and cohort it happened
        # at.
        except Exception as error:
            patients = cell.test[0] if len(cell.test) == 1 else f"the {len(cell.test)} patients"
            raise RuntimeError(
                f"estimator {entrant.name!r} failed for {patients} of cohort {cell.cohort!r}, "
                f"trained on {len(cell.train)} patients ({cell.train_on}): {error}"
            ) from error
    return content


def _completed(estimator: Any, cell: Cell) -> dict[str, Any]:
    """Fill in parameters that the user did not set: contrasts, and every seed."""
    completed: dict[str, Any] = {}
    for name, value in sorted(estimator.get_params(deep=True).items()):
        if value is None and name in ("source", "target"):
            completed[name] = getattr(cell.view, name)
        elif value is None and name.split("__")[-1] == "random_state":
            # From the parameter's name, so that other parameters do not change the seed.
            completed[name] = Seed(cell.seed).derived(name)
    return completed


def _answers(estimator: Any, cell: Cell, test: HeldOut, _: Constants) -> tuple[NDArray, NDArray]:
    """Predict signals and maps; voxels with a source signal that is not finite stay NaN."""
    model, target = cell.entrant.model, cell.view.target
    if type(estimator) is MapsToMaps:
        maps = estimator.predict_maps(test.X)
        return model.signal(maps, target), maps
    usable = np.isfinite(test.X).all(axis=1)
    signals, maps = np.full_like(test.Y, np.nan), np.full_like(test.reference, np.nan)
    if usable.any():
        x = test.X[usable]
        signals[usable] = estimator.predict(x)
        if type(estimator) is SignalToSignal:
            # `predict_maps` would predict the signals again.
            maps[usable] = estimator.maps_of(signals[usable])
        else:
            maps[usable] = estimator.predict_maps(x)
    return signals, maps


def _untrained_answers(
    estimator: Any, cell: Cell, test: HeldOut, constants: Constants
) -> tuple[NDArray, NDArray]:
    """Give the signals and maps of a control that learns nothing."""
    model, target, control = cell.entrant.model, cell.view.target, cell.entrant.control
    if control == controls.COPY and type(estimator) is SignalToSignal:
        copies = test.X[:, controls.nearest_contrasts(cell.view.source, target)]
        return copies, estimator.maps_of(copies)
    repeat: Any = test.repeat
    signals: Any = test.Y
    maps: Any = test.reference
    if control == controls.COPY:
        maps = _copied_maps(estimator.clinical(test.X), model, constants)
    elif control == controls.TRUTH:
        signals, maps = repeat.noise_free, test.truth
        # Of regions, or in the symbols of another model, true parameters may not be known.
        if maps is None:
            maps = fit_voxels(signals, target, model, method="nlls").parameters
    elif control == controls.REPEAT:
        signals, maps = repeat.signals, repeat.reference
    if cell.entrant.strategy != "s2s":
        signals = model.signal(maps, target)
    return signals, maps


def _copied_maps(clinical: Clinical, model: SignalModel, constants: Constants) -> NDArray:
    """Predict parameters by the clinical metrics like them, others by their best constants."""
    adc_fast, adc_slow, fraction = clinical.features.T
    copies = {"S0": clinical.s0, "f": fraction, "Dv": adc_fast}
    copies |= dict.fromkeys(("Dt", "D", "ADC"), adc_slow)
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
    # Scores against maps that are not known are NaN.
    truth = repeated = np.full_like(test.reference, np.nan)
    if test.truth is not None:
        truth = test.truth
    # Against itself a repeat would be perfect.
    if test.repeat is not None and entrant.control != controls.REPEAT:
        repeated = test.repeat.reference
    scores: dict[str, Any] = {}
    references = {"": test.reference, "_truth": truth, "_independent": repeated}
    for suffix, reference in references.items():
        for name, metric in METRICS.items():
            scores[name + suffix] = metric.score(maps, reference)
    is_constant = entrant.algorithm == controls.CONSTANT
    rows = []
    for j, parameter in enumerate(entrant.model.parameters):
        _, n_undefined, n_failed = relative_error_counts(maps[:, j], test.reference[:, j])
        row = {
            "metric": parameter.name,
            "n_voxels": len(maps),
            "seconds": seconds,
            "unit": parameter.unit,
            "n_undefined": n_undefined,
            "n_failed": n_failed,
            "at_bound": float(test.at_bound[j]),
            **{name: float(values[j]) for name, values in scores.items()},
        }
        for kind, prefix in (("relative", ""), ("absolute", "absolute_")):
            best = getattr(constants, kind)[j]
            # Each score has a best constant of its own, and the control is that one.
            answer = np.full(len(maps), best) if is_constant else maps[:, j]
            score = partial(skill_scores, answer, constant=best, relative=kind == "relative")
            skill, error, constant_error, n = score(reference=test.reference[:, j])
            row |= {f"{prefix}skill": skill, f"{kind}_error": error, "n_absolute": n}
            row[f"constant_{prefix}error"] = constant_error
            row[f"{prefix}skill_independent"] = score(reference=repeated[:, j])[0]
        rows.append(row)
    return rows


def _score_signals(
    predicted: NDArray, test: HeldOut, cell: Cell, constants: Constants
) -> list[dict[str, Any]]:
    """Score every unseen contrast for itself, and all of them together."""
    unseen, target = list(cell.view.unseen()), cell.view.target
    te = np.full(len(target), _NAN) if target.te is None else target.te
    contrasts = [([j], target.labels[j], target.b[j], te[j]) for j in unseen]
    if unseen:
        contrasts.append((unseen, POOLED, _NAN, _NAN))
    rows = []
    for columns, *keys in contrasts:
        p, measured = predicted[:, columns].ravel(), test.Y[:, columns].ravel()
        constant = np.tile(constants.signals[columns], len(predicted))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            error = (p - measured) / measured
        usable = np.isfinite(error)
        values = error[usable] if usable.any() else np.array([_NAN])
        answer = constant if cell.entrant.algorithm == controls.CONSTANT else p
        skill, _, constant_error, _ = skill_scores(answer, measured, constant, relative=True)
        scores = [
            np.mean(np.abs(values)), np.median(np.abs(values)), np.mean(values), len(error),
            (~usable).sum(), pearson(p, measured), constant_error, skill,
        ]  # fmt: skip
        # Plain numbers and texts, for the file of the training.
        numbers = [np.asarray(value).item() for value in (*keys, *scores)]
        rows.append(dict(zip(SIGNAL_COLUMNS[8:], numbers, strict=True)))
    return rows
