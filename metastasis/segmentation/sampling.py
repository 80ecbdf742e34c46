"""Inputs of networks: channels of a case, and positions and resolutions of its segments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dmrifit._utils.counts import counted
from dmrifit.networks.volume_cases import volume_inputs
from metastasis.scans.local_level import local_level
from metastasis.scans.network_inputs import PRIOR_REACH, Scan, output_size

#: Value of a label where an earlier network took background for a lesion, for the loss "lesion",
#: and share of the background segments that lie there.
MISTAKEN = 4
_MISTAKEN_SHARE = 2 / 3
_MOST_MARKED = 300.0  # voxels of one mistake
_SURE = 0.1  # probability of a mistake
_BESIDE_MM = 3.0  # around a lesion, in which nothing is a mistake: its edge is blurred
#: Random voxels tried before all background voxels are listed, which is slow in a large volume.
_N_TRIES = 64
#: Where locally scaled scans are cut off: large vessels reach 2 to 3.
_BRIGHTEST = 3.5
#: Largest change of the intensities of a scan, or of its prior, as a share.
_INTENSITY_SCALE = 0.1
#: Largest logarithm of the gamma, weights of the blurred segment (below 0: sharper), width of the
#: blur in voxels and noise in local levels, in which scanners differ.
_LOG_GAMMA, _BLUR_WEIGHT, _BLUR, _NOISE = 0.3, (-0.5, 1.0), 0.7, 0.05
#: Weight of a lesion's voxels: (size / voxels) to a power, within limits.
_WEIGHT_SIZE, _WEIGHT_POWER, _WEIGHT_LIMITS = 600.0, 0.65, (0.7, 20.0)


# Volumes as networks see them --------------------------------------------------------------------


def normalized(volume: NDArray[Any], mask: NDArray[Any] | None = None) -> NDArray[np.float32]:
    """
    Scale each channel to mean 0 and standard deviation 1 inside of a mask.

    Shapes: `volume` (channels, x, y, z), `mask` (x, y, z); returns (channels, x, y, z).
    """

    def standardized(channel: NDArray[Any], brain: NDArray[np.bool_]) -> NDArray[np.floating]:
        intensities = channel[brain].astype(np.float64)
        if not intensities.size:
            raise ValueError("has no nonzero voxel")
        spread = intensities.std()
        # Rounding gives even a constant a standard deviation slightly above zero.
        if not spread > 1e-6 * np.abs(intensities).max():
            raise ValueError(f"has the value {intensities[0]:g} everywhere")
        return (channel - intensities.mean()) / spread

    return _by_channel(volume, mask, standardized)


def cell_means(
    volume: NDArray[np.float32], factor: int, how: str = "average"
) -> NDArray[np.float32]:
    """
    Compute the low-resolution cell that begins at each voxel, from which any grid can be taken.

    Beyond the border the outermost voxels are repeated.

    Shapes: `volume` (channels, x, y, z); returns (channels, x + n, y + n, z + n), n = factor - 1.
    """
    n = factor - 1
    if how == "stride":
        return np.pad(volume, [(0, 0)] + [(n // 2, n // 2)] * 3, mode="edge")
    padded = np.pad(volume, [(0, 0)] + [(n, n)] * 3, mode="edge")
    cells = ndimage.uniform_filter(padded, (1, factor, factor, factor))
    inner = slice(factor // 2, factor // 2 - n or None)
    return cells[:, inner, inner, inner]


def take_cells(
    cells: NDArray[np.float32], factor: int, first: Sequence[int], size: Sequence[int], layers: int
) -> NDArray[np.float32]:
    """
    Take the input of a low-resolution path: the cells over an output and `layers` around it.

    The output begins at the voxel `first` and has `size` voxels. Each convolution of the path, of
    width 3, takes one layer of cells off every side.

    Shapes: `cells` those of `cell_means`, `first` and `size` (3,); returns (channels, cells x,
    cells y, cells z).
    """
    # `cells` begins factor - 1 voxels before the volume: index i has the cell that begins at voxel
    # i - (factor - 1).
    begin = [start - factor * layers + factor - 1 for start in first]
    # From the first voxel of the first cell to that of the last one.
    width = [factor * (math.ceil(n / factor) + 2 * layers - 1) + 1 for n in size]
    window, (x, y, z) = _window(cells, begin, width)
    # Neighboring cells are `factor` voxels apart.
    return window[:, x[::factor, None, None], y[::factor, None], z[::factor]]


def take_window(volume: NDArray[Any], first: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
    """
    Take a window; beyond the border of the volume its outermost voxels are repeated.

    Shapes: `volume` (channels, x, y, z); returns (channels, *size).
    """
    window, (x, y, z) = _window(volume, first, size)
    # A window inside the volume stays a view; indices would copy it.
    if window.shape[1:] == tuple(size):
        return window
    return window[:, x[:, None, None], y[:, None], z]


def _window(
    volume: NDArray[Any], first: Sequence[int], size: Sequence[int]
) -> tuple[NDArray[Any], list[NDArray[np.int64]]]:
    """
    Cut a window off at the border of a volume.

    Returns a view of the volume, and for each axis the index into that view of every voxel of the
    window, those beyond the border being the outermost.
    """
    indices = [
        np.clip(start + np.arange(n), 0, length - 1)
        for start, n, length in zip(first, size, volume.shape[1:], strict=True)
    ]
    x, y, z = (slice(index[0], index[-1] + 1) for index in indices)
    return volume[:, x, y, z], [index - index[0] for index in indices]


def locally_scaled(volume: NDArray[Any], mask: NDArray[Any] | None = None) -> NDArray[np.float32]:
    """
    Divide each channel by the local level of brain without enhancement, clipped to 0 to 3.5.

    Metastases, vessels and fluid are left out of the level, so that it is 1 in unenhanced brain
    wherever it lies in a coil's field; edges of voxels count as 1 mm.

    Shapes: `volume` (channels, x, y, z), `mask` (x, y, z); returns (channels, x, y, z).
    """

    def relative(channel: NDArray[Any], brain: NDArray[np.bool_]) -> NDArray[np.floating]:
        return np.clip(channel / local_level(channel, brain), 0, _BRIGHTEST) * brain

    return _by_channel(volume, mask, relative)


def _by_channel(
    volume: NDArray[Any],
    mask: NDArray[Any] | None,
    scaled: Callable[[NDArray[Any], NDArray[np.bool_]], NDArray[np.floating]],
) -> NDArray[np.float32]:
    """Scale each channel by `scaled`, a function of its values and of the brain."""
    result = np.empty(volume.shape, dtype=np.float32)
    for number, channel in enumerate(volume):
        brain = channel != 0 if mask is None else np.asarray(mask, dtype=bool)
        try:
            result[number] = scaled(channel, brain)
        except ValueError as error:
            name = f"channel {number}" if len(volume) > 1 else "the image"
            text = f"{name} {error} inside of the brain; give an image that shows a brain"
            raise ValueError(text) from None
    return result


# Where segments lie ------------------------------------------------------------------------------


def lesion_voxels(label: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    List the flat indices of lesion voxels, lesion by lesion, and where each lesion's list ends.

    Shapes: `label` (x, y, z); returns (n_voxels,) and (n_lesions,).
    """
    numbers, n_lesions = ndimage.label(label, structure=np.ones((3, 3, 3)))
    flat_numbers = numbers.reshape(-1)
    voxels = np.flatnonzero(flat_numbers)
    lesion_of_voxel = flat_numbers[voxels]
    sizes = np.bincount(lesion_of_voxel, minlength=n_lesions + 1)[1:]
    return voxels[np.argsort(lesion_of_voxel, kind="stable")], np.cumsum(sizes)


