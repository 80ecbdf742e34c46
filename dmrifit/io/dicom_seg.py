"""DICOM: regions of label images as a segmentation of the series that the images were converted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._optional import import_optional

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["KINDS", "write_dicom_seg"]

#: What regions are -> keywords of category and type in pydicom's dictionaries of codes, (scheme, keyword) each.
KINDS: Mapping[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "lesion": (("SCT", "MorphologicallyAbnormalStructure"), ("SCT", "Lesion")),
    "metastasis": (("SCT", "MorphologicallyAbnormalStructure"), ("SCT", "NeoplasmSecondary")),
    "tumor": (("SCT", "MorphologicallyAbnormalStructure"), ("SCT", "Neoplasm")),
    "voxel": (("SCT", "SpatialAndRelationalConcept"), ("DCM", "RegionInSpace")),
}
_NOTICE = "Research software; not for clinical use"
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # between LPS+ and RAS+
_TOLERANCE = 0.1  # voxel edges that grids may lie apart
_SMALLEST = 1e-3  # of a spacing or of a unit vector: differences of positions and directions that are rounding
_MOST_SEGMENTS = 255
_LONGEST_LABEL = 64  # characters, of the type LO
_DEFLATED = "1.2.840.10008.1.2.1.99"  # packed whole: of any size once it is read
_DIRECTORY = "1.2.840.10008.1.3.10"
#: Images of which each is a slice: CT, MR, PET.
_SLICES = tuple(f"1.2.840.10008.5.1.4.1.1.{one}" for one in ("2", "4", "128"))
_NUMBERS = {"PixelSpacing": 2, "ImageOrientationPatient": 6, "ImagePositionPatient": 3}
_NEEDED = (
    *(
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "Rows",
    ),
    *("Columns", *_NUMBERS),
)
#: What the standard asks for in each file, if only empty.
_EMPTY = (
    *(
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "StudyID",
    ),
    *("AccessionNumber", "ReferringPhysicianName"),
)


@dataclass(frozen=True, eq=False)
class _Series:
    """
    A series as a volume.

    Attributes
    ----------
    images : list of Dataset
        One for each slice, in their order in space; without pixels.
    affine : ndarray of shape (4, 4)
        From (column, row, slice) to RAS+ coordinates in mm.
    """

    images: list[Dataset]
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of columns, rows and slices."""
        return int(self.images[0].Columns), int(self.images[0].Rows), len(self.images)


def write_dicom_seg(
    labels: ArrayLike,
    affine: ArrayLike,
    path: str | Path,
    *,
    source: str | Path,
    kind: str = "lesion",
    names: Mapping[int, str] | None = None,
    separate: bool = False,
    manual: bool = False,
    series: str | None = None,
    overwrite: bool = False,
) -> dict[int, str]:
    """
    Write labels as a DICOM segmentation that planning systems and viewers show on the series of the scan.

    Parameters
    ----------
    labels : array_like of int, shape (x, y, z)
        Label of each voxel; 0 is no region.
    affine : array_like of shape (4, 4)
        From voxel indices to RAS+ coordinates in mm (nibabel's).
    path : path
        File to write, usually with the ending ``.dcm``.
    source : path
        Folder with the DICOM series that the scan was converted from. The order and direction of axes may differ from
        those of `labels`, and `labels` may be cut out of it; voxels have to lie on voxels. Of a series with several
        volumes (b-values, echo times), the first image at each place is referred to.
    kind : {"lesion", "metastasis", "tumor", "voxel"}, default="lesion"
        What regions are, for the codes of the segments.
    names : mapping of int to str, optional
        Names of labels; by default the kind and the label.
    separate : bool, default=False
        Whether each connected component (26 neighbors) of all labels is a segment of its own, numbered as in tables of
        lesions.
    manual : bool, default=False
        Whether regions were drawn or placed by hand, not by this software.
    series : str, optional
        UID of the series, where the folder holds several.
    overwrite : bool, default=False
        Whether a file of this name may be replaced.

    Returns
    -------
    dict of int to str
        The label of each segment in the file, by its number.

    Raises
    ------
    ImportError
        If highdicom is not installed: ``pip install "dmrifit[dicom]"``.
    FileExistsError
        If the file exists and `overwrite` is false.
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the kind is unknown, labels are not whole numbers, all 0 or too many; if the folder holds no series of
        single slices or several, its slices are not a volume, or its voxels lie elsewhere than those of `labels`.

    Notes
    -----
    Nothing is resampled. The segmentation is binary (Segmentation Storage), with one frame for each slice of a segment
    that is not empty, its plane that of the source image, which the frame names. Identity of the patient and the study
    are those of the source images, as the standard asks.
    """
    from dmrifit.io.atomic_files import whole_file

    import_optional("highdicom")
    path = Path(path)
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r} of regions; choose one of {', '.join(KINDS)}")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already; choose another name, or pass overwrite=True (--overwrite)"
        )
    if path.exists() and _read_image(path) is not None:
        raise ValueError(
            f"{path} is an image of a scan and would be overwritten; choose another name"
        )
    numbered, segments = _segments(np.asarray(labels), names or {}, kind, separate=separate)
    volume = _read_series(Path(source), series)
    frames = _onto(numbered, np.asarray(affine, dtype=np.float64), volume, str(source))
    made = _segmentation(frames, volume.images, segments, kind, manual=manual)
    with whole_file(path) as part:
        made.save_as(part)
    return segments


