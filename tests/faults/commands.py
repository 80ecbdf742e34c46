"""Commands on small synthetic input: what they need first, and how they are called."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KEPT", "LONG", "PREPARED", "SPARED", "LongCommand"]

_BOXES = ("in/cases/placement/cases.tsv", "in/cases/placement/experts.tsv")
_NETWORK = ("--widths", "2,2", "--segments-per-epoch", "4", "--batch-size", "2", "--device", "cpu")
_FIRST = "sub-cohort1p01/dwi/sub-cohort1p01"
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
    "fit in parallel": "finished scans",
    "detect in parallel": "finished scans",
    "place in parallel": "finished cases",
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
    # These take seconds, but for simulations of many cases.
    "preprocess": ANEW,
    "roi": ANEW,
    "view": ANEW,
    "report": ANEW,
    "anomaly simulate": "finished cases",
    "anomaly evaluate": ANEW,
    "metastasis simulate": "finished cases",
    "metastasis evaluate": ANEW,
    "placement simulate": "finished cases",
    "placement evaluate": ANEW,
    "prescribe": ANEW,
    "read": ANEW,
    "reader": ANEW,
}

#: Commands that are not killed, and why.
SPARED = {
    ("dmrifit", "info"): "writes no file",
    ("dmrifit", "cite"): "writes no file",
    ("dmrifit", "table"): "writes its table to standard output",
    ("dmrifit", "import"): "is killed with its converter in the tests of the import",
    ("dmrifit-placement", "repeat"): "writes visit by visit as place does, and no command makes two scans of one head",
    ("dmrifit-metastasis", "prepare"): "writes few files, all at its end, and aligning two heads takes seconds",
    ("dmrifit-metastasis", "train-small"): "trains as train does, on real scans, which no command makes",
    ("dmrifit", "dicom-seg"): "writes one file, as view does, and numbers it anew each time",
}

#: Commands that make the input of others, by name: they run in the folder of the input, in this order.
PREPARED = {
    "cohort": ("dmrifit", ("simulate", "--out", "cases/cohort", "--patients", "3", "--shape", "16,16,3", "--seed", "4",
                           "--preset", "cohort1")),
    "predictor": ("dmrifit", ("train", "cases/cohort/participants.tsv", "--out", "predictor.dmrifit")),
    "series": ("dmrifit-anomaly", ("simulate", "5", "2", "--out", "cases/series", *_SERIES)),
    "detector": ("dmrifit-anomaly", ("train", "cases/series/healthy.tsv", "--out", "detector.dmrifit",
                                     "--detector", "gaussian", "--set", "side=low", "--calibration", "2")),
    "heads": ("dmrifit-metastasis", ("simulate", "4", "--out", "cases/heads", *_HEADS)),
    "others": ("dmrifit-metastasis", ("simulate", "2", "--skip", "4", "--out", "cases/others", *_HEADS)),
    "segmenter": ("dmrifit-metastasis", ("train", "cases/heads/cases.tsv", "--out", "segmenter.dmrifit",
                                         "--epochs", "1", *_NETWORK)),
    "maps": ("dmrifit", ("fit", f"cases/cohort/{_FIRST}_dwi.nii.gz", "--out", "maps")),
    "study": ("dmrifit", ("benchmark", "cases/cohort/participants.tsv", "--algorithms", "LR", "--strategies", "s2s",
                          "--no-controls", "--sizes", "1", "--max-voxels", "40", "--out", "study")),
    "found": ("dmrifit-anomaly", ("detect", "detector.dmrifit", "cases/series/gliomas.tsv", "--out", "found")),
    "segmented": ("dmrifit-metastasis", ("segment", "segmenter.dmrifit", "cases/others/cases.tsv", "--out",
                                         "segmented")),
    "boxes": ("dmrifit-placement", ("simulate", "3", "--out", "cases/placement", "--spacing", "4")),
    "placed": ("dmrifit-placement", ("place", "cases/placement/cases.tsv", "--out", "placed")),
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
        ("train", "in/cases/series/healthy.tsv", "--detector", "gaussian", "--set", "side=low", "--calibration", "2", "--out",
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
    LongCommand("fit in parallel", "dmrifit",
                ("fit", "in/cases/cohort/sub-*/dwi/*_dwi.nii.gz", "--jobs", "2", "--out", "out/maps"), ("cohort",)),
    LongCommand("detect in parallel", "dmrifit-anomaly",
                ("detect", "in/detector.dmrifit", "in/cases/series/gliomas.tsv", "--jobs", "2", "--out", "out/found"),
                ("series", "detector")),
    LongCommand("place in parallel", "dmrifit-placement",
                ("place", "in/cases/placement/cases.tsv", "--jobs", "2", "--out", "out/placed"), ("boxes",)),
    LongCommand("preprocess", "dmrifit", ("preprocess", "in/cases/cohort/{image}", "--steps", "denoise", "--out", "out/clean"), ("cohort",)),
    LongCommand("roi", "dmrifit", ("roi", "in/maps", "--labels", f"in/cases/cohort/{_FIRST}_desc-body_mask.nii.gz", "--out", "out/roi.csv"),
                ("cohort", "maps")),
    LongCommand("view", "dmrifit", ("view", "--map", f"body=in/cases/cohort/{_FIRST}_desc-body_mask.nii.gz", "--out", "out/view.html"),
                ("cohort",)),
    LongCommand("report", "dmrifit", ("report", "in/study", "--out", "out/report"), ("cohort", "study")),
    LongCommand("anomaly simulate", "dmrifit-anomaly", ("simulate", "2", "1", "--out", "out/series", *_SERIES)),
    LongCommand("anomaly evaluate", "dmrifit-anomaly",
                ("evaluate", "in/cases/series/gliomas.tsv", "--detections", "z=in/found/detections.tsv", "--out",
                 "out/compared"), ("series", "detector", "found")),
    LongCommand("metastasis simulate", "dmrifit-metastasis", ("simulate", "2", "--out", "out/heads", *_HEADS)),
    LongCommand("metastasis evaluate", "dmrifit-metastasis",
                ("evaluate", "in/cases/others/cases.tsv", "--segmentations", "m=in/segmented/segmentations.tsv",
                 "--out", "out/compared"), ("heads", "others", "segmenter", "segmented")),
    LongCommand("placement simulate", "dmrifit-placement", ("simulate", "2", "--out", "out/cases", "--spacing", "4")),
    LongCommand("placement evaluate", "dmrifit-placement",
                ("evaluate", *_BOXES, "--placements", "x=in/placed/placements.tsv", "--out", "out/tables"),
                ("boxes", "placed")),
    LongCommand("prescribe", "dmrifit-placement",
                ("prescribe", "in/cases/placement/synthetic-001_tumor.nii.gz", "--center", "41.9,-11.7,0.1", "--size", "20,20,20", "--out",
                 "out/box"), ("boxes",)),
    LongCommand("reader", "dmrifit-placement", ("reader", "in/cases/placement/cases.tsv", "--out", "out/page.html"), ("boxes",)),
    LongCommand("read", "dmrifit-placement",
                ("read", "in/placed/synthetic-001/voxel.json", "--image",
                 "in/cases/placement/synthetic-001_image.nii.gz", "--out", "out/box.png"), ("boxes", "placed")),
]  # fmt: skip
