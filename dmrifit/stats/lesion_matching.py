"""Matching of lesions between reference and prediction: tables and scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.affines import MM3_PER_ML, voxel_volume
from dmrifit._utils.checks import check_number
from dmrifit.io.components import check_affine, drop_small, label_components
from dmrifit.io.masks import zeros_and_ones

__all__ = ["lesion_scores", "lesion_table"]

#: Lesions below this volume in mL are small: a ball of 5.8 mm.
SMALL_ML = 0.1
#: A component larger than so many times the lesion that it hits is flagged.
OVERSIZED = 10

_KINDS = ("lesion", "false positive")
_COLUMNS = (
    *("number", "kind", "found", "distinct", "n_matched", "split", "bridged", "n_flagged"),
    *("n_voxels", "volume_mL", "predicted_mL", "dice", "x", "y", "z"),
    *("cluster", "cluster_voxels", "cluster_dice", "near"),
)


def lesion_table(
    reference: ArrayLike,
    prediction: ArrayLike,
    affine: ArrayLike | None = None,
    *,
    connectivity: int = 26,
    min_overlap: int = 1,
    min_voxels: int = 1,
) -> pd.DataFrame:
    """
    Compare the lesions of a scan with those of a prediction.

    A lesion is a connected component of the reference. A component of the prediction matches a
    lesion when they share `min_overlap` voxels or more, and may match several, as several may
    match one lesion; with more than one voxel asked for, a lesion that has fewer is never found. A
    lesion is found when any component matches it; a component that matches none is a false
    positive.

    Parameters
    ----------
    reference : array_like of shape (x, y, z)
        1 in lesions and 0 elsewhere.
    prediction : array_like of shape (x, y, z)
        1 where lesions are predicted and 0 elsewhere.
    affine : array_like of shape (4, 4), optional
        From voxel indices to RAS+ coordinates in mm; by default voxels of 1 mm.
    connectivity : {26, 18, 6}, default=26
        Voxels are connected that share a corner, an edge or a face; an edge or a face; a face.
    min_overlap : int, default=1
        Voxels that a component and a lesion must share to match.
    min_voxels : int, default=1
        Components of the prediction with fewer voxels are dropped, as by
        `dmrifit.io.components.drop_small`; lesions of the reference are not.

    Returns
    -------
    DataFrame
        A row for each lesion, then one for each false positive.

        ``number`` (from 1, as `scipy.ndimage.label` counts: of the lesion in the reference, of the
        false positive in the prediction), ``kind`` (``"lesion"`` or ``"false positive"``),
        ``found``, ``distinct`` (found by a component that is not flagged), ``n_matched``
        (components that match), ``split`` (more than one does), ``bridged`` (a flagged component
        matches: one that matches two lesions or more, or is more than ten times as large as the
        lesion), ``n_flagged`` (flagged components, each counted at the first lesion that it
        matches), ``n_voxels``, ``volume_mL``, ``predicted_mL`` (volume of the components that
        match, together; of a false positive its own), ``dice`` (between the lesion and these
        components; 0 if there is none, and for false positives), ``x``, ``y``, ``z`` (center in
        mm RAS+).

        For the rule of BraTS-METS: ``cluster`` (number, from 1, of the lesions that touch when
        each is grown by one voxel across faces and edges; 0 for false positives),
        ``cluster_voxels`` (voxels of these lesions), ``cluster_dice`` (between them and all
        components that touch the grown cluster) and ``near`` (whether a component touches the
        grown cluster; of a false positive, whether it touches one).

        ``attrs`` holds ``n_reference`` and ``n_predicted`` (components), ``connectivity``,
        ``min_overlap``, ``min_voxels`` and ``voxel_mL``.

    Raises
    ------
    ValueError
        If shapes differ or have not three axes, a value is not 0 or 1, or a parameter is not
        possible.

    References
    ----------
    Huang et al., Med Phys 49:5773–5786, 2022 (true positives are lesions that are hit, false
    positives components that hit none); Moawad et al., arXiv:2306.00838, 2023 (BraTS-METS).
    """
    options = {"connectivity": connectivity, "min_overlap": min_overlap, "min_voxels": min_voxels}
    matching = Matching.of(reference, prediction, **options)
    affine = check_affine(affine)
    voxel_ml = voxel_volume(affine) / MM3_PER_ML
    clusters, touches_cluster = _clusters(matching)
    centers = _centers(matching.reference, affine)
    lesions = pd.DataFrame(clusters | _lesion_columns(matching) | centers)
    n_components = len(matching.component_voxels)
    component_columns = {
        "number": np.arange(1, n_components + 1),
        "n_voxels": matching.component_voxels,
        "predicted": matching.component_voxels,
        "near": touches_cluster,
        **_centers(matching.prediction, affine),
    }
    components = pd.DataFrame(component_columns)
    # Columns that describe lesions only are 0 or False for false positives.
    components = components.reindex(columns=lesions.columns, fill_value=0).astype(lesions.dtypes)
    parts = [lesions, components[matching.false_positive]]
    table = pd.concat(parts, keys=_KINDS, names=["kind", ""]).reset_index("kind")
    table["volume_mL"] = table["n_voxels"] * voxel_ml
    table["predicted_mL"] = table["predicted"] * voxel_ml
    table = table[list(_COLUMNS)].reset_index(drop=True)
    table.attrs |= {"n_reference": len(lesions), "n_predicted": n_components}
    table.attrs |= {"voxel_mL": voxel_ml, **options}
    return table


def _lesion_columns(matching: Matching) -> dict[str, NDArray[Any]]:
    """Describe each lesion by the components that match it."""
    # An entry for each pair of a lesion and a component that match; counts sum over the pairs.
    lesion, component = matching.lesion, matching.component
    n = len(matching.lesion_voxels)
    is_flagged = matching.flagged[component]
    n_matched = np.bincount(lesion, minlength=n)
    predicted = np.bincount(lesion, matching.component_voxels[component], n)
    shared = np.bincount(lesion, matching.overlap, n)
    # A flagged component counts once, at the first lesion that it matches.
    first_pair = np.unique(component, return_index=True)[1]
    n_flagged = np.bincount(lesion[first_pair], is_flagged[first_pair], n)
    return {
        "number": np.arange(1, n + 1),
        "found": n_matched > 0,
        "distinct": matching.distinct,
        "n_matched": n_matched,
        "split": n_matched > 1,
        "bridged": np.bincount(lesion, is_flagged, n) > 0,
        "n_flagged": n_flagged.astype(np.intp),
        "n_voxels": matching.lesion_voxels,
        "predicted": predicted,
        "dice": 2 * shared / (matching.lesion_voxels + predicted),
    }


def lesion_scores(
    tables: pd.DataFrame | Iterable[pd.DataFrame],
    *,
    small: float = SMALL_ML,
    ignore_below: int = 2,
) -> dict[str, float]:
    """
    Score the lesions of all scans together.

    Parameters
    ----------
    tables : DataFrame or iterable of DataFrame
        What `lesion_table` gave, one table for each scan.
    small : float, default=0.1
        Volume in mL below which a lesion or a false positive counts as small.
    ignore_below : int, default=2
        For the rule of BraTS-METS: clusters with fewer voxels are neither hits nor misses. (The
        challenge's own code leaves out up to 2 mm³: 3 here, with voxels of 1 mm.)

    Returns
    -------
    dict of str to float
        Counts: ``n_scans``, ``n_lesions``, ``n_found``, ``n_distinct``, ``n_false_positives``,
        ``n_flagged`` (components), ``n_bridged`` and ``n_split`` (lesions), ``n_lesion_free``
        (scans).

        As published: ``sensitivity`` (lesions found / lesions), ``precision`` (lesions found /
        (lesions found + false positives)), ``f1`` (their harmonic mean),
        ``false_positives_per_scan``, ``mDSC`` (mean Dice of lesions that are found).

        Strictly: ``strict_sensitivity`` counts a lesion when a component finds it that is not
        flagged, ``strict_precision`` counts flagged components as false positives, ``strict_f1``
        is their harmonic mean.

        Lesion-free scans: ``specificity`` (those without a false positive / all), and
        ``false_positives_per_lesion_free``.

        BraTS-METS, mean over scans: ``lesion_dice`` (Dice of clusters, 0 for each false positive)
        and ``lesion_f1``; 1 for a scan that has neither.

        By size: ``n_small``, ``sensitivity_small``, ``precision_small``, and the same for
        ``large``.

        What there is nothing to compute from is NaN. A prediction of everything has the best of
        some of these, but not of the strict ones, ``mDSC`` and ``lesion_dice``, unless all that it
        covers is less than ten times a scan's only lesion.

    Raises
    ------
    ValueError
        If there is no table.
    """
    listed = [tables] if isinstance(tables, pd.DataFrame) else list(tables)
    if not listed:
        raise ValueError("there is no table of lesions; give one of lesion_table for each scan")
    counts = pd.DataFrame([lesion_counts(table, small, ignore_below) for table in listed])
    return {key: value.item() for key, value in scores_from_counts(counts.sum()).items()}


def scores_from_counts(counts: Any) -> dict[str, NDArray[np.float64]]:
    """Compute the scores from sums of `lesion_counts` over scans, a mapping or a Series."""
    c = {name: np.asarray(count, dtype=np.float64) for name, count in counts.items()}
    scores = {name: c[name] for name in c if name.startswith("n_") and "found_" not in name}
    scores |= _rates(c["n_found"], c["n_lesions"], c["n_false_positives"])
    scores["false_positives_per_scan"] = ratio(c["n_false_positives"], c["n_scans"])
    scores["mDSC"] = ratio(c["dice_sum"], c["n_found"])
    strict = _rates(c["n_distinct"], c["n_lesions"], c["n_false_positives"] + c["n_flagged"])
    scores |= {f"strict_{key}": value for key, value in strict.items()}
    scores["specificity"] = ratio(c["clean"], c["n_lesion_free"])
    scores["false_positives_per_lesion_free"] = ratio(
        c["lesion_free_false_positives"], c["n_lesion_free"]
    )
    scores["lesion_dice"] = ratio(c["lesion_dice"], c["n_scans"])
    scores["lesion_f1"] = ratio(c["lesion_f1"], c["n_scans"])
    for size in ("small", "large"):
        rates = _rates(c[f"n_found_{size}"], c[f"n_{size}"], c[f"false_positives_{size}"])
        scores |= {f"{key}_{size}": rates[key] for key in ("sensitivity", "precision")}
    return scores


# Counting ----------------------------------------------------------------------------------------


def lesion_counts(
    table: pd.DataFrame, small: float = SMALL_ML, ignore_below: int = 2
) -> dict[str, float]:
    """Count lesions, findings and false positives of one scan: the parts of all scores."""
    is_lesion = (table["kind"] == _KINDS[0]).to_numpy()
    lesions, false_positives = table[is_lesion], table[~is_lesion]
    detected = lesions[lesions["found"].astype(bool)]
    lesion_free = not len(lesions)
    dice, f1 = _challenge_scores(lesions, false_positives, ignore_below)
    counts = {
        "n_scans": 1,
        "n_lesions": len(lesions),
        "n_found": len(detected),
        "n_distinct": int(lesions["distinct"].sum()),
        "n_false_positives": len(false_positives),
        "n_flagged": int(lesions["n_flagged"].sum()),
        "n_bridged": int(lesions["bridged"].sum()),
        "n_split": int(lesions["split"].sum()),
        "n_lesion_free": int(lesion_free),
        "clean": int(lesion_free and not len(false_positives)),
        "lesion_free_false_positives": len(false_positives) if lesion_free else 0,
        "dice_sum": float(detected["dice"].to_numpy().sum()),
        "lesion_dice": dice,
        "lesion_f1": f1,
    }
    groups = {"n": lesions, "n_found": detected, "false_positives": false_positives}
    n_small = {name: int((rows["volume_mL"] < small).sum()) for name, rows in groups.items()}
    counts |= {f"{name}_small": n for name, n in n_small.items()}
    return counts | {f"{name}_large": len(groups[name]) - n for name, n in n_small.items()}


def _challenge_scores(
    lesions: pd.DataFrame, false_positives: pd.DataFrame, ignore_below: int
) -> tuple[float, float]:
    """Compute Dice and F1 of a scan by the rule of BraTS-METS."""
    clusters = lesions[lesions["cluster_voxels"] >= ignore_below].drop_duplicates("cluster")
    n_wrong = int((~false_positives["near"].to_numpy(dtype=bool)).sum())
    n_hits = int(clusters["near"].sum())
    # By the rule of the challenge a scan without lesions and findings has the best score.
    if not len(clusters) + n_wrong:
        return 1.0, 1.0
    dice = float(clusters["cluster_dice"].sum()) / (len(clusters) + n_wrong)
    return dice, 2 * n_hits / (n_hits + len(clusters) + n_wrong)


def _rates(
    n_hits: NDArray[np.float64], n_lesions: NDArray[np.float64], n_wrong: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Give sensitivity, positive predictive value and their harmonic mean."""
    sensitivity = ratio(n_hits, n_lesions)
    precision = ratio(n_hits, n_hits + n_wrong)
    f1 = ratio(2 * sensitivity * precision, sensitivity + precision)
    # Without a hit the score is 0, also where nothing was predicted; NaN stays without lesions.
    f1 = np.where(n_hits == 0, 0 * sensitivity, f1)
    return {"sensitivity": sensitivity, "precision": precision, "f1": f1}


def ratio(numerator: Any, denominator: Any) -> NDArray[np.float64]:
    """Divide arrays of the same shape; NaN where the denominator is not above 0."""
    ratios = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=ratios, where=np.greater(denominator, 0))


