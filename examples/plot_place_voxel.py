"""
Where would the spectroscopy voxel go, and where would two experts have put it?

A spectrum is measured in one box, and the box should hold much tumor and little else. In synthetic gliomas, some of
which have a necrotic core that gives no useful spectrum, the optimizer places a box twice: from the tumor alone, as in
the study of Lee et al. (MICCAI 2024), and with the core excluded. Both are compared with the boxes of two
simulated experts, who go to thick solid tumor; they are rules with noise and not clinical experts. Last, the box of one
case is written for the scanner and for programs that analyze spectra. Not for clinical use.
"""

from pathlib import Path

import numpy as np

from placement import (
    Scene,
    Voxel,
    VoxelOptimizer,
    evaluate_placements,
    simulate_gliomas,
    write_prescription,
)
from placement.exchange.overlays import plot_overlay
from placement.search.optimizer import CONSOLE
from placement.study.evaluation import format_summary

told, experts = simulate_gliomas(12, exclude=("necrosis",), image=True, random_state=1)
untold = [Scene(scene.tumor, scene.affine, image=scene.image, name=scene.name) for scene in told]

# What a console takes: a tenth of a millimeter, whole sides, a tenth of a degree.
optimizer = VoxelOptimizer(rounding=CONSOLE, random_state=0)
placements = {"optimizer": optimizer.predict(untold), "out of the core": optimizer.predict(told)}
tables = evaluate_placements(untold, experts, placements)
columns = ["f_tumor", "volume", "dice_closest", "rotated_axes"]
print(format_summary(tables)[columns].to_string())

# The case with the largest core.
cores = [scene.forbidden["necrosis"].sum() for scene in told]
case = int(np.argmax(cores))
boxes = {name: Voxel.from_array(rows[case]) for name, rows in placements.items()}
boxes |= {
    f"simulated expert {j + 1}": Voxel.from_array(row) for j, row in enumerate(experts[case])
}
folder = Path("build/examples")
folder.mkdir(parents=True, exist_ok=True)
plot_overlay(boxes, told[case]).savefig(folder / "place_voxel.png", dpi=150)

chosen = optimizer.place(told[case])
written = write_prescription(
    chosen,
    told[case],
    folder / "voxel",
    optimizer=optimizer,
    ppm_range=(-1.0, 1.0),
    percent_per_ppm=3.0,
    overwrite=True,
)
scores = written["scores"]
print(f"{written['volume_mL']:.1f} mL, {scores['tumor_fraction']:.2f} of it tumor")
print("flags:", written["flags"])
print(
    "under chemical-shift displacement:", round(written["displacement"]["worst_tumor_fraction"], 2)
)
