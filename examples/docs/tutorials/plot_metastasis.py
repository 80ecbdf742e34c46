"""
Which small metastases are found, and at what price?

This is the study of Huang et al. (Medical Physics 49:5773, 2022) on synthetic brains: no person was scanned. A network
is trained to miss little or to err little, and two such networks together say what is confirmed. The networks of this
page are tiny and trained for seconds: they show how it works, and not how well it can. Not for clinical use.
"""

# %%
# Data
# ----
# Contrast-enhanced brains with metastases and things that look like them; most patients have an earlier scan. Scans of
# your own are a table of files, ``metastasis.read_cases("cases.tsv")``; `dmrifit.prepare_brain` makes such images of
# scans with a skull.

from dmrifit import Training
from metastasis import (
    DeepMedicSegmenter,
    SensitivitySpecificityEnsemble,
    evaluate_segmentations,
    simulate_metastases,
)
from metastasis.study.evaluation import format_summary

cases = simulate_metastases(6, shape=(36, 36, 36), spacing=2.5, metastases=(3, 6), random_state=1)
known, new = cases[:4], cases[4:]


def images(some):
    return {"volumes": [case.image for case in some], "priors": [case.prior for case in some],
            "masks": [case.brain for case in some]}  # fmt: skip


# %%
# Two networks
# ------------
# The loss weighs the sensitivity of a batch against its specificity: α near 1 misses little, α = 0.5 errs little.

size = {"widths": (4, 4, 8, 8), "low_resolution": (3,), "segment_size": 17, "dense": (16,), "device": "cpu",
        "segments_per_epoch": 120, "training": Training(epochs=5, learning_rate=0.01, schedule="cosine"),
        "random_state": 0}  # fmt: skip
labels = [case.label for case in known]
sensitive, specific = (
    DeepMedicSegmenter("jvss", alpha, **size).fit(labels=labels, **images(known)) for alpha in (0.95, 0.5)
)
both = SensitivitySpecificityEnsemble(sensitive, specific)

# %%
# Comparison
# ----------
# A lesion counts as found when one voxel of it is. By this rule a prediction of everything is sensitive: the
# strict columns, and the segmentations that were made without looking, which stand beside every method, expose it.

found = {"JVSS 0.95": sensitive.predict_proba(**images(new)), "JVSS 0.5": specific.predict_proba(**images(new)),
         "ensemble": both.predict(**images(new))}  # fmt: skip
tables = evaluate_segmentations(new, found, n_bootstrap=0, random_state=0)
format_summary(tables)[["sensitivity", "precision", "n_false_positives", "strict_precision", "lesion_dice"]]

# %%
# A picture
# ---------
# What the ensemble says of one patient (synthetic), in three planes through the largest lesion: what both networks see
# is confirmed, the rest is for review.

# sphinx_gallery_start_ignore
from pathlib import Path

from dmrifit import lesion_table
from metastasis.study.plotting import plot_overlay

lesions = lesion_table(new[0].label, new[0].label, new[0].affine)
center = lesions.sort_values("volume_mL")[["x", "y", "z"]].iloc[-1].to_numpy(float)
Path("build").mkdir(exist_ok=True)
plot_overlay(new[0], found["ensemble"][0], confirmable=True, center=center).savefig("build/metastasis.png", dpi=110)
# sphinx_gallery_end_ignore
print(
    {name: int((found["ensemble"][0] == label).sum()) for name, label in (("candidate", 1), ("confirmed", 2))}, "voxels"
)

# %%
# The board
# ---------
# What the study claims is not decided by one seed. ``benchmarks/bench_metastasis.py`` trains larger networks, on 40
# synthetic patients for each of three seeds:

# Read from benchmarks/results/metastasis.json.
# sphinx_gallery_start_ignore
import pandas as pd
from pages import result

stored = pd.DataFrame(result("metastasis")["claims"])
stored[["claim", "statement", "study", "verdict"]]
# sphinx_gallery_end_ignore

# %%
# On files:
#
# .. code-block:: sh
#
#    dmrifit-metastasis train cases.tsv --alpha 0.995 --out sensitive.dmrifit
#    dmrifit-metastasis train cases.tsv --alpha 0.5 --out specific.dmrifit
#    dmrifit-metastasis ensemble sensitive.dmrifit specific.dmrifit new.tsv --out joined
#    dmrifit dicom-seg joined/sub-01/label.nii.gz --source dicom/t1c --kind metastasis --separate --out lesions.dcm
#
# The last line (`dmrifit.write_dicom_seg` in Python, extra ``dicom``) makes a DICOM segmentation of the lesions of one
# scan, on the series that it was converted from, for viewers and planning systems.
