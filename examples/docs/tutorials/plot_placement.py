"""
Where should the spectroscopy voxel go?

This is the study of Lee et al. (MICCAI 2024) on synthetic gliomas, with simulated experts, who are rules with noise and
no clinical experts. A voxel is placed by a search and by what experts chose, and both are compared with the experts'
boxes. Not for clinical use.
"""

# %%
# Data
# ----
# A `placement.Scene` is a mask of the tumor, and if wanted what to stay out of. Experts' boxes are rows of nine
# numbers: center and size in mm, angles in degrees, in world coordinates (RAS+).

from placement import VoxelOptimizer, VoxelRanker, evaluate_placements, simulate_gliomas

scenes, experts = simulate_gliomas(16, n_experts=2, image=True, random_state=0)
known, new = slice(0, 12), slice(12, 16)
print(f"{len(scenes)} synthetic tumors of {min(s.tumor_volume for s in scenes):.0f} to "
      f"{max(s.tumor_volume for s in scenes):.0f} mL, {experts.shape[1]} boxes each")  # fmt: skip

# %%
# Two placers
# -----------
# The optimizer searches for the box whose objective is largest: much tumor in it, and the volume that is usual. It
# needs no training. The ranker chooses among many such boxes the one that experts would take, and learns from theirs.

optimizer = VoxelOptimizer(random_state=0)
ranker = VoxelRanker(optimizer, random_state=0).fit(scenes[known], experts[known])
placed = {"objective": optimizer.predict(scenes[new]), "ranker": ranker.predict(scenes[new])}

# %%
# Comparison with experts
# -----------------------
# Overlap with the closest of two experts is the larger of two numbers, so that chance helps; the experts' overlap among
# themselves has no such help. Two controls, a random box and one at the centroid, stand beside the placers.

tables = evaluate_placements(scenes[new], experts[new], placed)
tables["cases"].groupby("method")[["dice_closest", "f_tumor", "volume", "rotated_axes"]].mean().round(2)

# %%
# What the scanner needs
# ----------------------
# `placement.write_prescription` writes the box as masks, as an image of one voxel, as numbers for the console, and
# as JSON. Here are the numbers of one case, and a picture of it (synthetic) with the boxes of the two simulated
# experts.

voxel = ranker.place(scenes[12])
print("center", voxel.center.round(1), "mm, size", voxel.size.round(1), "mm, angles", voxel.angles.round(1), "degrees")
# sphinx_gallery_start_ignore
from pathlib import Path

from placement import Voxel
from placement.exchange.overlays import plot_overlay

boxes = {"ranker": voxel, "objective": optimizer.place(scenes[12])}
boxes |= {f"simulated expert {j + 1}": Voxel.from_array(row) for j, row in enumerate(experts[12])}
Path("build").mkdir(exist_ok=True)
plot_overlay(boxes, scenes[12]).savefig("build/placement.png", dpi=110)
# sphinx_gallery_end_ignore

# %%
# The board
# ---------
# With twelve tumors to learn from and four to be tested on, differences between the rows above mean little. The study
# compares a network with the objective. ``benchmarks/bench_placers.py`` trains that network, too, on 100 synthetic
# tumors for each of five seeds:

# Read from benchmarks/results/placers.json.
# sphinx_gallery_start_ignore
import pandas as pd
from pages import result

kinds = result("placers")["kinds"]
stored = pd.DataFrame(next(kind for kind in kinds.values() if kind.get("claims"))["claims"])
stored[["claim", "statement", "study", "verdict"]]
# sphinx_gallery_end_ignore

# %%
# The same on files:
#
# .. code-block:: sh
#
#    dmrifit-placement train cases.tsv experts.tsv --model ranker --out ranker.dmrifit
#    dmrifit-placement place new.tsv --model ranker.dmrifit --out placed
#    dmrifit-placement evaluate new.tsv experts.tsv --placements ranker=placed/placements.tsv --out tables
#    dmrifit dicom-seg placed/case-01/voxel_mask.nii.gz --source dicom/t1c --kind voxel --out voxel.dcm
#
# The last line makes a DICOM segmentation of one box (`dmrifit.write_dicom_seg`).
