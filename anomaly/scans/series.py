"""Detectors of users' series: files in, maps on the grid of the file out, prepared as those that were learned from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from anomaly.detectors.base import AnomalyDetector
from anomaly.detectors.thresholds import open_map
from anomaly.scans.detection import Detection, lesions_of
from anomaly.scans.preparation import PreparedScan, prepare_scan
from dmrifit.cohort.participants_table import WORDS
from dmrifit.engine.protocol import Protocol
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.case_tables import read_each
from dmrifit.io.parameter_json import RefusedError, decoded, encoded, refuse_keys
from dmrifit.model_files.registry import register, registered
from dmrifit.networks.volume_cases import called

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SeriesDetector", "SeriesFiles", "read_series"]

#: What the expectation of a detector may depend on.
COVARIATES = ("age", "sex", "site")

_FILES = ("image", "bval", "bvec", "brain", "tissue", "lesion", "followup")
_KNOWN = ("age", "sex", "site", "grade", "kind", "synthetic")
_ALIASES = {"participant_id": "patient"}
_SAME_EDGE = 0.01  # of a voxel's edge
_APART = 1.0  # voxels, from which on two fields of view are not on each other
_KEYS = {"detector", "protocol", "shape", "edges", "origin", "n_scans", "synthetic"}
_OF_DETECTOR = {"class", "parameters", "fitted"}


@dataclass(frozen=True)
class SeriesFiles:
    """
    The files of one scan, and what is known of the patient.

    Parameters
    ----------
    image : Path
        Diffusion series.
    patient, name : str, default=""
        By default what the file is called.
    bval, bvec : Path, optional
        b-values and directions; by default the files beside the image.
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
        """What messages and folders call the scan."""
        return self.name or self.patient or stem(self.image)

    @property
    def files(self) -> dict[str, Path]:
        """Files that exist, by their role; b-values and directions are looked for beside the image."""
        found = {role: getattr(self, role) for role in _FILES if getattr(self, role) is not None}
        for role in ("bval", "bvec"):
            beside = self.image.with_name(f"{stem(self.image)}.{role}")
            if role not in found and beside.is_file():
                found[role] = beside
        return found

    def prepare(self, **options: Any) -> PreparedScan:
        """
        Bring the scan to the array that a detector takes.

        Parameters
        ----------
        **options
            Of `prepare_scan`; the files of the scan stand before them.

        Returns
        -------
        PreparedScan
            The scan.
        """
        own = {
            "mask": self.brain,
            "tissue": self.tissue,
            "lesion": self.lesion,
            "followup": self.followup,
        }
        given = {key: path for key, path in own.items() if path is not None}
        return prepare_scan(
            self.image,
            bval=self.bval,
            bvec=self.bvec,
            patient=self.patient or stem(self.image),
            name=self.label,
            **(options | given | dict(self.known)),
        )


def read_series(table: str | Path) -> list[SeriesFiles]:
    """
    Read a table of series, without reading the images.

    Parameters
    ----------
    table : path
        Tab-separated (``.csv``: comma-separated), as for `read_cases`: ``patient`` and ``image`` are needed; ``bval``
        and ``bvec`` (by default the files beside the image), ``name``, ``brain``, ``tissue``, ``lesion``,
        ``followup``, ``age``, ``sex``, ``site``, ``grade``, ``kind`` and ``synthetic`` may follow. Paths are relative
        to the table.

    Returns
    -------
    list of SeriesFiles
        In the order of the table.

    Raises
    ------
    ValueError
        If the table or a row is wrong, or two rows have one name; the message names the row.
    FileNotFoundError
        If a file is missing.
    """
    optional = ("name", *_FILES[1:], *_KNOWN)
    return read_each(
        table,
        _files_of,
        required=("patient", "image"),
        optional=optional,
        aliases=_ALIASES,
        what="scan",
    )


