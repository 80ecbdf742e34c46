"""The commands that simulate, compare and report."""

import json
import re

import pytest
from typer.testing import CliRunner

from dmrifit import cli


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    result = run("simulate", "--out", folder, "--patients", 2, "--shape", "16,16,3", "--same-protocol", "--seed", 4)
    assert result.exit_code == 0, result.output
    assert "4 synthetic patients" in result.output
    return folder / "participants.tsv"


@pytest.fixture(scope="module")
def study(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    result = run("benchmark", table, "--out", folder, "--algorithms", "LR", "--max-voxels", 40)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_a_simulated_table_is_compared_within_cohorts_and_across(study):
    folder, output = study
    assert {path.name for path in folder.iterdir()} >= {"report.html", "scores.csv", "signals.csv", "study.json"}
    settings = json.loads((folder / "study.json").read_text())["settings"]
    assert settings["train_on"] == ["same", "other"]
    assert settings["max_voxels"] == 40
    assert "synthetic data: no clinical result" in output
    assert str(folder / "report.html") in output
    rows = re.findall(r"(same|other) +(cohort[12]) +(s2s|m2m) +(LR|constant)", output)
    assert len(rows) == len(set(rows)) == 16


def test_the_report_is_written_again_from_the_folder(study):
    folder, _ = study
    (folder / "report.html").unlink()
    assert run("report", folder).exit_code == 0
    assert (folder / "report.html").is_file()


def test_protocols_that_differ_are_compared_each_for_itself_and_that_is_said(tmp_path):
    assert run("simulate", "--out", tmp_path, "--patients", 2, "--shape", "12,12,2").exit_code == 0
    arguments = ("--out", tmp_path / "study", "--algorithms", "constant", "--strategies", "m2m", "--max-voxels", 0)
    result = run("benchmark", tmp_path / "participants.tsv", *arguments)
    assert result.exit_code == 0, result.output
    assert "left out: protocols differ" in result.output
    assert json.loads((tmp_path / "study" / "study.json").read_text())["settings"]["max_voxels"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--algorithms", "LR,forest"), "no algorithm 'forest'; choose of LR"),
        (("--strategies", "s2m"), "no strategy 's2m'; choose of s2s, m2m"),
        (("--train-on", "others"), "same, other, pooled"),
        (("--n-train", "5"), "needs at least 5 other patient"),
    ],
)
def test_wrong_words_are_refused_before_work_starts(table, tmp_path, arguments, message):
    result = run("benchmark", table, "--out", tmp_path / "new", *arguments)
    assert message in str(result.exception)
    assert not list(tmp_path.rglob("cells"))


@pytest.mark.parametrize("command", ["simulate", "benchmark", "report"])
def test_help_shows_a_worked_line(command):
    assert f"dmrifit {command} " in run(command, "--help").output
