"""
How much of an advanced protocol can be predicted from a clinical one?

Two synthetic cohorts (no person was scanned), measured with one protocol on two scanners, 1.5 T and 3 T.
Predictors are trained on the clinical images of some patients and tested on another one, within a cohort and
from one scanner to the other; a constant takes part as control. The report, the model and the maps it predicts
for a new patient go to build/demo.
"""

import shutil

import dmrifit
from dmrifit.reporting import summarize

# Eight patients on each scanner, and one more who has the clinical images only. Your own table replaces these.
for folder in ("build/demo/data", "build/demo/new"):
    shutil.rmtree(folder, ignore_errors=True)
protocol = dmrifit.Protocol.preset("cohort1")
for name, field in (("scannerA", 1.5), ("scannerB", 3.0)):
    dmrifit.simulate_cohort(protocol, 8, name=name, field=field, random_state=0).write("build/demo/data")
clinical = protocol.take(protocol.clinical())
dmrifit.simulate_cohort(clinical, 1, name="new", random_state=0).write("build/demo/new")

# Compare predictors within cohorts and across, leaving one patient out.
cohorts = dmrifit.Cohort.read("build/demo/data/participants.tsv")
estimators = {f"{name} s2s": dmrifit.SignalToSignal(name) for name in ("LR", "RFR", "constant")}
estimators |= {f"{name} m2m": dmrifit.MapsToMaps(name) for name in ("LR", "RFR", "constant")}
evaluation = dmrifit.compare(estimators, cohorts, train_on=("same", "other"), max_voxels=250, random_state=0)
page = dmrifit.write_report(evaluation, "build/demo/study")

# Train on one scanner, save the model, predict the maps of a new patient from the clinical images.
table = cohorts["scannerA"].arrays(mask="body", max_voxels=250, random_state=0)
model = dmrifit.SignalToSignal("LR", source=table.source, target=table.target).fit(table.X, table.Y)
dmrifit.save_model(model, "build/demo/LR.dmrifit")
new = "build/demo/new/sub-newp01/dwi/sub-newp01"
image, mask = f"{new}_dwi.nii.gz", f"{new}_desc-body_mask.nii.gz"
maps = dmrifit.predict_image(model, image, mask=mask, out="build/demo/maps", overwrite=True)

# What came out: means over patients and tissue parameters, as fractions.
columns = ["train_on", "cohort", "strategy", "algorithm", "abs_bias", "dispersion", "pearson"]
print(summarize(evaluation)[columns].round(2).to_string(index=False))
print("synthetic data: no clinical result")
print("report:", page)
print("maps of the new patient:", ", ".join(maps), "in build/demo/maps")
