"""Simulating, training and comparing on the command line: what is written, and what is refused in one line."""

import numpy as np
import pandas as pd
import pytest

from anomaly import simulate_dmri
from anomaly.cli.study_commands import (
    PersonOptions,
    ScanOptions,
    make_detector,
    parameters_of,
    simulate,
    train,
)
from anomaly.scans.cases import read_cases
from dmrifit.cli.case_runs import SimulationRun
from dmrifit.cli.training_files import TrainingFiles
from dmrifit.model_files.model_file import load_model
from dmrifit.networks.training import Training

SMALL = ("--directions", 8, "--shape", "24,28,20", "--spacing", 6.5)


def test_a_simulation_goes_on_where_it_stopped(run, output_of, error_of, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert "1 healthy person:" in output_of("simulate", 1, 2, "--out", whole, *SMALL, "--skip", 2)
    output_of("simulate", 1, 1, "--out", stopped, *SMALL, "--skip", 2)
    first = (stopped / "synthetic-glioma-003" / "cases.tsv").stat().st_mtime_ns
    assert run("simulate", 1, 2, "--out", stopped, *SMALL, "--skip", 2)[0] == 0
    assert (stopped / "synthetic-glioma-003" / "cases.tsv").stat().st_mtime_ns == first
    for table in ("healthy.tsv", "gliomas.tsv"):
        assert (stopped / table).read_text() == (whole / table).read_text()
    first, second = ([case.signal for case in read_cases(folder / "gliomas.tsv")] for folder in (stopped, whole))
    np.testing.assert_array_equal(first, second)
    error = error_of("simulate", 1, 2, "--out", whole, *SMALL, "--seed", 1)
    assert "other options (seed was 0, now 1; skip was " in error
    assert "at least one person" in run("simulate", 0, 0, "--out", whole)[2]


def test_options_of_a_simulation_reach_the_persons(tmp_path):
    options = {"shape": (16, 20, 14), "spacing": 9.0, "registration": "shifted", "snr": 40.0, "cellular": 0.75}
    simulate(0, 1, PersonOptions(directions=3, **options), SimulationRun(tmp_path / "out", skip=3, seed=5))
    _, (person,) = simulate_dmri(0, 1, n_directions=3, random_state=5, skip=3, **options)
    (case,) = read_cases(tmp_path / "out" / "gliomas.tsv")
    assert case.name == "synthetic-glioma-004"
    np.testing.assert_array_equal(case.signal, person.signal)
    assert not (tmp_path / "out" / "healthy.tsv").exists()


def test_a_model_of_the_command_has_its_threshold_and_is_repeatable(run, output_of, cases, model, tmp_path):
    words = ("train", cases / "healthy.tsv", "--detector", "gaussian", "--set", "side=low")
    words += ("--calibration", 2, "--rate", 0.02)
    out = output_of(*words, "--out", tmp_path / "again.dmrifit")
    assert ("gaussian trained on 8 scans of 24 × 28 × 20 voxels and 8 directions; threshold" in out)
    assert "for 2 % of healthy voxels" in out
    one, other = load_model(model), load_model(tmp_path / "again.dmrifit")
    assert one.detector_.threshold_.threshold_ == other.detector_.threshold_.threshold_
    np.testing.assert_array_equal(one.detector_.coefficients_, other.detector_.coefficients_)
    assert "already exists" in run(*words, "--out", tmp_path / "again.dmrifit")[2]


def train_on(cases, out, covariates=(), seed=0, **options):
    train(cases / "healthy.tsv", files=TrainingFiles(out, seed=seed), scans=ScanOptions(covariates=covariates), **options)


def test_options_of_a_training_reach_the_detector(cases, tmp_path, monkeypatch):
    calls = []

    def stop(name, parameters, *, published, **defaults):
        calls.append((name, published, {**defaults, **parameters}))
        raise StopIteration

    monkeypatch.setattr("anomaly.cli.study_commands.make_detector", stop)
    # A number with a point is a share (5.0 is refused), one without a number of folds; what is set goes before the seed.
    for options, calibration, rate, seed in (
        ({"calibration": ".25", "rate": 0.1, "set_": {"n_trees": "5"}}, 0.25, 0.1, 3),
        ({"calibration": "4", "set_": {"n_trees": "5", "random_state": "9"}}, 4, 0.01, 9),
    ):
        with pytest.raises(StopIteration):
            train_on(cases, tmp_path / "model.dmrifit", detector="implants", seed=3, published=True, **options)
        name, published, parameters = calls[-1]
        assert (name, published, parameters.pop("threshold").rate) == ("implants", True, rate)
        expected = {"n_trees": 5, "calibration": calibration, "random_state": seed, "verbose": True}
        assert parameters.items() >= expected.items()


def test_what_the_expectation_depends_on_is_learned_from_the_table(cases, tmp_path):
    out = tmp_path / "z.dmrifit"
    with pytest.raises(ValueError, match="aligned takes none into account; gaussian"):
        train_on(cases, out, covariates=("age",))
    train_on(cases, out, detector="gaussian", covariates=("age",), calibration="4")
    model = load_model(out)
    assert tuple(model.covariates) == ("age",)
    assert model.detector_.calibration == 4
    # By default scans are aligned, in voxels of their size.
    train_on(cases, tmp_path / "aligned.dmrifit")
    model = load_model(tmp_path / "aligned.dmrifit")
    assert type(model.detector_).__name__ == "AlignedMahalanobis"
    assert model.detector_.spacing == tuple(model.edges_) != (4.0, 4.0, 4.0)


@pytest.mark.deep
def test_networks_are_trained_by_their_names(run, output_of, cases, tmp_path):
    pytest.importorskip("torch")
    published = "dae with the published settings (others: epochs, widths, latent_dim)"
    small = ("--published", "--set", "widths=[2,2]", "--set", "latent_dim=4")
    for name, title, options in (("dae", published, small), ("recdisc", "recdisc", ())):
        out = tmp_path / f"{name}.dmrifit"
        words = ["train", cases / "healthy.tsv", "--detector", name, "--epochs", 1, "--device", "cpu", *options]
        code, said, error = run(*words, "--out", out)
        assert (code, said.index(f"{title} trained on 6 scans")) == (0, 0), error
        assert error.index("epoch 1/1 loss") < error.index(", held-out score -") < error.index(" (higher is better)")
        assert (tmp_path / f"{name}.curve.png").is_file()
        assert not list(tmp_path.glob(".*training"))
        output_of("detect", out, cases / "gliomas.tsv", "--out", tmp_path / name, "--no-figure")


@pytest.mark.deep
def test_a_training_goes_on_where_it_stopped(run, output_of, cases, tmp_path, monkeypatch):
    pytest.importorskip("torch")

    def fails(*_, **__):
        msg = "the disk is full"
        raise ValueError(msg)

    out = tmp_path / "dae.dmrifit"
    words = ("train", cases / "healthy.tsv", "--detector", "dae", "--epochs", 1, "--out", out)
    words += ("--device", "cpu", "--set", "widths=[2,2]", "--set", "latent_dim=4")
    monkeypatch.setattr("dmrifit.model_files.model_file.save_model", fails)
    assert "the disk is full" in run(*words)[2]
    assert (tmp_path / ".dae.dmrifit.training").is_dir()
    assert not out.exists()
    monkeypatch.undo()
    monkeypatch.setattr("dmrifit.networks.volume_estimator.VolumeEstimator._stream", fails)  # nothing is learned again
    output_of(*words)
    assert out.exists()
    assert not (tmp_path / ".dae.dmrifit.training").exists()


def test_a_training_tells_of_its_healthy_scans_and_of_what_is_guaranteed(run, output_of, cases, tmp_path):
    words = ("train", cases / "healthy.tsv", "--overwrite", "--out", tmp_path / "model.dmrifit")
    said = output_of(*words, "--calibration", 0.25)
    for text in ("aligned trained on 6 scans (2 more held out", "scans are not judged as a whole: 2 healthy, 3 are needed"):
        assert text in said
    assert load_model(tmp_path / "model.dmrifit").n_scans_ == 6
    # By default so few scans are dealt into folds.
    said = output_of(*words)
    for text in ("8 healthy scans", "differ from the others as a whole", "by bootstrap over these scans the threshold is"):
        assert text in said
    said = output_of(*words, "--guarantee", 0.8, "--calibration", 0.5)
    assert "no anomaly in a new healthy scan of this site and protocol with a probability of 80 % or more" in said
    code, said, error = run(*words, "--guarantee", 0.9, "--calibration", 0.5)
    assert (code, said) == (2, "")
    assert "no guarantee at this level with 4 scans: 0.9 needs 9 calibration scans" in error
    assert "2 give at best 2/3; keep more scans for the calibration" in run(*words, "--guarantee", 0.8)[2]


def test_a_table_of_too_few_persons_is_named_before_its_scans_are_read(run, error_of, cases, tmp_path):
    table = pd.read_csv(cases / "healthy.tsv", sep="\t", dtype=str)[:2]
    for path in table["image"]:
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).touch()
    few = tmp_path / "few.tsv"
    table[["patient", "image"]].to_csv(few, sep="\t", index=False)
    error = error_of("train", few, "--out", tmp_path / "model.dmrifit")
    assert f"{few}: 2 scans of 2 subjects: holding out 1 for the threshold leaves 1 to learn from" in error
    assert "give scans of 4 or more subjects" in error
    table[["patient", "image"]][:1].to_csv(few, sep="\t", index=False)
    assert f"{few}: 1 scan of one subject" in run("train", few, "--out", tmp_path / "m.dmrifit")[2]


