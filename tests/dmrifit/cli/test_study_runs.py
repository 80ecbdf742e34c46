"""The commands that simulate, train, compare and report."""

import json
import re
import shutil
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import dmrifit
from dmrifit import Cohort, Evaluation, _optional
from dmrifit.cli import program
from dmrifit.io.digests import command_line
from dmrifit.model_files.model_file import load_model
from dmrifit.predict import algorithms
from dmrifit.predict.strategies import MapsToMaps
from dmrifit.study import comparison as evaluation
from dmrifit.study.report import reporting


def invoke(*arguments):
    return CliRunner().invoke(program.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    result = invoke("simulate", "--out", folder, "--patients", 3, "--shape", "16,16,3", "--same-protocol", "--seed", 4)
    assert result.exit_code == 0, result.output
    assert "6 synthetic patients" in result.output
    return folder / "participants.tsv"


@pytest.fixture(scope="module")
def study(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    result = invoke("benchmark", table, "--out", folder, "--algorithms", "LR", "--max-voxels", 40, "--sizes", "1,2")
    assert result.exit_code == 0, result.output
    return folder, result.output


@pytest.fixture
def no_page(monkeypatch):
    """Leave the page out where a test is about something else."""
    monkeypatch.setattr(reporting, "write_report", lambda _, folder: page_in(folder))


def page_in(folder):
    return reporting.Report.of(folder / "report.html", "", ["", "Best predictor: LR."], {})


def test_a_simulated_table_is_compared_within_cohorts_and_across(study):
    folder, output = study
    assert {path.name for path in folder.iterdir()} >= {"report.html", "scores.csv", "signals.csv", "study.json"}
    settings = json.loads((folder / "study.json").read_text())["settings"]
    assert settings["train_on"] == ["same", "other"]
    assert settings["n_train"] == [1, 2]
    assert settings["max_voxels"] == 40
    assert "synthetic data: no clinical result" in output
    assert str(folder / "report.html") in output
    rows = re.findall(r"(same|other) +2 +(cohort[12]) +(s2s|m2m) +(LR|constant|shuffled|perfect)", output)
    assert len(rows) == len(set(rows)) == 32
    rows = re.findall(r"(same|other) +2 +(cohort[12]) +(s2s|m2m) +(copy|truth|repeat)", output)
    assert len(rows) == len(set(rows)) == 24
    assert "called shared noise" in output
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert {"learning.png", "other_sites.png"} <= {path.name for path in (folder / "figures").iterdir()}
    assert "cohorts trained on" in page


def test_the_report_is_written_again_from_the_folder(study, tmp_path, output_of, monkeypatch):
    folder, _ = study
    write_report = Mock(side_effect=lambda _, out: page_in(out))
    monkeypatch.setattr(reporting, "write_report", write_report)
    assert "comparisons" not in output_of("report", folder)
    evaluations, out = write_report.call_args.args
    assert out == folder
    pd.testing.assert_frame_equal(evaluations[0].scores, Evaluation.read(folder).scores)
    second = shutil.copytree(folder, tmp_path / "second")
    printed = output_of("report", folder, second, folder, "--out", tmp_path / "new")
    assert len(write_report.call_args.args[0]) == 2
    assert "the first of 2 comparisons; the report lists all of them" in printed
    assert str(tmp_path / "new" / "report.html") in printed


def test_the_default_is_the_study_s_seven_algorithms(table, tmp_path, monkeypatch):
    compare = Mock(side_effect=ValueError("enough"))
    monkeypatch.setattr(evaluation, "compare", compare)
    monkeypatch.setattr(algorithms, "build_regressor", lambda *_, **__: None)
    invoke("benchmark", table, "--out", tmp_path / "new")
    names = [f"{name} {strategy}" for strategy in ("s2s", "m2m") for name in dmrifit.ALGORITHMS]
    assert list(compare.call_args.args[0]) == names
    invoke("benchmark", table, "--out", tmp_path / "new", "--without", "CNN,GBR", "--strategies", "s2s")
    assert list(compare.call_args.args[0]) == [f"{name} s2s" for name in ("LR", "RFR", "ETR", "slNN", "mlNN")]


def test_a_missing_library_names_its_command_before_anything_is_read(run, error_of, tmp_path, monkeypatch):
    find = _optional.import_module

    def absent(name):
        if name.partition(".")[0] in ("torch", "skorch"):
            raise ModuleNotFoundError(name=name.partition(".")[0])
        return find(name)

    monkeypatch.setattr(_optional, "import_module", absent)
    code, out, err = run("benchmark", tmp_path / "no.tsv", "--out", tmp_path / "new", "--algorithms", "LR,CNN")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("dmrifit: error: algorithm CNN: ")
    assert 'pip install "dmrifit[deep]"' in err
    assert "--without CNN" in err
    assert not (tmp_path / "new").exists()
    assert "no.tsv" in error_of("benchmark", tmp_path / "no.tsv", "--out", tmp_path / "new", "--without", "CNN")


def test_the_folder_of_a_study_keeps_its_algorithms_and_is_left_alone_by_another_study(study, table, error_of):
    folder, _ = study
    before = (folder / "scores.csv").read_bytes()
    other = "--source-b 0,50,100,400,900,1200"
    for words in ("--algorithms RFR", "--strategies s2s", "--model t2-adc", other, "--no-controls"):
        options = ("--algorithms", "LR", *words.split(), "--max-voxels", 40, "--sizes", "1,2")
        err = error_of("benchmark", table, "--out", folder, *options)
        assert ("also has constant " if "no" in words else "also has LR ") in err
        assert f"({Evaluation.read(folder).study['command']}), choose another folder, or --overwrite" in err.replace("\n", " ")
    err = error_of("benchmark", table, "--out", folder, "--algorithms", "LR", "--max-voxels", 41, "--sizes", "1,2")
    assert "another study: --max-voxels was 40 there and is 41 now" in err
    assert (folder / "scores.csv").read_bytes() == before


def test_overwrite_replaces_a_comparison_of_other_settings(study, table, tmp_path, error_of, output_of, no_page):
    out = shutil.copytree(study[0], tmp_path / "copy")
    command = ("benchmark", table, "--out", out, "--algorithms", "LR", "--max-voxels", 40, "--sizes", "1,2")
    err = error_of(*command, "--seed", 1)
    assert "another study: --seed was 0 there and is 1 now" in err
    assert "--overwrite" in err
    assert "needs at least 99 other" in error_of(*command[:-1], "99", "--overwrite")
    assert Evaluation.read(out).study["settings"]["seed"] == 0
    output_of(*command, "--seed", 1, "--overwrite")
    assert json.loads((out / "study.json").read_text())["settings"]["seed"] == 1


def test_training_on_cohorts_of_two_protocols_names_the_option_that_helps(run, error_of, output_of, tmp_path):
    output_of("simulate", "--out", tmp_path, "--patients", 1, "--shape", "12,12,2")
    arguments = ("train", tmp_path / "participants.tsv", "--max-voxels", 20, "--out", tmp_path / "LR.dmrifit")
    err = error_of(*arguments)
    assert "cohort2 lacks 15 of the 21 contrasts of cohort1" in err
    assert "--cohorts cohort1" in err
    assert run(*arguments, "--cohorts", "cohort1")[0] == 0


def test_an_interrupted_comparison_says_so_and_goes_on(study, table, tmp_path, run, output_of, monkeypatch, no_page):
    folder, _ = study
    out = tmp_path / "new"
    train, done = evaluation.run_trial, []

    def interrupted(*arguments):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return train(*arguments)

    command = ("benchmark", table, "--out", out, "--algorithms", "LR", "--max-voxels", 40, "--sizes", "1,2")
    monkeypatch.setattr(evaluation, "run_trial", interrupted)
    code, _, err = run(*command)
    assert code == 130
    assert f"finished work is kept in {out}; the same command resumes there" in err
    assert f"{out} was not finished; run it again ({command_line()}), and it" in run("report", out)[2].replace("\n", " ")
    monkeypatch.setattr(evaluation, "run_trial", train)
    output_of(*command)
    assert Evaluation.read(out).study["models"]["reused"] == 5
    again, whole = Evaluation.read(out).scores, Evaluation.read(folder).scores
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True)


def test_what_is_asked_of_the_simulation_is_done_and_written_down(tmp_path, output_of):
    out = output_of(
        *("simulate", "--out", tmp_path, "--patients", 1, "--preset", "cohort2", "--shape", "16,16,3", "--snr", 50),
        *("--difficulty", "easy", "--template", "pelvis", "--artifacts", "gibbs=0.3,shift=0.5", "--latent-corr", 0.2),
        *("--gain-variation", 0.1, "--seed", 5),
    )
    assert "1 synthetic patient:" in out
    cohorts = Cohort.read(tmp_path / "participants.tsv")
    assert list(cohorts) == ["cohort2"]
    expected = dmrifit.simulate_cohort(
        "cohort2", 1, shape=(16, 16, 3), snr=50, difficulty="easy", template="pelvis",
        artifacts={"gibbs": 0.3, "shift": 0.5}, latent_corr=0.2, gain_variation=0.1, random_state=5,
    )  # fmt: skip
    np.testing.assert_allclose(cohorts["cohort2"].scans[0].signal, expected.scans[0].signal, rtol=1e-3)
    simulation = cohorts["cohort2"].simulation
    assert (simulation["difficulty"], simulation["snr"], simulation["latent_corr"]) == ("easy", 50, 0.2)


def test_options_of_maps_to_maps_reach_the_model_file(table, tmp_path, output_of):
    model = tmp_path / "m.dmrifit"
    out = output_of(
        *("train", table, "--out", model, "--strategy", "m2m", "--algorithm", "LR", "--target-scale", "log"),
        *("--patch-shape", "3,3,1", "--cohorts", "cohort2", "--max-voxels", 40, "--train-mask", "body"),
    )
    assert "voxels of 3 patients" in out
    assert "trained on synthetic data: not for clinical use" in out
    loaded = load_model(model)
    assert isinstance(loaded, MapsToMaps)
    assert (loaded.target_scale, loaded.patch_shape, loaded.loss) == ("log", (3, 3, 1), "mean")