@register
class SeriesDetector(BaseEstimator):
    """
    A detector together with the way its scans were prepared, so that those of users are prepared alike.

    Its model file holds the detector with its threshold, and the measurements and the grid that it was fitted to.

    Parameters
    ----------
    detector : AnomalyDetector
        Unfitted.
    spacing : float, optional
        Edge of the voxels that scans are resampled to, in mm; by default they are taken as they are.
    shape : tuple of 3 int, optional
        Numbers of voxels that scans are cropped or padded to; by default those of the first scan.
    center : {"grid", "brain"}, default="grid"
        As for `prepare_scan`.
    b : float, optional
        Shell to take, in s/mm².
    directions : {"acquired", "resampled"}, default="acquired"
        Whether scans have to have the directions of the first one, or are resampled onto them.
    covariates : tuple of str, default=()
        Which of age, sex and site the detector takes into account, if it can (`VoxelwiseGaussian`).

    Attributes
    ----------
    detector_ : AnomalyDetector
        Fitted.
    protocol_ : Protocol
        The measurements that it was fitted to, with directions along the axes of the grid.
    shape_ : tuple of 3 int
        Numbers of voxels.
    edges_ : tuple of 3 float
        Edges of its voxels in mm.
    origin_ : tuple of 3 float
        Center of the first scan's first voxel in mm.
    n_scans_ : int
        How many scans were given.
    synthetic_ : bool
        Whether a scan was simulated.
    """

    def __init__(
        self,
        detector: AnomalyDetector | None = None,
        *,
        spacing: float | None = None,
        shape: tuple[int, int, int] | None = None,
        center: str = "grid",
        b: float | None = None,
        directions: str = "acquired",
        covariates: tuple[str, ...] = (),
    ) -> None:
        self.detector = detector
        self.spacing = spacing
        self.shape = shape
        self.center = center
        self.b = b
        self.directions = directions
        self.covariates = covariates

    def fit(
        self, series: Sequence[SeriesFiles], *, tissue: bool = False, mask: bool = True
    ) -> SeriesDetector:
        """
        Prepare the scans of healthy subjects and learn from them.

        The threshold counts voxels of white and gray matter, where tissues are known, and else those of the brain.

        Parameters
        ----------
        series : sequence of SeriesFiles
            One scan or more of each subject, without lesions.
        tissue : bool, default=False
            Whether tissues are estimated where there is no map of them.
        mask : bool, default=True
            Whether the brain is looked for where there is no mask of it; all voxels with signal are taken otherwise.

        Returns
        -------
        self
            Itself.

        Raises
        ------
        ValueError
            If there is no scan, one has a lesion, or they differ in size, voxels, or measurements; or as
            `prepare_scan` and the detector. The message names the scan.

        Warns
        -----
        UserWarning
            If fields of view do not lie on each other.
        """
        if not isinstance(self.detector, AnomalyDetector):
            raise ValueError(f"detector must be a detector of anomalies, not {self.detector!r}")
        self._check_covariates()
        sick = [one.label for one in series if one.lesion is not None]
        if not len(series) or sick:
            n = f"{', '.join(sick[:5])} have a lesion" if sick else "there are no scans"
            raise ValueError(
                f"{n}; detectors learn from healthy scans: leave others out of the table"
            )
        scans: list[PreparedScan] = []
        for one in series:
            first = scans[0] if scans else None
            with _naming(one):
                scan = one.prepare(
                    tissue=tissue,
                    mask=mask,
                    fitted=None if first is None else first.protocol,
                    b=self.b if first is None else None,
                    spacing=self.spacing,
                    shape=self.shape,
                    center=self.center,
                    directions="acquired" if first is None else self.directions,
                )
                _check_like(scan, first)
            scans.append(scan)
        reference = scans[0].case
        self._warn_of_fields(self.detector, scans)
        options = {"covariates": self._covariates_of(scans)} if self.covariates else {}
        learned = clone(self.detector)
        # Healthy scans have a rate of false positives in what is looked at: fluid is not, where tissues are known.
        learned._counted = [scan.case.scored for scan in scans]
        with called([one.label for one in series]):
            learned.fit(
                [scan.case.signal for scan in scans],
                [scan.case.brain for scan in scans],
                groups=[scan.case.patient for scan in scans],
                **options,
            )
        del learned._counted
        self.protocol_ = scans[0].protocol
        self.shape_, self.edges_ = reference.shape, reference.spacing
        x, y, z = reference.affine[:3, 3].tolist()
        self.origin_ = (x, y, z)
        self.n_scans_ = len(scans)
        self.synthetic_ = any(scan.case.synthetic for scan in scans)
        self.detector_ = learned
        return self

    def prepare(self, series: SeriesFiles, **options: Any) -> PreparedScan:
        """
        Prepare a scan as those that were learned from.

        Parameters
        ----------
        series : SeriesFiles
            The scan.
        **options
            Further ones of `prepare_scan`, such as ``tissue=True`` or ``directions="resampled"``.

        Returns
        -------
        PreparedScan
            The scan; resampled to the voxels that were learned from, where it has others.

        Raises
        ------
        ValueError
            As `prepare_scan`, or if its voxels are others than those that were learned from and those are no cubes.
        """
        from dmrifit.io.nifti import read_grid

        check_is_fitted(self, "detector_")
        spacing = self.spacing
        if spacing is None:
            _, affine = read_grid(series.image)
            edges = _edges_in_order(affine)
            if not np.allclose(edges, self.edges_, rtol=_SAME_EDGE):
                if np.ptp(self.edges_) > _SAME_EDGE * max(self.edges_):
                    raise ValueError(
                        f"{series.image} has voxels of {_mm(edges)}, and the model learned from {_mm(self.edges_)}; "
                        "train it with a spacing (--spacing), so that scans are resampled, or resample the scan"
                    )
                spacing = float(np.mean(self.edges_))
        given = {
            "spacing": spacing,
            "center": self.center,
            "directions": self.directions,
        } | options
        scan = series.prepare(fitted=self.protocol_, shape=self.shape_, **given)
        if self.center == "grid" and self.detector_._one_size:
            apart = np.linalg.norm(scan.case.affine[:3, 3] - self.origin_)
            if apart > _APART * max(self.edges_):
                msg = (
                    f"the field of view of {series.label} lies {apart:.0f} mm from that of the scans that were learned "
                    "from: scores that belong to a place need scans that lie on each other"
                )
                warnings.warn(msg, stacklevel=2)
        return scan

    def detect(
        self, series: SeriesFiles | PreparedScan, *, opening: int = 3, **options: Any
    ) -> Detection:
        """
        Find anomalies in a scan.

        Parameters
        ----------
        series : SeriesFiles or PreparedScan
            The scan, or what `prepare` made of it.
        opening : int, default=3
            Edge in voxels of the cube that what was found is opened with.
        **options
            As for `prepare`.

        Returns
        -------
        Detection
            Map, masks and lesions.

        Raises
        ------
        ValueError
            As `prepare`, or if the detector has no threshold.
        """
        check_is_fitted(self, "detector_")
        scan = series if isinstance(series, PreparedScan) else self.prepare(series, **options)
        case, detector = scan.case, self.detector_
        if detector.threshold_ is None:
            raise ValueError(
                "the model has no threshold: train it with calibration, or use its maps and a rule of your own"
            )
        known = {"covariates": self._covariates_of([scan])} if self.covariates else {}
        maps = detector.anomaly_map([case.signal], [case.brain], **known)
        found = (
            np.asarray(detector.threshold_.apply(maps, case.brain[None]))[0].astype(bool)
            & case.scored
        )
        opened = open_map(found, opening)
        limit = float(getattr(detector.threshold_, "threshold_", np.nan))
        return Detection(
            scan, maps[0], found, opened, lesions_of(opened, maps[0], case.affine), limit, opening
        )

    def stored(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]:
        """
        Give what a model file holds.

        Returns
        -------
        parameters : dict
            Of the constructor, but for the detector.
        fitted : dict
            The fitted detector, and what its scans were like.
        files : dict of bytes
            Those of the detector.
        """
        check_is_fitted(self, "detector_")
        parameters, fitted, files = self.detector_.stored()
        own = self.get_params(deep=False)
        return (
            {key: encoded(value, key) for key, value in own.items() if key != "detector"},
            {
                "detector": {
                    "class": type(self.detector_).__name__,
                    "parameters": parameters,
                    "fitted": fitted,
                },
                "protocol": self.protocol_.to_dict(),
                "shape": list(self.shape_),
                "edges": list(self.edges_),
                "origin": list(self.origin_),
                "n_scans": self.n_scans_,
                "synthetic": self.synthetic_,
            },
            files,
        )

    def restore(self, fitted: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """
        Take what `stored` has given.

        Parameters
        ----------
        fitted : mapping
            As given by `stored`.
        files : mapping of bytes
            As given by `stored`.

        Raises
        ------
        RefusedError
            If something is missing or unknown, or does not fit.
        """
        refuse_keys(fitted, _KEYS, "part of a detector of series", complete=True)
        inner = fitted["detector"]
        refuse_keys(inner, _OF_DETECTOR, "part of a detector", complete=True)
        cls = registered(inner["class"])
        if cls is None or not issubclass(cls, AnomalyDetector):
            raise RefusedError(f"its detector is a {inner['class']!r}, which finds no anomalies")
        refuse_keys(
            inner["parameters"], set(cls._get_param_names()), f"parameter of {cls.__name__}"
        )
        detector = cls(**{key: decoded(value) for key, value in inner["parameters"].items()})
        detector.restore(inner["fitted"], files)
        try:
            self.protocol_ = Protocol.from_dict(fitted["protocol"])
            (i, j, k), edges, (x, y, z) = fitted["shape"], fitted["edges"], fitted["origin"]
            self.shape_, self.origin_ = (int(i), int(j), int(k)), (float(x), float(y), float(z))
            self.edges_ = (float(edges[0]), float(edges[1]), float(edges[2]))
            self.n_scans_, self.synthetic_ = int(fitted["n_scans"]), bool(fitted["synthetic"])
            self._check_covariates()
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise RefusedError(f"what it says of its scans is not sound ({error})") from None
        if self.shape_ != detector.shape_ or len(self.protocol_) != detector.n_channels_:
            raise RefusedError(
                f"its detector takes {detector.shape_} voxels, and its scans have {self.shape_}"
            )
        self.detector = clone(detector)
        self.detector_ = detector

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "detector_")

    def _check_covariates(self) -> None:
        strange = [name for name in self.covariates if name not in COVARIATES]
        if strange:
            raise ValueError(f"covariates can be {', '.join(COVARIATES)}, not {strange[0]!r}")

    def _covariates_of(self, scans: Sequence[PreparedScan]) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(
            {name: [getattr(scan.case, name) for scan in scans] for name in self.covariates}
        )

    def _warn_of_fields(self, learned: AnomalyDetector, scans: Sequence[PreparedScan]) -> None:
        if self.center != "grid" or not learned._one_size:
            return
        origins = np.array([scan.case.affine[:3, 3] for scan in scans])
        apart = float(np.linalg.norm(origins - origins[0], axis=1).max())
        if apart > _APART * max(scans[0].case.spacing):
            msg = (
                f"the fields of view of the scans lie up to {apart:.0f} mm from each other: scores that belong to a "
                "place need scans that lie on each other; register them, or choose center='brain' (--center brain)"
            )
            warnings.warn(msg, stacklevel=3)


