"""Views of scenes for networks: the tumor on a small cubic grid about its centroid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, center_of_mass, distance_transform_edt

from dmrifit.io.grids import cropped
from placement.box.voxel import AXIS_ORDERS
from placement.search.scene import Scene

#: Channels that a network can see.
CHANNELS = ("tumor", "distance", "exclude", "image")

#: Distances from the tumor's border are divided by this many mm.
DISTANCE_MM = 12.0

#: Distance in grid steps where a view has no border of the tumor.
NO_BORDER = 1000.0

#: Contrasts of the image beyond this many standard deviations are cut.
LARGEST_CONTRAST = 4.0


#: The 48 ways to exchange and to mirror the axes of a cubic grid, shape (48, 3, 3).
FLIPS = np.ascontiguousarray(AXIS_ORDERS.transpose(0, 2, 1))


def view_of(
    scene: Scene, channels: Sequence[str], n: int, step: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """
    Resample a scene on a cubic grid along the scanner's axes, about the centroid of the tumor.

    Returns the channels (n_channels, n, n, n), and the centroid and grid step in mm (4,).
    """
    # Blocks of image voxels begin at the first one, which depends on the storage.
    scene = scene.canonical
    # Averaged first: interpolation alone would skip most voxels of a fine image.
    blocks = np.maximum(1, np.floor(step / scene.spacing + 1e-6)).astype(np.int64)
    tumor = _block_means(scene.occupancy, blocks)
    matrix, offset = _block_affine(scene, scene.origin, blocks)
    center = matrix @ center_of_mass(tumor.astype(np.float64)) + offset
    # A larger step where the tumor would reach beyond the outermost points but one.
    reach = np.abs(np.argwhere(tumor > 0) @ matrix.T + offset - center).max()
    step = max(step, float(reach) / (0.5 * (n - 1) - 1.0))
    frame = np.array([*center, step])
    to_blocks = np.linalg.inv(matrix)
    grid_corner = center - 0.5 * (n - 1) * step
    first, shape = _window(scene, center, n, step)

    def on_grid(block_means: NDArray, first_voxel: Any) -> NDArray[np.float32]:
        """Interpolate the block means of a crop, which begins at an image voxel, on the grid."""
        _, crop_corner = _block_affine(scene, first_voxel, blocks)
        return np.asarray(
            affine_transform(
                block_means,
                to_blocks * step,
                to_blocks @ (grid_corner - crop_corner),
                (n, n, n),
                output=np.float32,
                order=1,
                mode="grid-constant",
            )
        )

    volume = np.empty((len(channels), n, n, n), dtype=np.float32)
    fraction = on_grid(tumor, scene.origin)
    allowed = fraction
    named = dict(zip(channels, volume, strict=True))
    if "tumor" in named:
        named["tumor"][:] = fraction
    if "exclude" in named:
        named["exclude"][:] = 0.0
        if scene.excluded:
            window = first.tolist(), shape.tolist()
            region = scene.forbidden_in(*window, names=scene.excluded).astype(np.float32)
            named["exclude"][:] = on_grid(_block_means(region, blocks), first)
            allowed = fraction * (1 - named["exclude"])
    if "distance" in named:
        # Probabilities may all be below one half.
        inside = allowed > min(0.5, 0.5 * float(allowed.max()))
        named["distance"][:] = _signed_distance(inside) * np.float32(step / DISTANCE_MM)
    if "image" in named:
        named["image"][:] = _contrast(scene, first, shape, blocks, on_grid)
    return volume, frame


def _signed_distance(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Measure distances to the border of a region in grid steps, positive inside."""
    # Without a border in the grid, it is taken to be far away.
    depth = NO_BORDER if inside.all() else distance_transform_edt(inside)
    distance = distance_transform_edt(~inside) if inside.any() else NO_BORDER
    # The border runs half a step from the outermost points inside.
    return np.where(inside, depth - 0.5, 0.5 - distance).astype(np.float32)


