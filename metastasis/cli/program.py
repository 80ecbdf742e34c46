"""
The program dmrifit-metastasis; each command imports what it needs when it runs.

Options:
cases CASES: Table (.tsv) of scans with the columns patient, image and label, and optionally name,
    classes (labels of metastases, such as 1,3,4), prior and brain (files relative to the table);
    or a folder of scans NAME.nii.gz, each of another patient, with NAME_label.nii.gz and
    optionally NAME_prior and NAME_brain.nii.gz.
device auto|cpu|cuda: Device to compute on; by default that of the model.
flips: Average over eight mirror images; takes eight times as long.
mask FILE|auto|none: Brain mask on the grid of the image (one image); auto finds the brain in scans
    without a mask; none, the default, takes all nonzero voxels.
prior: Prior scan on the grid of the image (single image).
resample: Resample scans to the voxels of the training scans; results are on the scan's grid.
"""

from __future__ import annotations

from dmrifit.cli.console import make_program
from metastasis.cli.segmentation_commands import ensemble, prepare, segment
from metastasis.cli.study_commands import evaluate, simulate, train, train_small

app, main = make_program(
    "dmrifit-metastasis",
    "Find small brain metastases. Not for clinical use.",
    [simulate, train, evaluate, train_small, prepare, segment, ensemble],
    first="dmrifit-metastasis prepare t1c.nii.gz --out prepared\n"
    "dmrifit-metastasis segment prepared --out segmented",
    options=__doc__,
)
