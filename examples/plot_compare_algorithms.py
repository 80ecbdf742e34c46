"""
How much of an advanced protocol can be predicted from a clinical one?

Two synthetic cohorts (no person was scanned), measured with one protocol on two scanners, 1.5 T and 3 T.
Predictors are trained on the clinical images of some patients and tested on another one, within a cohort and
from one scanner to the other; a constant takes part as control. The report, the model and the maps it predicts
for a new patient go to build/demo.
"""

import shutil
from pathlib import Path

import dmrifit

out = Path("build/demo")

# Eight patients on each scanner, and one more who has the clinical images only. Your own table replaces these.
for folder in ("data", "new"):
    shutil.rmtree(out / folder, ignore_errors=True)
protocol = dmrifit.Protocol.preset("cohort1")
for name, field in (("scannerA", 1.5), ("scannerB", 3.0)):
    dmrifit.simulate_cohort(protocol, 8, name=name, field=field, random_state=0).write(out / "data")
clinical = protocol.take(protocol.clinical())
dmrifit.simulate_cohort(clinical, 1, name="new", random_state=0).write(out / "new")

# Compare predictors within cohorts and across, leaving one patient out.
cohorts = dmrifit.Cohort.read(out / "data/participants.tsv")
estimators = {f"{name} s2s": dmrifit.SignalToSignal(name) for name in ("LR", "RFR", "constant")}
estimators |= {f"{name} m2m": dmrifit.MapsToMaps(name) for name in ("LR", "RFR", "constant")}
evaluation = dmrifit.compare(estimators, cohorts, train_on=("same", "other"), max_voxels=250, random_state=0)
print("report:", dmrifit.write_report(evaluation, out / "study"))

# Train on one scanner, save the model, predict the maps of a new patient from the clinical images.
table = cohorts["scannerA"].arrays(mask="body", max_voxels=250, random_state=0)
model = dmrifit.SignalToSignal("LR", source=table.source, target=table.target).fit(table.X, table.Y)
dmrifit.save_model(model, out / "model")
new = f"{out}/new/sub-newp01/dwi/sub-newp01"
image, mask = f"{new}_dwi.nii.gz", f"{new}_desc-body_mask.nii.gz"
maps = dmrifit.predict_image(model, image, mask=mask, out=out / "maps", overwrite=True)
print("maps:", ", ".join(maps), "in", out / "maps")
