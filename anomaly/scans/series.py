"""Detectors of users' series: from files to maps on the grid of the file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from anomaly.detectors.base import AnomalyDetector
from anomaly.detectors.detector_table import DETECTORS
from anomaly.detectors.thresholds import (
    FixedThreshold,
    HealthyScanThreshold,
    limit_spread,
    limits_left_out,
    open_map,
    opening_of,
)
from anomaly.scans.cases import SCANS, Case, patient_data
from anomaly.scans.detection import (
    Detection,
    HealthyScans,
    TrainingScans,
    lesions_of,
    plain_record,
    scan_figures,
)
from anomaly.scans.preparation import PreparedScan, prepare_scan, tables_beside
from dmrifit._utils.checks import check_word, errors_about
from dmrifit._utils.counts import counted, first_few, size_text
from dmrifit.engine.protocol import Protocol
from dmrifit.io.bids_derivatives import file_record, stem
from dmrifit.io.grids import upright_edges
from dmrifit.io.nifti import load_image
from dmrifit.io.parameter_json import refuse_keys
from dmrifit.model_files.registry import register
from dmrifit.networks.volume_cases import called

__all__ = ["SeriesDetector", "SeriesFiles", "read_series"]

#: Covariates that the healthy mean of a detector may depend on.
COVARIATES = ("age", "sex", "site")

_FILES = ("image", "bval", "bvec", "brain", "tissue", "lesion", "followup")
_SAME_EDGE = 0.01  # of a voxel's edge
_APART = 1.0  # voxels, beyond which two fields of view differ in position
_KEYS = {"detector", "protocol", "shape", "edges", "origin", "n_scans", "synthetic"}
_LATER_KEYS = {"healthy", "training"}  # that the first model files lack
_EXTRAPOLATED = (
    "{name} {:g} is outside the range of the training scans ({low:g} to {high:g}), so that the "
    "expected signal is extrapolated"
)
_OPENING = 3  # voxels, edge of the cube of the opening in the study


@dataclass(frozen=True)
class SeriesFiles:
    """
    The files of one scan, and patient data.

    Parameters
    ----------
    image : Path
        Diffusion series.
    patient, name : str, default=""
        By default the patient has the name of the file, and the scan that of the patient.
    bval, bvec : Path, optional
        b-values and directions; by default the files next to the image.
    brain, tissue, lesion, followup : Path, optional
        Images on the grid of the series.
    known : dict
        age, sex, site, grade, kind and synthetic, as `Case` takes them.
    """

    image: Path
    patient: str = ""
    name: str = ""
    bval: Path | None = None
    bvec: Path | None = None
    brain: Path | None = None
    tissue: Path | None = None
    lesion: Path | None = None
    followup: Path | None = None
    known: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of the scan in messages and folders."""
        return self.name or self.patient or stem(self.image)

    @property
    def subject(self) -> str:
        """Name of the patient, by default that of the image."""
        return self.patient or stem(self.image)

    @property
    def files(self) -> dict[str, Path]:
        """Files by their role, with b-values and directions found next to the image."""
        paths = {role: getattr(self, role) for role in _FILES if getattr(self, role) is not None}
        return paths | tables_beside(self.image) | paths

    def prepare(self, **options: Any) -> PreparedScan:
        """
        Prepare the scan for a detector.

        Parameters
        ----------
        **options
            Of `prepare_scan`; files of the scan take precedence.

        Returns
        -------
        PreparedScan
            The scan.
        """
        images = {"mask": self.brain, "tissue": self.tissue, "lesion": self.lesion}
        images["followup"] = self.followup
        options |= {key: path for key, path in images.items() if path is not None}
        options |= {"bval": self.bval, "bvec": self.bvec, "patient": self.subject}
        return prepare_scan(self.image, **(options | {"name": self.label} | dict(self.known)))


