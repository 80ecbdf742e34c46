"""
How much of an advanced protocol can be predicted from a clinical one?

Two synthetic cohorts (no person was scanned), measured with one protocol on two scanners, 1.5 T and 3 T.
Predictors are trained on the clinical images of some patients and tested on another one, within a cohort and
from one scanner to the other; a constant takes part as control. The report, the model and the maps it predicts
for a new patient go to build/demo.
"""

from pathlib import Path

from dmrifit import (
    Cohort,
    MapsToMaps,
    Protocol,
    SignalToSignal,
    compare,
    predict_image,
    save_model,
    simulate_cohort,
    write_report,
)

out = Path("build/demo")

# Eight patients on each scanner, and one more who has the clinical images only. Your own table replaces these.
if not (out / "new" / "participants.tsv").exists():
    protocol = Protocol.preset("cohort1")
    for name, field in (("scannerA", 1.5), ("scannerB", 3.0)):
        simulate_cohort(protocol, 8, name=name, field=field, random_state=0).write(out / "data")
    simulate_cohort(protocol.take(protocol.clinical()), 1, name="new", random_state=0).write(out / "new")

# Compare within cohorts and across, and report.
cohorts = Cohort.read(out / "data" / "participants.tsv")
estimators = {f"{name} s2s": SignalToSignal(name) for name in ("LR", "RFR", "constant")}
estimators |= {f"{name} m2m": MapsToMaps(name) for name in ("LR", "RFR", "constant")}
evaluation = compare(estimators, cohorts, train_on=("same", "other"), max_voxels=250, random_state=0)
print("report:", write_report(evaluation, out / "study"))

# Train on one scanner, save the model, predict the maps of the new patient.
table = cohorts["scannerA"].arrays(mask="body", max_voxels=250, random_state=0)
model = SignalToSignal("LR", source=table.source, target=table.target).fit(table.X, table.Y)
save_model(model, out / "model")
new = f"{out}/new/sub-newp01/dwi/sub-newp01"
predict_image(model, f"{new}_dwi.nii.gz", mask=f"{new}_desc-body_mask.nii.gz", out=out / "maps", overwrite=True)
print("maps:", out / "maps")
