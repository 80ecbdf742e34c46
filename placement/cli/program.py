"""
The program dmrifit-placement; each command imports what it needs when it runs.

Options:
bandwidth HZ: Bandwidths of the pulses in Hz: one number, or one per side. The boxes of water, the
    metabolite and lipid must then stay in the brain. Not with --ppm.
brain FILE|auto|none: Mask of the brain, outside of which no box may reach; auto takes the column
    brain of the table, or finds the brain in the image; what it finds at the edge depends on the
    thickness of slices, so that a mask is better where the tumor is said to lie outside.
brain_margin 0..: Distance to keep inside the brain, in mm.
carrier: Chemical shift that the pulses are tuned to, in ppm, for --bandwidth.
cases CASES: NIfTI mask of the tumor, where probabilities count as parts of voxels; a folder of
    them, where NAME_image, NAME_exclude and NAME_brain.nii.gz belong to NAME.nii.gz; or a table
    (.tsv) with the columns name and tumor, and optionally image, exclude (files, separated by
    commas) and brain, relative to the table.
exclude LABELS|FILES: Labels of the tumor file, or masks, that no voxel may overlap.
experts EXPERTS: Table (.tsv) of boxes with the columns name, expert, x, y, z (center in mm RAS+),
    size_x, size_y, size_z (mm), angle_x, angle_y, angle_z (degrees), as simulate writes it.
flair_target: Take FLAIR-bright tissue (edema, too) for the target of tumors in which nothing is
    labeled as enhancing, or solid tumor is below the smallest volume.
force REASON: Write numbers for consoles although less than half of the box is target, or
    brain.
image: Image for the figures, in which the brain is found where --brain names none (a single case).
include LABELS: Labels that count as tumor, such as 3,4.
labels SCHEME|FILE: What the values of the tumor file mean: brats2013, brats2017 (to 2022),
    brats2023 (metastases), or a table (.tsv) with the columns index and name. The target is then
    solid tumor.
margin 0..: Distance to keep from excluded regions, in mm. With --tolerance it is not kept: the
    tolerated fraction is that of the voxel with this margin around it.
metabolite: Chemical shift of the metabolite, in ppm, for --bandwidth; choline by default.
min_volume 0..: Smallest volume in mL.
percent_per_ppm PERCENT: Chemical-shift displacement per ppm, in percent of the side: one number,
    or one per axis; needs --ppm.
ppm LOW,HIGH: Chemical shifts of interest, relative to the pulses, in ppm; needs
    --percent-per-ppm.
seed 0..: Random seed.
sides LOW,HIGH: Shortest and longest side in mm.
tesla: Field in tesla, for --bandwidth.
tolerance 0..0.99: Fraction of the voxel, with its --margin, that may overlap excluded regions,
    such as 0.05 where labels are scattered.
"""

from __future__ import annotations

from dmrifit.cli.console import make_program
from placement.cli.placement_commands import place, prescribe, read
from placement.cli.repeat_commands import repeat
from placement.cli.study_commands import evaluate, reader, simulate, train

app, main = make_program(
    "dmrifit-placement",
    "Place spectroscopy voxels in brain tumors. Not for clinical use.",
    [place, prescribe, read, repeat, simulate, train, evaluate, reader],
    first="dmrifit-placement place tumor.nii.gz --out placed",
    options=__doc__,
)
