"""Train/test splits of a comparison."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from dmrifit._utils.checks import check_fields, check_number, check_words
from dmrifit._utils.randomness import Seed
from dmrifit.io.bids_derivatives import versions
from dmrifit.io.digests import digest
from dmrifit.predict.controls import OF_NOISE_FREE
from dmrifit.report.page import Texts
from dmrifit.study.contestants import Entrant, View
from dmrifit.study.study_folder import Settings
from dmrifit.study.voxel_bank import Bank

_TEXTS = Texts(__file__)
TRAIN_ON = ("same", "other", "pooled")

#: Distributions whose version may change a number.
VERSIONS = ("dmrifit", "numpy", "scipy", "scikit-learn", "numba")
_OPTIONAL_VERSIONS = ("xgboost", "xgboost-cpu", "torch", "skorch")


@dataclass(frozen=True, eq=False, kw_only=True)
class Cell:
    """The training of one estimator on a split, in the contrasts that it sees."""

    train_on: str
    cohort: str  # of the patients tested on
    train: tuple[str, ...]
    test: tuple[str, ...]
    repeat: int
    seed: int
    entrant: Entrant
    view: View
    key: str  # digest of everything that the results depend on
    keep: bool  # whether the predictions of single voxels are kept


def software() -> dict[str, str]:
    """List the versions that may change a score."""
    found = versions(*VERSIONS)
    for name in _OPTIONAL_VERSIONS:
        with suppress(PackageNotFoundError):
            found |= versions(name)
    return found


def check_settings(settings: Settings) -> None:
    """Refuse settings that no comparison of these cohorts can have."""
    regimes, sizes = settings.train_on, settings.n_train
    check_words("train_on", regimes, TRAIN_ON)
    if not regimes or len(set(regimes)) != len(regimes):
        raise ValueError(f"train_on must name each way once, not {tuple(regimes)}")
    if sizes is not None and (not sizes or len(set(sizes)) != len(sizes)):
        raise ValueError(f"n_train must name each number of patients once, not {tuple(sizes)}")
    for size in sizes or ():
        check_number("n_train", size, least=1, whole=True)
    check_fields(settings)
    if "other" in regimes and len(settings.cohorts) < 2:
        raise ValueError("train_on 'other' needs at least two cohorts")
    # Counted before any image is read; patients without a usable voxel fail later, by name.
    for regime, name in itertools.product(regimes, settings.cohorts):
        _available(regime, name, settings.cohorts, sizes)


def views_by_cohort(
    views: Mapping[tuple[str, str], View], regimes: Sequence[str]
) -> tuple[dict[str, dict[View, None]], dict[str, dict[View, None]]]:
    """List the views in which the patients of each cohort are tested, and those for training."""
    tested: dict[str, dict[View, None]] = {}
    for (_, cohort), view in views.items():
        tested.setdefault(cohort, {})[view] = None
    trained: dict[str, dict[View, None]] = {cohort: {} for cohort in tested}
    # Patients are trained on in the views of the cohorts that they train for; constants are
    # learned in the tested cohort, whatever the way of training.
    for cohort, tested_cohort in itertools.product(tested, tested):
        if tested_cohort == cohort or set(regimes) != {"same"}:
            trained[cohort] |= tested[tested_cohort]
    return tested, trained


def plan(
    entrants: Sequence[Entrant],
    settings: Settings,
    views: Mapping[tuple[str, str], View],
    bank: Bank,
    *,
    keep: bool,
) -> list[Cell]:
    """List all trainings; a model that is the same for several patients is trained once."""
    code_digest = digest([software(), _sources()])
    view_digests = {view: digest(view) for view in views.values()}
    entrant_digests = {
        entrant.name: digest([entrant.description, entrant.code]) for entrant in entrants
    }
    sizes = settings.n_train
    cells = []
    for train_on, cohort in itertools.product(settings.train_on, settings.cohorts):
        if not (testable := bank.testable[cohort]):
            raise ValueError(_TEXTS("unscored", cohort=repr(cohort)))
        # A model of other cohorts is the same for all patients.
        tests = [testable] if train_on == "other" else [[patient] for patient in testable]
        for test, repeat in itertools.product(tests, range(settings.n_repeats)):
            available = _available(train_on, cohort, bank.trainable, sizes, test)
            # Seeds depend on the purpose alone, not on what else is compared.
            purpose = train_on, cohort, test[0] if len(test) == 1 else "all", repeat
            order = Seed(settings.seed).rng("patients", *purpose).permutation(len(available))
            estimator_seed = Seed(settings.seed).derived("estimator", *purpose)
            for size, entrant in itertools.product(sizes or (len(available),), entrants):
                at_largest = sizes is None or size == max(sizes)
                # Controls are compared at the largest size; curves of them would tell nothing.
                if entrant.control and not at_largest:
                    continue
                view = views[entrant.name, cohort]
                if entrant.control in OF_NOISE_FREE and not bank.is_repeated(view, test):
                    continue
                # Of several sizes, patients of a smaller one are among those of a larger.
                train = [available[i] for i in sorted(order[:size])]
                # A finished training is used again only where nothing that it depends on changed.
                content = [
                    entrant_digests[entrant.name],
                    view_digests[view],
                    bank.digest(view, repeat, train, test),
                    [train_on, cohort, train, test, repeat, estimator_seed],
                    code_digest,
                ]
                # Pictures show one prediction of a voxel, the one with most patients.
                first = repeat == 0 and train_on == settings.train_on[0] and at_largest
                cells.append(Cell(
                    train_on=train_on, cohort=cohort, train=tuple(train), test=tuple(test),
                    repeat=repeat, seed=estimator_seed, entrant=entrant, view=view,
                    key=digest(content), keep=keep and first and not entrant.control,
                ))  # fmt: skip
    return cells


def _available(
    regime: str,
    cohort: str,
    patients: Mapping[str, Sequence[str]],
    sizes: Sequence[int] | None,
    test: Sequence[str] | None = None,
) -> list[str]:
    """List the patients to train on for tested ones, by default for the first of the cohort."""
    left_out = patients[cohort][:1] if test is None else test
    same = [patient for patient in patients[cohort] if patient not in left_out]
    other = [patient for name in patients if name != cohort for patient in patients[name]]
    available = {"same": same, "other": other, "pooled": same + other}[regime]
    n_needed = max(sizes or (1,))
    if len(available) < n_needed:
        tested = f"{', '.join(test)} of" if test else "a patient of"
        where = _TEXTS["masked" if test else "fewer"]
        words = {"tested": tested, "cohort": repr(cohort), "regime": repr(regime), "where": where}
        raise ValueError(_TEXTS("too_few", **words, n=n_needed, n_available=len(available)))
    return available


@cache
def _sources() -> str:
    """Digest the source of this package, whose version does not change with every edit."""
    modules = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in modules)).hexdigest()