def read_series(
    table: str | Path | Sequence[Path], *, failed: list[dict[str, str]] | None = None
) -> list[SeriesFiles]:
    """
    List the series of a table or a folder, or named images, without reading the images.

    Parameters
    ----------
    table : path or sequence of path
        Tab-separated (``.csv``: comma-separated), as for `read_cases`: ``patient`` and ``image``
        are required; ``bval`` and ``bvec`` (by default the files next to the image), ``name``,
        ``brain``, ``tissue``, ``lesion``, ``followup``, ``age``, ``sex``, ``site``, ``grade``,
        ``kind`` and ``synthetic`` are optional. Paths are relative to the table. In a folder
        without a table ``cases.tsv`` each series is a scan of its own subject: ``p01.nii.gz`` with
        ``p01.bval`` and ``p01.bvec``, and ``p01_brain.nii.gz`` and the like beside it.
    failed : list, optional
        Takes ``name``, ``patient`` and ``problem`` of each scan that is wrong in the table or
        lacks a file, which is left out; by default the first one raises.

    Returns
    -------
    list of SeriesFiles
        In the order of the table.

    Raises
    ------
    ValueError
        If the table or a row is wrong, or two rows have one name; the message names the row.
    FileNotFoundError
        If a file is missing, without `failed`.
    """
    return SCANS.read(table, _files_of, failed=failed)


