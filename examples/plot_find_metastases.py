"""
Which bright spots in a brain are metastases, and which of them are new?

In synthetic contrast-enhanced brains (no person was scanned) metastases hide among vessels and other bright spots, and
most patients have an earlier scan. A small network is trained with binary cross-entropy, and from its weights two more
with the loss of Huang et al. (Medical Physics, 2022): one of high sensitivity, one of high specificity. Findings of both
are marked by both, those of the first alone are for review, and the reader's table says what is new since the earlier
scan. Small networks, trained for seconds, show the method, not its best accuracy. Not for clinical use.
"""

from pathlib import Path

from dmrifit import Training, save_model
from metastasis import (
    DeepMedicSegmenter,
    SensitivitySpecificityEnsemble,
    evaluate_segmentations,
    follow_up,
    simulate_metastases,
)
from metastasis.study.evaluation import format_summary
from metastasis.study.plotting import plot_overlay

cases = simulate_metastases(8, shape=(36, 36, 36), spacing=2.5, metastases=(3, 6), random_state=1)
learned, new = cases[:5], cases[5:]


def scans(some):
    return {
        "volumes": [case.image for case in some],
        "priors": [case.prior for case in some],
        "masks": [case.brain for case in some],
    }


folder = Path("build/examples")
folder.mkdir(parents=True, exist_ok=True)
size = {
    "widths": (4, 4, 8, 8),
    "low_resolution": (3,),
    "segment_size": 17,
    "dense": (16,),
    "device": "cpu",
}
labels = [case.label for case in learned]
base = DeepMedicSegmenter(
    "bce",
    **size,
    segments_per_epoch=150,
    training=Training(epochs=8, learning_rate=0.01, schedule="cosine"),
    random_state=0,
)
base.fit(labels=labels, **scans(learned))
save_model(base, folder / "base.dmrifit")

further = {
    "segments_per_epoch": 150,
    "training": Training(epochs=2, learning_rate=0.002),
    "random_state": 0,
}
models = [
    DeepMedicSegmenter("jvss", alpha, **size, **further, warm_start_from=folder / "base.dmrifit")
    for alpha in (0.95, 0.5)
]
sensitive, specific = (model.fit(labels=labels, **scans(learned)) for model in models)
both = SensitivitySpecificityEnsemble(sensitive, specific)

found = {
    "cross-entropy": base.predict_proba(**scans(new)),
    "sensitive": sensitive.predict_proba(**scans(new)),
    "specific": specific.predict_proba(**scans(new)),
    "both": both.predict(**scans(new)),
}
tables = evaluate_segmentations(new, found, n_bootstrap=0, random_state=0)
columns = ["sensitivity", "precision", "n_false_positives", "strict_precision", "lesion_dice"]
print(format_summary(tables)[columns].to_string())

reader = follow_up(both, new)
sure = reader[reader["finding"] == "marked by both"]
print(f"{len(sure)} marked by both of {(reader['finding'] != 'prior only').sum()} found:")
print(sure[["name", "change", "volume_mL", "x", "y", "z"]].round(2).to_string(index=False))
plot_overlay(new[0], found["both"][0], of_two_models=True).savefig(
    folder / "find_metastases.png", dpi=150
)
