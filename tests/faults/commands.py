"""Long commands on small synthetic input: what they need first, and how they are called."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KEPT", "LONG", "PREPARED", "LongCommand"]

_BOXES = ("in/cases/placement/cases.tsv", "in/cases/placement/experts.tsv")
_NETWORK = ("--widths", "2,2", "--segments-per-epoch", "4", "--batch-size", "2", "--device", "cpu")
_SERIES = ("--directions", "8", "--shape", "20,24,16", "--spacing", "8")
_HEADS = ("--shape", "36,36,36", "--spacing", "2.5")


@dataclass(frozen=True)
class LongCommand:
    """A command whose results are below the folder ``out``; `needs` names what has to be there first."""

    name: str
    program: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()


#: What a killed run has left for the next one, where the command begins anew: all its files appear together in the end.
ANEW = "nothing"
KEPT = {
    "fit": ANEW,  # a volume takes seconds to a few minutes
    "predict": ANEW,  # as a fit
    "train": ANEW,  # one regressor
    "benchmark": "finished trainings",
    "simulate": ANEW,  # seconds for a patient
    "anomaly train network": "finished epochs",
    "anomaly train": ANEW,  # no network, seconds to minutes
    "detect": "finished scans",
    "metastasis train": "finished epochs",
    "segment": "finished scans",
    "ensemble": "finished scans",
    "placement train network": "finished epochs",
    "placement train": ANEW,  # the optimizer's candidates and a forest, about a second for a case
    "place": "finished cases",
}

#: Commands that make the input of others, by name: they run in the folder of the input, in this order.
PREPARED = {
    "cohort": ("dmrifit", ("simulate", "--out", "cases/cohort", "--patients", "3", "--shape", "16,16,3", "--seed", "4",
                           "--preset", "cohort1")),
    "predictor": ("dmrifit", ("train", "cases/cohort/participants.tsv", "--out", "predictor.dmrifit")),
    "series": ("dmrifit-anomaly", ("simulate", "5", "2", "--out", "cases/series", *_SERIES)),
    "detector": ("dmrifit-anomaly", ("train", "cases/series/healthy.tsv", "--out", "detector.dmrifit",
                                     "--set", "side=low", "--calibration", "2")),
    "heads": ("dmrifit-metastasis", ("simulate", "4", "--out", "cases/heads", *_HEADS)),
    "others": ("dmrifit-metastasis", ("simulate", "2", "--skip", "4", "--out", "cases/others", *_HEADS)),
    "segmenter": ("dmrifit-metastasis", ("train", "cases/heads/cases.tsv", "--out", "segmenter.dmrifit",
                                         "--epochs", "1", *_NETWORK)),
    "boxes": ("dmrifit-placement", ("simulate", "3", "--out", "cases/placement", "--spacing", "4")),
}  # fmt: skip

#: The commands that are killed.
LONG = [
    LongCommand(
        "fit",
        "dmrifit",
        ("fit", "in/cases/cohort/{image}", "--out", "out/maps"),
        ("cohort",),
    ),
    LongCommand(
        "predict",
        "dmrifit",
        ("predict", "in/predictor.dmrifit", "in/cases/cohort/{image}", "--signals", "--out", "out/maps"),
        ("cohort", "predictor"),
    ),
    LongCommand(
        "train",
        "dmrifit",
        ("train", "in/cases/cohort/participants.tsv", "--algorithm", "RFR", "--out", "out/model.dmrifit"),
        ("cohort",),
    ),
    LongCommand(
        "benchmark",
        "dmrifit",
        ("benchmark", "in/cases/cohort/participants.tsv", "--algorithms", "LR", "--strategies", "s2s", "--no-controls",
         "--sizes", "1,2", "--max-voxels", "40", "--out", "out/study"),
        ("cohort",),
    ),
    LongCommand(
        "simulate",
        "dmrifit",
        ("simulate", "--out", "out/cohort", "--patients", "3", "--shape", "16,16,3", "--preset", "cohort1"),
    ),
    LongCommand(
        "anomaly train network",
        "dmrifit-anomaly",
        ("train", "in/cases/series/healthy.tsv", "--detector", "dae", "--set", "latent_dim=4", "--set", "widths=[2,4]",
         "--epochs", "3", "--device", "cpu", "--out", "out/model.dmrifit"),
        ("series",),
    ),
    LongCommand(
        "anomaly train",
        "dmrifit-anomaly",
        ("train", "in/cases/series/healthy.tsv", "--set", "side=low", "--calibration", "2", "--out",
         "out/model.dmrifit"),
        ("series",),
    ),
    LongCommand(
        "detect",
        "dmrifit-anomaly",
        ("detect", "in/detector.dmrifit", "in/cases/series/gliomas.tsv", "--out", "out/found"),
        ("series", "detector"),
    ),
    LongCommand(
        "metastasis train",
        "dmrifit-metastasis",
        ("train", "in/cases/heads/cases.tsv", "--epochs", "3", *_NETWORK, "--validation", "in/cases/others/cases.tsv",
         "--false-positives", "1000", "--out", "out/model.dmrifit"),
        ("heads", "others"),
    ),
    LongCommand(
        "segment",
        "dmrifit-metastasis",
        ("segment", "in/segmenter.dmrifit", "in/cases/others/cases.tsv", "--out", "out/segmented"),
        ("heads", "others", "segmenter"),
    ),
    LongCommand(
        "ensemble",
        "dmrifit-metastasis",
        ("ensemble", "in/segmenter.dmrifit", "in/segmenter.dmrifit", "in/cases/others/cases.tsv", "--out",
         "out/joined"),
        ("heads", "others", "segmenter"),
    ),
    LongCommand(
        "placement train network",
        "dmrifit-placement",
        ("train", *_BOXES, "--model", "network", "--fast", "--epochs", "3", "--out", "out/model.dmrifit"),
        ("boxes",),
    ),
    LongCommand(
        "placement train",
        "dmrifit-placement",
        ("train", *_BOXES, "--out", "out/model.dmrifit"),
        ("boxes",),
    ),
    LongCommand(
        "place",
        "dmrifit-placement",
        ("place", "in/cases/placement/cases.tsv", "--out", "out/placed"),
        ("boxes",),
    ),
]  # fmt: skip