@register
@dataclass(repr=False, eq=False)
class SeriesDetector(BaseEstimator):
    """
    A detector with the preparation of its training scans, which is applied to new scans.

    Its model file contains the detector with its threshold, and the measurements and the grid of
    its training scans.

    Parameters
    ----------
    detector : AnomalyDetector
        Unfitted.
    spacing : float, optional
        Edge of the voxels that scans are resampled to, in mm; by default they are not resampled.
    shape : tuple of 3 int, optional
        Numbers of voxels that scans are cropped or padded to; by default those of the first scan.
    center : {"grid", "brain"}, default="grid"
        As for `prepare_scan`.
    b : float, optional
        Shell to select, in s/mm².
    directions : {"acquired", "resampled", "powder"}, default="acquired"
        Whether training scans must have the directions of the first one, or are resampled to them;
        or the mean over the directions of each shell is used. New scans are resampled where they
        have other directions, with ``"resampled"`` always.
    covariates : tuple of str, default=()
        Covariates among age, sex and site, for detectors that use them (`VoxelwiseGaussian`).
    smallest_lesion : float, optional
        Volume in mL of the smallest compact lesion that the opening must leave; by default the
        opening is the study's cube of 3 voxels, whose size in mm depends on the grid.

    Attributes
    ----------
    detector_ : AnomalyDetector
        Fitted.
    protocol_ : Protocol
        The measurements of the training scans, with directions along the axes of the grid.
    shape_ : tuple of 3 int
        Numbers of voxels.
    edges_ : tuple of 3 float
        Edges of its voxels in mm.
    origin_ : tuple of 3 float
        Center of the first scan's first voxel in mm.
    n_scans_ : int
        Number of scans that the detector learned from, without those that a share holds out.
    synthetic_ : bool
        Whether one of them was simulated.
    healthy_ : HealthyScans or None
        Figures of the healthy scans that the threshold was fitted to; None without a threshold.
    training_ : TrainingScans or None
        The scans that detector and threshold come from; None in the first model files.
    """

    detector: AnomalyDetector | None = None
    _: KW_ONLY
    spacing: float | None = None
    shape: tuple[int, int, int] | None = None
    center: str = "grid"
    b: float | None = None
    directions: str = "acquired"
    covariates: tuple[str, ...] = ()
    smallest_lesion: float | None = None

    #: Files of a model file that are not the detector's.
    own_files: ClassVar[tuple[str, ...]] = ()

    @property
    def opening_(self) -> int:
        """Edge in voxels of the cube of the opening."""
        if self.smallest_lesion is None:
            return _OPENING
        return opening_of(self.smallest_lesion, self.edges_)

    def fit(
        self, series: Sequence[SeriesFiles], *, tissue: bool = False, mask: bool = True
    ) -> SeriesDetector:
        """
        Prepare the scans of healthy subjects and learn from them.

        The threshold counts voxels of white and gray matter, or of the brain without a tissue map.

        Parameters
        ----------
        series : sequence of SeriesFiles
            One scan or more of each subject, without lesions.
        tissue : bool, default=False
            Whether tissues are estimated for scans without a tissue map.
        mask : bool, default=True
            Whether the brain is segmented in scans without a mask; otherwise all voxels with
            signal are used.

        Returns
        -------
        self
            Itself.

        Raises
        ------
        ValueError
            If there is no scan, one has a lesion, or they differ in size, voxels, or measurements;
            or as `prepare_scan` and the detector. The message names the scan.

        Warns
        -----
        UserWarning
            If fields of view differ in position.
        """
        if not isinstance(self.detector, AnomalyDetector):
            raise ValueError(f"detector must be a detector of anomalies, not {self.detector!r}")
        self._check_parameters()
        remedy = "detectors learn from healthy scans: leave others out of the table"
        if not len(series):
            raise ValueError(f"there are no scans; {remedy}")
        self._check_guarantee(series)
        _check_healthy(series, remedy)
        # Before the scans are read, which takes minutes.
        if self.directions == "powder" and getattr(self.detector, "_needs_directions", False):
            unaligned = ""
            if hasattr(self.detector, "aligned"):
                unaligned = "aligned=False (--set aligned=false), "
            raise ValueError(
                f"{type(self.detector).__name__} compares the spread of signals over directions, "
                f"which powder averages do not have; choose {unaligned}a detector of mean signals "
                "(--detector gaussian), or leave directions='powder' (--powder) out"
            )
        scans: list[PreparedScan] = []
        # The first scan cannot be resampled to directions of another one.
        own = "acquired" if self.directions == "resampled" else self.directions
        measurements: dict[str, Any] = {"b": self.b, "directions": own}
        given = {"tissue": tissue, "mask": mask, "spacing": self.spacing, "shape": self.shape}
        for files in series:
            with errors_about(files.label):
                scan = files.prepare(center=self.center, **given, **measurements)
                if scans:
                    _check_like(scan.case, scans[0].case)
            scans.append(scan)
            # The first scan sets the measurements and the grid of all.
            measurements = {"fitted": scans[0].protocol, "directions": self.directions}
        reference = scans[0].case
        if self.center == "grid" and self.detector._one_size:
            origins = np.array([scan.case.affine[:3, 3] for scan in scans])
            apart = float(np.linalg.norm(origins - origins[0], axis=1).max())
            if apart > _APART * max(reference.spacing):
                message = (
                    f"the fields of view of the scans lie up to {apart:.0f} mm from each other: "
                    "scores that depend on the position of a voxel need registered scans; "
                    "register them, or choose center='brain' (--center brain)"
                )
                warnings.warn(message, stacklevel=2)
        # The parameter stays as it was given, as scikit-learn demands.
        learned = clone(self.detector)
        if "spacing" in learned.get_params():
            learned.set_params(spacing=tuple(float(edge) for edge in reference.spacing))
        self.shape_, self.edges_ = reference.shape, reference.spacing
        if self.smallest_lesion is not None and hasattr(learned.threshold, "opening"):
            learned.set_params(threshold__opening=self.opening_)
        with called([files.label for files in series]):
            held_out, maps, voxels = learned._fit_counting(
                [scan.case.signal for scan in scans],
                [scan.case.brain for scan in scans],
                # The false-positive rate has to be that of the scored voxels, without fluid.
                [scan.case.scored for scan in scans],
                groups=[scan.case.patient for scan in scans],
                **self._covariates_of(scans),
            )
        self.healthy_ = None
        if held_out:
            healthy = [scans[i] for i in held_out]
            rule = learned.threshold_
            self.healthy_ = _healthy_scans(rule, maps, voxels, healthy, self.opening_)
        self.protocol_ = scans[0].protocol
        self.origin_ = _triple(float, reference.affine[:3, 3])
        # A share is held out for good; folds hold out each scan once, and all are learned from.
        self.n_scans_ = len(scans) - len(held_out) or len(scans)
        self.synthetic_ = any(scan.case.synthetic for scan in scans)
        self.training_: TrainingScans | None
        self.training_ = TrainingScans.of(scans, [files.image for files in series])
        self.detector_ = learned
        return self

    def prepare(self, series: SeriesFiles | str | Path, **options: Any) -> PreparedScan:
        """
        Prepare a scan like the training scans.

        Parameters
        ----------
        series : SeriesFiles or path
            The scan, or its diffusion series alone.
        **options
            Further options of `prepare_scan`, such as ``tissue=True`` or
            ``directions="resampled"``.

        Returns
        -------
        PreparedScan
            The scan, resampled to the voxel size of the training scans if it differs.

        Raises
        ------
        ValueError
            As `prepare_scan`, or if its voxel size differs from that of the training scans, whose
            voxels are no cubes.
        """
        check_is_fitted(self, "detector_")
        series = SeriesFiles(Path(series)) if isinstance(series, str | Path) else series
        spacing = self.spacing
        if spacing is None:
            edges = upright_edges(load_image(series.image).affine)
            if not np.allclose(edges, self.edges_, rtol=_SAME_EDGE):
                if np.ptp(self.edges_) > _SAME_EDGE * max(self.edges_):
                    raise ValueError(
                        f"{series.image} has voxels of {_mm(edges)}, and the model learned from "
                        f"{_mm(self.edges_)}; train it with a spacing (--spacing), so that scans "
                        "are resampled, or resample the scan"
                    )
                # Training voxels are cubes here, up to rounding.
                spacing = float(np.mean(self.edges_))
        mode = "needed" if self.directions == "acquired" else self.directions
        defaults = {"spacing": spacing, "center": self.center, "directions": mode}
        scan = series.prepare(fitted=self.protocol_, shape=self.shape_, **(defaults | options))
        if self.training_ and file_record(series.image)["SHA256"] in self.training_.images:
            scan.notes["learned"] = (
                "the model was trained or calibrated on this scan and finds less in it"
            )
        for column in getattr(self.detector_, "design_", ()):
            value = getattr(scan.case, column["name"])
            # Words have no range, nor have numbers in the first model files; of numbers without a
            # spread nothing was learned.
            ends = column.get("low", -np.inf), column.get("high", np.inf)
            if column.get("sd") and not ends[0] <= value <= ends[1]:
                scan.notes["extrapolated"] = _EXTRAPOLATED.format(value, **column)
        if self.center == "grid" and self.detector_._one_size:
            apart = np.linalg.norm(scan.case.affine[:3, 3] - self.origin_)
            if apart > _APART * max(self.edges_):
                scan.notes["unregistered"] = (
                    f"the field of view lies {apart:.0f} mm from that of the training scans: "
                    "scores that depend on the position of a voxel need registered scans"
                )
                warnings.warn(f"{series.label}: {scan.notes['unregistered']}", stacklevel=2)
        return scan

    def detect(
        self,
        series: SeriesFiles | PreparedScan | str | Path,
        *,
        threshold: float | None = None,
        opening: int | None = None,
        **options: Any,
    ) -> Detection:
        """
        Find anomalies in a scan.

        Parameters
        ----------
        series : SeriesFiles, path or PreparedScan
            The scan, or what `prepare` made of it.
        threshold : float, optional
            Score above which a voxel is anomalous; by default the model's.
        opening : int, optional
            Edge in voxels of the cube of the opening, by default that of the model. The scan as a
            whole is judged by the model's own threshold and opening, whatever is given here.
        **options
            As for `prepare`.

        Returns
        -------
        Detection
            ``map`` has the scores and ``found`` is where they are above the ``threshold``, with
            ``opened`` after opening, arrays of shape (x, y, z) on the grid of the detector.
            ``lesions`` has a row for each connected part of ``opened``: volume (mL), center (mm
            RAS+), scores. ``flags`` are sentences on what limits the result.

        Raises
        ------
        ValueError
            As `prepare`, or if the detector has no threshold.
        """
        check_is_fitted(self, "detector_")
        scan = series if isinstance(series, PreparedScan) else self.prepare(series, **options)
        case, detector = scan.case, self.detector_
        rule = detector.threshold_
        if threshold is not None:
            # A fixed threshold learns nothing from maps, but every rule is fitted first.
            rule = FixedThreshold(threshold).fit(np.zeros((1, 1, 1, 1)))
        if rule is None:
            raise ValueError(
                "the model has no threshold: train it with calibration, or use its maps and a "
                "rule of your own"
            )
        scores = self._map_of(scan)
        marked = _marked(rule, scores, case)
        opening = self.opening_ if opening is None else opening
        opened = open_map(marked, opening)
        lesions = lesions_of(opened, scores, case.affine)
        limit = float(getattr(rule, "threshold_", np.nan))
        figures = scan_figures(scores, case.scored, marked, opened, case.affine, case.signal)
        is_usual = threshold is None and opening == self.opening_
        if detector.threshold_ is not None and not is_usual:
            # The comparison with healthy scans, by bulk and noise, keeps the model's own threshold
            # and opening.
            usual_mask = _marked(detector.threshold_, scores, case)
            usual_opened = open_map(usual_mask, self.opening_)
            usual_figures = scan_figures(
                scores, case.scored, usual_mask, usual_opened, case.affine, case.signal
            )
            figures = replace(figures, bulk=usual_figures.bulk, noise=usual_figures.noise)
        division = getattr(detector, "largest_division_", 1.0)
        healthy = self.healthy_
        training = self.training_
        counts_fluid = training is not None and training.excludes_fluid_unlike(scan.notes)
        # Why the guarantee of the threshold, if it has one, does not hold.
        reasons = []
        guaranteed = detector.threshold_
        if isinstance(guaranteed, HealthyScanThreshold) and threshold is not None:
            reasons.append("another threshold than the model's")
        elif isinstance(guaranteed, HealthyScanThreshold):
            if healthy is not None and healthy.adjusted:
                reasons.append("the threshold was adjusted by a calibration")
            # What a larger cube leaves is part of what a smaller one leaves.
            if guaranteed.counted == "components" and opening < guaranteed.opening:
                reasons.append(f"opening {opening}, it holds from {guaranteed.opening} on")
            if training is not None:
                reasons += training.differences(scan.notes)
        is_known = is_usual and not counts_fluid
        return Detection(
            scan,
            scores,
            marked,
            opened,
            lesions,
            limit,
            figures,
            healthy.differs(figures, division) if healthy else None,
            opening,
            healthy=healthy,
            healthy_per_scan=healthy.anomalies_per_scan if healthy and is_known else None,
            no_guarantee="; ".join(reasons),
            counts_fluid=counts_fluid,
            without_fluid=counts_fluid and is_usual and bool(healthy and healthy.scans),
        )

    def calibrate(self, series: Sequence[SeriesFiles], **options: Any) -> SeriesDetector:
        """
        Adjust the threshold to healthy scans of another site or protocol.

        The rule of the threshold is fitted to the scans of all but one subject, leaving out each
        in turn, and the highest of these thresholds is taken: with few scans, healthy ones would
        otherwise be marked too often. From then on scans are judged as a whole against these
        scans instead of those of the training. This is an adjustment, not a guarantee, and its
        accuracy depends on the number of scans.

        Parameters
        ----------
        series : sequence of SeriesFiles
            Healthy scans of two subjects or more, none of which the detector has learned from.
        **options
            As for `prepare`.

        Returns
        -------
        self
            Itself.

        Raises
        ------
        ValueError
            As `detect`; or if a scan has a lesion or was learned from, there are too few subjects,
            or the threshold does not come from healthy scans.

        Warns
        -----
        UserWarning
            If the model file is too old to tell which scans it was learned from.
        """
        check_is_fitted(self, "detector_")
        detector = self.detector_
        if not getattr(detector.threshold_, "needs_healthy", False):
            raise ValueError(
                f"the threshold {detector.threshold_!r} of the model does not come from healthy "
                "scans; leave the calibration out, or train with a rate"
            )
        self._check_calibration_scans(series)
        scans = []
        for files in series:
            with errors_about(files.label):
                scans.append(self.prepare(files, **options))
        maps = np.stack([self._map_of(scan) for scan in scans])
        masks = np.stack([scan.case.scored for scan in scans])
        patients = np.array([scan.case.patient for scan in scans])
        rules = []
        for patient in dict.fromkeys(patients.tolist()):
            rest = patients != patient
            rules.append(clone(detector.threshold_).fit(maps[rest], masks[rest]))
        detector.threshold_ = max(rules, key=lambda rule: float(rule.threshold_))
        healthy = _healthy_scans(detector.threshold_, maps, masks, scans, self.opening_)
        self.healthy_ = replace(healthy, adjusted=True)
        return self

    def _map_of(self, scan: PreparedScan) -> NDArray[np.float32]:
        """Score a scan; returns shape (x, y, z)."""
        case = scan.case
        covariates = self._covariates_of([scan])
        return np.asarray(self.detector_.anomaly_map([case.signal], [case.brain], **covariates)[0])

    def stored(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """
        Return the content of a model file.

        Returns
        -------
        parameters : dict
            Of the constructor, without the detector.
        fitted : dict
            The fitted detector, and the measurements and the grid of its training scans.
        files : dict
            None: all are those of the detector.
        """
        check_is_fitted(self, "detector_")
        parameters = self.get_params(deep=False)
        del parameters["detector"]
        fitted = {"detector": self.detector_, "protocol": self.protocol_.to_dict()}
        fitted |= {key: list(getattr(self, f"{key}_")) for key in ("shape", "edges", "origin")}
        fitted |= {"n_scans": self.n_scans_, "synthetic": self.synthetic_}
        for key, record in (("healthy", self.healthy_), ("training", self.training_)):
            fitted[key] = None if record is None else plain_record(record)
        return parameters, fitted, {}

    def restore(self, fitted: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        """
        Restore the content of a model file.

        Parameters
        ----------
        fitted, files : mapping
            As returned by `stored`.

        Raises
        ------
        ValueError
            If an entry is missing or unknown, or entries are inconsistent.
        """
        absent: dict[str, Any] = dict.fromkeys(_LATER_KEYS)
        fitted = absent | dict(fitted)
        refuse_keys(fitted, _KEYS | _LATER_KEYS, "part of a detector of series", complete=True)
        detector: Any = fitted["detector"]
        if not isinstance(detector, AnomalyDetector):
            raise ValueError(f"its detector is {detector!r:.80}, which finds no anomalies")
        try:
            self.protocol_ = Protocol.from_dict(fitted["protocol"])
            self.shape_ = _triple(int, fitted["shape"])
            self.edges_ = _triple(float, fitted["edges"])
            self.origin_ = _triple(float, fitted["origin"])
            self.n_scans_ = int(fitted["n_scans"])
            self.synthetic_ = bool(fitted["synthetic"])
            self.healthy_ = self.training_ = None
            if fitted["healthy"] is not None:
                self.healthy_ = HealthyScans.from_dict(fitted["healthy"])
            if fitted["training"] is not None:
                self.training_ = TrainingScans.from_dict(fitted["training"])
            self._check_parameters()
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"its entries about training scans are invalid ({error})") from None
        if self.shape_ != detector.shape_ or len(self.protocol_) != detector.n_channels_:
            raise ValueError(
                f"its detector takes {detector.shape_} voxels, and its scans have {self.shape_}"
            )
        self.detector = clone(detector)
        self.detector_ = detector

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "detector_")

    def _check_guarantee(self, series: Sequence[SeriesFiles]) -> None:
        """Refuse a guarantee from scans that are not held out, too few, or repeat a subject."""
        detector: Any = self.detector
        if not isinstance(detector.threshold, HealthyScanThreshold):
            return
        share = detector._held_out()
        if not isinstance(share, float):
            raise ValueError(
                "a guarantee needs scans that the detector has not learned from: calibration=0.5 "
                f"(--calibration 0.5) holds half of them out, {share!r} does not"
            )
        patients = [files.subject for files in series]
        repeated = [name for name in dict.fromkeys(patients) if patients.count(name) > 1]
        if repeated:
            raise ValueError(
                f"several scans of {first_few(repeated)}; a guarantee needs one of each subject"
            )
        # Before the training: too few scans give no guarantee whatever is learned.
        n_held_out = min(max(1, round(share * len(series))), len(series) - 1)
        detector.threshold.rank(n_held_out)

    def _check_calibration_scans(self, series: Sequence[SeriesFiles]) -> None:
        """Refuse scans that a threshold cannot be adjusted to."""
        patients = [files.subject for files in series]
        n_patients = len(set(patients))
        if n_patients < 2:
            raise ValueError(
                f"{counted(n_patients, 'subject')} for the calibration; two healthy ones or more "
                "are needed, of the site and protocol of the scans"
            )
        rule = self.detector_.threshold_
        if isinstance(rule, HealthyScanThreshold):
            if len(set(patients)) < len(patients):
                raise ValueError(
                    "the threshold of the model counts scans, one of each subject; leave further "
                    "scans of a subject out of the calibration"
                )
            fewest = rule.fewest_scans() + 1
            if n_patients < fewest:
                raise ValueError(
                    f"{counted(n_patients, 'scan')} for the calibration of a threshold at the "
                    f"level {rule.level:g}; {fewest} are needed, as each is left out in turn"
                )
        _check_healthy(series, "a calibration takes healthy scans")
        if self.training_ is None:
            message = (
                "the model file does not say which scans it was learned from: that none of them "
                "is among the calibration scans could not be checked"
            )
            warnings.warn(message, stacklevel=3)
            return
        shared = self.training_.overlap([files.image for files in series], patients)
        if shared:
            labels = [series[i].label for i in shared]
            raise ValueError(
                f"{first_few(labels)}: the model was trained on this scan or patient, and a "
                "threshold is chosen on other ones; leave them out (or rename other patients of "
                "the same name)"
            )

    def _check_parameters(self) -> None:
        for name in self.covariates:
            check_word("covariates", name, COVARIATES)
        if self.smallest_lesion is not None:
            opening_of(self.smallest_lesion, np.ones(3))

    def _covariates_of(self, scans: Sequence[PreparedScan]) -> dict[str, Any]:
        """Collect the covariates of scans as a keyword argument of the detector; {} for none."""
        columns = {name: [getattr(s.case, name) for s in scans] for name in self.covariates}
        return {"covariates": columns} if columns else {}


