"""Image files: headers checked, volumes read and written whole."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import math
import os
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, TypeAlias

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.arrayproxy import ArrayProxy, is_proxy
from nibabel.imageglobals import logger
from nibabel.openers import ImageOpener
from numpy.typing import NDArray

from dmrifit._utils.checks import filled
from dmrifit._utils.counts import size_text
from dmrifit._utils.text_files import check_file
from dmrifit.io.atomic_files import FileSet, check_finished, whole_file
from dmrifit.io.bids_derivatives import file_record
from dmrifit.io.chunked_arrays import Array

Image: TypeAlias = str | Path | nib.Nifti1Pair | Array
Images: TypeAlias = Image | Sequence[Image]

#: What reading raises when a file is damaged or cut off.
DAMAGED = (EOFError, OSError, zlib.error)
_OPEN_FILES = (errno.EMFILE, errno.ENFILE)

#: Endings of compressed files.
COMPRESSED = (".gz", ".bz2", ".zst")
_GZIP_RATIO = 1032  # what deflate can pack at most, by its format
# Bytes before the values: extensions may hold whole DICOM headers.
_LARGEST_HEADER = 2**26
_CHUNK = 2**20
# The logger of nibabel has one list of handlers for all threads.
_LOGGER_LOCK = threading.Lock()
_SMALLEST, _LARGEST = 1e-4, 1e4  # edges of voxels in mm
_FLATTEST = 1e-3  # volume of a voxel over that of a box with its edges
_FARTHEST_FORMS = 0.5  # mm between two positions of a voxel in one header
# mm that quaternions in single precision may be off at the corner of a head
_ROUNDED_FORMS = 0.02
#: The two transforms of a header that can place voxels, and the variable of the environment that
#: names the one to use where they differ: worker processes inherit it.
FORMS = ("sform", "qform")
_FORM_VARIABLE = "DMRIFIT_USE_FORM"
# Squares of it, and of its reciprocal, are the last that single precision holds.
_LARGEST_VALUE = 1e18
# No scanner, and no map of tissue, has values so far beyond 99 % of the others.
_OUTLYING = 1e6
_SAMPLE = 10**5  # values, of which the 99th percentile is taken
_FLOAT_BYTES = 4
_PACKED = 0.8  # of the bytes of maps and noise, which have hardly a pattern
_EMPTIEST = 0.1  # of an image, where nothing tells how much of it is air
_OTHER_UNITS = {1: "m", 3: "µm"}  # codes of NIfTI
_SPATIAL_FIELDS = (
    "pixdim", "xyzt_units", "dim_info", "qform_code", "sform_code",
    "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z",
)  # fmt: skip


def load_image(
    image: Image, unnamed: str = "the image", *, needs_position: bool = False
) -> nib.Nifti1Pair:
    """
    Load the header of a NIfTI image; check its number of voxels, affine and unit.

    Of files, one without a position is refused, and one with two that differ by more than 0.5 mm,
    too, unless `use_form` names the one to use; of smaller differences it warns. Of images in
    memory, one without a position is refused where the caller needs it.
    """
    name = image_name(image, unnamed)
    loaded: Any = image
    if is_file := isinstance(image, str | Path):
        loaded = _load_header(Path(image))
    if not isinstance(loaded, nib.Nifti1Pair):
        raise ValueError(f"{name} is of type {type(loaded).__name__}; convert it to NIfTI first")
    if is_file:
        loaded = _placed(loaded, name)
    elif needs_position:
        check_position(loaded, name)
    shape, affine = loaded.shape, np.asarray(loaded.affine)
    if min(shape, default=0) < 0:
        raise ValueError(
            f"{name} says that it has {size_text(shape)} voxels; "
            "its header is damaged, copy it again"
        )
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    has_sizes = np.isfinite(affine).all() and sizes.min() >= _SMALLEST and sizes.max() <= _LARGEST
    if not has_sizes or abs(np.linalg.det(affine[:3, :3] / sizes)) < _FLATTEST:
        raise ValueError(
            f"{name} has an affine that places no voxels: {affine[:3].tolist()}; "
            "repair its qform or sform"
        )
    unit = _OTHER_UNITS.get(int(loaded.header["xyzt_units"]) & 7)
    if unit:
        raise ValueError(
            f"{name} states its lengths in {unit}, and mm are needed: scale its affine, "
            "or, where that is in mm already, set xyzt_units to 2"
        )
    return loaded


def check_position(loaded: nib.Nifti1Pair, name: str) -> None:
    """Refuse a header without position, for which readers guess which side is left."""
    if not any(int(loaded.header[f"{form}_code"]) for form in FORMS):
        raise ValueError(
            f"{name} has neither an sform nor a qform, so that nothing says where its voxels lie "
            "and which side is left; convert the scan again, or copy the position from its image"
        )
    warn_of_two_positions(loaded, name)


def warn_of_two_positions(loaded: nib.Nifti1Pair, name: str, form: str = "sform") -> None:
    """Warn of a header whose sform and qform place the voxels differently."""
    apart = _forms_apart(loaded)
    if apart > _ROUNDED_FORMS:
        warnings.warn(
            f"{name}: its sform and qform place voxels up to {apart:.3g} mm apart; "
            f"the {form} is used",
            UserWarning,
            stacklevel=4,
        )


def chosen_form() -> str | None:
    """Give which of two positions of a file is read, if the user named one."""
    form = os.environ.get(_FORM_VARIABLE)
    return form if form in FORMS else None


@contextmanager
def use_form(form: str | None) -> Iterator[None]:
    """Read files whose sform and qform differ by the one that is named, in workers too."""
    if form is not None and form not in FORMS:
        raise ValueError(f"--use must be {' or '.join(FORMS)}, not {form!r}")
    before = os.environ.get(_FORM_VARIABLE, "")
    os.environ[_FORM_VARIABLE] = form or before
    try:
        yield
    finally:
        os.environ[_FORM_VARIABLE] = before


def _forms_apart(loaded: nib.Nifti1Pair) -> float:
    """Measure how far sform and qform place a voxel of the image apart, in mm."""
    sform, sform_code = loaded.header.get_sform(coded=True)
    qform, qform_code = loaded.header.get_qform(coded=True)
    if not sform_code or not qform_code:
        return 0.0
    # The farthest voxel is at a corner.
    last_voxel = np.array([n - 1 for n in (*loaded.shape, 1, 1, 1)[:3]])
    corners = np.array(list(np.ndindex(2, 2, 2))) * last_voxel
    apart = apply_affine(sform, corners) - apply_affine(qform, corners)
    return float(np.linalg.norm(apart, axis=1).max())


def _placed(loaded: nib.Nifti1Pair, name: str) -> nib.Nifti1Pair:
    """Check that a file has one position, and take the one of two that is asked for."""
    header = loaded.header
    form = chosen_form()
    with np.errstate(invalid="ignore", over="ignore"):
        apart = _forms_apart(loaded)
        if form is None and apart > _FARTHEST_FORMS:
            raise ValueError(
                f"{name}: its sform and qform place voxels up to {apart:.3g} mm apart; look which "
                "one fits the other images of the session, and name it: --use sform or --use qform"
            )
        if form is None or not apart > _ROUNDED_FORMS:
            check_position(loaded, name)
            return loaded
        warn_of_two_positions(loaded, name, form)
    affine = header.get_sform() if form == "sform" else header.get_qform()
    # What is written from this header has one position.
    chosen = type(loaded)(loaded.dataobj, None, header)
    chosen.header.set_sform(affine, code=int(header[f"{form}_code"]))
    chosen.header["qform_code"] = 0
    chosen = type(loaded)(loaded.dataobj, affine, chosen.header)
    chosen.file_map = loaded.file_map
    return chosen


def image_name(image: Any, unnamed: str = "the image") -> str:
    """Return the name of an image in messages; one in memory is called `unnamed`."""
    if isinstance(image, str | Path):
        return str(image)
    return (image.get_filename() or unnamed) if isinstance(image, nib.Nifti1Pair) else unnamed


def read_grid(path: str | Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Read the shape and the affine of a NIfTI image, from its header alone."""
    loaded = load_image(path)
    return tuple(loaded.shape), np.asarray(loaded.affine, dtype=np.float64)


