"""Who is trained on whom: the trainings of a comparison and the patients that each is tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dmrifit._utils.checks import check_word
from dmrifit._utils.randomness import derived_seed, seed_for
from dmrifit.io.bids_derivatives import versions
from dmrifit.io.digests import digest, source_digest
from dmrifit.study.contestants import Entrant, View
from dmrifit.study.voxel_bank import Bank

__all__ = ["TRAIN_ON", "Cell", "check_settings", "plan", "software", "views_by_cohort"]

TRAIN_ON = ("same", "other", "pooled")

#: Distributions whose version may change a number.
VERSIONS = ("dmrifit", "numpy", "scipy", "scikit-learn", "numba")
_OPTIONAL_VERSIONS = ("xgboost", "xgboost-cpu", "torch", "skorch")

#: Folders of the package whose code a score depends on; of `stats` only the metrics, of `study` all but its report.
COMPUTING = (
    "_utils",
    "engine",
    "io",
    "cohort",
    "simulate",
    "predict",
    "networks",
    "stats/metrics.py",
    "study",
)
_REPORT = "study/report"


@dataclass(frozen=True, eq=False)
class Cell:
    """
    One training and the patients it is tested on.

    Attributes
    ----------
    entrant : Entrant
        Who is trained.
    view : View
        How it sees patients.
    train_on, cohort : str
        The regime, and the cohort of the patients it is tested on.
    train, test : tuple of str
        Patients.
    repeat : int
        Which draw.
    seed : int
        For the estimator.
    key : str
        Digest of all that its results depend on.
    keep : bool
        Whether its predictions are kept, voxel by voxel.
    """

    entrant: Entrant
    view: View
    train_on: str
    cohort: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    repeat: int
    seed: int
    key: str
    keep: bool


def software() -> dict[str, str]:
    """List the versions that may change a score."""
    found = []
    for name in _OPTIONAL_VERSIONS:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    return versions(*VERSIONS, *found)


def check_settings(
    regimes: Sequence[str],
    cohorts: Mapping[str, Sequence[str]],
    sizes: Sequence[int] | None,
    n_repeats: int,
    max_voxels: int | None,
    masks: Sequence[str],
) -> None:
    """Make sure that the settings of a comparison have a meaning."""
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
        if value is None:
            continue
        if not isinstance(value, int | np.integer):
            raise ValueError(f"{label} must be a whole number, not {value!r}")
        if value < 1:
            raise ValueError(f"{label} must be at least 1, not {value}")
    if "other" in regimes and len(cohorts) < 2:
        raise ValueError("train_on='other' needs at least two cohorts")
    everyone = sum(map(len, cohorts.values()))
    for regime in regimes:
        for name, patients in cohorts.items():
            near, far = len(patients) - 1, everyone - len(patients)
            n_available = {"same": near, "other": far, "pooled": near + far}[regime]
            if max(sizes or (1,)) > n_available:
                raise ValueError(
                    f"training for a patient of cohort {name!r} with train_on={regime!r} needs at least "
                    f"{max(sizes or (1,))} other patient(s); there are {n_available}"
                )


def views_by_cohort(
    views: Mapping[tuple[str, str], View], regimes: Sequence[str]
) -> tuple[dict[str, list[View]], dict[str, list[View]]]:
    """List how the patients of each cohort are looked at."""
    names = list(dict.fromkeys(name for _, name in views))
    seen = {
        name: list(dict.fromkeys(view for (_, own), view in views.items() if own == name))
        for name in names
    }
    near = any(regime in ("same", "pooled") for regime in regimes)
    far = any(regime in ("other", "pooled") for regime in regimes)
    lent = {
        name: list(
            dict.fromkeys(
                view for own in names if (near if own == name else far) for view in seen[own]
            )
        )
        for name in names
    }
    return seen, lent


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
    made_by = digest([software(), _sources()])
    described = {
        view: digest([view.source, view.target, list(view.patch_shape or ()), view.model])
        for view in views.values()
    }
    known = {entrant.name: digest([entrant.description, entrant.code]) for entrant in entrants}
    largest = None if sizes is None else max(sizes)
    cells = []
    for regime in regimes:
        for name in cohorts:
            if not bank.testable[name]:
                raise ValueError(
                    f"cohort {name!r} has no voxel to score; give lesion masks, or another score_mask"
                )
            # A model of other cohorts is the same for all patients.
            for test in (
                [bank.testable[name]] if regime == "other" else [[p] for p in bank.testable[name]]
            ):
                available = _available(regime, name, test, cohorts, bank, largest or 1)
                whom = test[0] if len(test) == 1 else "all"
                for repeat in range(n_repeats):
                    purpose = regime, name, whom, repeat
                    own_seed = derived_seed(seed, "estimator", *purpose)
                    order = np.random.default_rng(
                        seed_for(seed, "patients", *purpose)
                    ).permutation(len(available))
                    for size in sizes or (len(available),):
                        train = [available[i] for i in sorted(order[:size])]
                        for entrant in entrants:
                            if entrant.control and size != (largest or size):
                                continue
                            view = views[entrant.name, name]
                            content = [
                                known[entrant.name],
                                described[view],
                                bank.digest(view, repeat, train, test),
                                [regime, name, train, test, repeat, own_seed],
                                made_by,
                            ]
                            kept = keep and not entrant.control and repeat == 0
                            kept = kept and size == (largest or size) and regime == regimes[0]
                            cells.append(
                                Cell(
                                    entrant,
                                    view,
                                    regime,
                                    name,
                                    tuple(train),
                                    tuple(test),
                                    repeat,
                                    own_seed,
                                    digest(content),
                                    kept,
                                )
                            )
    return cells


def _available(
    regime: str,
    cohort: str,
    test: Sequence[str],
    cohorts: Sequence[str],
    bank: Bank,
    n_needed: int,
) -> list[str]:
    """List the patients that may be trained on for others; the tested ones are never among them."""
    near = [patient for patient in bank.trainable[cohort] if patient not in test]
    others = [patient for other in cohorts if other != cohort for patient in bank.trainable[other]]
    available = {"same": near, "other": others, "pooled": near + others}[regime]
    if len(available) < n_needed:
        raise ValueError(
            f"training for {', '.join(test)} of cohort {cohort!r} with train_on={regime!r} needs at least "
            f"{n_needed} other patient(s); there are {len(available)}"
        )
    return available


@cache
def _sources() -> str:
    """Digest our own source: a version number does not change with every edit."""
    return source_digest(computing_modules(Path(__file__).parents[1]))


def computing_modules(package: Path) -> list[Path]:
    """List the modules that a score depends on."""
    modules = []
    for name in COMPUTING:
        place = package / name
        modules += sorted(place.rglob("*.py")) if place.is_dir() else [place]
    return [path for path in modules if not path.is_relative_to(package / _REPORT)]
