"""
How well does a clinical protocol predict an advanced one?

This is the study of Macarro et al. (J Magn Reson Imaging 61:1018, 2025) on synthetic patients: no person was scanned.
A clinical protocol has five contrasts, an advanced one 21. Predictors learn the second from the first on all patients
but one, and are scored on that one. At the end stands the board: what the study claims, and whether it holds here.
"""

# %%
# Data
# ----
# A `dmrifit.Cohort` is a list of scans with protocol, mask and lesion. Your own are read from a table of files,
# ``dmrifit.Cohort.read("participants.tsv")``; here they are simulated, and few and small so that this page is built
# in seconds.

import dmrifit

cohort = dmrifit.simulate_cohort("cohort1", 5, shape=(24, 24, 6), random_state=0)
protocol = cohort.scans[0].protocol
clinical = protocol.take(protocol.clinical())
print(len(cohort.patients), "synthetic patients,", len(protocol), "contrasts, of which clinical:", clinical.labels)

# %%
# The comparison
# --------------
# Two strategies: *s2s* predicts the missing signals and fits the model to them, *m2m* predicts the parameters from
# clinical maps. Two of the seven algorithms take part. Controls stand beside them in every comparison: a predictor that
# ignores its input (constant), one that learned shuffled targets, copies of what was measured (copy), and the answer
# itself (perfect); of synthetic patients also the truth and a second measurement (repeat). Skill is 1 − error / error of
# the best constant: a method whose interval reaches below 0 may have learned nothing.

evaluation = dmrifit.leave_one_patient_out(cohort, algorithms=("LR", "RFR"), random_state=0)
# sphinx_gallery_start_ignore
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
summary = evaluation.summary()
names = ["LR", "RFR", "constant", "shuffled", "truth", "repeat"]
for axis, strategy in zip(axes, ("s2s", "m2m"), strict=True):
    rows = summary[(summary["strategy"] == strategy) & (summary["parameters"] == "tissue")]
    rows = rows.set_index("algorithm").loc[names]
    errors = [rows["skill"] - rows["skill_low"], rows["skill_high"] - rows["skill"]]
    axis.bar(names, rows["skill"], yerr=errors, color=["C0", "C0", "0.6", "0.6", "0.6", "0.6"], ecolor="0.2")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_title(f"{strategy}, 5 synthetic patients")
axes[0].set_ylabel("skill of maps")
# sphinx_gallery_end_ignore
evaluation.headline().drop(columns=["trained on", "N", "cohort"])

# %%
# Scores are computed in each patient's lesion first and averaged afterwards. Bias and dispersion alone do not expose
# a useless predictor: look at the skill. Maps have it twice, because the reference is a fit to images that include the
# inputs: a predictor can follow noise that both share. Against a fit to a second draw of the noise (independent) that
# does not count; the difference is called shared noise.
#
# Maps of a new patient
# ---------------------
# The chosen predictor is trained on all patients. What it says of a voxel is an estimate with an error, and
# `dmrifit.ConformalIntervals` says how large: 90 % of the values of a *new patient of the same kind* are inside.

voxels = cohort.arrays(mask="body", max_voxels=250, random_state=0)
predictor = dmrifit.SignalToSignal("LR", source=voxels.source, target=voxels.target)
intervals = dmrifit.ConformalIntervals(predictor, coverage=0.9).fit(voxels.X, voxels.Y, groups=voxels.groups)
low, high = intervals.predict_interval(voxels.X[:1])[0].T
for name, unit, one, other in zip(dmrifit.MODELS["t2-ivim-kurtosis"].names,
                                  dmrifit.MODELS["t2-ivim-kurtosis"].units, low, high, strict=True):  # fmt: skip
    print(f"{name:4s} {one:8.3g} to {other:8.3g} {unit}")

# %%
# ``dmrifit.save_model(predictor.fit(voxels.X, voxels.Y), "LR.dmrifit")`` writes a file that holds numbers only, and
# ``dmrifit predict LR.dmrifit image.nii.gz --out maps`` applies it to a scan.
#
# The board
# ---------
# One cohort with one seed decides nothing. Twelve comparisons, of three seeds, two regions to train on and two kinds of
# synthetic cohorts, decide more. This is the board that ``benchmarks/bench_claims.py`` measured:

# Read from benchmarks/results/claims.json.
# sphinx_gallery_start_ignore
import pandas as pd
from pages import result

stored = pd.DataFrame(result("claims")["claims"])
stored[["claim", "statement", "study", "verdict"]]
# sphinx_gallery_end_ignore

# %%
# "Does not hold" is said of synthetic cohorts, whose tissues and noise are assumptions. It is a finding about them and
# about the method, and none about the patients of the study. The same on files:
#
# .. code-block:: sh
#
#    dmrifit benchmark participants.tsv --out study --sizes 1,2,3,5,8,10,12,15
#    dmrifit report study
