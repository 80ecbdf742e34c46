"""Single steps on scans: brain mask, foreground (dipy's median Otsu) and bias field."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from threadpoolctl import threadpool_limits

from dmrifit._optional import import_optional
from dmrifit._utils.affines import MM3_PER_ML, voxel_volume
from dmrifit._utils.counts import percent
from dmrifit.cohort.scaling import reference_columns
from dmrifit.engine.noise_choice import is_dark_tissue
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.corrections import quiet_dipy
from dmrifit.io.bids_derivatives import ALL_VOXELS
from dmrifit.io.components import drop_small, largest_components
from dmrifit.io.grids import Volume, as_stored
from dmrifit.io.masks import MASK_THRESHOLD, binarize
from dmrifit.io.nifti import Image, image_name, load_image
from dmrifit.io.series import Series

_COARSE = 2.0  # mm, the grid on which brains are found
_FIELD_GRID = 4.0  # mm, the grid on which the field is estimated
_FIELD_ITERATIONS = (50, 50, 30)
_STRIPPED_SHARE = 0.15  # from this share of voxels on, the value at the edge is a set background
_LARGEST_BRAIN = 2200.0  # mL
_SMALLEST_BRAIN = 20.0  # mL
_MIDDLE = 40.0  # mm around the middle of a head, which is brain
# Of the signal there: fat and what enhances is brighter, fluid and bone is darker.
_TISSUE = (0.7, 1.4)
# Half the width in mm of what may still join the brain to the scalp, tried in turn.
_NECKS = (5.0, 7.0, 9.0)
_DENT = 16.0  # mm, half the width of folds and dents that belong to the brain
_NOT_POSITIVE = 0.05  # of the brain


#: What `foreground_mask` does, or that it found no air, for sidecars and pages.
FOREGROUND_RULE = (
    "foreground found by median Otsu (dipy) in the mean of the volumes of lowest b, with holes "
    "filled and without pieces below a tenth of the largest"
)
NO_AIR = f"no air around the tissue, so {ALL_VOXELS}"

_SMOOTHED = 4.0  # mm, radius of the median filter before a brain is segmented
_MEDIAN_RADIUS = 2  # voxels
_MEDIAN_PASSES = 2
_SMALLEST_PIECE = 0.1  # of the largest: a leg beside a leg stays, a bright vessel in air goes
_SMALLEST_SHARE = 0.01  # of the image


def find_brain(image: Image) -> tuple[NDArray[np.bool_], bool]:
    """
    Find the brain in a T1 image of a head; tell whether the image was stripped of all else.

    Where somebody has set everything but the brain to one value, the brain is the rest. Elsewhere
    ``median_otsu`` of dipy finds the head; what has about the signal of its middle, and is joined
    to the middle by more than a neck, is brain, with folds and dents up to 32 mm wide filled: a
    rough mask, which keeps some of what surrounds the brain.

    Shapes: returns (x, y, z), the axes as they are stored.
    """
    scan = Volume.read(image)
    stored_affine = load_image(image).affine
    brain = _stripped_brain(scan.values, scan.affine)
    if brain is not None:
        return as_stored(brain, stored_affine), True
    # Widths of necks are in mm, and a fine grid would only take longer.
    coarse = scan.resampled(_COARSE)
    coarse_brain = _search_brain(coarse.values, np.linalg.norm(coarse.affine[:3, :3], axis=0))
    if coarse_brain is None:
        raise ValueError(
            f"{image_name(image)}: no brain of {_SMALLEST_BRAIN:g} to {_LARGEST_BRAIN:g} mL was "
            "found; give the mask of a brain extraction tool (brain_mask=…, prepare --brain, "
            "segment --mask), or leave this step out (brain_mask=False)"
        )
    share = Volume.of(coarse_brain.astype(np.float32), coarse.affine).onto(scan, np.eye(4))
    return as_stored(share.values > MASK_THRESHOLD, stored_affine), False


class HeadSpan(NamedTuple):
    """From where to where a head reaches in mm, up to its outer faces, left to right (RAS+)."""

    low: float = -np.inf  # where no head is known
    high: float = np.inf

    @classmethod
    def of(cls, values: NDArray, affine: NDArray[np.float64]) -> HeadSpan:
        """Measure it in `values` (x, y, z, ...) that are brighter in the head than on average."""
        numbers = np.nan_to_num(values.reshape(*values.shape[:3], -1)[..., 0])
        head = numbers > numbers.mean(dtype=np.float64)
        # Parts below 1 % of it are noise in air.
        head = drop_small(head, 1 + head.sum() // 100, connectivity=6)
        index = np.argwhere(head & ~ndimage.binary_erosion(head))
        if not len(index):
            return cls()
        x, half = index @ affine[0, :3] + affine[0, 3], np.abs(affine[0, :3]).sum() / 2
        return cls(float(x.min() - half), float(x.max() + half))

    @property
    def doubt(self) -> str:
        """Say that signs of x tell no side where the head lies beside x = 0; "" where they do."""
        if self.low < 0 < self.high:
            return ""
        return (
            f"the sign of x does not tell the side, as x = 0 is not in this head (x from "
            f"{self.low:.0f} to {self.high:.0f} mm): look at the picture"
        )


def _stripped_brain(values: NDArray, affine: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Find the brain in an image (x, y, z) without a skull; None if the skull is there."""
    edge = np.concatenate([np.take(values, (0, -1), axis=axis).ravel() for axis in range(3)])
    edge_values, counts = np.unique(edge, return_counts=True)
    # The background of a stripped image is one value, and not always 0.
    background = values == edge_values[counts.argmax()]
    inside = ~background
    volume = inside.sum() * voxel_volume(affine) / MM3_PER_ML
    is_stripped = background.mean() > _STRIPPED_SHARE
    if not (is_stripped and _SMALLEST_BRAIN < volume < _LARGEST_BRAIN):
        return None
    # Opening drops single voxels that a tool left outside.
    largest = largest_components(ndimage.binary_opening(inside))
    return np.asarray(ndimage.binary_fill_holes(largest))


