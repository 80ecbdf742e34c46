"""Real files that are wrong: one line that names the file and the remedy, before the work, and nothing written."""

import shutil
import sys

import numpy as np
import pytest

from dmrifit.cli import program
from dmrifit.engine.fitting import fit_with
from dmrifit.imaging import fit_predict

IMAGE, BVAL = "small_64D.nii", "small_64D.bval"


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def folder(data_dir, tmp_path, monkeypatch):
    """A copy of real scans, as the working directory."""
    place = tmp_path / "scans"
    place.mkdir()
    for path in (data_dir / "dipy_small_dwi").iterdir():
        shutil.copy(path, place)
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def refused(folder, monkeypatch, capfd):
    """Run the command line, and expect one line of error before any voxel with a signal is fitted."""

    def no_work(signals, *arguments, **options):
        assert np.isnan(signals).all(), "fitted before the input was checked"
        return fit_with(signals, *arguments, **options)

    def check(*arguments, out="maps", command="fit"):
        monkeypatch.setattr(sys, "argv", ["dmrifit", command, *map(str, arguments), "--out", out])
        before = files(folder)
        with monkeypatch.context() as patched:
            patched.setattr(fit_predict, "fit_with", no_work)
            with pytest.raises(SystemExit) as stopped:
                program.main()
        captured = capfd.readouterr()
        lines = [line for line in captured.err.splitlines() if not line.startswith("dmrifit: using")]
        assert stopped.value.code == 2, captured
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("dmrifit: error: ")
        assert captured.out == ""
        assert files(folder) == before
        assert not (folder / out).is_dir()
        return lines[0]

    return check


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["small_25.nii.gz", "--bval", BVAL, "--bvec", "small_64D.bvec", "--model", "adc"],
            ["small_25.nii.gz has 26 volumes", "small_64D has 65 b-values"],
        ),
        ([IMAGE, "--te", "wrong.json", "--model", "adc"], ["wrong.json", "look like ms (divide by 1000)"]),
        (
            [IMAGE, "--mask", "aniso_vox.nii.gz", "--model", "adc"],
            ["aniso_vox.nii.gz has 58 × 58 × 24 voxels and small_64D.nii has 10 × 10 × 10", "resample_to_img"],
        ),
        (
            ["aniso_vox.nii.gz", "--bval", BVAL, "--model", "adc"],
            ["aniso_vox.nii.gz is 3-D (58 × 58 × 24); a 4-D image", "manifest"],
        ),
        ([".", "--model", "adc"], ["by a glob in quotes ('./*.nii.gz'), or a table"]),
        (
            ["small_101D.nii.gz", "--model", "t2-ivim-kurtosis"],
            ["model t2-ivim-kurtosis needs echo times", "--te"],
        ),
        (
            [IMAGE, "--model", "kurtosis"],
            ["model kurtosis has 3 free parameters (S0, D, K)", "small_64D.nii has only 2 different contrasts"],
        ),
    ],
)
def test_input_that_cannot_be_fitted_is_refused_in_one_line(refused, folder, arguments, messages):
    (folder / "wrong.json").write_text('{"EchoTime": 90}')
    line = refused(*arguments)
    for message in messages:
        assert message in line


def test_one_echo_time_for_relaxation_is_told_and_fitted(folder, monkeypatch, capfd):
    arguments = ["fit", "small_101D.nii.gz", "--te", "90", "--model", "t2-ivim-kurtosis", "--no-quicklook"]
    fixed = ["--fix", "T2v=200", "--fix", "T2t=80"]
    for options, out in (([], "maps"), (fixed, "more")):
        monkeypatch.setattr(sys, "argv", ["dmrifit", *arguments, *options, "--out", out])
        with pytest.raises(SystemExit) as stopped:
            program.main()
        assert not stopped.value.code
        told = "small_101D.nii.gz: the scan has one echo time (90 ms), which cannot tell T2v, T2t from the amplitude"
        text = capfd.readouterr().err
        assert (f"dmrifit: {told}" in text) == (not options)
        assert (" ".join(fixed) in text) == (not options)


@pytest.mark.parametrize("command", ["fit", "preprocess"])
def test_a_folder_that_cannot_be_written(refused, folder, command):
    (folder / "maps").write_text("a file in the place of the folder")
    options = ["--model", "adc"] if command == "fit" else ["--steps", "denoise"]
    line = refused(IMAGE, *options, out="maps", command=command)
    assert "cannot write to the folder maps" in line
    line = refused(IMAGE, *options, out="maps/inside", command=command)
    assert "maps/inside cannot be written" in line
    assert "maps is a file; choose" in line