def model_in_words(path: Path, model: SeriesDetector, threshold: float | None = None) -> str:
    """Name the file of a model, its detector, what it learned from, and the threshold in use."""
    detector = model.detector_
    title = type(detector).__name__
    names = {class_name: name for name, (_, class_name) in DETECTORS.items()}
    origin = ", given in place of the model's threshold"
    if threshold is None:
        threshold = float(getattr(detector.threshold_, "threshold_", np.nan))
        is_adjusted = model.healthy_ is not None and model.healthy_.adjusted
        origin = ", adjusted to healthy scans without a guarantee" if is_adjusted else ""
        level = getattr(detector.threshold_, "level", None)
        if level is not None and not is_adjusted:
            origin = (
                f", guaranteed at level {level:g} for healthy scans, unless a note says why not"
            )
    above = f"{threshold:.4g}" if np.isfinite(threshold) else "a threshold for each scan"
    scans = counted(model.n_scans_, "healthy scan")
    if model.synthetic_:
        scans = f"{counted(model.n_scans_, 'synthetic scan')}: its accuracy in people is unknown"
    return (
        f"marked by the model {path.name} ({names.get(title, title)}, trained on {scans}) at "
        f"scores above {above}{origin} (settings.json holds its SHA-256, named model)"
    )


def _check_healthy(series: Sequence[SeriesFiles], remedy: str) -> None:
    """Refuse scans with a lesion, and copies of one scan."""
    with_lesion = [files.label for files in series if files.lesion is not None]
    if with_lesion:
        raise ValueError(f"scans with a lesion: {first_few(with_lesion)}; {remedy}")
    first_of: dict[str, str] = {}
    for files in series:
        first = first_of.setdefault(file_record(files.image)["SHA256"], files.label)
        if first != files.label:
            raise ValueError(
                f"{first} and {files.label} are the same file and would count twice; leave one out"
            )