def _segments(
    labels: NDArray[Any], names: Mapping[int, str], kind: str, *, separate: bool
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Give segments numbers from 1 without gaps."""
    if labels.ndim == 4 and labels.shape[3] == 1:
        labels = labels[..., 0]
    if labels.ndim != 3:
        raise ValueError(f"labels have {labels.ndim} axes; a volume (x, y, z) is needed")
    if (
        labels.dtype.kind not in "biuf"
        or not np.isfinite(labels).all()
        or (labels != np.rint(labels)).any()
    ):
        raise ValueError(
            "labels are whole numbers, and some voxels have others; give a mask or a label image, not probabilities"
        )
    whole = labels.astype(np.int64)
    if (whole < 0).any():
        raise ValueError(f"labels are 0 or above, and some voxels have {whole.min()}")
    if separate and names:
        raise ValueError(
            "connected regions have no names of labels; leave out names (--names) or separate (--separate)"
        )
    if separate:
        from dmrifit.io.components import label_components

        whole, names = label_components(whole).astype(np.int64), {}
    found = [int(one) for one in np.unique(whole) if one]
    if not found:
        raise ValueError("no voxel has a label above 0: there is no region to write")
    if len(found) > _MOST_SEGMENTS:
        raise ValueError(
            f"{len(found)} regions are more than {_MOST_SEGMENTS}; leave out small ones"
        )
    if names and not set(names) & set(found):
        raise ValueError(
            f"none of the names is of a label that is there ({', '.join(map(str, found[:5]))}); check the table"
        )
    segments = {
        number: names.get(label, f"{kind} {label}") for number, label in enumerate(found, start=1)
    }
    for name in segments.values():
        if not 0 < len(name) <= _LONGEST_LABEL or "\\" in name or not name.isprintable():
            raise ValueError(
                f"a name of a segment is 1 to {_LONGEST_LABEL} characters without backslashes, not {name!r}"
            )
    numbered = np.searchsorted([0, *found], whole).astype(np.uint8)
    return numbered, segments


def _read_series(folder: Path, series: str | None) -> _Series:
    """Read the geometry of a series of single slices."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; name the one with the DICOM files of the series"
        )
    found: dict[str, list[Dataset]] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        try:
            image = _read_image(path)
        except ValueError:
            if series is None or _series_of(path) in (series, None):
                raise
            continue  # of a series that was not asked for
        if image is not None:
            found.setdefault(str(image.SeriesInstanceUID), []).append(image)
    if series is not None and series in found:
        found = {series: found[series]}
    if len(found) != 1 or (series is not None and series not in found):
        listed = "".join(
            f"\n  {uid}: {len(images)} images, series number {images[0].get('SeriesNumber')}"
            for uid, images in found.items()
        )
        if series is not None:
            msg = f"{folder} holds no DICOM series {series} of images in space" + (
                listed and f", but{listed}"
            )
        elif found:
            msg = f"{folder} holds {len(found)} DICOM series; name one of them (--series):{listed}"
        else:
            msg = f"{folder} holds no DICOM images in space; name the folder that the scan was converted from"
        raise ValueError(msg)
    return _as_volume(next(iter(found.values())), str(folder))


def _series_of(path: Path) -> str | None:
    pydicom = import_optional("pydicom")
    try:
        tags = ["SeriesInstanceUID"]
        uid = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags).get(tags[0])
    except Exception:  # pydicom raises what it meets
        return None
    return None if uid is None else str(uid)