def lesion_weights(label: NDArray[Any], ignored: NDArray[Any]) -> NDArray[np.float16]:
    """
    Give the weight of each voxel in `LesionLoss`, which falls with the size of its lesion.

    Shapes: `label` and `ignored` (x, y, z); returns (x, y, z), 0 where a voxel is not judged.
    """
    numbers, _ = ndimage.label(label, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(numbers.ravel())
    weights = np.clip((_WEIGHT_SIZE / np.maximum(sizes, 1)) ** _WEIGHT_POWER, *_WEIGHT_LIMITS)
    weights[0] = 1
    volume = weights.astype(np.float16)[numbers]
    volume[np.asarray(ignored, dtype=bool)] = 0
    return volume


def marked_evenly(
    label: NDArray[np.uint8], probability: NDArray[np.floating], seed: int, steps: Any = (1, 1, 1)
) -> NDArray[np.uint8]:
    """
    Mark false positives of a network in a label, at most about 300 voxels of each component.

    Voxels near lesions are left out. Training segments are drawn around the marked voxels: marked
    as a whole, a venous sinus would be drawn more often than a hundred vessels together.

    Shapes: `label` and `probability` (x, y, z), `steps` (3,) in mm; returns (x, y, z).
    """
    is_mistake = probability >= _SURE
    if label.any():
        distance = ndimage.distance_transform_edt(label == 0, sampling=steps)
        is_mistake &= distance > _BESIDE_MM
    components, _ = ndimage.label(is_mistake)
    sizes = np.bincount(components.ravel())
    # In components of more voxels, each is kept with the probability _MOST_MARKED / size.
    is_kept = np.random.default_rng(seed).random(label.shape) * sizes[components] < _MOST_MARKED
    return np.where(is_mistake & is_kept, MISTAKEN, label).astype(np.uint8)


def draw_segments(
    segmenter: Any,
    inputs: Sequence[Mapping[str, NDArray[Any]]],
    targets: Sequence[Mapping[str, NDArray[Any]]],
    rng: np.random.Generator,
) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.uint8]]]:
    """
    Draw the segments of an epoch, in turn around a lesion voxel and around a background voxel.

    What is drawn does not depend on whether priors are used; with the loss ``"lesion"`` it depends
    on the mistakes that are marked. All lesions are equally likely with the sampling
    ``"lesion"``, all lesion voxels with ``"voxel"``. Of background segments two thirds lie around
    voxels that are ``"mistaken"``, where there are such. Yields network inputs, and labels of
    shape (1, size, size, size), or (2, size, size, size) with the weights of a target that has
    such.
    """
    n_lesions = np.array([len(target["ends"]) for target in targets])
    n_voxels = np.array([len(target["voxels"]) for target in targets])
    if not n_voxels.any():
        raise ValueError(
            f"none of the {len(targets)} cases to learn from has a lesion; give cases with lesions"
        )
    for number in range(segmenter.segments_per_epoch):
        # Half of the segments hold lesions, which fill less than a thousandth of a brain.
        if number % 2:
            case = int(rng.integers(len(inputs)))
            mistaken = targets[case].get("mistaken", ())
            if len(mistaken) and rng.random() < _MISTAKEN_SHARE:
                middle = int(rng.choice(mistaken))
            else:
                middle = _background_voxel(inputs[case]["brain"], targets[case]["label"], rng)
        elif segmenter.sampling == "voxel":
            case, voxel = _draw_item(n_voxels, rng)
            middle = int(targets[case]["voxels"][voxel])
        else:
            # Each lesion is as likely as any other, so that large ones do not crowd out small
            # ones.
            case, lesion = _draw_item(n_lesions, rng)
            ends = targets[case]["ends"]
            first = ends[lesion - 1] if lesion else 0
            middle = int(targets[case]["voxels"][rng.integers(first, ends[lesion])])
        yield _segment(segmenter, inputs[case], targets[case], middle, rng)


