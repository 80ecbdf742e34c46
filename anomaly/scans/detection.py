"""Detections in a scan, and its judgement as a whole by the scans that its model comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from anomaly.detectors.thresholds import ball_diameter, open_map, smallest_ball
from dmrifit._utils.affines import MM3_PER_ML, voxel_volume
from dmrifit._utils.counts import counted
from dmrifit.io.bids_derivatives import file_record
from dmrifit.io.components import label_components
from dmrifit.io.parameter_json import refuse_keys
from dmrifit.report.numerals import wording
from dmrifit.stats.patient_summary import patient_draws, percentile_interval

if TYPE_CHECKING:
    from anomaly.scans.preparation import PreparedScan

#: Work of the digest of a name, which takes some hundredths of a second: names of a hospital are
#: few enough to be guessed, one after the other, from a quick one.
_WORK: dict[str, int] = {"n": 2**14, "r": 8, "p": 1}
#: Notes of the preparation that change which voxels count, or their scores.
_STEPS = {
    "brain": "brain mask",
    "tissue": "tissue map",
    "directions_resampled": "resampling of directions",
}
#: Notes of the preparation that are sentences.
_REMARKS = ("lost", "unused", "assumed", "one_tissue", "holes")
#: What is said of a scan that differs from healthy ones in bulk or noise.
DIFFERENT = (
    "this scan differs from the training scans as a whole (protocol, noise, age?), and anomalies "
    "cannot be distinguished from that"
)

_QUANTILES = (0.5, 0.75)
#: Small x is the left, because scans are in RAS order.
_BULK = ("left_median", "left_quantile_75", "right_median", "right_quantile_75")
#: Two-sided, of one quantile in one hemisphere; both hemispheres have to lie beyond it.
_LEVEL = 0.01
#: Least number of healthy scans that a scan is judged against as a whole.
FEWEST_SCANS = 3
#: Least number of scored voxels in each hemisphere of a scan that is judged.
FEWEST_VOXELS = 20
#: Share of the voxels of a hemisphere that has to remain when the largest component is left out.
#: Gliomas fill 5 to 20 % of a brain; what leaves less is no part of the scan but the scan.
_LEAST_REST = 0.25
#: Share of the voxels above the threshold, from which a scan is flagged that cannot be judged:
#: gliomas fill 5 to 20 % of a brain.
_MOST_MARKED = 0.5
_RIM = 2  # voxels around a component that its smoothed scores reach
_LEAST_SD = 1e-6
#: Noise of a scan, in units of that of the median healthy scan, above which the scan differs:
#: rates of thresholds held at twice the noise and broke at three times.
_NOISE_RATIO = 2.5
#: Directions that noise is measured in, evenly spaced; fewer than twice as many are used.
_N_NOISE = 8
_N_RESAMPLES = 2000


@dataclass(frozen=True)
class ScanFigures:
    """What the scores of one scan are summarized by."""

    share: float  # of the scored voxels, above the threshold
    n_components: int  # after opening
    largest_mL: float  # volume of the largest component
    # Median and 75 % quantile of the scores in the hemisphere of small x, then in the other,
    # outside the largest component and its mirror image, unless these fill three quarters of a
    # hemisphere; NaN where a hemisphere has fewer than `FEWEST_VOXELS`.
    bulk: tuple[float, ...]
    # Standard deviation of the noise in the signals of single directions, from differences of
    # neighboring voxels, in the hemisphere where it is smaller and outside the same component;
    # NaN where not measured.
    noise: float = float("nan")

    @property
    def named_bulk(self) -> dict[str, float | None]:
        """The values of the bulk by name; None for NaN, which JSON does not have."""
        values = [value if np.isfinite(value) else None for value in self.bulk]
        return dict(zip(_BULK, values, strict=True))


@dataclass(frozen=True)
class HealthyScans:
    """Figures of healthy scans that were scored by a detector that had not learned from them."""

    scans: tuple[ScanFigures, ...]
    # Interval of the threshold over draws of these scans.
    spread: tuple[float, float] | None = None
    # Whether each scan was counted above a threshold that was fitted to the other subjects;
    # otherwise above the one that was chosen on these scans.
    left_out: bool = False
    adjusted: bool = False  # whether they are those of a calibration after the training

    def differs(self, figures: ScanFigures, largest_division: float = 1.0) -> bool | None:
        """
        Tell whether a scan differs as a whole.

        Median or 75 % quantile has to lie outside the 99 % prediction interval of the healthy
        scans (of a t distribution, so that few scans give a wide one) in both hemispheres and
        towards the same side: one lesion is not in both, and what is was left out with its mirror
        image. A detector that divides the scores of a scan by its level divides those of a large
        lesion by up to `largest_division`: a bulk that is lower by no more than that tells
        nothing. A scan also differs by noise of more than 2.5 times that of the median healthy
        scan, which scores that are means over directions and neighbors hardly show. None where
        there are fewer than three healthy scans, or too few voxels.
        """
        from scipy.special import stdtrit

        n_values = 2 * len(_QUANTILES)
        values = np.asarray([scan.bulk for scan in self.scans], dtype=float).reshape(-1, n_values)
        values = values[np.isfinite(values).all(axis=1)]
        n = len(values)
        if n < FEWEST_SCANS or not np.isfinite(figures.bulk).all():
            return None
        sd = np.maximum(values.std(axis=0, ddof=1), _LEAST_SD) * np.sqrt(1 + 1 / n)
        limit = stdtrit(n - 1, 1 - _LEVEL / 2)
        center, bulk = values.mean(axis=0), np.asarray(figures.bulk)
        is_above = bulk - center > limit * sd
        is_below = bulk * largest_division - center < -limit * sd
        # Of each quantile, in both hemispheres.
        is_shifted = any(side.reshape(2, -1).all(axis=0).any() for side in (is_above, is_below))
        measured = [scan.noise for scan in self.scans if np.isfinite(scan.noise)]
        usual = np.median(measured) if measured else 0.0
        # No noise is a multiple of none; comparisons with what was not measured are false.
        return is_shifted or bool(usual > 0 and figures.noise > _NOISE_RATIO * usual)

    @property
    def anomalies_per_scan(self) -> float | None:
        """Mean number of components after the opening that were marked in a healthy scan."""
        if not self.scans:
            return None
        return float(np.mean([scan.n_components for scan in self.scans]))

    def verdicts(self, largest_division: float = 1.0) -> list[bool | None]:
        """Tell of each healthy scan whether it differs from the others; None if not judged."""
        verdicts = []
        for i, scan in enumerate(self.scans):
            others = replace(self, scans=self.scans[:i] + self.scans[i + 1 :])
            verdicts.append(others.differs(scan, largest_division))
        return verdicts

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> HealthyScans:
        """Read plain values of a model file."""
        # The first files say nothing about these two.
        content = {"left_out": False, "adjusted": False} | dict(content)
        refuse_keys(content, {*cls.__dataclass_fields__}, "part of healthy scans", complete=True)
        scans = []
        for written in content["scans"]:
            # Nor about noise.
            row = {"noise": float("nan")} | written
            names = {*ScanFigures.__dataclass_fields__}
            refuse_keys(row, names, "figure of a healthy scan", complete=True)
            bulk = tuple(float(value) for value in row["bulk"])
            if len(bulk) != 2 * len(_QUANTILES):
                raise ValueError(f"the bulk of a healthy scan has {counted(len(bulk), 'value')}")
            numbers = {key: float(row[key]) for key in ("share", "largest_mL", "noise")}
            n_components = int(row["n_components"])
            scans.append(ScanFigures(n_components=n_components, bulk=bulk, **numbers))
        spread = content["spread"]
        if spread is not None:
            low, high = map(float, spread)
            spread = (low, high)
        return cls(tuple(scans), spread, bool(content["left_out"]), bool(content["adjusted"]))


@dataclass(frozen=True)
class TrainingScans:
    """The scans of a training and of its threshold."""

    images: tuple[str, ...]  # digests of the files of the series
    patients: tuple[str, ...]  # digests of the patients' names, so that a model file names nobody
    steps: Mapping[str, tuple[str, ...]]  # ways in which brain, tissues and directions came about
    remarks: tuple[str, ...] = ()  # sentences on what the preparation lost or assumed
    # Salt of the patients' digests, from the content of the series, so that a file can be
    # reproduced and no table of digests fits two; empty in the first files, whose digests are
    # quick to guess.
    salt: str = ""

    @classmethod
    def of(cls, scans: Sequence[PreparedScan], images: Sequence[Any]) -> TrainingScans:
        """Record prepared scans, whose series are the files `images`."""
        steps = {}
        for step in _STEPS:
            steps[step] = tuple(sorted({str(scan.notes[step]) for scan in scans}))
        sentences = [scan.notes.get(key) for scan in scans for key in _REMARKS]
        contents = tuple(file_record(path)["SHA256"] for path in images)
        salt = hashlib.sha256(" ".join(sorted(contents)).encode()).hexdigest()
        patients = {scan.case.patient for scan in scans}
        return cls(
            contents,
            tuple(sorted(_digest(patient, salt) for patient in patients)),
            steps,
            tuple(dict.fromkeys(filter(None, sentences))),
            salt,
        )

    def overlap(self, images: Sequence[Any], patients: Sequence[str]) -> list[int]:
        """List the numbers of scans that are among these, or are of their patients."""
        shared = []
        digests = {patient: _digest(patient, self.salt) for patient in set(patients)}
        for i, (path, patient) in enumerate(zip(images, patients, strict=True)):
            is_known = digests[patient] in self.patients
            if is_known or file_record(path)["SHA256"] in self.images:
                shared.append(i)
        return shared

    def differences(self, notes: Mapping[str, Any]) -> list[str]:
        """Name the steps in which the preparation of a scan is not that of these scans."""
        sentences = []
        for step, noun in _STEPS.items():
            is_mask = step == "tissue" and notes.get("one_tissue")
            way = "a map of one tissue" if is_mask else str(notes[step])
            if way not in self.steps[step]:
                usual = " or ".join(self.steps[step])
                sentences.append(f"{noun}: {way} (calibration scans: {usual})")
        return sentences

    def excludes_fluid_unlike(self, notes: Mapping[str, Any]) -> bool:
        """Tell whether fluid was left out of all these scans, and counts in a scan with notes."""
        has_none = notes["tissue"] == "none" or bool(notes.get("one_tissue"))
        return has_none and "none" not in self.steps["tissue"]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TrainingScans:
        """Read plain values of a model file."""
        content = {"salt": ""} | dict(content)
        refuse_keys(content, {*cls.__dataclass_fields__}, "part of training scans", complete=True)
        refuse_keys(content["steps"], set(_STEPS), "step of a preparation", complete=True)
        steps = {step: tuple(map(str, ways)) for step, ways in content["steps"].items()}
        lists = {key: tuple(map(str, content[key])) for key in ("images", "patients", "remarks")}
        return cls(steps=steps, salt=str(content["salt"]), **lists)


def scan_figures(
    scores: NDArray[np.floating],
    scored: NDArray[np.bool_],
    marked: NDArray[np.bool_],
    opened: NDArray[np.bool_],
    affine: NDArray[np.float64],
    signal: NDArray[np.floating] | None = None,
) -> ScanFigures:
    """
    Summarize the scores of a scan in RAS order.

    Shapes: `scores`, `scored` (voxels that count), `marked` (above the threshold), `opened`
    (x, y, z); `signal` (x, y, z, channels), for the noise.
    """
    components = label_components(opened)
    counts = np.bincount(components.ravel())[1:]
    n_scored = int(np.count_nonzero(scored))
    if not n_scored:
        raise ValueError(
            "no voxel of the brain is white or gray matter on the grid of the model; check its "
            "tissue map and the size of its voxels"
        )
    largest = int(counts.max(initial=0))
    planes = np.flatnonzero(scored.any(axis=(1, 2)))
    # Twice the plane between the hemispheres, which may lie between two voxels.
    middle = int(planes[0] + planes[-1])
    x = 2 * np.arange(scored.shape[0])
    hemispheres = (x < middle, x > middle)
    # The scan as a whole is what is outside its largest component and the mirror image of it,
    # which is left out so that the hemispheres stay comparable.
    remaining = scored
    if largest:
        component = ndimage.binary_dilation(components == 1 + counts.argmax(), iterations=_RIM)
        remaining = scored & ~(component | _mirror_image(component, middle))
    for side in hemispheres:
        n_remaining = np.count_nonzero(remaining[side])
        if n_remaining < max(FEWEST_VOXELS, _LEAST_REST * np.count_nonzero(scored[side])):
            remaining = scored
    quantiles: list[float] = []
    for side in hemispheres:
        values = scores[side][remaining[side]]
        if len(values) < FEWEST_VOXELS:
            quantiles += [float("nan")] * len(_QUANTILES)
        else:
            quantiles += np.quantile(values, _QUANTILES).tolist()
    noise = float("nan")
    if signal is not None:
        noises = [_noise(signal[side], remaining[side]) for side in hemispheres]
        noise = min((value for value in noises if np.isfinite(value)), default=noise)
    return ScanFigures(
        share=float(np.count_nonzero(marked & scored) / n_scored),
        n_components=len(counts),
        largest_mL=float(largest * voxel_volume(affine) / MM3_PER_ML),
        bulk=tuple(quantiles),
        noise=noise,
    )


def _mirror_image(mask: NDArray[np.bool_], middle: int) -> NDArray[np.bool_]:
    """Mirror a mask (x, y, z) along x about half of `middle`; what leaves the grid is cut off."""
    planes = np.flatnonzero(mask.any(axis=(1, 2)))
    planes = planes[(middle - planes >= 0) & (middle - planes < len(mask))]
    mirrored = np.zeros_like(mask)
    mirrored[middle - planes] = mask[planes]
    return mirrored


def _noise(signal: NDArray[np.floating], inside: NDArray[np.bool_]) -> float:
    """Estimate the noise of signals (x, y, z, channels) by second differences along y."""
    neighbors = inside[:, :-2] & inside[:, 1:-1] & inside[:, 2:]
    if np.count_nonzero(neighbors) < FEWEST_VOXELS:
        return float("nan")
    step = max(1, signal.shape[-1] // _N_NOISE)
    differences = []
    for k in range(0, signal.shape[-1], step):
        image = np.asarray(signal[..., k], dtype=np.float32)
        second = 2 * image[:, 1:-1] - image[:, :-2] - image[:, 2:]
        differences.append(np.abs(second[neighbors]))
    # The median, which borders of tissues hardly move; weights 1, -2, 1 give sqrt(6) SDs.
    return float(np.median(np.concatenate(differences)) / (0.6745 * np.sqrt(6)))


@dataclass(frozen=True, eq=False)
class Detection:
    """
    Detections in a scan.

    Parameters
    ----------
    scan : PreparedScan
        The scan, and the way back to the grid of its file.
    map : ndarray of shape (x, y, z)
        Scores on the grid of the detector, higher where less like healthy scans; 0 outside the
        brain.
    found : ndarray of bool, shape (x, y, z)
        Where the map is above the threshold, inside the brain; without fluid where tissues are
        known.
    opened : ndarray of bool, shape (x, y, z)
        The same after opening.
    lesions : DataFrame
        A row for each connected part of `opened`, the largest first: ``number``, ``n_voxels``,
        ``volume_mL``, ``diameter_mm`` (of the ball of that volume), ``x``, ``y``, ``z`` (center in
        mm RAS+), ``score`` (the largest in it) and ``mean_score``.
    threshold : float
        Score above which a voxel is anomalous; NaN where each scan has its own.
    figures : ScanFigures
        Share above the threshold, components, and the bulk of the scores.
    differs : bool, optional
        Whether the scan differs from healthy ones as a whole (`HealthyScans.differs`), so that
        anomalies cannot be told from that; None if this cannot be judged.
    opening : int, default=3
        Edge in voxels of the cube of the opening.
    healthy : HealthyScans, optional
        The healthy scans that the scan was compared with as a whole; None if the model has none.
    healthy_per_scan : float, optional
        Mean number of lesions that this threshold and opening mark in a healthy scan; None if the
        model does not say it, as for another threshold or opening than its own.
    no_guarantee : str, default=""
        Why the guarantee of the model's threshold does not hold here; "" where it holds, or the
        model has none.
    counts_fluid : bool, default=False
        Whether fluid counts here, though it did not in the healthy scans of the model.
    without_fluid : bool, default=False
        Whether this alone is why `healthy_per_scan` is None.
    """

    scan: PreparedScan
    map: NDArray[np.float32] = field(repr=False)
    found: NDArray[np.bool_] = field(repr=False)
    opened: NDArray[np.bool_] = field(repr=False)
    lesions: pd.DataFrame = field(repr=False)
    threshold: float
    figures: ScanFigures
    differs: bool | None = None
    opening: int = 3
    healthy: HealthyScans | None = field(default=None, repr=False)
    healthy_per_scan: float | None = None
    no_guarantee: str = ""
    counts_fluid: bool = False
    without_fluid: bool = False

    @property
    def too_small(self) -> str:
        """Why a scan without anomalies need not be healthy; "" where it is large enough."""
        if not np.isfinite(self.figures.bulk).all():
            return f"a hemisphere has fewer than {FEWEST_VOXELS} scored voxels"
        if not open_map(self.scan.case.scored, self.opening).any():
            return f"no cube of {self.opening} voxels (--opening) fits into its scored voxels"
        return ""

    @property
    def flags(self) -> list[str]:
        """Sentences on what forbids to take the anomalies, or their absence, as they are."""
        flags = [DIFFERENT] if self.differs else []
        if self.differs is None and self.figures.share > _MOST_MARKED:
            flags.append("most of its voxels lie above the threshold")
        if "unregistered" in self.scan.notes:
            flags.append(self.scan.notes["unregistered"])
        if self.too_small:
            flags.append(f"too small to be judged, healthy or not: {self.too_small}")
        return flags

    @property
    def notes(self) -> list[str]:
        """Sentences on what the preparation lost or assumed, and on what the anomalies mean."""
        notes = [*filter(None, map(self.scan.notes.get, ("learned", "extrapolated", *_REMARKS)))]
        if self.no_guarantee:
            notes.append(f"the guarantee of the model does not hold: {self.no_guarantee}")
        begin = "the opening by" if self.opening > 1 else "no opening: single voxels count; even"
        edge = max(self.opening, 2)
        note = f"{begin} a cube of {edge} voxels can remove compact anomalies below {{mL:.2s}} mL"
        notes.append(wording(note, {"mL": smallest_ball(edge, self.scan.case.spacing)}))
        if self.counts_fluid:
            notes.append(
                "fluid counts here, unlike in the healthy scans of the model: give tissue maps "
                "(--tissue, for several scans the column tissue), or --estimate-tissue"
            )
        n_healthy = len(self.healthy.scans) if self.healthy else 0
        if self.differs is None and np.isfinite(self.figures.bulk).all():
            reason = "the healthy scans of the model have too few voxels in a hemisphere"
            if n_healthy < FEWEST_SCANS:
                scans = counted(n_healthy, "healthy scan")
                reason = f"the model has {scans} to compare with, {FEWEST_SCANS} are needed"
            notes.append(f"not judged as a whole: {reason}")
        return notes

    def images(self) -> dict[str, nib.Nifti1Image]:
        """Give the maps on the grid of the file."""
        parts = {"map": self.map, "binary": self.found, "opened": self.opened}
        return {name: self.scan.image(values) for name, values in parts.items()}


def lesions_of(
    found: NDArray[np.bool_], scores: NDArray[np.floating], affine: NDArray[np.float64]
) -> pd.DataFrame:
    """List the connected components of a mask (x, y, z), the largest first."""
    parts = label_components(found, affine=affine)
    numbers = np.arange(1, int(parts.max(initial=0)) + 1)
    counts = np.bincount(parts.ravel())[1:]
    volumes = counts * voxel_volume(affine) / MM3_PER_ML
    voxels = np.reshape(ndimage.center_of_mass(parts > 0, parts, numbers), (-1, 3))
    x, y, z = (voxels @ affine[:3, :3].T + affine[:3, 3]).T
    return pd.DataFrame(
        {
            "number": numbers,
            "n_voxels": counts,
            "volume_mL": volumes,
            # Of a ball of the same volume, because components have any shape.
            "diameter_mm": ball_diameter(volumes),
            "x": x,
            "y": y,
            "z": z,
            "score": np.asarray(ndimage.maximum(scores, parts, numbers), dtype=np.float64),
            "mean_score": np.asarray(ndimage.mean(scores, parts, numbers), dtype=np.float64),
        }
    )


def plain_record(record: Any) -> dict[str, Any]:
    """Give the fields of a dataclass as plain values, for a model file."""
    content: dict[str, Any] = json.loads(json.dumps(asdict(record)))
    return content


def mean_over_scans(values: ArrayLike) -> tuple[float, float, float]:
    """Compute the mean over scans and its 95 % bootstrap interval; NaN for few or equal values."""
    numbers = np.asarray(values, dtype=float)
    # Draws of equal values are equal: an interval without width would be no knowledge.
    if np.ptp(numbers) == 0:
        return float(numbers[0]), np.nan, np.nan
    means = patient_draws(len(numbers), _N_RESAMPLES, 0)[1:] @ numbers / len(numbers)
    return float(numbers.mean()), *percentile_interval(means, len(numbers))


def _digest(patient: str, salt: str) -> str:
    if not salt:
        return hashlib.sha256(patient.encode()).hexdigest()
    return hashlib.scrypt(patient.encode(), salt=salt.encode(), **_WORK).hex()