def read_volume(image: Image) -> NDArray:
    """Read a NIfTI image whole."""
    return values_of(load_image(image), image_name(image))


def image_of(values: NDArray, affine: NDArray[np.float64]) -> nib.Nifti1Image:
    """Make an image of values (x, y, z), in mm."""
    # NIfTI has no type for truth values.
    if values.dtype == bool:
        values = values.astype(np.uint8)
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    return image


def write_volume(values: NDArray, affine: NDArray[np.float64], path: str | Path) -> None:
    """Write values (x, y, z) as NIfTI; the file appears under its name only when complete."""
    with whole_file(path) as unfinished:
        nib.save(image_of(values, affine), unfinished)


def save_image(image: nib.Nifti1Pair, path: Path) -> None:
    """Write an image to a path that nothing reads yet, such as one of a `FileSet`."""
    nib.save(image, path)


def output_files(
    out: str | Path | None, names: Iterable[str], *, overwrite: bool, inputs: Iterable[Any]
) -> AbstractContextManager[FileSet | None]:
    """Prepare the files of a step, which never replace its inputs; None without `out`."""
    if out is None:
        return nullcontext()
    return FileSet(out, names, overwrite=overwrite, keep=file_paths(inputs))


def bytes_of_maps(n_maps: int, grid: Sequence[int], region: NDArray[np.bool_] | None) -> float:
    """Estimate, rather too low, how many bytes packed maps in single precision take."""
    if region is None:
        return _EMPTIEST * n_maps * math.prod(grid) * _FLOAT_BYTES
    return _PACKED * n_maps * np.count_nonzero(region) * _FLOAT_BYTES


