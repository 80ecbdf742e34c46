"""Speed and memory of detectors with a network at the published size, and speed of corruptions."""

import json
import time
from collections.abc import Sequence
from typing import Any

import _boards as boards
import _measure as measure
import numpy as np

PUBLISHED_SHAPE = (90, 90, 54)
CHILD = """
import json, resource, time
import numpy as np, torch
torch.set_num_threads(1)
from anomaly import DenoisingAutoencoder, RecDiscNet
from dmrifit._utils.torch_state import one_torch_thread
shape, n = {shape}, 64
rng = np.random.default_rng(0)
grid = np.indices(shape) / np.array(shape)[:, None, None, None] - 0.5
mask = (grid**2).sum(axis=0) < 0.2
scan = (rng.uniform(0.2, 0.6, (*shape, n)) * mask[..., None]).astype(np.float32)
model = {model}
model.n_channels_, model.shape_, model.threshold_, model.box_ = n, shape, None, (0, 0, 0, *shape)
model.net_ = model._new_net(torch.device("cpu"), 0)
model.history_ = []
network = model.net_.module_.eval()
volume = torch.from_numpy(np.moveaxis(scan, -1, 0)[None].copy())

def best(function, repeats):
    seconds = []
    for _ in range(repeats):
        begun = time.process_time()
        function()
        seconds.append(time.process_time() - begun)
    return min(seconds)

with one_torch_thread(), torch.inference_mode():
    bare = best(lambda: network(volume), {repeats})
del volume
first = model.anomaly_map([scan], [mask])
scored = best(lambda: model.anomaly_map([scan], [mask]), {repeats})
same = first.tobytes() == model.anomaly_map([scan], [mask]).tobytes()
print(json.dumps(dict(bare_s=round(bare, 2), scored_s=round(scored, 2), same_bits=same,
    weights=sum(p.numel() for p in network.parameters()),
    peak_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 2))))
"""
MODELS = {
    "DAE": ("DenoisingAutoencoder(512)", 3),
    "DAE, published size": ("DenoisingAutoencoder.published()", 2),
    "RecDiscNet": ("RecDiscNet()", 3),
    "RecDiscNet, published size": ("RecDiscNet.published()", 1),
}


def inference(
    names: Sequence[str] = tuple(MODELS), shape: tuple[int, ...] = PUBLISHED_SHAPE
) -> list[dict[str, Any]]:
    """Measure scoring against the bare network, in a process of its own for each; none of them is trained."""
    rows = []
    for name in names:
        model, repeats = MODELS[name]
        told = measure.run_child(CHILD.format(model=model, shape=shape, repeats=repeats))
        found = json.loads(str(told["out"]).strip().splitlines()[-1])
        rows.append(
            {"model": name, "shape": shape, "ratio": round(found["scored_s"] / found["bare_s"], 2)}
            | found
        )
        print(rows[-1], flush=True)
    return rows


def corruption() -> dict[str, Any]:
    """Measure `corrupt` against a loop over voxels that fills the same ellipsoid."""
    from anomaly import corrupt
    from anomaly.generators.corruptions import TissueMoments

    rng = np.random.default_rng(0)
    shape = (40, 48, 32)
    volume, mask = (
        rng.uniform(0.2, 0.8, (*shape, 64)).astype(np.float32),
        np.ones(shape, dtype=bool),
    )
    moments = TissueMoments.measured([volume], [mask])
    center, axes, turned = np.array([20, 24, 16]), np.array([6.0, 5.0, 4.0]), np.eye(3)

    def loop() -> None:
        changed, anomalous = volume.copy(), np.zeros(shape, dtype=bool)
        for x in range(shape[0]):
            for y in range(shape[1]):
                for z in range(shape[2]):
                    if (
                        mask[x, y, z]
                        and (((turned @ (np.array([x, y, z]) - center)) / axes) ** 2).sum() <= 1
                    ):
                        changed[x, y, z] = np.clip(
                            rng.normal(moments.mean / 2, moments.sd, 64), 0, 1
                        )
                        anomalous[x, y, z] = True

    quick = [
        boards.timed(corrupt, volume, mask, moments=moments, counts=(0, 1), random_state=k)[1]
        for k in range(20)
    ]
    begun = time.process_time()
    for seed in range(20):
        corrupt(volume, mask, moments=moments, counts=(0, 1), random_state=seed)
    quick_s = (time.process_time() - begun) / len(quick)
    slow_s = min(boards.timed(loop)[1] for _ in range(3))
    return {"loop_s": slow_s, "corrupt_s": round(quick_s, 5), "ratio": round(slow_s / quick_s, 1)}
