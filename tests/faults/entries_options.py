"""Entries of the corpus for functions whose options are a file, and for calls in Python: what is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from driver import entry, expressions

import anomaly
import dmrifit
import metastasis
import placement
from dmrifit.cohort.participants_table import read_regions
from dmrifit.engine.fit_settings import FitSettings
from dmrifit.imaging.image_rows import patient_scale, source_volumes
from dmrifit.io.masks import check_same_grid
from dmrifit.io.series import Series
from dmrifit.networks.training import gather_training
from dmrifit.predict.intervals import IntervalEnds
from dmrifit.simulate.tissues import tissue_table
from dmrifit.stats.method_tests import study_statistics
from dmrifit.study.splits import check_settings
from dmrifit.study.study_folder import Settings
from placement.cli.placement_commands import ShiftOptions

CUBE = np.zeros((40, 40, 40), bool)
CUBE[8:32, 8:32, 8:32] = True
BALLS = np.random.default_rng(0).normal(100, 5, (6, 16, 15, 14)).astype(np.float32)
SPLITS = {"train_on": ["same"], "cohorts": {"A": ["a1", "a2", "a3", "a4"], "B": ["b1", "b2", "b3"]}}
NETWORK = {"widths": (2, 2), "dense": (2,), "low_resolution": (3,), "segment_size": 7, "segments_per_epoch": 4,
           "epochs": 1, "batch_size": 2, "device": "cpu"}  # fmt: skip


def cube() -> placement.Scene:
    return placement.Scene(CUBE, np.eye(4), name="cube")


def box() -> placement.Voxel:
    return placement.Voxel((20, 20, 20), (20, 20, 20))


def corrupted(**options: Any) -> Any:
    volume = np.full((12, 12, 12, 2), 0.5, np.float32)
    return anomaly.corrupt(volume, np.ones((12, 12, 12), bool), **options)


def segmented(**options: Any) -> Any:
    segmenter = metastasis.DeepMedicSegmenter(**gather_training({"loss": "bce"} | NETWORK | options))
    return segmenter.fit(BALLS, BALLS > 105, priors=BALLS)


def fitted(**options: Any) -> Any:
    b = [0, 30, 60, 100, 200, 400, 600, 900, 1200]
    options = {"model": "ivim", "te": None} | options
    signals = np.array([[100, 95, 90, 85, 75, 60, 50, 40, 30.0]])
    return dmrifit.fit_voxels(signals, dmrifit.Protocol(b, options.pop("te")), options.pop("model"), **options)


def learned(strategy: str, **options: Any) -> Any:
    target = dmrifit.Protocol.preset("cohort1")
    source = target.take(target.clinical())
    estimator = getattr(dmrifit, strategy)(**{"source": source, "target": target} | options)
    return estimator.fit(np.ones((30, 5)), np.ones((30, 21)))


def ranked(**options: Any) -> Any:
    tumor = tissue_table()["tissue"]["tumor"]
    return dmrifit.rank_contrasts(dmrifit.Protocol.preset("cohort1"), "t2-ivim-kurtosis", tumor, 0.01, **options)


def expected(learned: Any, asked: Any = None) -> Any:
    scans = np.random.default_rng(0).uniform(0.1, 0.9, (5, 6, 5, 4, 3)).astype(np.float32)
    detector = anomaly.VoxelwiseGaussian(calibration=None).fit(scans, covariates=learned)
    return detector.anomaly_map(scans[:1], covariates=asked)


def set_by(rule: str, **options: Any) -> Any:
    return getattr(anomaly, rule)(**options).fit(list(BALLS))


def formula(expression: str) -> Any:
    parameters = [dmrifit.Parameter("S0", "signal", 0, np.inf), dmrifit.Parameter("D", "µm²/ms", 0, 5)]
    return dmrifit.SignalModel.from_expression(expression, parameters, name="mine")


#: Each is called with the options of its file; a list of them is given as a tuple.
CALLS: dict[str, Callable[..., Any]] = {
    "FitSettings": lambda **options: FitSettings(**options).check(),
    "FitSettings.box": lambda bounds, model="kurtosis": FitSettings(bounds=bounds).box(dmrifit.MODELS[model]),
    "fit_voxels": fitted,
    "SignalModel.from_expression": formula,
    "rank_contrasts": ranked,
    "MapsToMaps": partial(learned, "MapsToMaps"),
    "SignalToSignal": partial(learned, "SignalToSignal"),
    "IntervalEnds.from_dict": lambda **state: IntervalEnds.from_dict(state, np.array([[-np.inf, np.inf]])),
    "covariates of VoxelwiseGaussian": expected,
    "rules of thresholds": set_by,
    "simulate_cohort": lambda **options: dmrifit.simulate_cohort(
        **{"n_patients": 1, "shape": (16, 16, 3), "random_state": 0} | options
    ),
    "check_settings": lambda **options: check_settings(Settings(**SPLITS | options)),
    "simulate_dmri": lambda **options: anomaly.simulate_dmri(
        **{"n_healthy": 1, "n_lesions": 0, "n_directions": 6, "shape": (20, 24, 16), "spacing": 8.0} | options
    ),
    "corrupt": corrupted,
    "simulate_metastases": lambda **options: metastasis.simulate_metastases(**{"n_patients": 1} | options),
    "DeepMedicSegmenter": segmented,
    "simulate_gliomas": lambda **options: placement.simulate_gliomas(**{"n": 1} | options),
    "VoxelOptimizer": lambda **options: placement.VoxelOptimizer(**options).place(cube()),
    "VoxelRanker": lambda **options: placement.VoxelRanker(**options).fit(
        [cube()] * 2, [box().as_array(), box().as_array()]
    ),
    "VoxelRegressor": lambda **options: placement.VoxelRegressor(**options).fit(
        [cube()] * 2, [box().as_array(), box().as_array()]
    ),
    "PlacementObjective": placement.PlacementObjective,
    "Voxel": placement.Voxel,
    "write_prescription": lambda **options: placement.write_prescription(box(), cube(), "new", **options),
    "ShiftOptions.of_prescription": lambda **options: ShiftOptions(**options).of_prescription(),
}


def tuples(value: Any) -> Any:
    """Give lists as tuples, as options have them."""
    if isinstance(value, list):
        return tuple(map(tuples, value))
    return {key: tuples(one) for key, one in value.items()} if isinstance(value, dict) else value


def without_options(folder: Path) -> None:
    (folder / "options.json").write_text("{}", encoding="utf-8")


def called(call: Callable[..., Any]) -> dict[str, Any]:
    call(**tuples(json.loads(Path("options.json").read_text(encoding="utf-8"))))
    return {}


for name, function in CALLS.items():
    entry(f"{name} with options", without_options, call=partial(called, function), names=False)


# Calls in Python, with names of the modules that they are of.

MODELS, Protocol = dmrifit.MODELS, dmrifit.Protocol
IVIM = Protocol([0, 30, 60, 100, 200, 400, 600, 900, 1200])
DECAY = np.array([[100, 95, 90, 85, 75, 60, 50, 40, 30.0]])
COHORT1, COHORT2 = Protocol.preset("cohort1"), Protocol.preset("cohort2")
CLINICAL = COHORT1.take(COHORT1.clinical())
TUMOR = tissue_table()["tissue"]["tumor"]
PARAMETERS = (dmrifit.Parameter("S0", "signal", 0, np.inf), dmrifit.Parameter("D", "µm²/ms", 0, 5))
OFFSET = dmrifit.SignalModel.from_expression(
    "S0*exp(-b*D) + c", [*PARAMETERS, dmrifit.Parameter("c", "", -1, 1)], name="offset"
)
ROWS = np.ones((30, 21))
SIX = np.repeat(np.arange(6), 10)
GRID = np.zeros((3, 3, 3))
CUBES = np.arange(512.0).reshape(8, 8, 8)
HALF = np.full((20, 20, 20), 0.5)
NOVELTY = {"center": [0.0] * 3, "whitening": [[0.0] * 3] * 3, "voxels": [[0.0] * 3], "distances": [0.0] * 201,
           "shares": [0.5]}  # fmt: skip
BALL = np.linalg.norm(np.indices((32, 32, 32)) - np.full((3, 1, 1, 1), 15.5), axis=0) < 14
SCAN = {"patient": "p1", "signal": np.ones((4, 5, 3, 3)), "protocol": Protocol([0, 500, 1000], te=80),
        "mask": np.ones((4, 5, 3)), "affine": np.eye(4), "cohort": "c" * 10}  # fmt: skip


class Own:
    """An estimator of a user, of which a comparison needs more."""

    fit = predict = predict_maps = None


class Unhurried(dmrifit.SignalToSignal):
    """An estimator of a comparison that must be refused before it starts."""

    def fit(self, X: Any, Y: Any, **options: Any) -> Any:
        raise RuntimeError


def image(values: Any, affine: Any = None) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(values, np.float32), np.eye(4) if affine is None else affine)


TIMES = [(b, te) for te in (45, 60) for b in (0, 0.2, 0.3, 1, 1.2, 2, 10, 60, 200, 800)]
CURVES = [(patient, f"r{region}", b, te, np.exp(-te / (60 + 9 * n) - b / 1000 * (1 + 0.2 * region)))
          for n, patient in enumerate("abcd") for region in (1, 2, 3) for b, te in TIMES]  # fmt: skip
REGIONS = pd.DataFrame(CURVES, columns=["patient", "region", "b", "te", "signal"])


def regions(rows: Any = slice(0), column: str = "b", value: Any = 0, table: pd.DataFrame = REGIONS) -> None:
    """Read a table of regions in which cells of a column have another value."""
    table = table.astype(object)
    table.loc[table.index[rows], column] = value
    read_regions(written("organs.csv", table.to_csv(index=False)))


def head(values: Any, **options: Any) -> None:
    edges = np.diag([2, 2, 2, 1])
    options = {name: image(value, edges) if isinstance(value, np.ndarray) else value for name, value in options.items()}
    dmrifit.prepare_brain(image(values, edges), **{"spacing": None} | options)


def written(name: str, content: bytes | str) -> Path:
    """Write a file that a call reads."""
    path = Path("read", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def saved(name: str, values: Any, affine: Any = None) -> Path:
    """Write an image that a call reads."""
    path = written(name, b"")
    nib.save(image(values, affine), path)
    return path


def questions(function: Callable[..., Any], **changes: Any) -> None:
    function(**{"protocol": COHORT1, "model": "t2-ivim-kurtosis", "parameters": TUMOR, "sigma": 0.01} | changes)


def by_strategy(name: str, X: Any = ROWS[:, :5], Y: Any = ROWS, **options: Any) -> None:
    getattr(dmrifit, name)(**{"source": CLINICAL, "target": COHORT1} | options).fit(X, Y)


def intervals(estimator: Any = None, groups: Any = SIX, **options: Any) -> None:
    fit = {name: options.pop(name) for name in ("calibrate", "reference_maps") if name in options}
    estimator = dmrifit.ConformalIntervals(estimator or dmrifit.SignalToSignal("LR"), **options)
    estimator.fit(np.ones((60, 2)), np.ones((60, 1)), groups, **fit)


def fixed_values(model: str, n_voxels: int, **options: Any) -> None:
    settings = FitSettings(**options)
    settings.fixed_values(MODELS[model], n_voxels, settings.box(MODELS[model]))


def compared(estimators: Any = None, cohorts: Any = None, **options: Any) -> None:
    estimators = {"r": Unhurried()} if estimators is None else estimators
    dmrifit.compare(estimators, [cohort("A"), cohort("B", ("p3", "p4"))] if cohorts is None else cohorts, **options)


def same_grid(shape: Any = (6, 5, 4), affine: Any = None, shift: Any = 0) -> None:
    affine = np.eye(4) + np.outer([shift, 0, 0, 0], [0, 0, 0, 1]) if affine is None else affine
    check_same_grid((shape, affine), ((6, 5, 4), np.eye(4)), name="mask.nii", reference_name="dwi.nii")


def measurements(source: Any, protocol: Any = None, **options: Any) -> None:
    options = {"average": None, "b_tolerance": None} | options
    source_volumes(Series.open(image(np.ones((4, 3, 5, 3)))), source, protocol, **options)


def scale_of(values: Any, scale: Any) -> None:
    region, source = np.ones((4, 3, 5), bool), Protocol([0, 200, 500])
    patient_scale(Series.open(image(values)), region, lambda rows: rows, source, scale, progress=False)


def cohort(name: str, patients: Sequence[str] = ("p1", "p2")) -> dmrifit.Cohort:
    signal, whole = np.ones((2, 2, 1, 21)), np.ones((2, 2, 1), bool)
    return dmrifit.Cohort([dmrifit.Scan(one, signal, COHORT1, whole, np.eye(4)) for one in patients], name)


def statistics(without: Sequence[str] = (), **options: Any) -> None:
    columns = ["cohort", "strategy", "train_on", "n_train", "repeat", "patient", "algorithm", "metric"]
    rows = [["c1", "s2s", "same", 15, 0, f"p{n}", name, "f", 0.1 * n, 0.2, 0.3] for n in range(4) for name in "ABC"]
    table = pd.DataFrame(rows, columns=[*columns, "dispersion", "bias", "pearson"])
    study_statistics(table.drop(columns=list(without)), **options)


OF_DMRIFIT = (
    "_utils.affines", "_utils.checks", "_utils.randomness", "_utils.text_files", "_utils.threads",
    "_utils.torch_state", "cohort.cohort", "cohort.patches", "cohort.scaling", "engine.formulas.model_formula",
    "engine.kernels.formula", "engine.resynthesis", "imaging.corrections", "imaging.head_pipeline",
    "imaging.noise", "imaging.regions", "imaging.scan_info", "io.atomic_files", "io.case_tables", "io.components",
    "io.digests", "io.grids", "io.masks", "io.parameter_json", "io.tables", "networks.volume_cases",
    "predict.algorithms", "predict.intervals", "predict.novelty", "predict.patch_networks", "simulate.heads",
    "simulate.walk_table", "stats.lesion_matching", "stats.metrics", "study.contestants",
)  # fmt: skip
expressions("calls of dmrifit", globals(), [f"dmrifit.{module}" for module in OF_DMRIFIT])
