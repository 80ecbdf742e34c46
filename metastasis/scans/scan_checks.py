"""Checks of scans before segmentation: headers, skull, contrast agent, likeness to training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from dmrifit._utils.affines import MM3_PER_ML, voxel_volume
from dmrifit._utils.checks import is_number
from dmrifit._utils.counts import counted
from dmrifit._utils.text_files import read_object
from dmrifit.imaging.head_steps import HeadSpan, find_brain
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.grids import Volume
from dmrifit.io.nifti import load_image
from dmrifit.report import page
from metastasis.scans.cases import Case, read_row
from metastasis.scans.network_inputs import Scan, brain_of, values_of

_TEXTS = page.Texts(__file__)

#: Slices thicker than this in mm are reported: a metastasis of 2.5 mm fills a part of one.
THICKEST_MM = 3.0
#: Largest accepted ratio of voxel edges between training scans and a scan to segment.
MAX_EDGE_RATIO = 1.25
#: Ending of the record that `prepare_scan` writes beside a scan.
RECORD = "_prepared.json"
#: What is not zero in a larger scan is skull or air, not brain alone.
LARGEST_BRAIN_ML = 2200.0

#: Shares of the voxels of a brain below the intensities that scans are compared by.
_QUANTILES = (0.1, 0.9, 0.99, 0.999)
#: Of the range in training: scanners and strippers differ as much.
_TOLERANCE = 1.3
#: How many times as much of a brain may be marked as was lesion in a training scan, and from which
#: share of the brain on that is told.
_EXCESS, _LEAST_EXCESS = 3.0, 2e-3
#: Share of the brain, of 1,100 mL 27 mL, that is told whatever was lesion in training: implants
#: and phantoms hold so much lesion that their range alone would never be left.
_MOST_MARKED = 0.025
# In seven stripped post-contrast scans .1 % of the inner brain had 1.55 to 2.4 times its median or
# more, in two without contrast agent 1.28 and 1.59.
_VESSELS = 1.8
_DEPTH_MM = 4.0  # below the surface, where scalp and dura may be left
# Where vessels of the surface are stripped, those in the depth are left: the brightest .1 % had at
# least 1.24 times the signal of the brightest 1 %, in five scans without contrast agent at most
# 1.17. The brightest .01 % do not distinguish them: some are as bright without contrast agent.
_DEEP_VESSELS = 1.2
_DEEP_MM = 8.0
_LEAST_SHOWN = 0.9  # of the brain, by a prior scan
_FEWEST_VALUES = 10  # in the inner brain; images of labels have less

#: A case, and what is to be said of it.
NotedCase: TypeAlias = tuple[Case, Sequence[str]]
#: What notes of `prepare` on a prior scan begin with.
PRIOR = "the prior scan "
#: Files of cases by their role, by the names of the cases.
Files: TypeAlias = dict[str, dict[str, Path]]


# Files ------------------------------------------------------------------------------------------


def files_of_row(row: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """Name the files that a scan is read from, in a row of a table in a folder."""
    return {key: folder / row[key] for key in ("image", "prior", "brain") if row.get(key)}


def edge_in_training(model: Any) -> float | None:
    """Give the edge of the voxels that a model saw in training; None where any will do."""
    network = getattr(model, "segmenter_", model)
    # Scans are resampled to a spacing by the network itself.
    if getattr(network, "spacing", None) is not None:
        return None
    return getattr(network, "edge_", None)


def check_edges(path: Path, edges: Sequence[float], edge: float | None) -> None:
    """Refuse voxels of much other size than in training, where that is known."""
    if edge is None or not len(edges):
        return
    size = float(np.cbrt(np.prod(edges)))
    if 1 / MAX_EDGE_RATIO <= size / edge <= MAX_EDGE_RATIO:
        return
    words = " × ".join(f"{value:.3g}" for value in edges)
    raise ValueError(_TEXTS("edges", path=path, voxels=words, edge=edge))


# Notes ------------------------------------------------------------------------------------------


def slice_note(name: str, edges: Sequence[float]) -> str:
    """Say that slices are thick; empty where they are not."""
    # Files store affines in single precision: slices of 3 mm may read 3.00001.
    thickness = round(max(edges, default=0.0), 2)
    if thickness <= THICKEST_MM:
        return ""
    return _TEXTS("slices", name=name, thickness=thickness)


def cover_note(name: str, prior: NDArray[Any], brain: NDArray[np.bool_]) -> str:
    """Say that a prior scan, on the grid of the brain, shows a part of it; empty for all."""
    share = np.count_nonzero(prior[brain]) / np.count_nonzero(brain)
    return "" if share >= _LEAST_SHOWN else _TEXTS("part", name=PRIOR + name, percent=100 * share)


def model_remarks(models: Sequence[Any], cases: Sequence[Case]) -> list[str]:
    """Say what models ignore of scans, how little is known of them, and a doubtful order."""
    remarks = []
    trained = f"the {'model was' if len(models) == 1 else 'models were'} trained"
    sees_priors = any(model.prior_ is not None for model in models)
    if not sees_priors and any(case.prior is not None for case in cases):
        remarks.append(f"prior scans are ignored: {trained} without prior scans")
    networks = [getattr(model, "segmenter_", model) for model in models]
    is_synthetic = any(getattr(network, "synthetic_", False) for network in networks)
    if is_synthetic and not all(case.synthetic for case in cases):
        remarks.append(f"{trained} on synthetic scans: accuracy in people is unknown")
    # Other losses have no α.
    alphas = [x.alpha for x in networks if getattr(x, "loss", "") in ("jvss", "vss", "sse")]
    if len(alphas) == 2 and alphas[0] < alphas[1]:
        remarks.append(_TEXTS("order", first=alphas[0], second=alphas[1]))
    return remarks


def check_stripped(case: Case) -> None:
    """Refuse a scan without a brain mask in which more is not zero than a brain."""
    if case.brain is not None:
        return
    volume = np.count_nonzero(case.image) * voxel_volume(case.affine) / MM3_PER_ML
    if volume > LARGEST_BRAIN_ML:
        raise ValueError(_TEXTS("skull", name=case.name, volume=volume, most=LARGEST_BRAIN_ML))


def contrast_note(case: Case) -> str:
    """Say that no vessel is bright, as in a scan without contrast agent; empty where some are."""
    depth = np.inf
    brain = _brain(case)
    if not brain.all():
        depth = distance_transform_edt(brain, sampling=case.spacing)
    inner, deep = (case.image[brain & (depth > limit)] for limit in (_DEPTH_MM, _DEEP_MM))
    if not inner.size:
        return ""
    n_values = len(np.unique(inner))
    if n_values < _FEWEST_VALUES:
        return f"{case.name}: the scan has only {counted(n_values, 'value')}: is it a label image?"
    median, brightest = np.quantile(inner, (0.5, 0.999))
    bright, vessels = np.quantile(deep, (0.99, 0.999)) if deep.size else (1, 0)
    if median <= 0 or brightest >= _VESSELS * median or vessels >= _DEEP_VESSELS * bright:
        return ""
    return _TEXTS("vessels", name=case.name, ratio=brightest / median)


def label_note(case: Case) -> str:
    """Say how much of a label lies outside the brain; refuse one that mostly does."""
    if case.label is None or case.brain is None:
        return ""
    n_voxels = np.count_nonzero(case.label)
    n_outside = np.count_nonzero(case.label[~case.brain])
    if not n_outside:
        return ""
    text = f"{case.name}: {n_outside} of {n_voxels} voxels of the label lie outside the brain"
    if n_outside > n_voxels / 2:
        raise ValueError(f"{text}; check that label and brain are of the same scan")
    return f"{text}, where nothing is ever marked"


def intensity_ratios(image: NDArray[Any], brain: NDArray[np.bool_]) -> list[float] | None:
    """
    Give quantiles of a brain over its median; None where the median is not positive.

    Shapes: `image` (x, y, z), `brain` (x, y, z).
    """
    median, *quantiles = np.quantile(image[brain], (0.5, *_QUANTILES)).tolist()
    return None if median <= 0 else [float(quantile / median) for quantile in quantiles]


def seen_range(
    cases: Sequence[Scan], targets: Sequence[tuple[Any, Any]]
) -> dict[str, list[float]]:
    """
    Give the ranges over training scans and their labels that `unlike_notes` compares with.

    ``low`` and ``high`` of each quantile of the first channel, and ``marked``, the largest share
    of a brain that was lesion (1 in the label; cores and surroundings of implants have other
    values); without quantiles where a scan has a median that is not positive.
    """
    ratios: list[Any] = []
    shares = []
    for case, (label, _) in zip(cases, targets, strict=True):
        image, brain = np.asarray(values_of(case[0])), brain_of(case)
        ratios.append(intensity_ratios(image if image.ndim == 3 else image[..., 0], brain))
        n_lesion_voxels = np.count_nonzero(np.asarray(values_of(label)) == 1)
        shares.append(n_lesion_voxels / np.count_nonzero(brain))
    result: dict[str, list[float]] = {"marked": [max(shares)]}
    if None not in ratios:
        result["low"] = np.min(ratios, axis=0).tolist()
        result["high"] = np.max(ratios, axis=0).tolist()
    return result


def checked_range(seen: Any) -> dict[str, list[float]] | None:
    """Refuse what is no `seen_range`; None stays."""
    if seen is None:
        return None
    lengths = {"marked": 1, "low": len(_QUANTILES), "high": len(_QUANTILES)}
    if not isinstance(seen, dict) or "marked" not in seen or not set(seen) <= set(lengths):
        raise ValueError(f"seen_ is {seen!r}")
    for key, values in seen.items():
        are_numbers = isinstance(values, list) and all(is_number(value) for value in values)
        if not are_numbers or len(values) != lengths[key] or not np.isfinite(values).all():
            raise ValueError(f"seen_ has {key} = {values!r}")
    return seen


def unlike_notes(
    case: Case, seen: Mapping[str, Sequence[float]] | None, marked: NDArray[Any] | None = None
) -> list[str]:
    """
    Say in what a scan is unlike the training scans; nothing where these are unknown.

    Shapes: `marked` (x, y, z), what was found in it.
    """
    if not seen:
        return []
    brain = _brain(case)
    reasons = []
    ratios = intensity_ratios(case.image, brain)
    if ratios is not None and "low" in seen:
        columns = zip(_QUANTILES, ratios, seen["low"], seen["high"], strict=True)
        for share, ratio, low, high in columns:
            if not low / _TOLERANCE <= ratio <= high * _TOLERANCE:
                words = {"percent": 100 * share, "ratio": ratio, "low": low, "high": high}
                reasons.append(_TEXTS("intensities", **words))
    if marked is not None:
        share = np.count_nonzero(marked) / np.count_nonzero(brain)
        most = float(seen["marked"][0])
        if share > max(_EXCESS * most, _LEAST_EXCESS):
            reasons.append(_TEXTS("marked", percent=100 * share, most=100 * most))
        elif share > _MOST_MARKED:
            reasons.append(_TEXTS("much", percent=100 * share, most=100 * _MOST_MARKED))
    if not reasons:
        return []
    return [f"{case.name}: this scan is unlike the training scans: {'; '.join(reasons)}"]


def side_note(case: Case, lesions: Sized) -> str:
    """Say that positions of lesions do not tell the side of the brain; empty where they do."""
    return HeadSpan.of(_brain(case), case.affine).doubt if len(lesions) else ""


def _brain(case: Case) -> NDArray[np.bool_]:
    return np.asarray(case.image != 0) if case.brain is None else case.brain


def noted_case(
    row: dict[str, str],
    folder: Path,
    *,
    edges: Sequence[Any],
    finds_brain: bool,
    uses_prior: bool,
    files: Files,
) -> NotedCase:
    """
    Check the voxels of a case, read it, and note what a reader should know of it.

    `edges` are those of voxels in trainings, None where any will do; prior scans that nothing uses
    have no notes; `files` takes the files of the case by its name.
    """
    image = folder / row["image"]
    edges_of_scan = np.linalg.norm(load_image(image).affine[:3, :3], axis=0).tolist()
    for edge in edges:
        check_edges(image, edges_of_scan, edge)
    case = read_row(row, folder)
    files[case.name] = files_of_row(row, folder)
    if finds_brain and case.brain is None:
        case = replace(case, brain=find_brain(image)[0])
    check_stripped(case)
    return case, scan_notes(case, image, uses_prior=uses_prior)


def scan_notes(case: Case, image: Path, *, uses_prior: bool) -> list[str]:
    """Say what a reader should know of a case, and what `prepare_scan` noted of its image."""
    notes = [slice_note(image.name, case.spacing)]
    record = read_object(image.with_name(f"{stem(image)}{RECORD}")) or {}
    # What prepare saw in the scan as it came, which the prepared one does not show.
    prepared_notes = record.get("Notes")
    if isinstance(prepared_notes, list):
        of_prior = () if uses_prior else PRIOR
        notes += [text for text in map(str, prepared_notes) if not text.startswith(of_prior)]
    elif not case.synthetic:
        notes.append(contrast_note(case))
        if uses_prior and case.prior is not None:
            notes.append(cover_note(f"of {case.name}", case.prior, _brain(case)))
    if uses_prior and not case.synthetic:
        notes.append(_prior_note(case))
    return [note for note in notes if note]


def _prior_note(case: Case) -> str:
    """Say that a prior scan does not look like the scan in its place; empty where it does."""
    if case.prior is None or find_spec("SimpleITK") is None:
        return ""
    from dmrifit.imaging.rigid_alignment import HeadAlignment

    try:
        scans = [Volume.of(values, case.affine) for values in (case.image, case.prior)]
        alignment = HeadAlignment.in_place(*scans)
    # Scans that show no head, or one voxel thick, cannot be compared.
    except ValueError:
        return ""
    if alignment.shows_same_head:
        return ""
    return _TEXTS("prior", name=case.name, agreement=alignment.agreement)
