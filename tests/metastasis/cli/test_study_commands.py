"""Simulating, training and comparing on the command line: what is written, and what is refused in one line."""

import inspect
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit.cli.case_runs import SimulationRun
from dmrifit.cli.training_files import TrainingFiles
from metastasis import (
    DeepMedicSegmenter,
    TwoStageSegmenter,
    read_cases,
    simulate_metastases,
    write_cases,
)
from metastasis.candidates.two_stage import small_model_threshold
from metastasis.cli import study_commands
from metastasis.cli.study_commands import PatientOptions, StudyOptions, TrainingOptions, evaluate
from metastasis.simulate import implants

SMALL = ("--shape", "36,36,36", "--spacing", 2.5)


def train(cases, out, **options):
    """Call the command with its options, some of which stand in groups."""
    options["out"] = out
    groups = [
        group(**{key: options.pop(key) for key in inspect.signature(group).parameters if key in options})
        for group in (TrainingFiles, StudyOptions, TrainingOptions)
    ]
    study_commands.train(cases, *groups, **options)


def test_a_simulation_without_options_is_that_of_the_function():
    known = inspect.signature(simulate_metastases).parameters
    for key, value in vars(PatientOptions()).items():
        assert value == known[key].default, key
    assert SimulationRun.skip == known["skip"].default


def test_a_simulation_does_not_go_on_with_other_options(run, error_of, output_of, tmp_path):
    words = ("--out", tmp_path, *SMALL)
    assert "2 synthetic patients" in output_of("simulate", 2, *words, "--skip", 2)
    assert all(case.synthetic for case in read_cases(tmp_path / "cases.tsv"))
    assert "other options (seed was 0, now 1; skip was " in error_of("simulate", 2, *words, "--seed", 1)
    assert "--shape 3,4: 3 whole numbers" in run("simulate", 1, "--out", tmp_path, "--shape", "3,4")[2]


def test_options_of_a_simulation_reach_the_patients(tmp_path, capsys):
    patients = PatientOptions(1.0, (30, 28, 26), 3.0, (2, 3), (0, 1), 0.0, "hard")
    study_commands.simulate(2, patients, SimulationRun(tmp_path / "out", skip=4, seed=7))
    expected = simulate_metastases(
        2, prior=1.0, shape=(30, 28, 26), spacing=3.0, metastases=(2, 3), mimics=(0, 1), misregistration=0.0,
        world="hard", skip=4, random_state=7,
    )  # fmt: skip
    table = tmp_path / "out" / "cases.tsv"
    assert f"2 synthetic patients: {table}" in capsys.readouterr().out
    for case, patient in zip(read_cases(table), expected, strict=True):
        assert case.name == patient.name
        np.testing.assert_array_equal(case.image, patient.image)
        np.testing.assert_array_equal(case.prior, patient.prior)
        np.testing.assert_array_equal(case.label, patient.label)
    rows = pd.read_csv(table, sep="\t")
    assert rows["label"].tolist() == [f"synthetic-00{i}/synthetic-00{i}_label.nii.gz" for i in (5, 6)]


@pytest.fixture
def learn_nothing(monkeypatch):
    """Train without learning, and give what was fitted with what."""
    pytest.importorskip("skorch")
    calls = []

    def fit(self, volumes, labels, **more):
        calls.append((self, {"volumes": volumes, "labels": labels, **more}))
        return self

    monkeypatch.setattr(DeepMedicSegmenter, "fit", fit)
    monkeypatch.setattr("dmrifit.model_files.model_file.save_model", lambda model, path: path.write_bytes(b"model"))
    return calls


@pytest.mark.deep
def test_options_of_a_training_reach_the_segmenter(table, learn_nothing, tmp_path):
    out = tmp_path / "model.dmrifit"
    train(
        table, out, loss="vss", alpha=0.5, prior="channel", network="unet", widths=(4, 8), epochs=3,
        segments_per_epoch=7, batch_size=2, learning_rate=0.01, schedule="cosine", spacing=3.0,
        validation_fraction=0.3, patience=2, min_voxels=4, device="cpu", seed=5,
    )  # fmt: skip
    ((model, _),) = learn_nothing
    expected = {
        "loss": "vss", "alpha": 0.5, "prior": "channel", "network": "unet", "widths": (4, 8),
        "training__epochs": 3, "segments_per_epoch": 7, "training__batch_size": 2, "training__learning_rate": 0.01,
        "training__schedule": "cosine", "spacing": 3.0, "training__validation_fraction": 0.3, "training__patience": 2,
        "min_voxels": 4, "device": "cpu", "random_state": 5, "training__verbose": True, "warm_start_from": None,
        # States of the training lie beside the model file.
        "training__checkpoint": str(tmp_path / ".model.dmrifit.training"),
    }  # fmt: skip
    parameters = model.get_params()
    assert {key: parameters[key] for key in expected} == expected
    train(table, tmp_path / "other", prior="none", checkpoint=tmp_path / "states")
    plain = learn_nothing[1][0].get_params()
    assert (plain["prior"], plain["training__checkpoint"]) == (None, str(tmp_path / "states"))
    assert plain["widths"] is None
    open_fields = ("epochs", "batch_size", "learning_rate", "schedule")
    assert all(plain[f"training__{name}"] is None for name in open_fields)


