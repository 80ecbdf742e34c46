"""Logits of whole volumes tile by tile: what the dense computation of the package is held against."""

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metastasis.networks.architectures import PRIOR_REACH, DeepMedic
from metastasis.networks.sizes import low_resolution_input, output_size
from metastasis.segmentation.inference import Case
from metastasis.segmentation.sampling import take_cells, take_window


def tiled_logits(network: DeepMedic, case: Case, *, tile: int = 45) -> NDArray[np.float32]:
    """Give the logits (x, y, z) of a volume tile by tile; slow, for comparison with `dense_logits`."""
    shape = case["image"].shape[1:]
    n_layers = network.n_layers
    out = output_size(tile, n_layers)
    device = next(network.parameters()).device
    logits = np.empty(shape, dtype=np.float32)

    def batch_of(values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values))[None].to(device)

    with torch.inference_mode():
        for start in itertools.product(*(range(0, n, out) for n in shape)):
            first = [a - n_layers for a in start]
            inputs = {"image": batch_of(take_window(case["image"], first, [tile] * 3))}
            phases = {}
            for factor in network.low_resolution:
                phase = [a % factor for a in start]
                begin = [a - p - factor * n_layers for a, p in zip(start, phase, strict=True)]
                count = [low_resolution_input(out, factor, n_layers, phase=p) for p in phase]
                cells = take_cells(case[f"low_{factor}"], factor, begin, count)
                inputs[f"low_{factor}"] = batch_of(cells)
                phases[factor] = phase
            if network.prior_path:
                reach = PRIOR_REACH if network.shared else 0
                wider = [a - reach for a in first]
                size = [tile + 2 * reach] * 3
                inputs["prior"] = batch_of(take_window(case["prior"], wider, size))
                inputs["valid"] = torch.tensor([float(case["valid"])], device=device)
            tile_logits = network(**inputs, phases=phases)[0, 0].cpu().numpy()
            # The last tile along an axis may reach beyond the volume.
            inside = tuple(slice(0, min(out, n - a)) for a, n in zip(start, shape, strict=True))
            logits[tuple(slice(a, a + out) for a in start)] = tile_logits[inside]
    return logits