def _files_of(row: dict[str, str], folder: Path) -> SeriesFiles:
    """Find the files of one row."""
    files = {key: folder / row[key] for key in _FILES if row.get(key)}
    for key, path in files.items():
        if not path.is_file():
            raise FileNotFoundError(
                f"{key} {row[key]!r} {'is a folder' if path.is_dir() else 'does not exist'}"
            )
    return SeriesFiles(
        patient=row["patient"], name=row.get("name") or row["patient"], known=_known(row), **files
    )


def _known(row: Mapping[str, str]) -> dict[str, Any]:
    """Read what a row says of the patient."""
    found: dict[str, Any] = {key: row[key] for key in _KNOWN if row.get(key)}
    try:
        if "age" in found:
            found["age"] = float(found["age"])
        if "synthetic" in found:
            found["synthetic"] = WORDS[found["synthetic"].lower()]
    except (KeyError, ValueError):
        raise ValueError("age must be a number of years, and synthetic true or false") from None
    return found


@contextmanager
def _naming(series: SeriesFiles) -> Iterator[None]:
    """Name the scan in errors about it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{series.label}: {error}") from None


def _check_like(scan: PreparedScan, first: PreparedScan | None) -> None:
    """Refuse a scan whose grid is not that of the first one."""
    if first is None:
        return
    own, other = scan.case, first.case
    if own.shape != other.shape:
        raise ValueError(
            f"{_times(own.shape)} voxels, where {other.name} has {_times(other.shape)}; give a shape (--shape), which "
            "all scans are cropped or padded to"
        )
    if not np.allclose(own.spacing, other.spacing, rtol=_SAME_EDGE):
        raise ValueError(
            f"voxels of {_mm(own.spacing)}, where {other.name} has {_mm(other.spacing)}; give a spacing (--spacing), "
            "which all scans are resampled to"
        )


def _edges_in_order(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the edges of an image's voxels once its axes are in RAS order."""
    import nibabel as nib

    edges = np.empty(3)
    edges[nib.io_orientation(affine)[:, 0].astype(int)] = np.linalg.norm(affine[:3, :3], axis=0)
    return edges


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _mm(edges: Any) -> str:
    return " × ".join(f"{edge:.3g}" for edge in edges) + " mm"