def test_powder_averages_are_learned_and_detected(run, output_of, error_of, cases, tmp_path):
    words = ("train", cases / "healthy.tsv", "--powder", "--out", tmp_path / "model.dmrifit")
    for detector in ("aligned", "implants"):
        error = error_of(*words, "--detector", detector)
        assert "spread of signals over directions" in error
        assert "--detector gaussian" in error
    said = output_of(*words, "--detector", "gaussian")
    assert "and 1 powder average; threshold" in said
    output_of("detect", tmp_path / "model.dmrifit", cases / "gliomas.tsv", "--no-figure", "--out", tmp_path / "found")
    assert "--powder has no directions" in run(*words, "--overwrite", "--resample-directions")[2]


@pytest.mark.deep
def test_powder_averages_cannot_be_aligned_for_a_network(error_of, cases, tmp_path):
    pytest.importorskip("torch")
    words = ("train", cases / "healthy.tsv", "--powder", "--detector", "dae", "--out", tmp_path / "model.dmrifit")
    assert "--set aligned=false" in error_of(*words)


def test_parameters_stand_in_place_of_defaults_and_of_published_sizes():
    assert make_detector("pca", {"n_components": 3}).n_components == 3
    default, published = (make_detector("dae", {"epochs": 7}, published=is_published) for is_published in (False, True))
    assert default.training == Training(epochs=7)
    assert (published.training.epochs, published.training.decay) == (7, 0.95)
    assert published.widths == (64, 128, 256, 512) != default.widths


def test_values_are_numbers_words_and_truth_values():
    texts = {"a": "1", "b": "2.5", "c": "true", "d": "1e-3", " e ": ' "x y" ', "f": "[2,3]", "g": "a=b", "h": "null"}
    parameters = parameters_of(texts)
    assert parameters == {"a": 1, "b": 2.5, "c": True, "d": 0.001, "e": "x y", "f": (2, 3), "g": "a=b", "h": None}
    assert type(parameters["a"]) is int
    assert parameters_of({}) == {}
