"""
Where can the maps of a scan be believed?

The scan is real: the lower legs of one person, a part of the demo data of QMRITools (Martijn Froeling, BSD-3-Clause; see
examples/data/legs). Its eight b-values, up to 600 s/mm², suffice for intravoxel incoherent motion (IVIM): a fraction f
of blood in capillaries beside tissue of diffusivity Dt. A fit says of every voxel which of its parameters are in doubt:
not determined by the measurements, or with an error as large as the number. They are gray here. The diffusivity of
muscle can be read off nearly everywhere, the fraction of blood in less than half of the voxels.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

from dmrifit import MODELS, Protocol, fit_image, suggest_model

# Your own 4-D image takes the place of this one, with its b-values beside it.
scan = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/data/legs/dwi.nii.gz")
protocol = Protocol.read(scan.with_name("dwi.bval"))
name, reason = suggest_model(protocol)
model = MODELS[name]
print(f"{model.name}: {reason}")
maps = {
    name: np.asarray(image.dataobj) for name, image in fit_image(scan, protocol, model).items()
}

# One slice, seen from the feet as radiologists do: the right leg is at the left.
row = maps["S0"].shape[2] // 2
inside = maps["status"][:, :, row] <= 1
scales = {
    "S0": ("signal S0 at b = 0", "gray", 0, 500),
    "Dt": ("diffusivity of tissue Dt (µm²/ms)", "viridis", 0.8, 2.2),
    "f": ("fraction of blood f", "viridis", 0, 0.3),
}
figure, axes = plt.subplots(
    1, 4, figsize=(12.6, 2.5), layout="constrained", width_ratios=(1, 1, 1, 0.7)
)
for axis, (name, (title, colors, low, high)) in zip(axes[:3], scales.items(), strict=True):
    # Bit j of this map is set where parameter j is in doubt.
    doubt = maps["doubt"][:, :, row].astype(int) >> model.names.index(name) & 1 == 1
    axis.imshow(
        np.where(inside & doubt, 0.75, np.nan).T, origin="lower", cmap="gray", vmin=0, vmax=1
    )
    certain = np.where(inside & ~doubt, maps[name][:, :, row], np.nan)
    picture = axis.imshow(certain.T, origin="lower", cmap=colors, vmin=low, vmax=high)
    figure.colorbar(picture, ax=axis, shrink=0.9)
    axis.set_title(title, fontsize=10)
    axis.axis("off")
    print(f"{name}: in doubt in {np.mean(doubt[inside]):.0%} of the voxels")

# The measurements of one voxel of the calf, and the curve that was fitted to them.
voxel = (27, 16, row)
fine = Protocol(np.linspace(0, protocol.b.max(), 200))
axes[3].plot(
    fine.b, model.signal([[maps[name][voxel] for name in model.names]], fine)[0], label="fit"
)
axes[3].plot(protocol.b, nib.load(scan).dataobj[voxel], "ko", markersize=4, label="measured")
axes[3].set(xlabel="b (s/mm²)", ylim=(0, None))
axes[3].set_title("signal of one voxel", fontsize=10)
axes[3].legend(frameon=False)
folder = Path("build/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "own_scan.png", dpi=100)
