"""
How much of an advanced protocol can be predicted from a clinical one?

Two synthetic cohorts (no person was scanned), 1.5 T and 3 T, each with its own protocol of 21 contrasts. Predictors
see five clinical images and are tested on patients they were not trained on: signals to signals (s2s, the missing
images first) and maps to maps (m2m), on more and more training patients, within a cohort and from one scanner to the
other. The picture shows the skill of maps: 0 for the best constant, which ignores its input, 1 for the reference. The
report, a model and the maps it predicts for a new patient go to build/demo.
"""

import shutil
from pathlib import Path

import matplotlib.pyplot as plt

import dmrifit

# Six patients on each scanner, and one more who has the clinical images only. Your own table
# replaces these.
for folder in ("build/demo/data", "build/demo/new", "build/demo/study"):
    shutil.rmtree(folder, ignore_errors=True)
for name in ("cohort1", "cohort2"):
    dmrifit.simulate_cohort(name, 6, n_jobs=-1, random_state=0).write("build/demo/data")
protocol = dmrifit.Protocol.preset("cohort1")
clinical = protocol.take(protocol.clinical())
dmrifit.simulate_cohort(clinical, 1, name="new", random_state=0).write("build/demo/new")

# Every algorithm of the study but the convolutional network, which needs torch: pip install
# "dmrifit[deep]". Protocols differ, so training images of the other scanner are computed for the
# tested one (resynthesize).
cohorts = dmrifit.Cohort.read("build/demo/data/participants.tsv")
names = [name for name in dmrifit.ALGORITHMS if name != "CNN"]
options = {"resynthesize": True, "n_jobs": -1, "random_state": 0}
evaluation = dmrifit.learning_curve(
    cohorts, sizes=(1, 3, 5), algorithms=names, train_on=("same", "other"), **options
)
page = dmrifit.write_report(evaluation, "build/demo/study")

# Train on one scanner, save the model, predict the maps of a new patient from the clinical images.
table = cohorts["cohort1"].arrays(mask="body", max_voxels=250, random_state=0)
model = dmrifit.SignalToSignal("LR", source=table.source, target=table.target).fit(
    table.X, table.Y
)
dmrifit.save_model(model, "build/demo/LR.dmrifit")
new = "build/demo/new/sub-newp01/dwi/sub-newp01"
image, mask = f"{new}_dwi.nii.gz", f"{new}_desc-body_mask.nii.gz"
maps = dmrifit.predict_image(model, image, mask=mask, out="build/demo/maps", overwrite=True)

# What came out: the first sentences of the report.
print(*page.sentences[1:], sep="\n")

# Of one algorithm; the report has all of them. The maps of these synthetic patients
# are scored against two references, the second with independent noise.
summary = evaluation.summary().set_index(
    ["parameters", "algorithm", "strategy", "train_on", "cohort"]
)
linear = summary.loc[("tissue", "LR", "s2s", "same", "cohort1")]
print(
    f"Linear regression predicts the maps of cohort1 with a skill of {linear['skill']:.2f} "
    f"[{linear['skill_low']:.2f}, {linear['skill_high']:.2f}] over the best constant, and "
    f"{linear['skill_independent']:.2f} against a reference with independent noise "
    "(synthetic data: no clinical result)."
)
print(f'Report of all algorithms: {page} (left out: CNN, which needs pip install "dmrifit[deep]").')
print(f"Maps of the new patient: build/demo/maps ({', '.join(maps)}).")

# Skill over the number of training patients: means over patients of both cohorts and tissue
# parameters but T2v.
tissue = evaluation.scores[~evaluation.scores["metric"].isin(["S0", "T2v"])]
means = tissue.groupby(["strategy", "train_on", "algorithm", "n_train"])["skill"].mean().unstack()
figure, axes = plt.subplots(1, 4, figsize=(11, 3.6), layout="constrained", sharey=True)
regions = {"same": "trained on the same scanner", "other": "trained on the other one"}
for axis, (strategy, region) in zip(
    axes, [(s, r) for s in ("s2s", "m2m") for r in regions], strict=True
):
    for name in names:
        axis.plot(means.columns, means.loc[strategy, region, name], "o-", markersize=4, label=name)
    axis.axhline(0, color="gray", linestyle="--", label="constant")
    # One patient teaches some algorithms less than nothing.
    axis.set(xlabel="training patients", xticks=list(means.columns), ylim=(-1, 0.5))
    axis.set_title(f"{strategy}\n{regions[region]}", fontsize=10)
axes[0].set_ylabel("skill of maps over the best constant\n(synthetic patients)")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
folder = Path("build/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "compare_algorithms.png", dpi=150)
