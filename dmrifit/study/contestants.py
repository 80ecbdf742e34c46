"""Contestants of a comparison: estimators and controls, and the contrasts that each sees."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from dmrifit._utils.checks import check_own_names, errors_about
from dmrifit.cohort.cohort import Cohort, in_order
from dmrifit.cohort.participants_table import check_cohorts
from dmrifit.cohort.scaling import contrast_order
from dmrifit.engine.map_fitter import clinical_columns, resolve_model
from dmrifit.engine.models import SignalModel
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.resynthesis import missing_contrasts
from dmrifit.io.case_tables import check_patients
from dmrifit.io.digests import describe, digest
from dmrifit.predict.base import resolve_patch_shape
from dmrifit.predict.conformal import ConformalIntervals
from dmrifit.predict.controls import CONSTANT, CONTROLS, OF_NOISE_FREE, is_control
from dmrifit.predict.strategies import MapsToMaps, SignalToSignal
from dmrifit.report.page import Texts

DEFAULT_MODEL = "t2-ivim-kurtosis"

#: The strategies of the study by name.
STRATEGIES = {"s2s": SignalToSignal, "m2m": MapsToMaps}

_TEXTS = Texts(__file__)


@dataclass(frozen=True, eq=False)
class Entrant:
    """An estimator that takes part in a comparison, not fitted."""

    name: str
    strategy: str
    algorithm: str
    estimator: Any
    model: SignalModel
    description: Any  # plain values by which finished results are recognized
    control: str = ""  # one of `CONTROLS`
    # Equal for estimators of a strategy that prepare training voxels in the same way.
    recipe: str = ""
    code: str = ""  # digest of the code of its classes outside dmrifit, numpy and scikit-learn

    @classmethod
    def of(cls, name: str, estimator: Any, *, kept: bool, example: Protocol) -> Entrant:
        """Check an estimator, make it an entrant; `kept`: its results are written to a folder."""
        methods = ("fit", "predict", "predict_maps", "get_params")
        missing = [method for method in methods if not hasattr(estimator, method)]
        if missing or isinstance(estimator, type):
            no = ", ".join(missing) or "instance"
            raise ValueError(_TEXTS("methods", name=repr(name), estimator=repr(estimator), no=no))
        if isinstance(estimator, ConformalIntervals):
            raise ValueError(_TEXTS("intervals", name=repr(name), estimator=repr(estimator)))
        names = [name for name, base in STRATEGIES.items() if isinstance(estimator, base)]
        strategy = names[0] if names else type(estimator).__name__
        try:
            if names:
                unset = [key for key in ("source", "target") if getattr(estimator, key) is None]
                # Any protocol will do to check the other parameters before images are read.
                clone(estimator).set_params(**dict.fromkeys(unset, example)).check_parameters()
            model = estimator.get_params(deep=False).get("model", DEFAULT_MODEL)
            if model is None:
                raise ValueError(_TEXTS["no_model"])
            model = resolve_model(model)
        except (ValueError, TypeError) as error:
            raise ValueError(f"estimator {name!r}: {error}") from None
        try:
            description = describe(estimator)
        except TypeError as error:
            # Results in a folder are found again by the description, so a repr would not do.
            if kept:
                raise ValueError(f"estimator {name!r}: {error}") from None
            description = repr(estimator)
        algorithm = algorithm_of(name, strategy)
        # Tables would show its scores as those of the control.
        is_constant = algorithm == CONSTANT and getattr(estimator, "regressor", "") == CONSTANT
        if is_control(algorithm) and not is_constant:
            raise ValueError(_TEXTS("control", name=repr(name), controls=", ".join(CONTROLS)))
        values = name, strategy, algorithm, estimator, model, description
        return cls(*values, recipe=_recipe(estimator), code=_code(estimator))


def algorithm_of(name: str, strategy: str) -> str:
    """Give the name of an estimator without its strategy: "LR s2s" is algorithm LR."""
    words = filter(None, re.split(r"[\s/_:,()-]+", name))
    return " ".join(word for word in words if word.lower() != strategy) or name


@dataclass(frozen=True)
class View:
    """The contrasts of X and Y, the neighborhood in X, and the model of the reference."""

    source: Protocol
    target: Protocol
    patch_shape: tuple[int, int, int] | None
    model: SignalModel

    def unseen(self) -> tuple[int, ...]:
        """Find the target contrasts that are not among the source contrasts."""
        return missing_contrasts(self.target, self.source)


def named_cohorts(cohorts: Mapping[str, Cohort] | Sequence[Cohort] | Cohort) -> dict[str, Cohort]:
    """Name and sort the cohorts, and make sure that no patient is in two of them."""
    if isinstance(cohorts, Cohort):
        cohorts = [cohorts]
    if isinstance(cohorts, str | Path):
        raise ValueError(f"cohorts are given as {str(cohorts)!r}; read the table: Cohort.read")
    if not isinstance(cohorts, Mapping):
        names = [cohort.name or f"cohort {i}" for i, cohort in enumerate(cohorts, start=1)]
        check_own_names("cohorts without a dict of name to cohort", names)
        cohorts = dict(zip(names, cohorts, strict=True))
    check_named(cohorts, "cohort")
    names_of_patients = [
        {"cohort": name, "patient": patient}
        for name in cohorts
        for patient in cohorts[name].patients
    ]
    check_patients((0, row["patient"]) for row in names_of_patients)
    check_cohorts(enumerate(names_of_patients))
    return {name: in_order(cohorts[name]) for name in sorted(cohorts)}


def check_named(named: Mapping[str, Any], what: str) -> None:
    """Make sure that there are estimators or cohorts, and that they have names."""
    if not isinstance(named, Mapping) or not named:
        raise ValueError(f"{what}s must be a dict of name to {what}, with at least one")
    for name in named:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"the name of a {what} must be a text, not {name!r}")


def controls_of(
    entrants: Sequence[Entrant], *, kept: bool, example: Protocol, noise_free: bool = False
) -> list[Entrant]:
    """Make the controls of every strategy; `noise_free`: some cohort has noise-free signals."""
    controls = []
    rows = {(entrant.strategy, entrant.algorithm) for entrant in entrants}
    plain: dict[str, Entrant] = {}  # the first plain estimator of every strategy
    for entrant in entrants:
        if type(entrant.estimator) in (SignalToSignal, MapsToMaps):
            plain.setdefault(entrant.strategy, entrant)
    for strategy, first in plain.items():
        for control in CONTROLS:
            if (strategy, control) in rows or (control in OF_NOISE_FREE and not noise_free):
                continue
            # A control sees single voxels: a gain from neighbors is to show in estimators alone.
            regressor = CONSTANT if control == CONSTANT else "LR"
            estimator = clone(first.estimator).set_params(regressor=regressor, patch_shape=None)
            if strategy == "m2m":
                estimator.set_params(loss="mean")
            entrant = Entrant.of(strategy, estimator, kept=kept, example=example)
            words: dict[str, Any] = {"name": f"{control} {strategy}", "algorithm": control}
            words["description"] = [control, entrant.description]
            controls.append(replace(entrant, **words, control=control))
    return controls


def choose_views(
    entrants: Sequence[Entrant],
    cohorts: Mapping[str, Cohort],
    regimes: Sequence[str],
    *,
    resynthesize: bool,
) -> dict[tuple[str, str], View]:
    """Choose what every estimator sees of the patients it is tested on, cohort by cohort."""
    views = {}
    for name, cohort in cohorts.items():
        full = _full_protocol(cohort)
        for entrant in entrants:
            parameters = entrant.estimator.get_params(deep=False)
            source, target = parameters.get("source"), parameters.get("target")
            source = clinical_inputs(cohort) if source is None else source
            target = full if target is None else target
            patch_shape = resolve_patch_shape(entrant.estimator)
            if type(entrant.estimator) is MapsToMaps:
                remedy = "; compare signals to signals alone: --strategies s2s"
                with errors_about(f"estimator {entrant.name!r} learns from clinical maps", remedy):
                    clinical_columns(source)
            views[entrant.name, name] = View(source, target, patch_shape, entrant.model)
            with errors_about(f"estimator {entrant.name!r}, cohort {name!r}"):
                check_unseen(source, target)
    # Where all train within their cohort, none needs the contrasts of another one. What scans lack
    # in their own cohort comes first, as no other way of training helps.
    kinds = ["mixed"] if resynthesize or set(regimes) == {"same"} else ["mixed", "crossed"]
    for kind, ((_, name), view) in product(kinds, views.items()):
        for training_name in [name] if kind == "mixed" else cohorts:
            remedy = _TEXTS(kind, name=repr(name), cohort=repr(training_name))
            for scan in cohorts[training_name].scans:
                where = f"patient {scan.patient} of cohort {training_name!r}"
                with errors_about(where, remedy):
                    view.source.indices_in(scan.protocol)
                    view.target.indices_in(scan.protocol)
    return views


def check_unseen(source: Protocol, target: Protocol) -> None:
    """Refuse inputs that are all of the contrasts to predict: copies of them would be perfect."""
    if not missing_contrasts(target, source):
        labels = ", ".join(target.labels)
        raise ValueError(_TEXTS("all", n=len(target), labels=labels) + _fewer_inputs(source))


def _fewer_inputs(protocol: Protocol) -> str:
    """Name inputs that leave contrasts to predict: the shortest TE, else all but the highest b."""
    b = protocol.b if protocol.te is None else protocol.b[protocol.te == protocol.te.min()]
    remedy = "leave out the longer echo times"
    if len(b) == len(protocol):
        b = b[b < b.max()]
        remedy = "leave out the highest b-value"
    if not len(b):
        return "; acquire more b-values"
    inputs = ",".join(f"{value:g}" for value in np.unique(b))
    return f"; {remedy}: --source-b {inputs} (in Python, give the estimators these as source)"


def _code(estimator: Any) -> str:
    """Digest the code of an estimator's classes outside dmrifit, numpy and scikit-learn."""
    sources: dict[str, str] = {}
    for instance in (estimator, *estimator.get_params(deep=True).values()):
        for cls in type(instance).__mro__:
            package = cls.__module__.partition(".")[0]
            if package in ("builtins", "dmrifit", "numpy", "sklearn", "abc", "typing"):
                continue
            try:
                source = inspect.getsource(cls)
            except (OSError, TypeError):
                # A class that was typed in, or compiled, has no source file.
                source = str(getattr(sys.modules.get(package), "__version__", ""))
            sources[f"{cls.__module__}.{cls.__qualname__}"] = source
    return digest(sources) if sources else ""


def _recipe(estimator: Any) -> str:
    """Digest how a strategy prepares voxels; empty for other classes, derived ones included."""
    if type(estimator) not in (SignalToSignal, MapsToMaps):
        return ""
    parameters = estimator.get_params(deep=False)
    for name in ("regressor", "random_state"):
        parameters.pop(name, None)
    try:
        return digest([type(estimator).__name__, parameters])
    except TypeError:
        # A parameter that cannot be described is shared with no other estimator.
        return f"{type(estimator).__name__} {id(estimator)}"


def clinical_inputs(cohort: Cohort) -> Protocol:
    """Take the five lowest b-values at the shortest echo time of a cohort, or say what to name."""
    full = _full_protocol(cohort)
    with errors_about(f"cohort {cohort.name!r}", _fewer_inputs(full)):
        return full.take(full.clinical())


def _full_protocol(cohort: Cohort) -> Protocol:
    """Sort the first scan's contrasts: their order would change the columns that forests draw."""
    full = cohort.scans[0].protocol
    return full.take(contrast_order(full))