def turned_view(volume: NDArray, flip: NDArray[np.float64]) -> NDArray:
    """
    Exchange and mirror the axes of a view.

    Shapes: `volume` (n_channels, n, n, n); returns (n_channels, n, n, n).
    """
    order = np.abs(flip).argmax(axis=1)
    turned = volume.transpose(0, *(1 + order))
    mirrored = [axis for axis, sign in enumerate(flip.sum(axis=1), start=1) if sign < 0]
    return np.flip(turned, tuple(mirrored))


def turned_pose(
    center: NDArray, size: NDArray, rotation: NDArray, flip: NDArray[np.float64]
) -> tuple[NDArray, NDArray, NDArray]:
    """Move boxes with a view; `center`, `size` (..., 3), `rotation` (..., 3, 3)."""
    return center @ flip.T, size @ np.abs(flip).T, flip @ rotation @ flip.T


def _block_means(volume: NDArray, blocks: NDArray[np.int64]) -> NDArray[np.float32]:
    """Average a volume (x, y, z) over blocks of voxels; the last are filled up with zeros."""
    counts = -(-np.array(volume.shape) // blocks)
    filled = cropped(volume, (0, 0, 0), (counts * blocks).tolist())
    parts = filled.reshape(np.stack([counts, blocks], axis=1).ravel())
    return np.asarray(parts.mean(axis=(1, 3, 5), dtype=np.float32))


def _block_affine(
    scene: Scene, first_voxel: Any, blocks: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give matrix and offset from block indices to mm, for a crop that begins at a voxel."""
    axes = scene.affine[:3, :3]
    # The middle of the first block, between its first and last voxel.
    middle = np.array(first_voxel, dtype=np.float64) + 0.5 * (blocks - 1)
    return axes * blocks, axes @ middle + scene.affine[:3, 3]


def _window(
    scene: Scene, center: NDArray, n: int, step: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the window of the image that contains the grid and a rim: first index and shape."""
    inverse = np.linalg.inv(scene.affine)
    middle = apply_affine(inverse, center)
    reach = np.abs(inverse[:3, :3]).sum(axis=1) * 0.5 * n * step + 1
    low = np.floor(middle - reach).astype(np.int64)
    return low, np.ceil(middle + reach).astype(np.int64) - low + 1


def _contrast(
    scene: Scene, low: NDArray, shape: NDArray, blocks: NDArray, on_grid: Callable[..., NDArray]
) -> NDArray[np.float32]:
    """Standardize the block means of the image in a window, on the grid."""
    title = scene.name or "the scene"
    image = scene.image
    if image is None or (image.ndim != 3 and image.shape[3:] != (1,)):
        content = "no image" if image is None else f"an image of shape {image.shape}"
        raise ValueError(
            f'{title} has {content}; the network was made for channels with "image": '
            "give a volume (x, y, z)"
        )
    first = np.maximum(low, 0)
    window = tuple(map(slice, first, np.minimum(low + shape, scene.shape)))
    crop = np.ascontiguousarray(np.asarray(image).reshape(scene.shape)[window], np.float32)
    if not np.isfinite(crop).all():
        raise ValueError(f"{title}: the image holds values that are not finite; set them to 0")
    # Interpolated like the image, the ones tell how much of each point lies inside it.
    weight = on_grid(_block_means(np.ones_like(crop), blocks), first)
    values = on_grid(_block_means(crop, blocks), first)
    # Points near the border of the image, with half of their weight or less in it, stay at 0.
    inside = weight > 0.5
    contrast = np.zeros_like(values)
    contrast[inside] = values[inside] / weight[inside]
    sd = float(contrast[inside].std())
    if not sd > 0:
        sd = 1.0
    contrast[inside] = (contrast[inside] - contrast[inside].mean()) / sd
    return np.clip(contrast, -LARGEST_CONTRAST, LARGEST_CONTRAST)
