"""
Which voxels are unlike those of healthy people?

This is the study of Weninger et al. (Scientific Reports, 2023) on synthetic brains: no person was scanned. Detectors
learn from healthy scans only, and mark what is unlike them. Not for clinical use.
"""

# %%
# Data
# ----
# Healthy scans to learn from, more healthy scans that nothing should be found in, and patients with gliomas. Scans of
# your own are a table of files, ``anomaly.read_cases("cases.tsv")``, on one grid and aligned to each other.

from anomaly import PCADetector, VoxelwiseGaussian, evaluate_detectors, simulate_dmri
from anomaly.study.evaluation import format_summary

healthy, patients = simulate_dmri(16, 4, n_directions=6, shape=(26, 30, 22), spacing=6, random_state=2)
known, new = healthy[:12], healthy[12:]

# %%
# Detectors and their threshold
# -----------------------------
# One looks at each place by itself, the other at patterns over the brain. `fit` chooses the threshold that 1 %
# of the voxels of healthy scans exceed, so that a healthy scan can come out empty. `anomaly.DenoisingAutoencoder` and
# `anomaly.RecDiscNet` are the networks of the study, and are used in the same way.


def signals_and_brains(cases):
    return [case.signal for case in cases], [case.brain for case in cases]


detectors = {"z, one-sided": VoxelwiseGaussian(side="low"), "PCA": PCADetector(5)}
maps, healthy_maps = {}, {}
for name, detector in detectors.items():
    detector.fit(*signals_and_brains(known))
    maps[name] = list(detector.anomaly_map(*signals_and_brains(patients)))
    healthy_maps[name] = list(detector.anomaly_map(*signals_and_brains(new)))

# %%
# Comparison
# ----------
# Five controls have learned nothing: all voxels that are scored, none, the whole brain, another patient's lesion, and
# one minus the mean signal. A detector that is no better than the last is not worth its training. AUC ranks voxels
# without any threshold; Dice is that of what lies above it, and "opened" that of what a cube of 3³ voxels leaves of it.

tables = evaluate_detectors(patients, maps, healthy=new, healthy_maps=healthy_maps)
format_summary(tables, rule="healthy rate")[["AUC", "Dice", "opened"]]

# %%
# A picture
# ---------
# Of the patient with the largest lesion (synthetic), in the axial slice with most of it. Each row is a detector: its
# map, what is above the threshold, and that after opening.

thresholds = {name: detector.threshold_.threshold_ for name, detector in detectors.items()}
# sphinx_gallery_start_ignore
from pathlib import Path

import numpy as np

from anomaly.study.plotting import map_limits, plot_panels

largest = int(np.argmax([case.lesion.sum() for case in patients]))
Path("build").mkdir(exist_ok=True)
shown = {name: values[largest] for name, values in maps.items()}
plot_panels(patients[largest], shown, thresholds, map_limits(maps, patients)).savefig("build/anomaly.png", dpi=110)
# sphinx_gallery_end_ignore
print("thresholds:", {name: round(float(value), 3) for name, value in thresholds.items()})

# %%
# The board
# ---------
# The study's claims are about its networks, which are not part of this page. ``benchmarks/bench_anomaly.py`` checks
# them on synthetic scans that are well registered and on shifted ones, with three seeds:

# Read from benchmarks/results/anomaly.json.
# sphinx_gallery_start_ignore
import pandas as pd
from pages import result

stored = pd.DataFrame(result("anomaly")["claims"])
stored[["claim", "statement", "study", "verdict"]]
# sphinx_gallery_end_ignore

# %%
# On files:
#
# .. code-block:: sh
#
#    dmrifit-anomaly train healthy.tsv --detector gaussian --set side=low --out z.dmrifit
#    dmrifit-anomaly detect z.dmrifit patients.tsv --out found
#    dmrifit-anomaly evaluate patients.tsv --detections z=found/detections.tsv --out compared
#    dmrifit dicom-seg found/sub-01/opened.nii.gz --source dicom/dwi --out anomalies.dcm
#
# ``compared/report.html`` shows the maps in three planes to move through, with a threshold to slide. The last line
# makes a DICOM segmentation of one scan for other viewers (`dmrifit.write_dicom_seg`).
