"""
Where can the maps of a scan be believed?

The scan is real: a block of 6 × 10 × 10 voxels of one person's brain, which comes with dipy (BSD-3-Clause). A fit says of
every voxel which of its parameters are in doubt: not determined by the measurements, or with an error as large as the
number. These voxels are gray. A block so small is drawn with smoothed colors where nothing is in doubt. Another 4-D image,
with its b-values beside it, is named on the command line, or in a notebook as ``scan``; the picture of the README is of
a scan of lower legs.
"""

import sys
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

from dmrifit import MODELS, Protocol, fit_image, suggest_model

packaged = files("dipy") / "data" / "files" / "small_101D.nii.gz"
# In a notebook the arguments are those of Jupyter.
arguments = [] if "ipykernel" in sys.modules else sys.argv[1:]
scan = Path(arguments[0] if arguments else str(packaged))
protocol = Protocol.read(scan.with_name(scan.name.split(".nii")[0] + ".bval"))
name, reason = suggest_model(protocol)
model = MODELS[name]
print(f"{model.name}: {reason}")
maps = {
    name: np.asarray(image.dataobj) for name, image in fit_image(scan, protocol, model).items()
}

# The middle slice: signal, and the parameters that are most often determined.
row = maps["S0"].shape[2] // 2
inside = maps["status"][:, :, row] <= 1
part = np.ix_(inside.any(axis=1), inside.any(axis=0))
doubts = {
    # Bit j of this map is set where parameter j is in doubt.
    name: maps["doubt"][:, :, row].astype(int) >> j & 1 == 1
    for j, name in enumerate(model.names)
}
shares = {name: np.mean(doubt[inside]) for name, doubt in doubts.items()}
shown = ["S0", *sorted(model.names[1:], key=shares.get)[:2]]
figure, axes = plt.subplots(
    1, 4, figsize=(12.6, 2.5), layout="constrained", width_ratios=(1, 1, 1, 0.7)
)
for axis, name in zip(axes[:3], shown, strict=True):
    certain = inside & ~doubts[name]
    values = np.where(certain, maps[name][:, :, row], np.nan)
    low, high = np.nanpercentile(values, [2, 98])
    smooth = "bicubic" if certain.all() and values.size < 1000 else "nearest"
    gray = np.where(inside & ~certain, 0.75, np.nan)
    axis.imshow(gray[part].T, origin="lower", cmap="gray", vmin=0, vmax=1)
    colors = "gray" if name == "S0" else "viridis"
    picture = axis.imshow(
        values[part].T, origin="lower", cmap=colors, vmin=low, vmax=high, interpolation=smooth
    )
    figure.colorbar(picture, ax=axis, shrink=0.9)
    unit = model.units[model.names.index(name)]
    axis.set_title(f"{name} ({unit})" if unit and name != "S0" else name, fontsize=10)
    axis.axis("off")
    print(f"{name}: in doubt in {100 * shares[name]:.0f} % of the slice")

# The measurements of the voxel of median S0, and the curve that was fitted to them.
brightness = np.where(inside, maps["S0"][:, :, row], np.inf)
distance = np.abs(brightness - np.median(brightness[inside]))
voxel = (*np.unravel_index(np.argmin(distance), inside.shape), row)
fine = Protocol(np.linspace(0, protocol.b.max(), 200))
curve = model.signal([[maps[name][voxel] for name in model.names]], fine)[0]
axes[3].plot(fine.b, curve, label="fit")
axes[3].plot(protocol.b, nib.load(scan).dataobj[voxel], "ko", markersize=3, label="measured")
axes[3].set(xlabel="b (s/mm²)", ylim=(0, None))
axes[3].set_title("signal of one voxel", fontsize=10)
axes[3].legend(frameon=False)
folder = Path("build/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "own_scan.png", dpi=100)
