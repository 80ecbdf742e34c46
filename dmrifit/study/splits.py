"""Train/test splits of a comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dmrifit._utils.checks import check_number, check_word
from dmrifit._utils.counts import counted
from dmrifit._utils.randomness import derived_seed, seed_for
from dmrifit.io.bids_derivatives import versions
from dmrifit.io.digests import digest
from dmrifit.predict.controls import OF_NOISE_FREE
from dmrifit.study.contestants import Entrant, View
from dmrifit.study.voxel_bank import Bank

TRAIN_ON = ("same", "other", "pooled")

#: Distributions whose version may change a number.
VERSIONS = ("dmrifit", "numpy", "scipy", "scikit-learn", "numba")
_OPTIONAL_VERSIONS = ("xgboost", "xgboost-cpu", "torch", "skorch")


@dataclass(frozen=True, eq=False, kw_only=True)
class _Split:
    """Training and test patients of one draw, with the seed of its estimators."""

    train_on: str
    cohort: str  # of the patients tested on
    train: tuple[str, ...]
    test: tuple[str, ...]
    repeat: int
    seed: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Cell(_Split):
    """The training of one estimator on a split, in the contrasts that it sees."""

    entrant: Entrant
    view: View
    key: str  # digest of everything that the results depend on
    keep: bool  # predictions, voxel by voxel


def software() -> dict[str, str]:
    """List the versions that may change a score."""
    installed = []
    for name in _OPTIONAL_VERSIONS:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        installed.append(name)
    return versions(*VERSIONS, *installed)


def check_settings(
    regimes: Sequence[str],
    cohorts: Mapping[str, Sequence[str]],
    sizes: Sequence[int] | None,
    n_repeats: int,
    max_voxels: int | None,
    masks: Sequence[str],
) -> None:
    """Refuse settings that no comparison of these cohorts can have."""
    for regime in regimes:
        check_word("train_on", regime, TRAIN_ON)
    if not regimes or len(set(regimes)) != len(regimes):
        raise ValueError(f"train_on must name each way once, not {tuple(regimes)}")
    for mask in masks:
        if mask not in ("body", "lesion"):
            raise ValueError(f"a mask is 'body' or 'lesion', not {mask!r}")
    if sizes is not None and (not sizes or len(set(sizes)) != len(sizes)):
        raise ValueError(f"n_train must name each number of patients once, not {tuple(sizes)}")
    counts: list[tuple[str, Any]] = [("n_train", size) for size in sizes or ()]
    for label, value in (*counts, ("n_repeats", n_repeats), ("max_voxels", max_voxels)):
        if value is not None:
            check_number(label, value, least=1, whole=True)
    if "other" in regimes and len(cohorts) < 2:
        raise ValueError("train_on='other' needs at least two cohorts")
    # Counted before any image is read; patients without a usable voxel fail later, by name.
    n_patients = sum(map(len, cohorts.values()))
    n_needed = max(sizes or (1,))
    for regime in regimes:
        for name, patients in cohorts.items():
            n_same, n_other = len(patients) - 1, n_patients - len(patients)
            n_available = {"same": n_same, "other": n_other, "pooled": n_same + n_other}[regime]
            if n_needed > n_available:
                raise ValueError(
                    f"training for a patient of cohort {name!r} with train_on={regime!r} needs at "
                    f"least {counted(n_needed, 'other patient')}; there are {n_available}"
                )


def views_by_cohort(
    views: Mapping[tuple[str, str], View], regimes: Sequence[str]
) -> tuple[dict[str, list[View]], dict[str, list[View]]]:
    """List the views in which the patients of each cohort are tested, and those for training."""
    tested: dict[str, list[View]] = {cohort: [] for _, cohort in views}
    for (_, cohort), view in views.items():
        tested[cohort].append(view)
    tested = {cohort: list(dict.fromkeys(repeated)) for cohort, repeated in tested.items()}
    within = not {"same", "pooled"}.isdisjoint(regimes)
    between = not {"other", "pooled"}.isdisjoint(regimes)
    trained = {}
    for cohort in tested:
        training_views: dict[View, None] = {}
        # Patients are trained on in the views of the cohorts that they train for.
        for tested_cohort, tested_views in tested.items():
            trains_for = within if tested_cohort == cohort else between
            if trains_for:
                training_views |= dict.fromkeys(tested_views)
        trained[cohort] = list(training_views)
    return tested, trained


def plan(
    entrants: Sequence[Entrant],
    cohorts: Sequence[str],
    regimes: Sequence[str],
    views: Mapping[tuple[str, str], View],
    bank: Bank,
    sizes: Sequence[int] | None,
    n_repeats: int,
    seed: int,
    *,
    keep: bool,
) -> list[Cell]:
    """List all trainings; a model that is the same for several patients is trained once."""
    code_digest = digest([software(), _sources()])
    view_digests = {}
    for view in views.values():
        patch_shape = list(view.patch_shape or ())
        view_digests[view] = digest([view.source, view.target, patch_shape, view.model])
    entrant_digests = {
        entrant.name: digest([entrant.description, entrant.code]) for entrant in entrants
    }
    cells = []
    for split in _splits(cohorts, regimes, bank, sizes, n_repeats, seed):
        at_largest = sizes is None or len(split.train) == max(sizes)
        for entrant in entrants:
            # Controls stand on the board; on a learning curve they would tell nothing.
            if entrant.control and not at_largest:
                continue
            view = views[entrant.name, split.cohort]
            if entrant.control in OF_NOISE_FREE and not bank.is_repeated(view, split.test):
                continue
            train, test = list(split.train), list(split.test)
            # A finished training is used again only where nothing that it depends on has changed.
            content = [
                entrant_digests[entrant.name],
                view_digests[view],
                bank.digest(view, split.repeat, train, test),
                [split.train_on, split.cohort, train, test, split.repeat, split.seed],
                code_digest,
            ]
            first = split.repeat == 0 and split.train_on == regimes[0]
            # Pictures show one prediction of a voxel by an estimator, the one with most patients.
            kept = keep and not entrant.control and first and at_largest
            cell = Cell(**vars(split), entrant=entrant, view=view, key=digest(content), keep=kept)
            cells.append(cell)
    return cells


def _splits(
    cohorts: Sequence[str],
    regimes: Sequence[str],
    bank: Bank,
    sizes: Sequence[int] | None,
    n_repeats: int,
    seed: int,
) -> Iterator[_Split]:
    """Yield all splits: by way of training, cohort, tested patients, repeat, training size."""
    n_needed = max(sizes or (1,))
    for regime in regimes:
        for cohort in cohorts:
            if not bank.testable[cohort]:
                raise ValueError(
                    f"cohort {cohort!r} has no voxel to score; give lesion masks, or score "
                    "other voxels (score_mask, --score-mask)"
                )
            # A model of other cohorts is the same for all patients.
            tests = [[patient] for patient in bank.testable[cohort]]
            if regime == "other":
                tests = [bank.testable[cohort]]
            for test in tests:
                available = _available(regime, cohort, test, cohorts, bank, n_needed)
                tested = "all"
                if len(test) == 1:
                    tested = test[0]
                for repeat in range(n_repeats):
                    # Seeds follow from the purpose: what else is compared moves no number.
                    purpose = regime, cohort, tested, repeat
                    generator = np.random.default_rng(seed_for(seed, "patients", *purpose))
                    order = generator.permutation(len(available))
                    for size in sizes or (len(available),):
                        # Of several sizes, patients of a smaller one are among those of a larger.
                        train = tuple(available[i] for i in sorted(order[:size]))
                        estimator_seed = derived_seed(seed, "estimator", *purpose)
                        yield _Split(
                            train_on=regime, cohort=cohort, train=train, test=tuple(test),
                            repeat=repeat, seed=estimator_seed,
                        )  # fmt: skip


def _available(
    regime: str,
    cohort: str,
    test: Sequence[str],
    cohorts: Sequence[str],
    bank: Bank,
    n_needed: int,
) -> list[str]:
    """List the training patients for tested ones, who are never among them."""
    same = [patient for patient in bank.trainable[cohort] if patient not in test]
    other = []
    for name in cohorts:
        if name != cohort:
            other += bank.trainable[name]
    available = {"same": same, "other": other, "pooled": same + other}[regime]
    if len(available) < n_needed:
        raise ValueError(
            f"training for {', '.join(test)} of cohort {cohort!r} with train_on={regime!r} needs "
            f"at least {counted(n_needed, 'other patient')}; there are {len(available)}"
        )
    return available


@cache
def _sources() -> str:
    """Digest the source of this package, whose version does not change with every edit."""
    modules = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in modules)).hexdigest()
