"""Speed and memory of detectors at the published size."""

import json
from collections.abc import Sequence
from typing import Any

from benchmarks import _measure as measure

PUBLISHED_SHAPE = (90, 90, 54)
CHILD = """
import json, resource, time
import numpy as np, torch
torch.set_num_threads(1)
from scipy.ndimage import affine_transform, gaussian_filter
from anomaly import DenoisingAutoencoder, RecDiscNet
from anomaly.detectors.alignment import align, guide_images
from anomaly.detectors.features import look_of
from dmrifit._utils.torch_state import one_torch_thread
shape, n = {shape}, 64
rng = np.random.default_rng(0)
grid = np.indices(shape) / np.array(shape)[:, None, None, None] - 0.5
mask = (grid**2).sum(axis=0) < 0.2
tissue = gaussian_filter(rng.standard_normal(shape), 3.0)
tissue = (0.4 + 0.1 * tissue / tissue.std())[..., None]
scan = ((tissue + rng.uniform(-0.1, 0.1, (*shape, n))) * mask[..., None]).astype(np.float32)
model = {model}
model.n_channels_, model.shape_, model.threshold_, model.box_ = n, shape, None, (0, 0, 0, *shape)
model.net_ = model._new_net(torch.device("cpu"), 0)
model.history_ = []
is_aligned = getattr(model, "aligned", False)
look = look_of(scan, mask)
if is_aligned:
    model.scales_ = np.array([look.mean[mask].std(), look.spread[mask].std()])
    images = guide_images(look.mean, look.spread, mask, model.scales_)
    # Healthy scans lie elsewhere: by up to 5 voxels.
    volumes = [affine_transform(v, np.full(3, 0.95), 2.0, order=1) for v in (look.mean, look.spread, mask * 1.0)]
    model.guide_ = guide_images(*volumes, model.scales_)
model.healthy_residual_ = np.ones((2, *shape), dtype=np.float32)
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
align_s = best(lambda: align(images, mask, model.guide_), {repeats}) if is_aligned else 0.0
print(json.dumps(dict(bare_s=round(bare, 2), scored_s=round(scored, 2), align_s=round(align_s, 2), same_bits=same,
    weights=sum(p.numel() for p in network.parameters()),
    peak_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 2))))
"""
MODELS = {
    "DAE": ("DenoisingAutoencoder(residual='mean', latent='vector', aligned=False)", 3),
    "DAE, aligned latent map": ("DenoisingAutoencoder(latent='map', aligned=True)", 3),
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


VOXELWISE = """
import json, tempfile, time, tracemalloc
from pathlib import Path
from anomaly import PCADetector, VoxelwiseGaussian
n, shape, n_channels = {n}, {shape}, 6
rng = np.random.default_rng(0)
mask = np.ones(shape, dtype=bool)
with tempfile.TemporaryDirectory() as folder:
    scans = []
    for i in range(n):
        path = Path(folder) / (str(i) + ".npy")
        np.save(path, rng.uniform(0.2, 0.6, (*shape, n_channels)).astype(np.float32))
        scans.append(np.load(path, mmap_mode="r"))
    model = {model}
    # Arrays alone: pages of the scans' files count as memory of the process.
    tracemalloc.start()
    begun = time.process_time()
    model.fit(scans, [mask] * n)
    fitted = time.process_time()
    model.anomaly_map(scans[:1], [mask])
    print(json.dumps(dict(fit_s=round(fitted - begun, 1), scored_s=round(time.process_time() - fitted, 2),
        arrays_gb=round(tracemalloc.get_traced_memory()[1] / 1024**3, 2),
        scans_gb=round(n * scans[0].nbytes / 1024**3, 2))))
"""
VOXELWISE_MODELS = {
    "z": "VoxelwiseGaussian(distance='z', calibration=None)",
    "z, threshold by 4 folds": "VoxelwiseGaussian(distance='z', calibration=4)",
    "Mahalanobis": 'VoxelwiseGaussian(("mean", "spread"), distance="mahalanobis", calibration=None)',
    "PCA": "PCADetector(calibration=None)",
}


def voxelwise(
    shape: tuple[int, ...] = (100, 100, 100), counts: Sequence[int] = (10, 40)
) -> list[dict[str, Any]]:
    """Measure detectors without a network on scans that lie on the disk, in a process of its own for each."""
    rows = []
    for name, model in VOXELWISE_MODELS.items():
        for n in counts:
            told = measure.run_child(VOXELWISE.format(model=model, shape=shape, n=n))
            found = json.loads(str(told["out"]).strip().splitlines()[-1])
            rows.append({"model": name, "shape": shape, "n_scans": n} | found)
            print(rows[-1], flush=True)
    return rows
