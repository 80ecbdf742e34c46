"""From a user's head scans to what a network sees: one grid, an even field, the brain alone, the prior in its place."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from dmrifit._optional import import_optional
from dmrifit.corrections import quiet_dipy
from dmrifit.derivatives import derivative_name, stem, versions
from dmrifit.files import FileSet
from dmrifit.images import Image, describe_sources, file_paths, image_name, load_image, save_image, values_of
from dmrifit.masks import MASK_THRESHOLD, check_same_grid

if TYPE_CHECKING:
    import nibabel as nib

__all__ = ["PreparedBrain", "align_brain", "correct_bias_field", "find_brain", "prepare_brain"]

_COARSE = 2.0  # mm, the grid on which brains are found and aligned
_FIELD_GRID = 4.0  # mm, the grid on which the field is estimated
_FIELD_ITERATIONS = (50, 50, 30)
_SPACINGS = (0.2, 10.0)  # mm
_SMALLEST = 8  # voxels along an axis
_STRIPPED_SHARE = 0.15  # of voxels with one and the same value, from which on it is a background that somebody set
_LARGEST_BRAIN = 2200.0  # mL
_SMALLEST_BRAIN = 20.0  # mL
_NECK = 5.0  # mm, half the width of what still joins the brain to the scalp
_FOLDS = 8.0  # mm, half the width of folds that belong to the brain
_NOT_POSITIVE = 0.05  # of the brain
_LARGE_SHIFT, _LARGE_TURN = 30.0, 20.0  # mm, degrees
_MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class PreparedBrain:
    """
    Scans of a patient that a network can take.

    Parameters
    ----------
    image : Nifti1Image
        The image, shape (x, y, z), float32; 0 outside the brain where that is known.
    brain : Nifti1Image or None
        The brain, 0 and 1, on the grid of the image.
    prior : Nifti1Image or None
        The earlier image in the place and on the grid of the image; 0 outside the brain and where it has no value.
    label : Nifti1Image or None
        The label on the grid of the image.
    transform : ndarray of shape (4, 4), or None
        From world coordinates of the image to those of the prior, in mm; None without a prior.
    """

    image: nib.Nifti1Pair
    brain: nib.Nifti1Pair | None
    prior: nib.Nifti1Pair | None
    label: nib.Nifti1Pair | None
    transform: NDArray[np.float64] | None


def prepare_brain(
    image: Image,
    *,
    prior: Image | None = None,
    label: Image | None = None,
    spacing: float | None = 1.0,
    bias_field: bool = True,
    brain_mask: bool | Image = True,
    register: bool = True,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> PreparedBrain:
    """
    Bring a head scan, and an earlier one, to a network: one grid, an even field, the brain alone, aligned.

    Steps, each of which can be left out: the brain is found (`find_brain`), the bias field removed
    (`correct_bias_field`, N4), the image resampled to voxels of `spacing` mm in RAS order, and the prior, after the
    same, aligned to the image by an affine transformation (`align_brain`) and resampled onto its grid. Interpolation
    is linear, after smoothing where voxels become larger; labels take the nearest voxel. What was prepared can be
    prepared again: nothing is left to do then but interpolation.

    Parameters
    ----------
    image : path or Nifti1Image
        The scan, magnitudes on three axes.
    prior : path or Nifti1Image, optional
        An earlier scan of the same patient, on any grid.
    label : path or Nifti1Image, optional
        Labels on the grid of `image`.
    spacing : float, optional
        Edge of the voxels to resample to, in mm, 0.2 to 10; None to keep the grid of the image.
    bias_field : bool, default=True
        Whether to remove the bias field. Images that were normalized already, with values below 0 inside the brain,
        cannot have theirs removed.
    brain_mask : bool, path or Nifti1Image, default=True
        Whether to find the brain and set everything else to 0; a mask on the grid of `image` is taken instead. The
        search is rough where a skull is there: for measurements give a mask of a tool made for it.
    register : bool, default=True
        Whether to align the prior; otherwise the world coordinates of both headers are believed.
    out : path, optional
        Folder to write to, made if missing: images and a sidecar, which appear together.
    overwrite : bool, default=False
        Whether files of the same names in `out` may be replaced.

    Returns
    -------
    PreparedBrain
        Images on one grid, and how the prior was moved.

    Raises
    ------
    ValueError
        If an image has not three axes or values that are not finite, a grid does not fit, the spacing is out of its
        range, no brain is found, or the image was normalized and its bias field shall be removed.
    FileNotFoundError, FileExistsError, OSError
        If an input is missing, or an output there or not writable.
    ImportError
        If the extra ``preprocess`` is not installed and a step needs it.

    Warns
    -----
    UserWarning
        If the prior was moved by more than 30 mm or 20 degrees, or lies no better than before.

    References
    ----------
    Tustison et al., IEEE Trans Med Imaging 29:1310–1320, 2010 (N4); Mattes et al., IEEE Trans Med Imaging 22:120–128,
    2003 (mutual information).
    """
    if spacing is not None and not (
        isinstance(spacing, int | float | np.number)
        and not isinstance(spacing, bool)
        and _SPACINGS[0] <= spacing <= _SPACINGS[1]
    ):
        msg = f"spacing must be an edge of {_SPACINGS[0]:g} to {_SPACINGS[1]:g} mm, or None, not {spacing!r}"
        raise ValueError(msg)
    # Every input is read and checked, and every library there, before long work.
    name = image_name(image)
    scan = _read(image)
    earlier = None if prior is None else _read(prior)
    labels = None if label is None else _read_like(label, scan, name)
    given = None if isinstance(brain_mask, bool) else _read_like(brain_mask, scan, name)
    if bias_field:
        _import_sitk()
    if (earlier is not None and register) or brain_mask is True:
        import_optional("dipy.align")
    prefix = stem(image) if isinstance(image, str | Path) else ""
    files = {
        key: derivative_name(prefix, f"{suffix}.nii.gz", desc="prepared")
        for key, suffix in (("image", "T1w"), ("brain", "mask"), ("prior", "prior"), ("label", "dseg"))
    }
    sidecar = derivative_name(prefix, "T1w.json", desc="prepared")
    inputs = {"Image": image, "Prior": prior, "Label": label, "Mask": None if given is None else brain_mask}
    file_set = (
        None
        if out is None
        else FileSet(out, [*files.values(), sidecar], overwrite=overwrite, keep=file_paths(inputs.values()))
    )
    with file_set or nullcontext():
        mask = _mask_of(given) if given is not None else find_brain(scan) if brain_mask is True else None
        picture, brain = _ready(scan, mask, spacing, bias_field=bias_field, name=name)
        moved, transform = None, None
        if earlier is not None:
            past_mask = find_brain(earlier) if brain_mask is not False else None
            past, past_brain = _ready(earlier, past_mask, None, bias_field=bias_field, name=image_name(prior))
            transform = _aligned(past, picture, past_brain, brain, image_name(prior)) if register else np.eye(4)
            moved = _onto(past, picture, transform)
            if brain is not None:
                moved = _with_values(_values(moved) * (_values(brain) > 0), moved.affine)
        on_grid = None if labels is None else _label_onto(labels, picture)
        result = PreparedBrain(picture, brain, moved, on_grid, transform)
        if file_set is not None:
            made = {key: getattr(result, key) for key in files if getattr(result, key) is not None}
            for key, one in made.items():
                save_image(one, file_set.path(files[key]))
            steps = {"Spacing": spacing, "BiasField": bias_field, "BrainMask": brain_mask is not False}
            steps["Registered"] = earlier is not None and register
            file_set.write_json(sidecar, _described({key: files[key] for key in made}, steps, transform, inputs))
    return result


def find_brain(image: Image) -> NDArray[np.bool_]:
    """
    Find the brain in a T1 image of a head.

    Where somebody has set everything but the brain to one value, the brain is the rest. Elsewhere ``median_otsu`` of
    dipy parts bright from dark, what joins brain and scalp is cut, the largest part taken and its folds filled: a
    rough mask, which keeps some of the membranes around the brain.

    Parameters
    ----------
    image : path or Nifti1Image
        Magnitudes on three axes.

    Returns
    -------
    ndarray of bool, shape (x, y, z)
        The brain.

    Raises
    ------
    ValueError
        If the image has not three axes, values that are not finite, or no brain is found.
    ImportError
        If the extra ``preprocess`` is not installed.
    """
    from scipy.ndimage import binary_closing, binary_fill_holes, binary_opening, distance_transform_edt, label

    scan = _read(image)
    values = _values(scan)
    name = image_name(image)
    if not np.ptp(values):
        msg = f"{name} is {values.flat[0]:g} everywhere; there is no brain in it"
        raise ValueError(msg)
    voxel = float(abs(np.linalg.det(scan.affine[:3, :3]))) / _MM3_PER_ML
    edge = np.concatenate([np.take(values, (0, -1), axis=axis).ravel() for axis in range(3)])
    found, counts = np.unique(edge, return_counts=True)
    background = values == found[counts.argmax()]
    inside = ~background
    if background.mean() > _STRIPPED_SHARE and _SMALLEST_BRAIN < inside.sum() * voxel < _LARGEST_BRAIN:
        return np.asarray(binary_fill_holes(_largest(binary_opening(inside))))

    mask_tools = import_optional("dipy.segment.mask")
    coarse = _resampled(scan, _COARSE)
    picture = _values(coarse)
    picture = np.minimum(picture, np.percentile(picture, 99.5))
    with threadpool_limits(1), quiet_dipy():
        _, bright = mask_tools.median_otsu(picture, median_radius=1, numpass=1)
    steps = np.linalg.norm(coarse.affine[:3, :3], axis=0)
    core = distance_transform_edt(bright, sampling=steps) > _NECK
    if not core.any():
        msg = f"{name}: no brain was found; give a mask (brain_mask=…), or leave this step out (brain_mask=False)"
        raise ValueError(msg)
    parts, _ = label(core)
    sizes = np.bincount(parts.ravel())[1:]
    core = parts == 1 + sizes.argmax()
    grown = (distance_transform_edt(~core, sampling=steps) <= _NECK + 1) & bright
    pad = int(np.ceil(_FOLDS / steps.min())) + 1
    padded = np.pad(grown, pad)
    closed = distance_transform_edt(~padded, sampling=steps) <= _FOLDS
    closed = distance_transform_edt(closed, sampling=steps) > _FOLDS
    brain = binary_fill_holes(binary_closing(closed | padded))[pad:-pad, pad:-pad, pad:-pad]
    if brain.sum() * _COARSE**3 / _MM3_PER_ML < _SMALLEST_BRAIN:
        volume = brain.sum() * _COARSE**3 / _MM3_PER_ML
        msg = f"{name}: what was found is {volume:.3g} mL, no brain; give a mask (brain_mask=…)"
        raise ValueError(msg)
    return _values(_onto(_with_values(brain.astype(np.float32), coarse.affine), scan, np.eye(4))) > MASK_THRESHOLD


def correct_bias_field(
    values: ArrayLike, affine: ArrayLike, *, mask: NDArray[np.bool_] | None = None, name: str = "the image"
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """
    Remove the smooth field that coils lay over an image, by N4 (SimpleITK, on one thread).

    Parameters
    ----------
    values : array_like of shape (x, y, z)
        Magnitudes.
    affine : array_like of shape (4, 4)
        From voxel indices to world coordinates in mm.
    mask : ndarray of bool, shape (x, y, z), optional
        The brain; by default all that is brighter than a tenth of the bright parts.
    name : str, default="the image"
        What the message calls it.

    Returns
    -------
    values : ndarray of float32, shape (x, y, z)
        The image divided by the field.
    field : ndarray of float32, shape (x, y, z)
        The field, of geometric mean 1 inside the mask.

    Raises
    ------
    ValueError
        If the mask is empty or more than 5 % of the values inside it are not positive.
    ImportError
        If the extra ``preprocess`` is not installed.

    References
    ----------
    Tustison et al., IEEE Trans Med Imaging 29:1310–1320, 2010.
    """
    sitk = _import_sitk()
    picture = np.asarray(values, dtype=np.float32)
    inside = picture > 0.1 * np.percentile(picture, 98) if mask is None else np.asarray(mask, dtype=bool)
    n = np.count_nonzero(inside)
    share = np.count_nonzero(picture[inside] <= 0) / n if n else 1.0
    if share > _NOT_POSITIVE:
        what = f"{100 * share:.0f} % of the values in the brain are not positive" if n else "the mask is empty"
        msg = (
            f"{name}: {what}; a bias field multiplies magnitudes as the scanner gave them, so it cannot be removed "
            "from normalized images: take the image before that, or leave this step out (bias_field=False)"
        )
        raise ValueError(msg)
    steps = np.linalg.norm(np.asarray(affine, dtype=float)[:3, :3], axis=0)
    factors = [int(f) for f in np.clip(np.rint(_FIELD_GRID / steps), 1, np.maximum(np.array(picture.shape) // 8, 1))]
    positive = np.maximum(picture, 1e-3 * float(np.median(picture[inside])))
    # SimpleITK counts axes from the last one.
    whole, where = (sitk.GetImageFromArray(a.transpose()) for a in (positive, inside.astype(np.uint8)))
    for one in (whole, where):
        one.SetSpacing(steps.tolist())
    correct = sitk.N4BiasFieldCorrectionImageFilter()
    correct.SetNumberOfThreads(1)
    correct.SetMaximumNumberOfIterations(_FIELD_ITERATIONS)
    correct.Execute(sitk.Shrink(whole, factors), sitk.Shrink(where, factors))
    logarithm = sitk.GetArrayFromImage(correct.GetLogBiasFieldAsImage(whole)).transpose()
    field = np.exp(logarithm - logarithm[inside].mean()).astype(np.float32)
    return (picture / field).astype(np.float32), field


def align_brain(
    prior: Image, image: Image, *, brain: Image | None = None, prior_brain: Image | None = None
) -> NDArray[np.float64]:
    """
    Find the affine transformation that brings an earlier scan to the place of a later one (by dipy).

    Centers of mass first, then mutual information, rigid and affine, with voxels of 6 and 4 mm.

    Parameters
    ----------
    prior : path or Nifti1Image
        The scan to move.
    image : path or Nifti1Image
        The scan that stays.
    brain, prior_brain : path or Nifti1Image, optional
        The brain in each, on its grid; what lies outside is not compared.

    Returns
    -------
    ndarray of shape (4, 4)
        From world coordinates of `image` to those of `prior`, in mm.

    Raises
    ------
    ValueError
        If an image has not three axes, values that are not finite, or fewer than 8 voxels along an axis.
    ImportError
        If the extra ``preprocess`` is not installed.

    Warns
    -----
    UserWarning
        If the center of the image moves by more than 30 mm or it turns by more than 20 degrees, or the scans agree
        no better than by their headers.

    References
    ----------
    Mattes et al., IEEE Trans Med Imaging 22:120–128, 2003.
    """
    return _aligned(_read(prior), _read(image), prior_brain, brain, image_name(prior))


def _aligned(
    prior: nib.Nifti1Pair, image: nib.Nifti1Pair, prior_brain: Image | None, brain: Image | None, name: str
) -> NDArray[np.float64]:
    """Align brains on a coarse grid."""
    align = import_optional("dipy.align")
    moving, fixed = (_cut(one, mask) for one, mask in ((prior, prior_brain), (image, brain)))
    with threadpool_limits(1), quiet_dipy():
        _, transform = align.affine_registration(
            _values(moving).astype(np.float64),
            _values(fixed).astype(np.float64),
            moving_affine=moving.affine,
            static_affine=fixed.affine,
            pipeline=["center_of_mass", "rigid", "affine"],
            level_iters=[50, 20],
            sigmas=[2.0, 1.0],
            factors=[3, 2],
            optimizer_options={"gtol": 1e-4},
        )
    transform = np.asarray(transform, dtype=np.float64)
    _warn_of_bad_fit(moving, fixed, transform, name)
    return transform


def _warn_of_bad_fit(moving: nib.Nifti1Pair, fixed: nib.Nifti1Pair, transform: NDArray, name: str) -> None:
    """Say when a registration seems to have gone astray."""
    center = (fixed.affine @ [*(np.array(fixed.shape) - 1) / 2, 1])[:3]
    shift = float(np.linalg.norm(transform[:3, :3] @ center + transform[:3, 3] - center))
    left, _, right = np.linalg.svd(transform[:3, :3])
    turn = float(np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1))))
    there = _values(fixed) != 0
    agreements = []
    for matrix in (np.eye(4), transform):
        values = _values(_onto(moving, fixed, matrix))[there]
        agreements.append(0.0 if not values.std() else float(np.corrcoef(values, _values(fixed)[there])[0, 1]))
    problems = []
    if shift > _LARGE_SHIFT or turn > _LARGE_TURN:
        problems.append(f"was moved by {shift:.3g} mm and turned by {turn:.3g} degrees")
    if agreements[1] < agreements[0]:
        problems.append(f"agrees worse than before (correlation {agreements[0]:.2f}, now {agreements[1]:.2f})")
    if problems:
        msg = f"{name} {' and '.join(problems)}; look at the result, or align it by other means (register=False)"
        warnings.warn(msg, stacklevel=4)


def _ready(
    scan: nib.Nifti1Pair, mask: NDArray[np.bool_] | None, spacing: float | None, *, bias_field: bool, name: str
) -> tuple[nib.Nifti1Pair, nib.Nifti1Pair | None]:
    """Remove the field, resample, and cut out the brain."""
    values = _values(scan)
    if bias_field:
        values, _ = correct_bias_field(values, scan.affine, mask=mask, name=name)
    picture = _resampled(_with_values(values, scan.affine), spacing)
    if mask is None:
        return picture, None
    share = _values(_resampled(_with_values(mask.astype(np.float32), scan.affine), spacing))
    brain = share > MASK_THRESHOLD
    return (
        _with_values(np.where(brain, _values(picture), 0), picture.affine),
        _with_values(brain.astype(np.uint8), picture.affine),
    )


def _read(image: Image) -> nib.Nifti1Pair:
    """Read a scan into memory, in RAS order, and check it."""
    import nibabel as nib

    loaded, name = load_image(image), image_name(image)
    values = values_of(loaded, name)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        msg = f"{name} has {values.ndim} axes ({values.shape}); a volume (x, y, z) is needed"
        raise ValueError(msg)
    if min(values.shape) < _SMALLEST:
        msg = f"{name} has {values.shape} voxels; at least {_SMALLEST} along each axis are needed"
        raise ValueError(msg)
    if values.dtype.kind not in "fiub" or not np.isfinite(values).all():
        n = np.count_nonzero(~np.isfinite(values)) if values.dtype.kind in "fiub" else values.size
        msg = f"{name} has {n} values that are no finite numbers; set voxels without a value to 0"
        raise ValueError(msg)
    kept = values.astype(np.float32) if values.dtype.kind in "fb" or values.dtype.itemsize > 2 else values
    ordered = nib.as_closest_canonical(nib.Nifti1Image(kept, loaded.affine))
    made = _with_values(np.asarray(ordered.dataobj), ordered.affine)
    if (named := loaded.get_filename()) and isinstance(image, str | Path):
        made.file_map["image"].filename = str(named)
    return made


def _read_like(image: Image, scan: nib.Nifti1Pair, name: str) -> nib.Nifti1Pair:
    found = _read(image)
    check_same_grid(found.shape, found.affine, scan.shape, scan.affine, name=image_name(image), reference_name=name)
    return found


def _mask_of(image: nib.Nifti1Pair) -> NDArray[np.bool_]:
    mask = np.asarray(_values(image) > MASK_THRESHOLD)
    if not mask.any():
        msg = f"{image_name(image)}: no voxel is inside the mask (inside means above {MASK_THRESHOLD:g})"
        raise ValueError(msg)
    return mask


def _values(image: nib.Nifti1Pair) -> NDArray:
    return np.asarray(image.dataobj)


def _with_values(values: NDArray, affine: NDArray) -> nib.Nifti1Pair:
    import nibabel as nib

    image = nib.Nifti1Image(values if values.dtype == np.uint8 else values.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    return image


def _grid(scan: nib.Nifti1Pair, spacing: float) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Give shape and affine of the grid of another spacing that covers the same field of view."""
    edges = np.linalg.norm(scan.affine[:3, :3], axis=0)
    shape = np.maximum(np.rint(np.array(scan.shape) * edges / spacing), 1).astype(int)
    affine = np.array(scan.affine, dtype=np.float64)
    affine[:3, :3] *= spacing / edges
    middle = (np.array(scan.shape) - 1) / 2
    affine[:3, 3] = scan.affine[:3, :3] @ middle + scan.affine[:3, 3] - affine[:3, :3] @ ((shape - 1) / 2)
    return tuple(int(n) for n in shape), affine