def _read_image(path: Path) -> Dataset | None:
    """Read an image without its pixels; None if the file is none, or none in space."""
    pydicom = import_optional("pydicom")

    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
        meta = pydicom.filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            raise ValueError("it is deflated; convert it to another transfer syntax")
        image = pydicom.dcmread(path, stop_before_pixels=True)
        if "SharedFunctionalGroupsSequence" in image and "PixelSpacing" not in image:
            # Segmentations and others that the same folder may hold are not what is looked for.
            if int(image.get("NumberOfFrames", 1)) < 2 or image.get("Modality") in (
                "SEG",
                "RTDOSE",
            ):
                return None
            raise ValueError(
                "it holds many frames (enhanced DICOM); export the series as single slices"
            )
        if "SOPInstanceUID" not in image and meta.get("MediaStorageSOPClassUID") != _DIRECTORY:
            raise ValueError("it is cut off; copy it again")
        if (
            "ImagePositionPatient" not in image
            and str(meta.get("MediaStorageSOPClassUID")) not in _SLICES
        ):
            return None
        missing = [name for name in _NEEDED if image.get(name) in (None, "")]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}; export the series again")
        for name, n in _NUMBERS.items():
            numbers = np.array(image[name].value, dtype=np.float64)
            if not np.isfinite(numbers).all() or numbers.size != n:
                raise ValueError(f"its {name} is {image[name].value}; export the series again")
    except PermissionError:
        raise
    except Exception as error:  # pydicom raises what it meets
        raise ValueError(f"{path} cannot be read as a DICOM image of a series: {error}") from error
    for name in _EMPTY:
        if name not in image:  # taken away with the patient's name, perhaps
            setattr(image, name, "")
    return image


def _as_volume(images: list[Dataset], name: str) -> _Series:
    """Put slices in order, one at each place."""
    first = images[0]
    for key in (
        "Rows",
        "Columns",
        "PixelSpacing",
        "ImageOrientationPatient",
        "FrameOfReferenceUID",
    ):
        if any(_differ(first[key].value, one[key].value) for one in images):
            raise ValueError(
                f"{name}: images of the series differ in {key}, so that they are no volume; name a series that is one"
            )
    axes = np.array(first.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=_SMALLEST):
        raise ValueError(
            f"{name}: ImageOrientationPatient {axes.ravel().tolist()} is not two directions at right angles"
        )
    normal = np.cross(*axes)
    places = np.array([one.ImagePositionPatient for one in images], dtype=np.float64)
    spacing = np.array(first.PixelSpacing, dtype=np.float64)  # between rows, between columns
    height = places @ normal
    least = _SMALLEST * float(spacing.min())
    # Several volumes have several images at a place; the first one acquired stands for it.
    acquired = [int(one.get("InstanceNumber") or 0) for one in images]
    order = sorted(range(len(images)), key=lambda i: (round(height[i] / least), acquired[i]))
    kept = [
        i for n, i in enumerate(order) if n == 0 or height[i] - height[order[n - 1]] > 2 * least
    ]
    places = places[kept]
    if len(kept) > 1:
        step = (places[-1] - places[0]) / (len(kept) - 1)
        away = np.linalg.norm(
            places - (places[0] + np.outer(np.arange(len(kept)), step)), axis=1
        ).max()
        if away > _TOLERANCE * np.linalg.norm(step):
            raise ValueError(
                f"{name}: the {len(kept)} slices are not evenly spaced (up to {away:.3g} mm from where they should "
                "be); a slice may be missing, copy the series again"
            )
    else:
        step = normal * float(first.get("SliceThickness") or 1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = axes[0] * spacing[1], axes[1] * spacing[0], step
    affine[:3, 3] = places[0]
    return _Series([images[i] for i in kept], _FLIP @ affine)


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, str | int):
        return bool(one != other)
    return not np.allclose(
        np.array(one, dtype=float), np.array(other, dtype=float), atol=_SMALLEST
    )


