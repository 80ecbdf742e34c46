"""Network inputs of a case: resolutions, the prior scan, and what to do without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted
from dmrifit.networks.volume_cases import volume_inputs
from metastasis.scans.network_inputs import Scan
from metastasis.segmentation.sampling import cell_means, locally_scaled, normalized


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
            f"for a volume of shape {shape}"
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