def file_paths(inputs: Iterable[Any]) -> list[Path]:
    """Find the files that inputs are read from."""
    paths: list[Path] = []
    for value in inputs:
        if isinstance(value, list | tuple):
            paths += file_paths(value)
            continue
        # Values in memory are read from no file, even if the image once had one.
        is_stored = isinstance(value, nib.Nifti1Pair) and is_proxy(value.dataobj)
        name = value.get_filename() if is_stored else value
        # A word of an option stands for no file of that name.
        is_word = name in ("auto", "none", "estimate") if isinstance(name, str) else False
        if isinstance(name, str | Path) and not is_word and Path(name).is_file():
            paths.append(Path(name))
    return paths


def describe_sources(**inputs: Any) -> dict[str, dict[str, str]]:
    """Describe the files that inputs are read from, for a sidecar."""
    sources = {}
    for role, value in inputs.items():
        paths = file_paths([value])
        for number, path in enumerate(paths, start=1):
            sources[f"{role} {number}" if len(paths) > 1 else role] = file_record(path)
    return sources


def values_of(loaded: nib.Nifti1Pair, name: str, *, is_map: bool = False) -> NDArray:
    """Read the values of an image whose header is loaded; those of maps may have any size."""
    check_real(loaded.get_data_dtype(), name)
    stored: Any = loaded.dataobj
    path = file_of(loaded)
    try:
        if path is not None:
            _check_claimed_size(stored, path, name)
        if path is not None and path.suffix.lower() in COMPRESSED:
            # Up to its checksum, which comes last: nibabel stops before it.
            stored = unpack(path, stored, io.BytesIO(), name)
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.asarray(filled(stored))
            # The unpacked file need not lie in memory any longer.
            del stored
            if not is_map:
                check_magnitudes(values, name)
            return values
    except MemoryError:
        raise ValueError(
            f"{name} holds {size_text(loaded.shape)} values, "
            f"{stored_bytes(loaded.dataobj) / 2**30:.3g} GiB as they are stored, for which there "
            "is no memory here; crop it, or take a larger machine"
        ) from None
    except DAMAGED as error:
        raise damaged(name, error, loaded.dataobj) from error


