"""
The program dmrifit-anomaly; each command imports what it needs when it runs.

Options:
all_voxels: Where no brain is named, use all voxels with signal at b = 0 (blocks of tissue) instead
    of searching the brain.
cases CASES: Table (.tsv) of series with the columns patient and image, and optionally name, bval,
    bvec, brain, tissue, lesion, followup, age, sex, site, grade and kind (files relative to the
    table); or a folder of series NAME.nii.gz, each of another patient, with .bval and .bvec, and
    optionally NAME_brain, NAME_tissue and NAME_lesion.nii.gz.
device auto|cpu|cuda: Device of networks; auto by default.
estimate_tissue: Exclude fluid, recognized by its diffusion, where no tissue map is named.
"""

from __future__ import annotations

from anomaly.cli.detection_commands import detect
from anomaly.cli.study_commands import evaluate, simulate, train
from dmrifit.cli.console import make_program

app, main = make_program(
    "dmrifit-anomaly",
    "Find anomalies in diffusion MRI by models of healthy tissue. Not for clinical use.",
    [simulate, train, evaluate, detect],
    first="dmrifit-anomaly detect model.dmrifit dwi.nii.gz --out found",
    options=__doc__,
)