@pytest.mark.deep
def test_a_training_without_options_has_two_stages(table, tmp_path, monkeypatch, capsys):
    pytest.importorskip("skorch")
    models = []
    features = pd.DataFrame({"feature": list("abcdefgh"), "weight": np.linspace(0.8, 0.1, 8)})
    monkeypatch.setattr(TwoStageSegmenter, "feature_table", lambda self: features)
    monkeypatch.setattr(TwoStageSegmenter, "fit", lambda self, **_: models.append(self))
    monkeypatch.setattr("dmrifit.model_files.model_file.save_model", lambda model, path: path.write_bytes(b"model"))
    train(table, tmp_path / "first.dmrifit", device="cpu", seed=3)
    train(table, tmp_path / "second.dmrifit", epochs=2, min_voxels=7, spacing=1.5, validation_fraction=0.3)
    printed, progress = capsys.readouterr()
    assert progress.count("six trainings follow, two on each half of the scans and two on all") == 2
    assert "judged by a 0.80, b 0.70" in printed
    assert printed.count("30 % of patients served validation alone") == 1
    first, second = (model.segmenter.get_params() for model in models)
    assert (first["network"], first["loss"], first["scaling"]) == ("small_unet", "lesion", "local")
    assert (first["training__batch_size"], first["random_state"], models[0].min_voxels) == (2, 3, 4)
    assert all((model.comparable, model.threshold) == (True, small_model_threshold()) for model in models)
    assert [model.n_trainings for model in models] == [2, 2]
    assert (first["training__validation_fraction"], second["training__validation_fraction"]) == (0.0, 0.3)
    assert first["training__checkpoint"] == str(tmp_path / ".first.dmrifit.training")
    assert (second["training__epochs"], second["spacing"], models[1].min_voxels) == (2, 1.5, 7)


@pytest.mark.deep
def test_published_sizes_are_those_of_the_class(table, learn_nothing, tmp_path):
    train(table, tmp_path / "model.dmrifit", published=True, epochs=1)
    published = learn_nothing[0][0].get_params()
    assert published["widths"] == (30, 40, 50, 60, 70, 80, 90, 100, 110)
    assert (published["dense"], published["training__epochs"]) == ((300, 300), 1)


@pytest.mark.deep
def test_scans_of_the_table_are_learned_from_by_patient(table, synthetic_cases, learn_nothing, tmp_path, capsys):
    twice = [*synthetic_cases, replace(synthetic_cases[0], name="later")]
    train(write_cases(twice, tmp_path / "more"), tmp_path / "model.dmrifit", alpha=0.995)
    ((_, training),) = learn_nothing
    assert training["groups"] == [case.patient for case in twice]
    assert len(training["volumes"]) == len(training["labels"]) == 4
    for volume, label, case in zip(training["volumes"], training["labels"], twice, strict=True):
        np.testing.assert_array_equal(np.asarray(volume.dataobj), case.image)
        np.testing.assert_array_equal(np.asarray(label.dataobj), case.label)
        np.testing.assert_allclose(label.affine, case.affine)
    n_lesions = sum(len(case.lesions) for case in twice)
    output = capsys.readouterr().out
    assert f"trained on 4 scans with {n_lesions} lesions" in output
    assert "trained on synthetic scans: its accuracy in people is unknown" in output


def test_scans_to_learn_from_are_described(synthetic_cases, tmp_path, capsys):
    case = synthetic_cases[0]
    affine = case.affine @ np.diag([1, 1, 2, 1])
    flat = np.where(case.brain, 1.0, 0.0)
    thick = replace(case, image=flat, affine=affine, prior=None, synthetic=False, lesions=None)
    table = write_cases([thick], tmp_path)
    assert len(study_commands._labeled_cases(table)) == 1
    notes = capsys.readouterr().err
    assert "has slices of 5 mm" in notes
    assert "only 1 value: is it a label image?" in notes
    # What prepare saw in the scan as it came.
    (tmp_path / f"{case.name}_image_prepared.json").write_text('{"Notes": ["its mask is rough", "the prior scan x is thick"]}')
    study_commands._labeled_cases(table, uses_prior=False)
    assert capsys.readouterr().err.endswith(f"findings are wrong\ndmrifit: {case.name}: its mask is rough\n")