def _segment(
    segmenter: Any,
    case: Mapping[str, NDArray[Any]],
    target: Mapping[str, NDArray[Any]],
    middle: int,
    rng: np.random.Generator,
) -> tuple[dict[str, NDArray[Any]], NDArray[np.uint8]]:
    """
    Cut a segment out of a volume after rotation, so that all resolutions agree.

    Augmented segments are flipped and rotated by 90° at random (all 48 ways); image and prior are
    each multiplied by a number near 1.
    """
    label = target["label"]
    # These are drawn in any case, so that their options do not change the later segments.
    axes = rng.permutation(3)
    flips = rng.integers(0, 2, 3).astype(bool)
    scale, prior_scale = 1 + _INTENSITY_SCALE * rng.uniform(-1, 1, 2)
    dropout = segmenter.prior_dropout if segmenter.missing_prior == "validity" else 0.0
    is_prior_dropped = rng.uniform() < dropout
    if not segmenter.augment:
        axes = np.arange(3)
        flips = np.zeros(3, dtype=bool)
        scale = 1.0
        prior_scale = 1.0

    def rotated(volume: NDArray[Any]) -> NDArray[Any]:
        return np.flip(volume.transpose(0, *(1 + axes)), tuple(1 + np.flatnonzero(flips)))

    shape = np.array(label.shape)[axes]
    center = np.array(np.unravel_index(middle, label.shape))[axes]
    center = np.where(flips, shape - 1 - center, center)
    if segmenter.network == "small_unet":
        # A network with padding would learn that lesions lie in the middle.
        jitter = segmenter._size // 4
        center = center + rng.integers(-jitter, jitter + 1, 3)
    n_layers = segmenter._n_layers
    out = output_size(segmenter._size, n_layers)
    # The output stays inside of the volume; its receptive field may reach beyond.
    start: Any = np.clip(center - out // 2, 0, np.maximum(shape - out, 0))
    first, size = start - n_layers, [segmenter._size] * 3
    image = take_window(rotated(case["image"]), first, size) * np.float32(scale)
    if segmenter.appearance and segmenter.augment and segmenter.scaling == "local":
        image = _another_appearance(image, segmenter.appearance, rng)
    sample: dict[str, Any] = {"image": image}
    for factor in segmenter._factors:
        name = f"low_{factor}"
        low = take_cells(rotated(case[name]), factor, start, [out] * 3, n_layers)
        sample[name] = low * np.float32(scale)
    if "prior" in case:
        valid = np.float32(0 if is_prior_dropped else case["valid"])
        # A shared path compares with what lies a few voxels around.
        margin = PRIOR_REACH if segmenter.prior_ == "shared" else 0
        prior = take_window(rotated(case["prior"]), first - margin, [n + 2 * margin for n in size])
        sample["prior"] = prior * (np.float32(prior_scale) * valid)
        sample["valid"] = valid
    segment = take_window(rotated(label[None]), first, size)
    if "weight" in target:
        weight = take_window(rotated(target["weight"][None]), first, size)
        segment = np.concatenate([segment.astype(np.float32), weight.astype(np.float32)])
    return sample, segment


def _another_appearance(
    image: NDArray[np.float32], strength: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Vary gamma, sharpness and noise of a locally scaled image (channels, x, y, z)."""
    brain = image != 0
    gamma = np.exp(strength * rng.uniform(-_LOG_GAMMA, _LOG_GAMMA))
    weight = strength * rng.uniform(*_BLUR_WEIGHT)
    deviation = np.float32(strength * _NOISE * rng.random())
    noise = deviation * rng.standard_normal(image.shape, dtype=np.float32)
    varied = np.clip(image, 0, None) ** np.float32(gamma)
    sigmas = (0, _BLUR, _BLUR, _BLUR)
    # What is stripped away has no signal that could be blurred into the brain.
    share = ndimage.gaussian_filter(brain.astype(np.float32), sigmas)
    blurred = ndimage.gaussian_filter(varied, sigmas) / np.maximum(share, 1e-3)
    varied += np.float32(weight) * (blurred - varied) + noise
    return np.clip(varied, 0, _BRIGHTEST) * brain


def _draw_item(counts: NDArray[np.int64], rng: np.random.Generator) -> tuple[int, int]:
    """Draw one of the lesions or lesion voxels of all cases: its case, and its number there."""
    ends = np.cumsum(counts)
    number = int(rng.integers(ends[-1]))
    case = int(np.searchsorted(ends, number, side="right"))
    return case, number - int(ends[case] - counts[case])


def _background_voxel(
    brain: NDArray[np.bool_], label: NDArray[np.uint8], rng: np.random.Generator
) -> int:
    """Draw a brain voxel outside of lesions, or any voxel if lesions fill the brain."""
    brain = brain.reshape(-1)
    label = label.reshape(-1)
    for voxel in rng.integers(len(label), size=_N_TRIES):
        if brain[voxel] and not label[voxel]:
            return int(voxel)
    background = np.flatnonzero(brain & (label == 0))
    return int(rng.choice(background)) if len(background) else int(rng.integers(len(label)))


def n_extra_channels(segmenter: Any) -> int:
    """Count the channels that follow those of the scan: the prior, and whether there is one."""
    if segmenter.prior_ != "channel":
        return 0
    return 2 if segmenter.missing_prior == "validity" else 1


def case_inputs(segmenter: Any, case: Scan) -> dict[str, NDArray[Any]]:
    """
    Make the inputs of a whole case, from which segments are cut.

    Shapes: the case's volume (x, y, z) or (x, y, z, channels); returns ``image`` (channels, x,
    y, z), ``brain`` (x, y, z), ``low_<factor>``, and ``prior`` (1, x, y, z) with ``valid``.
    """
    volume, prior, mask = case
    channels = volume_inputs(volume)
    shape = channels.shape[1:]
    if mask is not None and (mask.shape != shape or not mask.any()):
        raise ValueError(
            f"a mask of shape {mask.shape} with {counted(np.count_nonzero(mask), 'voxel')} "
            f"for a volume of shape {shape}; give a nonempty mask of that shape"
        )
    scaled = locally_scaled if segmenter.scaling == "local" else normalized
    image = scaled(channels, mask)
    inputs = {"image": image, "brain": np.any(channels != 0, axis=0) if mask is None else mask}
    for factor in segmenter._factors:
        inputs[f"low_{factor}"] = cell_means(image, factor, segmenter.low_resolution_input)
    prior_channels = np.zeros((1, *shape), dtype=np.float32)
    if prior is not None:
        prior_channels = volume_inputs(prior)
    # A prior of zeros is a missing one.
    has_prior = bool(np.any(prior_channels))
    if has_prior and segmenter.prior is not None and segmenter.prior_ is None:
        raise ValueError(
            "a prior scan for a network that was trained without any; train it with priors, "
            "or give none"
        )
    if segmenter.prior_ is None:
        return inputs
    if has_prior:
        try:
            prior_channels = scaled(prior_channels, mask)
        except ValueError as error:
            raise ValueError(f"its prior: {error}") from None
    # All samples of a batch need the same keys, so a missing prior becomes zeros.
    return inputs | {"prior": prior_channels, "valid": np.array(has_prior, dtype=np.float32)}


def network_arguments(
    segmenter: Any, sample: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Arrange the inputs of a segment as the arguments of the network's forward pass."""
    # The brain only tells where background segments are drawn.
    arguments = {key: value for key, value in sample.items() if key != "brain"}
    knows_missing = segmenter.missing_prior == "validity"
    if segmenter.prior_ == "channel":
        prior, valid = arguments.pop("prior"), arguments.pop("valid")
        flag = [np.full_like(prior, valid)] if knows_missing else []
        arguments["image"] = np.concatenate([arguments["image"], prior, *flag])
    elif segmenter.prior_ is not None and not knows_missing:
        del arguments["valid"]
    return arguments