def _resampled(scan: nib.Nifti1Pair, spacing: float | None) -> nib.Nifti1Pair:
    """Bring a scan to voxels of a size; without one it stays as it is."""
    if spacing is None:
        return scan
    shape, affine = _grid(scan, spacing)
    return _onto(scan, _with_values(np.zeros(shape, np.uint8), affine), np.eye(4))


def _onto(scan: nib.Nifti1Pair, target: nib.Nifti1Pair, transform: NDArray[np.float64]) -> nib.Nifti1Pair:
    """Take the values of a scan at the places of another grid, moved by a transformation; 0 where it has none."""
    from scipy.ndimage import affine_transform, gaussian_filter

    matrix = np.linalg.inv(scan.affine) @ transform @ target.affine
    values = _values(scan).astype(np.float32)
    if target.shape == scan.shape and np.allclose(matrix, np.eye(4), atol=1e-6):
        return _with_values(values, target.affine)
    # A larger voxel is a mean of smaller ones: smoothing that turns one's width into the other's.
    ratio = np.maximum(np.linalg.norm(target.affine[:3, :3], axis=0) / np.linalg.norm(scan.affine[:3, :3], axis=0), 1)
    values = gaussian_filter(values, np.sqrt((ratio**2 - 1) / 12), mode="nearest")
    moved = affine_transform(
        values, matrix[:3, :3], matrix[:3, 3], output_shape=target.shape, order=1, mode="grid-constant"
    )
    return _with_values(moved, target.affine)