def _healthy_scans(
    rule: Any, maps: NDArray[Any], masks: NDArray[Any], scans: Sequence[PreparedScan], opening: int
) -> HealthyScans:
    """
    Summarize healthy scans that a threshold was fitted to.

    Shapes: `maps` of scores and `masks` of the voxels that count (n, x, y, z).
    """
    # A scan has fewer voxels above a threshold that was fitted to it, too, than a new scan will
    # have. So each is counted above the threshold of the other subjects, if these are enough.
    thresholds = limits_left_out(rule, maps, masks, [scan.case.patient for scan in scans])
    is_left_out = thresholds is not None
    if thresholds is None:
        marked = rule.apply(maps, masks)
    else:
        marked = masks & (maps > thresholds[:, None, None, None])
    figures = []
    for scan, scores, scored, above in zip(scans, maps, masks, marked, strict=True):
        case, opened = scan.case, open_map(above, opening)
        figures.append(scan_figures(scores, scored, above, opened, case.affine, case.signal))
    return HealthyScans(tuple(figures), limit_spread(rule, maps, masks), left_out=is_left_out)


def _marked(rule: Any, scores: NDArray[np.float32], case: Case) -> NDArray[np.bool_]:
    """Mark the scored voxels above a threshold."""
    above = np.asarray(rule.apply(scores[None], case.brain[None]))[0]
    # Fluid and air outside of the scored voxels are unlike tissue without being anomalies.
    return np.asarray(above.astype(bool) & case.scored)


def _files_of(row: dict[str, str], folder: Path) -> SeriesFiles:
    files = {key: folder / row[key] for key in _FILES if row.get(key)}
    for key, path in files.items():
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise FileNotFoundError(f"{key} {row[key]!r} {problem}")
    name = row.get("name") or row["patient"]
    return SeriesFiles(patient=row["patient"], name=name, known=patient_data(row), **files)


def _check_like(case: Case, reference: Case) -> None:
    """Reject a scan whose grid is not that of the first one."""
    if case.shape != reference.shape:
        raise ValueError(
            f"{size_text(case.shape)} voxels, where {reference.name} has "
            f"{size_text(reference.shape)}; give a shape (--shape), which all scans are cropped "
            "or padded to"
        )
    if not np.allclose(case.spacing, reference.spacing, rtol=_SAME_EDGE):
        raise ValueError(
            f"voxels of {_mm(case.spacing)}, where {reference.name} has {_mm(reference.spacing)}; "
            "give a spacing (--spacing), which all scans are resampled to"
        )


def _triple(kind: type, values: Any) -> Any:
    x, y, z = map(kind, values)
    return x, y, z


def _mm(edges: Any) -> str:
    return " × ".join(f"{edge:.3g}" for edge in edges) + " mm"