def _search_brain(picture: NDArray, steps: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Find the brain inside its skull, on a grid with steps in mm; None without a likely one."""
    # A few bright vessels would set the threshold of the whole head.
    picture = np.minimum(picture, np.percentile(picture, 99.5))
    bright = _otsu_mask(picture, radius=1, passes=1)
    # A ball around the middle of the head is brain.
    voxels = np.argwhere(bright)
    center = voxels.mean(axis=0) if len(voxels) else np.array(bright.shape) / 2
    apart = (np.moveaxis(np.indices(bright.shape), 0, -1) - center) * steps
    middle = (apart**2).sum(axis=-1) < _MIDDLE**2
    level = float(np.median(picture[middle & bright])) if (middle & bright).any() else np.inf
    darkest, brightest = _TISSUE
    tissue = (picture > darkest * level) & (picture < brightest * level)
    depth = ndimage.distance_transform_edt(tissue, sampling=steps)
    # The narrowest cut that frees a brain of plausible size keeps most of it.
    for neck in _NECKS:
        components, _ = ndimage.label(depth > neck)
        sizes = np.bincount(components[middle])
        if not sizes[1:].any():
            return None
        core = components == 1 + sizes[1:].argmax()
        grown = ndimage.distance_transform_edt(~core, sampling=steps) <= neck + 1
        brain = _filled(grown & tissue, steps)
        volume = brain.sum() * float(np.prod(steps)) / MM3_PER_ML
        if _SMALLEST_BRAIN < volume < _LARGEST_BRAIN:
            return brain
    return None


def _filled(brain: NDArray[np.bool_], steps: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Fill folds, and the dents that bright tumors at the surface leave."""
    # Closing near the border would take the border for tissue.
    pad = int(np.ceil(_DENT / steps.min())) + 1
    padded = np.pad(brain, pad)
    grown = ndimage.distance_transform_edt(~padded, sampling=steps) <= _DENT
    closed = ndimage.distance_transform_edt(grown, sampling=steps) > _DENT
    return np.asarray(ndimage.binary_fill_holes(closed | padded)[pad:-pad, pad:-pad, pad:-pad])


def correct_bias_field(
    values: NDArray, affine: NDArray[np.float64], mask: NDArray[np.bool_] | None, name: str
) -> NDArray[np.float32]:
    """
    Remove the smooth field that coils lay over an image, by N4 (SimpleITK, on one thread).

    Shapes: `values` (x, y, z), `affine` (4, 4), `mask` (x, y, z); returns (x, y, z).

    References
    ----------
    Tustison et al., IEEE Trans Med Imaging 29:1310–1320, 2010.
    """
    sitk = import_optional("SimpleITK")
    picture = values.astype(np.float32)
    inside = picture > 0.1 * np.percentile(picture, 98) if mask is None else mask
    problem = "the mask is empty"
    not_positive = 1.0
    if inside.any():
        not_positive = np.count_nonzero(picture[inside] <= 0) / np.count_nonzero(inside)
        problem = f"{100 * not_positive:.0f} % of the values in the brain are not positive"
    if not_positive > _NOT_POSITIVE:
        raise ValueError(
            f"{name}: {problem}; a bias field multiplies magnitudes as the scanner gave them, so "
            "it cannot be removed from normalized images: take the image before that, or leave "
            "this step out (bias_field=False)"
        )
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    # N4 needs some voxels along each axis to fit its splines to.
    most = np.maximum(np.array(picture.shape) // 8, 1)
    # The field is smooth, so a coarse grid gives the same one much sooner.
    factors = np.clip(np.rint(_FIELD_GRID / steps), 1, most).astype(int).tolist()
    # N4 takes logarithms.
    positive = np.maximum(picture, 1e-3 * float(np.median(picture[inside])))
    # SimpleITK takes the axes of an array as z, y, x.
    whole = sitk.GetImageFromArray(positive.transpose())
    region = sitk.GetImageFromArray(inside.astype(np.uint8).transpose())
    whole.SetSpacing(steps.tolist())
    region.SetSpacing(steps.tolist())
    correct = sitk.N4BiasFieldCorrectionImageFilter()
    correct.SetNumberOfThreads(1)
    correct.SetMaximumNumberOfIterations(_FIELD_ITERATIONS)
    correct.Execute(sitk.Shrink(whole, factors), sitk.Shrink(region, factors))
    logarithm = sitk.GetArrayFromImage(correct.GetLogBiasFieldAsImage(whole)).transpose()
    # A geometric mean of 1 in the brain keeps the scale of the signals.
    field = np.exp(logarithm - logarithm[inside].mean()).astype(np.float32)
    return (picture / field).astype(np.float32)


def bright_brain(picture: NDArray, affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Find the brain in the signal (x, y, z) of a head at b = 0; all False if there is none."""
    edge = float(np.cbrt(voxel_volume(affine)))
    radius = int(np.clip(np.rint(_SMOOTHED / edge), 1, 4))
    inside = _otsu_mask(picture, radius=radius, passes=_MEDIAN_PASSES)
    # Eyes and neck may be bright, too; the brain is the largest part.
    return np.asarray(ndimage.binary_fill_holes(largest_components(inside)))


def _otsu_mask(picture: NDArray, *, radius: int, passes: int) -> NDArray[np.bool_]:
    """Tell tissue from air in a volume (x, y, z) by dipy's median Otsu; all False if constant."""
    median_otsu = import_optional("dipy.segment.mask").median_otsu
    if not np.ptp(picture):
        return np.zeros(picture.shape, bool)
    with threadpool_limits(1), quiet_dipy(), np.errstate(divide="ignore", invalid="ignore"):
        _, inside = median_otsu(picture, median_radius=radius, numpass=passes)
    return np.asarray(inside)


def read_region(
    series: Series, mask: Image | None, protocol: Protocol | None
) -> tuple[NDArray[np.bool_] | None, str]:
    """
    Read the voxels (x, y, z) to work on, all if there is no mask; also say which they are.

    The word none stands for no mask; with the protocol of the image, auto for its foreground.
    """
    word = mask if isinstance(mask, str) else None
    if mask is None or word == "none":
        return None, ALL_VOXELS
    if word == "auto":
        if protocol is None:
            raise ValueError(f"mask auto: {series.name} has no b-values; name a mask file")
        region = foreground_mask(series, protocol)
        return region, NO_AIR if region is None else FOREGROUND_RULE
    if isinstance(mask, str | Path) and not Path(mask).suffix and not Path(mask).exists():
        words = "" if protocol is None else ", or the word auto for the foreground"
        raise FileNotFoundError(f"mask {mask}: no such file; name one{words}")
    inside = binarize(series.read_map(mask, "the mask"), name=image_name(mask, "the mask"))
    # Sidecars travel without the folders of this machine.
    return inside, f"{Path(image_name(mask, 'the mask')).name} above 0.5"


def foreground_mask(series: Series, protocol: Protocol) -> NDArray[np.bool_] | None:
    """Find the voxels (x, y, z) of the body or head; None where there is no air around them."""
    import_optional("dipy.segment.mask")
    columns = reference_columns(protocol)
    reference, single = np.zeros((2, *series.grid))
    with series.unpacked() as readable:
        for slab, inside, signals in readable.slabs(None, progress=False, task="mask"):
            volumes = np.nan_to_num(signals[:, columns], posinf=0.0, neginf=0.0)
            reference[:, :, slab][inside] = volumes.mean(axis=1)
            single[:, :, slab][inside] = volumes[:, 0]
    # An Otsu threshold of a few extreme voxels would lie between them and the tissue.
    reference = np.clip(reference, 0, np.percentile(reference, 99.5))
    # A filter wider than an image would leave nothing of it.
    radius = max(0, min(_MEDIAN_RADIUS, (min(series.grid) - 1) // 8))
    inside = ndimage.binary_fill_holes(_otsu_mask(reference, radius=radius, passes=_MEDIAN_PASSES))
    inside = largest_components(inside, _SMALLEST_PIECE)
    share = inside.mean()
    if share < _SMALLEST_SHARE:
        raise ValueError(
            f"{series.name}: no foreground was found, {percent(share)} of the image; name a mask "
            "(--mask FILE, for many scans a pattern of files), or leave the option out to fit "
            "every voxel with a signal"
        )
    # In a block of tissue alone, Otsu's threshold would part bright tissue from dark.
    of_tissue = np.where(inside, single, np.nan)
    steps = [np.abs(np.diff(of_tissue, axis=axis)).ravel() for axis in range(3)]
    # The median of differences of neighbors is that of 0.954 of the noise.
    noise = float(np.nanmedian(np.concatenate([[0.0], *steps]))) / 0.954
    if inside.all() or is_dark_tissue(reference[~inside], reference[inside], noise):
        return None
    return inside