def check_magnitudes(values: NDArray, name: str) -> None:
    """Refuse values whose squares single precision does not hold; warn of less odd ones."""
    if values.size < 2 or values.dtype.itemsize == 1:
        return
    highest, lowest = np.fmax.reduce(values, axis=None), np.fmin.reduce(values, axis=None)
    largest = max(float(highest), -float(lowest))
    # Those that are not finite are counted, or refused, where they matter.
    if not np.isfinite(largest) or not largest:
        return
    # In the order of storage, which needs no copy.
    flat = values.ravel(order="K")
    # Those of a mask or a tumor may lie between voxels of a sample.
    for step in (max(1, flat.size // _SAMPLE), 1):
        sizes = np.abs(flat[::step].astype(np.float64))
        sizes = sizes[(sizes > 0) & np.isfinite(sizes)]
        if len(sizes) >= _SAMPLE // 100:
            break
    usual = float(np.percentile(sizes, 99, method="lower")) if len(sizes) else 0.0
    sight = f"{name} contains {largest:.3g} (nearly all values are at most {usual:.3g})"
    if not 1 / _LARGEST_VALUE <= largest <= _LARGEST_VALUE:
        raise ValueError(
            f"{sight}, and squares of such numbers overflow or underflow; set damaged voxels to "
            "0, or scale the image"
        )
    if largest > _OUTLYING * usual > 0:
        warnings.warn(
            f"{sight}, which distorts means and filters; set damaged voxels to 0",
            UserWarning,
            stacklevel=4,
        )


def file_of(loaded: nib.Nifti1Pair) -> Path | None:
    """Find the file that the values of an image are read from; None for values in memory."""
    # Not the name of the image, which changes when the image is saved elsewhere.
    stored = getattr(loaded.dataobj, "file_like", None)
    return Path(stored) if isinstance(stored, str | os.PathLike) else None


def check_real(dtype: np.dtype, name: str) -> None:
    """Refuse values that are not real numbers."""
    if dtype.kind not in "biuf" or dtype.names:
        content = "colors" if dtype.names else f"values of type {dtype}"
        raise ValueError(
            f"{name} holds {content}; magnitudes, integers or other real numbers are needed: "
            "convert it first"
        )


def stored_bytes(proxy: Any) -> int:
    """Compute from its header how many bytes the unpacked file of an image has."""
    return int(proxy.offset) + int(proxy.dtype.itemsize) * math.prod(map(int, proxy.shape))


def check_length(n_bytes: int, proxy: Any, name: str) -> None:
    """Refuse a file with fewer bytes, unpacked, than its header states."""
    needed = stored_bytes(proxy)
    if n_bytes < needed:
        raise ValueError(
            f"{name} is cut off: it should hold {needed} bytes and holds {n_bytes}; copy it again"
        )


def unpack(path: Path, proxy: Any, file: IO[bytes], name: str) -> ArrayProxy:
    """Unpack an image into an open file, up to its last byte, and check that it is whole."""
    n_bytes = stored_bytes(proxy)
    with ImageOpener(str(path)) as packed:
        for chunk in iter(lambda: packed.read(_CHUNK), b""):
            # A small packed file could fill the disk; some bytes may lie behind the last value.
            if file.tell() + len(chunk) > n_bytes + _CHUNK:
                raise ValueError(
                    f"{name} unpacks to more than the {n_bytes} bytes that its header states; "
                    "copy it again"
                )
            file.write(chunk)
    check_length(file.tell(), proxy, name)
    layout = (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter)
    return ArrayProxy(file, layout)


def spatial_header(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """Copy where a header places voxels and nothing else that it says."""
    # Scanners and converters write patients and files into descriptions and extensions.
    plain = type(header)()
    plain.set_data_shape(header.get_data_shape())
    for name in _SPATIAL_FIELDS:
        plain[name] = header[name]
    return plain


def damaged(name: str, error: BaseException, data: Any = None) -> Exception:
    """Make the error for a damaged file, or a block that cannot be computed."""
    problem = " ".join(str(error).split())
    if data is not None and not nib.is_proxy(data):
        return ValueError(
            f"a block of {name} cannot be computed ({type(error).__name__}: {problem}); "
            "mend what the array is made from"
        )
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(
            f"{name} vanished while it was read; put it back, or copy it to a disk that stays"
        )
    # The machine's limit is not the fault of the file.
    if isinstance(error, OSError) and error.errno in _OPEN_FILES:
        return OSError(error.errno, error.strerror, name)
    return ValueError(
        f"{name} cannot be read to its end, it seems damaged or cut off ({problem}); copy it again"
    )


def _load_header(path: Path) -> Any:
    """Load an image without its values; refuse repairs by nibabel that would move the voxels."""
    check_finished(path.parent, path.name)
    check_file(path)
    if path.suffix in (".bval", ".bvec"):
        images = [path.with_suffix(ending) for ending in (".nii.gz", ".nii")]
        beside = "".join(f"; {image} is beside it" for image in images if image.exists())
        raise ValueError(
            f"{path} describes the volumes of an image, and is none; name an image (NIfTI){beside}"
        )
    _check_header(path)
    remarks: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        # What nibabel logs would not name the file.
        is_other = record.thread != this_thread
        if not is_other:
            remarks.append(record.getMessage())
        return is_other

    this_thread = threading.get_ident()
    try:
        with _LOGGER_LOCK:
            logger.addFilter(collect)
            try:
                loaded = nib.load(path)
            finally:
                logger.removeFilter(collect)
    except MemoryError:
        raise
    # nibabel guesses the format from the ending, and each format raises errors of its own.
    except Exception as error:
        if getattr(error, "errno", None) in _OPEN_FILES:
            raise
        if not path.is_file():
            raise damaged(str(path), FileNotFoundError()) from error
        raise ValueError(
            f"{path} cannot be read as an image, it may be damaged or of another kind ({error}); "
            "copy it again, or convert it to NIfTI"
        ) from error
    if not isinstance(loaded, nib.Nifti1Pair):
        return loaded
    # With an sform, the other fields do not place the voxels.
    has_sform = int(loaded.header["sform_code"]) > 0
    moving_fields = ("sform",) if has_sform else ("sform", "qform", "pixdim[1")
    moving = [remark for remark in remarks if remark.startswith(moving_fields)]
    if moving:
        raise ValueError(
            f"{path} has a header that cannot be right ({'; '.join(moving)}); "
            "repair it, or convert the scan again"
        )
    shortest = getattr(loaded.header, "single_vox_offset", 0)
    stored: Any = loaded.dataobj
    if isinstance(loaded, nib.Nifti1Image) and stored.offset < shortest:
        raise ValueError(
            f"{path} says that its values begin at byte {stored.offset}, which is inside its "
            f"header; set vox_offset to {shortest}, or convert the scan again"
        )
    return loaded


def _check_header(path: Path) -> None:
    """Refuse a header that is longer than any, before nibabel reads it whole."""
    try:
        with ImageOpener(str(path)) as file:
            start = file.read(nib.Nifti2Header.sizeof_hdr)
        for header_class in (nib.Nifti1Header, nib.Nifti2Header):
            if header_class.may_contain_header(start):
                header = header_class(start[: header_class.sizeof_hdr], check=False)
                break
        else:
            return
    # nibabel reads the file next and explains better why it cannot.
    except Exception:
        return
    if np.isinf(header["scl_slope"]):
        raise ValueError(
            f"{path} has the scale factor {header['scl_slope']:g} (scl_slope), so its values are "
            "lost; convert the scan again"
        )
    if not 0 <= header["vox_offset"] <= _LARGEST_HEADER:
        raise ValueError(
            f"{path} says that its values begin at byte {float(header['vox_offset']):.6g}, "
            "which no header is long enough for"
        )


def _check_claimed_size(proxy: Any, path: Path, name: str) -> None:
    """Refuse what a file cannot hold before memory is taken for it."""
    needed, suffix = stored_bytes(proxy), path.suffix.lower()
    try:
        size = path.stat().st_size
    # Reading fails next, with a message that names the file.
    except OSError:
        return
    if suffix == ".gz" and needed > _GZIP_RATIO * size + _CHUNK:
        raise ValueError(
            f"{name} says that it holds {needed} bytes, which its {size} packed ones cannot be; "
            "copy it again"
        )
    is_mapped = False
    if suffix not in COMPRESSED:
        check_length(size, proxy, name)
        # Without a scale factor values are mapped from the disk and need no memory of their own.
        is_mapped = (proxy.slope, proxy.inter) == (1, 0)
    if not is_mapped and needed > memory_left():
        raise MemoryError


def memory_left() -> int:
    """Give the bytes that programs can still get; all of them where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
