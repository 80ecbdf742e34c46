"""DICOM segmentations: regions of label images on the series of the scan."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from numpy.typing import ArrayLike, NDArray

from dmrifit import __version__
from dmrifit._optional import import_optional
from dmrifit._utils.affines import places_voxels
from dmrifit._utils.checks import check_finite, check_word
from dmrifit._utils.counts import counted
from dmrifit.io.atomic_files import whole_file
from dmrifit.io.components import label_components
from dmrifit.io.grids import three_axes
from dmrifit.io.masks import whole_labels
from dmrifit.io.nifti import check_real

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["write_dicom_seg"]

#: Type of regions -> category and type of segments, each a scheme and a keyword of pydicom's
#: codes.
KINDS: Mapping[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "lesion": (("SCT", "MorphologicallyAbnormalStructure"), ("SCT", "Lesion")),
    "metastasis": (("SCT", "MorphologicallyAbnormalStructure"), ("SCT", "NeoplasmSecondary")),
    "tumor": (("SCT", "MorphologicallyAbnormalStructure"), ("SCT", "Neoplasm")),
    "voxel": (("SCT", "SpatialAndRelationalConcept"), ("DCM", "RegionInSpace")),
}
_NOTICE = "Research software; not for clinical use"
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # between LPS+ and RAS+
_TOLERANCE = 0.1  # voxel edges that grids may lie apart
# Of a spacing or a unit vector: smaller differences of positions and directions are rounding.
_ROUNDING = 1e-3
_MOST_SEGMENTS = 255
_LONGEST_LABEL, _LONGEST_NOTE = 64, 1024  # characters, of the types LO and ST
# Compressed as a whole file, so that reading its header could take any memory.
_DEFLATED = "1.2.840.10008.1.2.1.99"
_DIRECTORY = "1.2.840.10008.1.3.10"
#: Images of which each is a slice: CT, MR, PET.
_SLICES = tuple(f"1.2.840.10008.5.1.4.1.1.{number}" for number in (2, 4, 128))


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
    note: str | None = None,
    series: str | None = None,
    overwrite: bool = False,
) -> dict[int, str]:
    """
    Write labels as a DICOM segmentation, which viewers show on the series of the scan.

    Parameters
    ----------
    labels : array_like of int, shape (x, y, z)
        Label of each voxel; 0 is no region.
    affine : array_like of shape (4, 4)
        From voxel indices to RAS+ coordinates in mm (nibabel's).
    path : path
        File to write, with the ending ``.dcm``.
    source : path
        Folder with the DICOM series that the scan was converted from. The order and direction of
        axes may differ from those of `labels`, and `labels` may be cut out of it; voxels have to
        lie on voxels. Of a series with several volumes (b-values, echo times), the first image at
        each position is referred to.
    kind : {"lesion", "metastasis", "tumor", "voxel"}, default="lesion"
        Type of the regions, for the codes of the segments.
    names : mapping of int to str, optional
        Names of labels; by default the kind and the label.
    separate : bool, default=False
        Whether each connected component (26 neighbors) of all labels is a segment of its own,
        numbered as in tables of lesions.
    manual : bool, default=False
        Whether regions were drawn or placed by hand, not by this software.
    note : str, optional
        Explanation if no region is marked. With it, labels that are all 0 are written as a
        segment without voxels, which has the note as its description; without it they are refused.
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
        If the file has another ending; the kind is unknown; labels are not whole numbers, all 0
        without a note or too many; a note is longer than 1024 characters; or if the folder holds
        no series of single slices or several, its slices are not a volume, or its voxels lie
        elsewhere than those of `labels`.

    Notes
    -----
    Nothing is resampled. The segmentation is binary (Segmentation Storage), with one frame for
    each slice of a segment that is not empty, its plane that of the source image, which the frame
    names. Identity of the patient and the study are those of the source images, as the standard
    asks.
    """
    import_optional("highdicom")
    path = Path(path)
    check_word("kind", kind, KINDS)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already; pass overwrite=True to replace it, or choose another name"
        )
    if path.exists() and _read_image(path) is not None:
        raise ValueError(
            f"{path} is an image of a scan and would be overwritten; choose another name"
        )
    check_ending(path)
    labels_affine = np.asarray(affine, dtype=np.float64)
    if not places_voxels(labels_affine):
        raise ValueError(f"the affine of the labels places no voxels: {labels_affine.tolist()}")
    note = note or ""
    if len(note) > _LONGEST_NOTE:
        raise ValueError(f"a note has at most {_LONGEST_NOTE} characters, not {len(note)}")
    array = three_axes(np.asarray(labels), "the array of labels")
    check_real(array.dtype, "the array of labels")
    check_finite(array, "the array of labels")
    whole = whole_labels(array, "the array of labels")
    if note and not whole.any():
        numbered, segments = whole.astype(np.uint8), {1: f"no {kind} marked"}
    else:
        note = ""
        numbered, segments = _segments(whole, labels_affine, names or {}, kind, separate=separate)
    images, grid = _read_series(Path(source), series)
    shape = (int(images[0].Columns), int(images[0].Rows), len(images))
    frames = _onto(numbered, labels_affine, shape, grid, str(source))
    segmentation = _segmentation(frames, images, segments, kind, manual=manual)
    if note:
        segmentation.SegmentSequence[0].SegmentDescription = note
    with whole_file(path) as unfinished:
        segmentation.save_as(unfinished)
    return segments


def check_ending(path: Path) -> None:
    """Refuse a name by which programs would not take the file for DICOM."""
    if path.suffix.lower() != ".dcm":
        name = path.name.removesuffix(".gz").removesuffix(".nii")
        raise ValueError(
            f"{path} does not end in .dcm, and a DICOM segmentation is written; name it {name}.dcm"
        )


def _segments(
    whole: NDArray[np.int64],
    affine: NDArray[np.float64],
    names: Mapping[int, str],
    kind: str,
    *,
    separate: bool,
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Give labels, or the components of all labels, numbers from 1 without gaps."""
    if separate and names:
        raise ValueError(
            "connected regions have no names of labels; "
            "leave out names (--names) or separate (--separate)"
        )
    if separate:
        whole = label_components(whole, affine=affine).astype(np.int64)
    values = [int(label) for label in np.unique(whole) if label]
    if not values:
        raise ValueError(
            "no voxel has a label above 0: there is no region to write, and no DICOM file is "
            "made; a note (--note) would be written as a segment without voxels"
        )
    if len(values) > _MOST_SEGMENTS:
        raise ValueError(
            f"{len(values)} regions are more than {_MOST_SEGMENTS}; leave out small ones"
        )
    if names and not set(names) & set(values):
        raise ValueError(
            "none of the names is of a label that is there "
            f"({', '.join(map(str, values[:5]))}); check the table"
        )
    segments = {}
    for number, label in enumerate(values, start=1):
        name = names.get(label, f"{kind} {label}")
        # A backslash separates values in DICOM.
        if not 0 < len(name) <= _LONGEST_LABEL or "\\" in name or not name.isprintable():
            raise ValueError(
                f"a name of a segment is 1 to {_LONGEST_LABEL} characters without backslashes, "
                f"not {name!r}"
            )
        segments[number] = name
    # DICOM numbers segments from 1 without gaps.
    numbered = np.searchsorted([0, *values], whole).astype(np.uint8)
    return numbered, segments


@cache
def _elements(group: str) -> dict[str, dict[str, str]]:
    """
    Read the rules of one group of elements of slices, by keyword.

    Groups: "needed" in each slice; "shared", equal in all slices of a volume, those of the person
    first; "numbers", so many between "least" and "most"; "may be empty", which the standard
    requires in each file.
    """
    path = Path(__file__).with_name("data") / "dicom_elements.csv"
    with path.open(encoding="utf-8") as file:
        return {row["keyword"]: row for row in csv.DictReader(file) if row[group]}


def _read_series(folder: Path, series: str | None) -> tuple[list[Dataset], NDArray[np.float64]]:
    """Read a series of single slices: slices in their order, and the affine to RAS+."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; name the one with the DICOM files of the series"
        )
    series_images: dict[str, list[Dataset]] = {}
    for path in filter(Path.is_file, sorted(folder.rglob("*"))):
        try:
            image = _read_image(path)
        except ValueError:
            # A damaged file of another series does not matter.
            if series is None or _series_of(path) in (series, None):
                raise
            continue
        if image is not None:
            series_images.setdefault(str(image.SeriesInstanceUID), []).append(image)
    images = series_images.get(series or "")
    if series is None and len(series_images) == 1:
        (images,) = series_images.values()
    if images is not None:
        return _as_volume(images, str(folder))
    lines = ""
    for uid, slices in series_images.items():
        number = slices[0].get("SeriesNumber")
        lines += f"\n  {uid}: {counted(len(slices), 'image')}, series number {number}"
    if series is not None:
        message = f"no DICOM series {series} of images in space" + (", but" if lines else "")
    elif lines:
        message = f"{len(series_images)} DICOM series; name one of them (--series):"
    else:
        message = "no DICOM images in space; name the folder that the scan was converted from"
    raise ValueError(f"{folder} holds {message}{lines}")


def _series_of(path: Path) -> str | None:
    """Read the UID of the series of a file; None where it cannot be read."""
    tags = ["SeriesInstanceUID"]
    with suppress(Exception):
        # pydicom raises errors of many types on damaged files.
        header = import_optional("pydicom").dcmread(
            path, stop_before_pixels=True, specific_tags=tags
        )
        return str(header[tags[0]].value)
    return None


def _read_image(path: Path) -> Dataset | None:
    """Read an image without its pixels; None for other files and without a position."""
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
            # The folder may also hold segmentations and doses on the same series.
            n_frames = int(image.get("NumberOfFrames", 1))
            if n_frames < 2 or image.get("Modality") in ("SEG", "RTDOSE"):
                return None
            raise ValueError(
                "it holds many frames (enhanced DICOM); export the series as single slices"
            )
        class_uid = str(meta.get("MediaStorageSOPClassUID"))
        if "SOPInstanceUID" not in image and class_uid != _DIRECTORY:
            raise ValueError("it is cut off; copy it again")
        if "ImagePositionPatient" not in image and class_uid not in _SLICES:
            return None
        _check_elements(image)
    except PermissionError:
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a DICOM image of a series: {error}") from error
    for name in _elements("may be empty"):
        # Programs that remove the patient's name may remove these, too.
        if name not in image:
            setattr(image, name, "")
    return image


def _check_elements(image: Dataset) -> None:
    """Refuse a slice that lacks an element it needs, or whose numbers are not possible."""
    missing = [name for name in _elements("needed") if image.get(name) in (None, "")]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}; export the series again")
    for name, row in _elements("numbers").items():
        numbers = np.array(image[name].value, dtype=np.float64)
        is_inside = (numbers >= float(row["least"])) & (numbers <= float(row["most"]))
        if numbers.size != int(row["numbers"]) or not is_inside.all():
            raise ValueError(f"its {name} is {image[name].value}; export the series again")
    for name in ("InstanceNumber", "SeriesNumber"):
        # Where it is no number, pydicom refuses it only now.
        int(image.get(name) or 0)


def _as_volume(images: list[Dataset], name: str) -> tuple[list[Dataset], NDArray[np.float64]]:
    """Order slices along their normal, one at each position, and give the affine to RAS+."""
    first = images[0]
    by_uid: dict[str, Dataset] = {}
    for image in images:
        for key, row in _elements("shared").items():
            a, b = first[key].value, image[key].value
            is_same = bool(a == b)
            if row["numbers"]:
                is_same = np.allclose(np.array(a, float), np.array(b, float), atol=_ROUNDING)
            if not is_same:
                raise ValueError(
                    f"{image.filename}: its {key} is not that of {first.filename}, though both "
                    "are of one series; take out what does not belong to it"
                )
        namesake = by_uid.setdefault(str(image.SOPInstanceUID), image)
        if namesake is not image:
            raise ValueError(
                f"{image.filename}: its SOPInstanceUID is that of {namesake.filename}, and each "
                "image has its own; take out copies, or export the series again"
            )
    axes = np.array(first.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=_ROUNDING):
        raise ValueError(
            f"{name}: ImageOrientationPatient {axes.ravel().tolist()} is not two directions at "
            "right angles"
        )
    normal = np.cross(*axes)
    # The first number is the distance between rows, the second that between columns.
    spacing = np.array(first.PixelSpacing, dtype=np.float64)
    rounding = _ROUNDING * float(spacing.min())
    positions = np.array([image.ImagePositionPatient for image in images], dtype=np.float64)
    height = positions @ normal
    # Several volumes, as of b-values, have several images at a position: the first is taken.
    acquired = [int(image.get("InstanceNumber") or 0) for image in images]
    order = np.lexsort((acquired, np.rint(height / rounding)))
    order = order[np.diff(height[order], prepend=-np.inf) > 2 * rounding]
    positions = positions[order]
    step = normal * float(first.SliceThickness)
    if len(order) > 1:
        # The slice thickness of the header leaves out gaps between slices; positions do not.
        step = (positions[-1] - positions[0]) / (len(order) - 1)
        even = positions[0] + np.outer(np.arange(len(order)), step)
        distance = np.linalg.norm(positions - even, axis=1).max()
        if distance > _TOLERANCE * np.linalg.norm(step):
            raise ValueError(
                f"{name}: the {len(order)} slices are not evenly spaced (up to {distance:.3g} mm "
                "from where they should be); a slice may be missing, copy the series again"
            )
    columns = (axes[0] * spacing[1], axes[1] * spacing[0], step, positions[0])
    affine = from_matvec(np.column_stack(columns[:3]), columns[3])
    return [images[i] for i in order], _FLIP @ affine


def _onto(
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    shape: tuple[int, int, int],
    grid: NDArray[np.float64],
    name: str,
) -> NDArray[np.uint8]:
    """Turn and move labels onto the voxels of a series (column, row, slice), as its frames."""
    matrix = np.linalg.inv(grid) @ affine
    steps = np.rint(matrix)
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(labels.shape) - 1)
    apart = np.abs(apply_affine(matrix - steps, corners)).max(axis=0)
    # Each axis of the labels has to run along one axis of the series, in steps of one voxel.
    lengths = np.abs(steps[:3, :3])
    is_turn = (lengths.sum(axis=0) == 1).all() and (lengths.sum(axis=1) == 1).all()
    if not is_turn or (apart > _TOLERANCE).any():
        edges, label_edges = voxel_sizes(grid), voxel_sizes(affine)
        difference = "their voxel sizes differ"
        if np.allclose(np.sort(edges), np.sort(label_edges), atol=_ROUNDING):
            is_shift = np.allclose(matrix[:3, :3], steps[:3, :3], atol=_ROUNDING)
            difference = f"they are {'shifted' if is_shift else 'rotated'} against each other"
        if is_turn:
            difference += f", and voxels lie up to {(apart * edges).max():.3g} mm apart"
        raise ValueError(
            f"labels of {_times(labels.shape)} voxels of {_times(label_edges.round(3))} mm are "
            f"not on the grid of the DICOM series in {name}, {_times(shape)} voxels of "
            f"{_times(edges.round(3))} mm: {difference}. Name the series that the scan was "
            "converted from, or bring the labels back to its grid by the nearest neighbor, for "
            "example by nibabel.processing.resample_from_to(labels, scan, order=0)"
        )
    voxels = np.argwhere(labels)
    moved = apply_affine(steps, voxels).astype(np.intp)
    n_outside = np.count_nonzero(((moved < 0) | (moved >= shape)).any(axis=1))
    if n_outside:
        raise ValueError(
            f"{n_outside} of {counted(len(voxels), 'voxel')} with a label lie outside the DICOM "
            f"series in {name}; name the series that the scan was converted from"
        )
    frames = np.zeros(shape[::-1], dtype=np.uint8)
    frames[tuple(moved.T[::-1])] = labels[tuple(voxels.T)]
    return frames


def _segmentation(
    frames: NDArray[np.uint8],
    images: list[Dataset],
    segments: Mapping[int, str],
    kind: str,
    *,
    manual: bool,
) -> Any:
    """Make the DICOM data set of the segments."""
    highdicom = import_optional("highdicom")
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    category, type_ = (getattr(getattr(codes, scheme), keyword) for scheme, keyword in KINDS[kind])
    algorithm = {"algorithm_type": "MANUAL"}
    if not manual:
        identification = highdicom.AlgorithmIdentificationSequence(
            name="dmrifit", version=__version__, family=codes.DCM.ArtificialIntelligence
        )
        algorithm = {"algorithm_type": "AUTOMATIC", "algorithm_identification": identification}
    describe = partial(
        highdicom.seg.SegmentDescription,
        segmented_property_category=category,
        segmented_property_type=type_,
        **algorithm,
    )
    segmentation = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=frames,
        segmentation_type="BINARY",
        segment_descriptions=[describe(number, label) for number, label in segments.items()],
        series_instance_uid=generate_uid(),
        series_number=int(images[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="dmrifit",
        manufacturer_model_name="dmrifit",
        software_versions=__version__,
        device_serial_number="none",
        content_description=_NOTICE,
        content_label=kind.upper(),
    )
    # UTF-8, because names of patients and of segments share one character set.
    segmentation.SpecificCharacterSet = "ISO_IR 192"
    segmentation.SeriesDescription = f"dmrifit {kind}"
    _sort_frames(segmentation)
    return segmentation


def _sort_frames(segmentation: Any) -> None:
    """Sort frames by segment, and upwards along the normal of rows and columns."""
    # Each frame names its position, so that any order is valid. But readers such as ITK's take the
    # position of the first frame and count upwards; highdicom's order goes downwards, which they
    # would read as a mirror image.
    from pydicom.pixels import pack_bits
    from pydicom.sequence import Sequence

    frames = list(segmentation.PerFrameFunctionalGroupsSequence)
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    row, column = np.array(orientation, dtype=np.float64).reshape(2, 3)
    positions = np.array(
        [frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames], dtype=np.float64
    )
    # A single segment is named once for all frames, not in each of them.
    key = "SegmentIdentificationSequence"
    segment = [frame[key][0].ReferencedSegmentNumber if key in frame else 1 for frame in frames]
    order = np.lexsort((positions @ np.cross(row, column), np.array(segment)))
    shape = (len(frames), segmentation.Rows, segmentation.Columns)
    pixels = np.reshape(segmentation.pixel_array, shape)
    contents = [frame.FrameContentSequence[0] for frame in frames]
    highest = max(int(content.DimensionIndexValues[-1]) for content in contents)
    for content in contents:
        *first, last = content.DimensionIndexValues
        content.DimensionIndexValues = [*first, highest + 1 - int(last)]
    segmentation.PerFrameFunctionalGroupsSequence = Sequence([frames[i] for i in order])
    segmentation.PixelData = pack_bits(pixels[order])


def _times(numbers: Any) -> str:
    return " × ".join(f"{number:g}" for number in numbers)