# Components --------------------------------------------------------------------------------------


def _centers(
    labels: NDArray[np.int32], affine: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Compute the centers of mass of all components in mm."""
    indices = np.nonzero(labels)
    component = labels[indices] - 1
    n_voxels = np.bincount(component)
    centers = np.stack([np.bincount(component, index) / n_voxels for index in indices], axis=1)
    return dict(zip("xyz", (centers @ affine[:3, :3].T + affine[:3, 3]).T, strict=True))


def _clusters(matching: Matching) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
    """
    Join lesions that touch when grown by a voxel, and score each cluster as a whole.

    Returns columns of the lesions, and whether each component touches a grown cluster.
    """
    from scipy import ndimage

    reference, prediction = matching.reference, matching.prediction
    grown = np.zeros(reference.shape, dtype=bool)
    faces_and_edges = ndimage.generate_binary_structure(3, 2)
    for number, box in enumerate(ndimage.find_objects(reference), start=1):
        # Each lesion is grown in its own box; growing the whole scan takes far longer.
        wide = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        grown[wide] |= ndimage.binary_dilation(reference[wide] == number, faces_and_edges)
    clusters = label_components(grown)
    # Each lesion lies in one cluster.
    _, cluster_of_lesion, _ = meeting_pairs(reference, clusters)
    n_clusters = int(cluster_of_lesion.max(initial=-1)) + 1
    # Pairs of a cluster or a lesion with a component, and the voxels that they share.
    cluster, component, _ = meeting_pairs(clusters, prediction)
    lesion, _, overlap = meeting_pairs(reference, prediction)
    n_voxels = np.bincount(cluster_of_lesion, matching.lesion_voxels, n_clusters)
    predicted = np.bincount(cluster, matching.component_voxels[component], n_clusters)
    shared = np.bincount(cluster_of_lesion[lesion], overlap, n_clusters)
    touches_cluster = np.bincount(component, minlength=len(matching.component_voxels)) > 0
    dice = 2 * shared / np.maximum(n_voxels + predicted, 1)
    columns = {
        "cluster": cluster_of_lesion + 1,
        "cluster_voxels": n_voxels[cluster_of_lesion].astype(np.intp),
        "cluster_dice": dice[cluster_of_lesion],
        "near": (predicted > 0)[cluster_of_lesion],
    }
    return columns, touches_cluster


@dataclass(frozen=True, eq=False)
class Matching:
    """
    Which components of a prediction match which lesions.

    Shapes: volumes (x, y, z), with numbers from 1 and 0 elsewhere; pairs (n_pairs,).
    """

    reference: NDArray[np.int32]
    prediction: NDArray[np.int32]
    # Pairs that match, by their numbers less 1, and the voxels that they share.
    lesion: NDArray[np.intp]
    component: NDArray[np.intp]
    overlap: NDArray[np.intp]
    # Size of each lesion and of each component.
    lesion_voxels: NDArray[np.intp]
    component_voxels: NDArray[np.intp]

    @classmethod
    def of(
        cls, reference: ArrayLike, prediction: ArrayLike, *, connectivity: int = 26, **options: int
    ) -> Matching:
        """Find the components of two masks (x, y, z) that match, by the rule of `lesion_table`."""
        lesions = label_components(_mask(reference, "the reference"), connectivity=connectivity)
        return cls.to_lesions(lesions, prediction, connectivity=connectivity, **options)

    @classmethod
    def to_lesions(
        cls,
        lesions: NDArray[np.int32],
        prediction: ArrayLike,
        *,
        connectivity: int = 26,
        min_overlap: int = 1,
        min_voxels: int = 1,
    ) -> Matching:
        """Find the components of a mask (x, y, z) that match lesions (x, y, z) numbered before."""
        check_number("min_overlap", min_overlap, least=1, whole=True)
        predicted = _mask(prediction, "the prediction")
        if predicted.shape != lesions.shape:
            raise ValueError(
                f"a reference of shape {lesions.shape} and a prediction of shape "
                f"{predicted.shape} are on different grids"
            )
        predicted = drop_small(predicted, min_voxels, connectivity=connectivity)
        components = label_components(predicted, connectivity=connectivity)
        lesion, component, overlap = meeting_pairs(lesions, components)
        is_match = overlap >= min_overlap
        return cls(
            reference=lesions,
            prediction=components,
            lesion=lesion[is_match],
            component=component[is_match],
            overlap=overlap[is_match],
            lesion_voxels=np.bincount(lesions[lesions > 0], minlength=1)[1:],
            component_voxels=np.bincount(components[predicted], minlength=1)[1:],
        )

    @property
    def found(self) -> NDArray[np.bool_]:
        """Whether a component matches: shape (n_lesions,)."""
        return np.bincount(self.lesion, minlength=len(self.lesion_voxels)) > 0

    @property
    def false_positive(self) -> NDArray[np.bool_]:
        """Whether no lesion matches: shape (n_components,)."""
        return np.bincount(self.component, minlength=len(self.component_voxels)) == 0

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Whether it matches several lesions or is far larger than its own: (n_components,)."""
        n = len(self.component_voxels)
        flagged = np.bincount(self.component, minlength=n) > 1
        lesion_voxels = self.lesion_voxels[self.lesion]
        oversized = self.component_voxels[self.component] > OVERSIZED * lesion_voxels
        flagged[self.component[oversized]] = True
        return flagged

    @property
    def distinct(self) -> NDArray[np.bool_]:
        """Whether a component matches that is not flagged: shape (n_lesions,)."""
        unflagged = ~self.flagged[self.component]
        return np.bincount(self.lesion[unflagged], minlength=len(self.lesion_voxels)) > 0


def meeting_pairs(a: NDArray[np.int32], b: NDArray[np.int32]) -> tuple[NDArray[np.intp], ...]:
    """Find pairs of components that share voxels: their numbers less 1, and how many voxels."""
    both = (a > 0) & (b > 0)
    first, second = a[both].astype(np.intp) - 1, b[both].astype(np.intp) - 1
    # One number for each pair, so that equal pairs are counted at once.
    base = second.max(initial=0) + 1
    keys, voxels = np.unique(first * base + second, return_counts=True)
    return keys // base, keys % base, voxels


def _mask(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim != 3 or array.size == 0 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} must be a volume (x, y, z) of numbers, not {array.dtype} of shape "
            f"{array.shape}"
        )
    return zeros_and_ones(array, name)