@pytest.mark.deep
def test_what_cannot_be_trained_is_refused_at_once(table, synthetic_cases, learn_nothing, tmp_path, capsys):
    out = tmp_path / "model.dmrifit"
    bare = write_cases([synthetic_cases[0], replace(synthetic_cases[1], label=None)], tmp_path / "bare")
    for cases, options, message in (
        (table, {"validation": table}, "an operating point needs both --false-positives and --validation"),
        (table, {"false_positives": 1.0}, "an operating point needs both"),
        (table, {"validation": table, "false_positives": 1.0}, "has patients that .* has too: synthetic-001"),
        (bare, {}, f"no label of {synthetic_cases[1].name}; name one in the column label"),
        (table, {"loss": "dice"}, "loss"),
    ):
        with pytest.raises(ValueError, match=message):
            train(cases, out, **options)
    assert not learn_nothing
    assert "six trainings" not in capsys.readouterr().err


@pytest.fixture
def segmentations(synthetic_cases, tmp_path):
    """Give the table of a model that marks the lesions of the first scan and nothing else."""
    rows = ["name\tpatient\tlabel"]
    for i, case in enumerate(synthetic_cases):
        label = case.label if i == 0 else np.zeros_like(case.label)
        nib.save(nib.Nifti1Image(label, case.affine), tmp_path / f"{case.name}.nii.gz")
        rows.append(f"{case.name}\t{case.patient}\t{case.name}.nii.gz")
    path = tmp_path / "segmentations.tsv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_segmentations_are_compared_with_controls(table, synthetic_cases, segmentations, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("dmrifit._utils.progress._SECONDS_BETWEEN_LINES", 0)
    evaluate(table, {"first": segmentations}, tmp_path / "compared", figures=0)
    output, progress = capsys.readouterr()
    assert "curves 4/4 methods" in progress.partition("compare 3/3 cases")[2]
    labels = ("share found (strict)", "precision (strict)", "F1 (strict)", "wrong findings per scan (strict)")
    assert " ".join(labels) in " ".join(output.split())
    assert "synthetic scans: no clinical result" in output
    assert "3 patients: too few to estimate performance" in output
    summary = pd.read_csv(tmp_path / "compared" / "summary.csv")
    row = summary[(summary["method"] == "first") & (summary["part"] == "all")].iloc[0]
    n_lesions = [len(case.lesions) for case in synthetic_cases]
    assert row["sensitivity"] == pytest.approx(n_lesions[0] / sum(n_lesions))
    assert row["precision"] == 1
    assert {"empty", "all positive"} <= set(summary["method"])


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "prepared"
    folder.mkdir()
    grid = np.stack(np.indices((40, 40, 40)), axis=-1)
    brain = np.linalg.norm(grid - 20, axis=-1) < 17
    for number in range(2):
        volume = np.random.default_rng(number).normal(1, 0.03, brain.shape) * brain
        image = nib.Nifti1Image(volume.astype(np.float32), np.eye(4))
        nib.save(image, folder / f"person{number}.nii.gz")
    return folder


def test_a_small_model_learns_from_copies_of_each_scan_and_phantoms(run, scans, tmp_path, monkeypatch):
    pytest.importorskip("skorch")
    fits = []
    phantom = SimpleNamespace(volume=None, label=None, brain=None, name="phantom")
    monkeypatch.setattr(implants, "phantom_scans", lambda n, random_state: [phantom] * n)
    monkeypatch.setattr(
        TwoStageSegmenter, "fit", lambda self, volumes, labels, **groups: fits.append((self, labels, groups))
    )
    monkeypatch.setattr("dmrifit.model_files.model_file.save_model", lambda model, path: None)
    (scans / "person1_prepared.json").write_text('{"Notes": ["its brain mask is only approximate"]}')
    words = ("train-small", scans, "--out", tmp_path / "mine.dmrifit", "--copies", 2)
    _, out, notes = run(*words, "--phantoms", 3, "--epochs", 5)
    assert "person0: no bright vessels" in notes
    assert "person1: its brain mask is only approximate" in notes
    ((model, labels, groups),) = fits
    # Made as the included model.
    assert (model.comparable, model.threshold, model.n_trainings) == (True, small_model_threshold(), 2)
    # Copies of a person are never split between folds.
    assert len(groups["groups"]) == 7
    assert len(set(groups["groups"][:4])) == 2
    assert all((label == 1).any() for label in labels[:4])
    assert "implants in 2 scans and on 3 synthetic patients" in out
    assert "never tried on a labeled metastasis" in out
    assert "implants in 1 scan " in run(words[0], scans / "person0.nii.gz", *words[2:], "--overwrite")[1]


def test_a_bad_scan_is_refused_before_the_first_copy(run, scans, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    image = nib.load(scans / "person1.nii.gz")
    nib.save(nib.Nifti1Image(image.get_fdata(), np.diag([2, 2, 2, 1])), scans / "thick.nii.gz")
    monkeypatch.setattr(implants, "implanted_copies", None)
    code, _, error = run("train-small", scans, "--out", tmp_path / "mine.dmrifit")
    assert code == 2
    assert "thick.nii.gz has voxels of 2 × 2 × 2 mm" in error.splitlines()[-1]
    assert not (tmp_path / "mine.dmrifit").exists()
