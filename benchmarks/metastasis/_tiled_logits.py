"""Logits of whole volumes tile by tile: what the dense computation of the package is held against."""

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metastasis.networks.architectures import DeepMedic
from metastasis.scans.network_inputs import PRIOR_REACH
from metastasis.segmentation.inference import Case
from metastasis.segmentation.sampling import take_cells, take_window


def tiled_logits(network: DeepMedic, case: Case, *, out: int = 30) -> NDArray[np.float32]:
    """
    Give the logits (x, y, z) of a volume tile by tile; slow, for comparison with `dense_logits`.

    Cells of low resolution must fill tiles of `out` voxels.
    """
    shape = case["image"].shape[1:]
    n_layers = network.n_layers
    tile = out + 2 * n_layers
    device = next(network.parameters()).device
    logits = np.empty(shape, dtype=np.float32)

    def batch_of(values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values))[None].to(device)

    with torch.inference_mode():
        for start in itertools.product(*(range(0, n, out) for n in shape)):
            first = [a - n_layers for a in start]
            inputs = {"image": batch_of(take_window(case["image"], first, [tile] * 3))}
            for factor in network.low_resolution:
                cells = take_cells(case[f"low_{factor}"], factor, start, [out] * 3, n_layers)
                inputs[f"low_{factor}"] = batch_of(cells)
            if network.prior_path:
                reach = PRIOR_REACH if network.shared else 0
                wider = [a - reach for a in first]
                size = [tile + 2 * reach] * 3
                inputs["prior"] = batch_of(take_window(case["prior"], wider, size))
                inputs["valid"] = torch.tensor([float(case["valid"])], device=device)
            tile_logits = network(**inputs)[0, 0].cpu().numpy()
            # The last tile along an axis may reach beyond the volume.
            inside = tuple(slice(0, min(out, n - a)) for a, n in zip(start, shape, strict=True))
            logits[tuple(slice(a, a + out) for a in start)] = tile_logits[inside]
    return logits