def _onto(
    labels: NDArray[np.uint8], affine: NDArray[np.float64], volume: _Series, name: str
) -> NDArray[np.uint8]:
    """Turn and move labels onto the voxels of a series: (slice, row, column)."""
    edges = np.linalg.norm(volume.affine[:3, :3], axis=0)
    if (
        affine.shape != (4, 4)
        or not np.isfinite(affine).all()
        or np.linalg.det(affine[:3, :3]) == 0
    ):
        raise ValueError(f"the affine of the labels places no voxels: {affine.tolist()}")
    matrix = np.linalg.inv(volume.affine) @ affine
    turn = np.rint(matrix[:3, :3])
    offset = np.rint(matrix[:3, 3])
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(labels.shape) - 1)
    exact = corners @ matrix[:3, :3].T + matrix[:3, 3]
    apart = np.abs(exact - (corners @ turn.T + offset)).max(axis=0)
    turned = (np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all()
    if not turned or (apart > _TOLERANCE).any():
        distance = float((apart * edges).max())
        far = (
            f"voxels lie up to {distance:.3g} mm apart"
            if turned
            else "their axes or voxel sizes differ"
        )
        own = np.linalg.norm(affine[:3, :3], axis=0)
        raise ValueError(
            f"labels of {_times(labels.shape)} voxels of {_times(own.round(3))} mm are not on the grid of the DICOM "
            f"series in {name}, {_times(volume.shape)} voxels of {_times(edges.round(3))} mm: {far}. Name the series "
            "that the scan was converted from, or bring the labels back to its grid by the nearest neighbor, for "
            "example by nilearn.image.resample_to_img(labels, scan, interpolation='nearest')"
        )
    places = np.argwhere(labels)
    moved = (places @ turn.T + offset).astype(np.intp)
    outside = ((moved < 0) | (moved >= volume.shape)).any(axis=1)
    if outside.any():
        raise ValueError(
            f"{np.count_nonzero(outside)} of {len(places)} voxels with a label lie outside the DICOM series in {name}; "
            "name the series that the scan was converted from"
        )
    frames = np.zeros(volume.shape[::-1], dtype=np.uint8)
    frames[tuple(moved.T[::-1])] = labels[tuple(places.T)]
    return frames


def _segmentation(
    frames: NDArray[np.uint8],
    images: list[Dataset],
    segments: Mapping[int, str],
    kind: str,
    *,
    manual: bool,
) -> Any:
    highdicom = import_optional("highdicom")
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    import dmrifit

    category, type_ = (getattr(getattr(codes, scheme), keyword) for scheme, keyword in KINDS[kind])
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="dmrifit", version=dmrifit.__version__, family=codes.DCM.ArtificialIntelligence
    )
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=category,
            segmented_property_type=type_,
            algorithm_type="MANUAL" if manual else "AUTOMATIC",
            algorithm_identification=None if manual else algorithm,
        )
        for number, label in segments.items()
    ]
    made = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=frames,
        segmentation_type="BINARY",
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=int(images[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="dmrifit",
        manufacturer_model_name="dmrifit",
        software_versions=dmrifit.__version__,
        device_serial_number="none",
        content_description=_NOTICE,
        content_label=kind.upper(),
    )
    made.SpecificCharacterSet = (
        "ISO_IR 192"  # UTF-8: names of patients and of segments have one character set
    )
    made.SeriesDescription = f"dmrifit {kind}"
    _ascend(made)
    return made


def _ascend(made: Any) -> None:
    """
    Put frames in order: segment by segment, upwards along the normal of rows and columns.

    Each frame names its place, so that any order is right. But readers such as ITK's look at the place of the first
    frame alone and count upwards from there; highdicom's order, which goes downwards, is a mirror image to them.
    """
    from pydicom.pixels import pack_bits
    from pydicom.sequence import Sequence

    frames = list(made.PerFrameFunctionalGroupsSequence)
    row, column = np.array(
        made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient,
        dtype=np.float64,
    ).reshape(2, 3)
    places = np.array(
        [one.PlanePositionSequence[0].ImagePositionPatient for one in frames], dtype=np.float64
    )
    segment = np.ones(len(frames), dtype=np.intp)  # of a single one, all frames say it together
    for i, one in enumerate(frames):
        if "SegmentIdentificationSequence" in one:
            segment[i] = one.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    order = np.lexsort((places @ np.cross(row, column), segment))
    pixels = np.reshape(made.pixel_array, (len(frames), made.Rows, made.Columns))
    highest = max(int(one.FrameContentSequence[0].DimensionIndexValues[-1]) for one in frames)
    for one in frames:
        content = one.FrameContentSequence[0]
        *first, last = content.DimensionIndexValues
        content.DimensionIndexValues = [*first, highest + 1 - int(last)]
    made.PerFrameFunctionalGroupsSequence = Sequence([frames[i] for i in order])
    made.PixelData = pack_bits(pixels[order])


def _times(numbers: Any) -> str:
    return " × ".join(f"{one:g}" for one in numbers)