def _label_onto(labels: nib.Nifti1Pair, target: nib.Nifti1Pair) -> nib.Nifti1Pair:
    """Take the nearest label at each place of another grid."""
    from scipy.ndimage import affine_transform

    values = np.rint(_values(labels))
    if values.min() < 0 or values.max() > np.iinfo(np.uint8).max:
        msg = f"labels must be whole numbers from 0 to 255, not from {values.min():g} to {values.max():g}"
        raise ValueError(msg)
    matrix = np.linalg.inv(labels.affine) @ target.affine
    moved = affine_transform(
        values.astype(np.uint8), matrix[:3, :3], matrix[:3, 3], output_shape=target.shape, order=0, mode="grid-constant"
    )
    return _with_values(moved, target.affine)


def _cut(scan: nib.Nifti1Pair, brain: Image | None) -> nib.Nifti1Pair:
    """Bring a scan to the coarse grid, cut to the brain, for registration."""
    values = _values(scan).astype(np.float32)
    inside = values != 0 if brain is None else _mask_of(_read_like(brain, scan, image_name(scan)))
    values = np.where(inside, values, 0)
    where = np.argwhere(inside)
    if not len(where):
        msg = f"{image_name(scan)} is 0 everywhere; nothing can be aligned to it"
        raise ValueError(msg)
    margin = np.ceil(10 / np.linalg.norm(scan.affine[:3, :3], axis=0)).astype(int)
    low = np.maximum(where.min(axis=0) - margin, 0)
    high = np.minimum(where.max(axis=0) + margin + 1, values.shape)
    affine = np.array(scan.affine)
    affine[:3, 3] += affine[:3, :3] @ low
    part = values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    coarse = max(_COARSE, float(np.linalg.norm(affine[:3, :3], axis=0).min()))
    return _resampled(_with_values(part, affine), coarse)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import label

    parts, n = label(mask)
    return np.asarray(parts == 1 + np.bincount(parts.ravel())[1:].argmax()) if n > 1 else mask


def _import_sitk() -> Any:
    with warnings.catch_warnings():
        # Its wrapper classes lack a name of their module, which later Pythons tell at import.
        warnings.simplefilter("ignore", DeprecationWarning)
        return import_optional("SimpleITK")


def _described(
    files: Mapping[str, str], steps: Mapping[str, Any], transform: NDArray[np.float64] | None, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    libraries = ["dmrifit", "numpy", "scipy", "nibabel"]
    libraries += ["SimpleITK"] if steps["BiasField"] else []
    libraries += ["dipy"] if steps["Registered"] or steps["BrainMask"] else []
    described = {
        "Description": "Images of a head prepared for a network",
        "GeneratedBy": [{"Name": "dmrifit", "Version": version("dmrifit")}],
        "Versions": versions(*libraries),
        "Steps": dict(steps),
        "Files": dict(files),
        "Sources": describe_sources(**inputs),
    }
    if transform is not None:
        described["Transform"] = {
            "Description": "from world coordinates of the image to those of the prior, mm",
            "Matrix": transform.tolist(),
        }
    return described
