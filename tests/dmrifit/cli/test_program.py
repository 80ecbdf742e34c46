"""The command line: fits, its answers and its errors, and what to cite."""

import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import dmrifit
from dmrifit.cli import fit_command
from dmrifit.cli.console import read_help
from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.fit_predict import fit_image

PROTOCOL = Protocol([0, 200, 500, 1000], te=80)
GRID = (4, 3, 2)


@pytest.fixture
def scan(tmp_path):
    """A synthetic scan of one slice-thick block, with its b-values beside it."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    parameters = np.column_stack([rng.uniform(100, 900, 24), rng.uniform(0.3, 2, 24)])
    signals = MODELS["adc"].signal(parameters, PROTOCOL).reshape(*GRID, 4)
    nib.save(nib.Nifti1Image(signals, np.diag([2, 2, 4, 1])), folder / "sub-01_dwi.nii.gz")
    np.savetxt(folder / "sub-01_dwi.bval", PROTOCOL.b[None], fmt="%g")
    return folder / "sub-01_dwi.nii.gz"


def one_line(err):
    lines = [line for line in err.splitlines() if not line.startswith("dmrifit: using")]
    assert len(lines) == 1, err
    assert lines[0].startswith("dmrifit: error: ")
    return lines[0]


def test_the_worked_line_runs(output_of, tmp_path, monkeypatch):
    protocol = Protocol.preset("cohort1")
    rng = np.random.default_rng(0)
    parameters = np.array([500, 0.15, 30, 200, 1.1, 0.8, 70]) * rng.uniform(0.9, 1.1, (8, 7))
    signals = MODELS["t2-ivim-kurtosis"].signal(parameters, protocol).reshape(2, 2, 2, 21)
    nib.save(nib.Nifti1Image(signals, np.eye(4)), tmp_path / "sub-01_dwi.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    np.savetxt(tmp_path / "sub-01_dwi.bval", protocol.b[None], fmt="%g")
    np.savetxt(tmp_path / "sub-01_dwi.te", protocol.te[None], fmt="%g")
    monkeypatch.chdir(tmp_path)
    out = output_of(*read_help(fit_command.fit.__doc__)[2].split()[1:])
    made = nib.load(tmp_path / "maps" / "sub-01_model-t2ivimkurtosis_param-T2t_dwimap.nii.gz")
    np.testing.assert_allclose(np.asarray(made.dataobj).ravel(), parameters[:, 6], rtol=1e-2)
    assert "8 voxels" in out


def test_the_installed_command_is_there_with_the_version_of_the_package(run):
    assert run("--version") == (0, f"dmrifit {dmrifit.__version__}\n", "")
    command = shutil.which("dmrifit", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("the package is used without being installed")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dmrifit ")


def test_a_true_process_fits_a_real_scan(data_dir, tmp_path):
    path = data_dir / "dipy_small_dwi" / "small_101D.nii.gz"
    command = [sys.executable, "-m", "dmrifit", "fit", path, "--model", "kurtosis", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "600 voxels" in done.stdout
    assert f"using {path.with_name('small_101D.bval')}" in done.stderr
    assert f"using {path.with_name('small_101D.bvec')}" in done.stderr
    assert {path.name for path in tmp_path.glob("*_param-?_*.nii.gz")} == {
        f"small_101D_model-kurtosis_param-{name}_dwimap.nii.gz" for name in "DK"
    }
    assert (tmp_path / "small_101D_model-kurtosis_quicklook.html").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "--overwrite" in one_line(again.stderr)
    assert again.stdout == ""


def test_options_reach_the_fit(scan, output_of, tmp_path):
    out = tmp_path / "out"
    mask = tmp_path / "mask.nii"
    inside = np.ones(GRID, np.uint8)
    inside[0] = 0
    nib.save(nib.Nifti1Image(inside, np.diag([2, 2, 4, 1])), mask)
    printed = output_of(
        *("fit", scan, "--model", "adc", "--out", out, "--mask", mask, "--sigma", "3", "--te", "80", "--threads", "1"),
        *("--bounds", "ADC=0.5,1", "--bounds", "S0=0,5", "--starts", "2", "--average-directions", "arithmetic"),
        "--no-quicklook",
    )
    maps = fit_image(
        scan, PROTOCOL, "adc", mask=mask, sigma=3.0, bounds={"ADC": (0.5, 1), "S0": (0, 5)}, average="arithmetic",
        n_starts=2,
    )  # fmt: skip
    written = nib.load(out / "sub-01_model-adc_param-ADC_dwimap.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(maps["ADC"].dataobj))
    described = json.loads((out / "sub-01_model-adc_dwimap.json").read_text(encoding="utf-8"))
    assert described["Settings"]["Starts"] == 2
    assert "% at 1 µm²/ms (upper)" in printed
    assert "18 voxels" in printed


def test_the_method_and_the_regularization_reach_the_fit(scan, error_of, output_of, tmp_path):
    protocol = Protocol([0, 20, 80, 200, 500, 1000])
    signals = MODELS["ivim"].signal([[500, 0.2, 20, 1.0], [300, 0.1, 40, 0.8]], protocol).reshape(2, 1, 1, 6)
    nib.save(nib.Nifti1Image(signals, np.eye(4)), scan)
    np.savetxt(scan.with_name("sub-01_dwi.bval"), protocol.b[None], fmt="%g")
    options = ["--model", "ivim", "--method", "segmented", "--regularization", 0.01, "--no-quicklook"]
    output_of("fit", scan, "--out", tmp_path / "out", *options)
    expected = fit_image(scan, protocol, "ivim", method="segmented", regularization=0.01)
    for name in MODELS["ivim"].names:
        written = nib.load(tmp_path / "out" / f"sub-01_model-ivim_param-{name}_dwimap.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), np.asanyarray(expected[name].dataobj))
    err = error_of("fit", scan, "--out", tmp_path / "other", "--model", "adc", "--method", "segmented")
    assert "the segmented fit is for the model 'ivim'" in err


def test_the_lines_printed_name_what_was_written(scan, output_of, tmp_path):
    for ending in (".nii.gz", ".bval"):
        shutil.copy(scan.with_name(f"sub-01_dwi{ending}"), scan.with_name(f"sub-01_desc-preproc_dwi{ending}"))
    image = scan.with_name("sub-01_desc-preproc_dwi.nii.gz")
    out = output_of("fit", image, "--model", "adc", "--sigma", "estimate", "--out", tmp_path / "out")
    assert re.search(r"^noise: [\d.]+ \(mppca\)\nSNR: [\d.]+ \(median signal", out, re.MULTILINE)
    pattern = re.search(r"^maps: (.+)$", out, re.MULTILINE)[1]
    maps = list(Path(pattern).parent.glob(Path(pattern).name))
    assert len(maps) == 13
    assert Path(re.search(r"^page: (.+)$", out, re.MULTILINE)[1]).is_file()


def test_kurtosis_can_be_kept_monotonic(scan, run, tmp_path):
    needed = "kurtosis, which needs a b-value above 1500 s/mm², and the highest is 1000"
    code, _, err = run("fit", scan, "--model", "kurtosis", "--out", tmp_path / "out", "--bounds", "K=0,monotonic")
    assert needed in err
    with pytest.warns(UserWarning, match=needed):
        maps = fit_image(scan, Protocol(PROTOCOL.b), "kurtosis", bounds={"K": (0, "monotonic")})
    assert code == 0, err
    written = nib.load(tmp_path / "out" / "sub-01_model-kurtosis_param-K_dwimap.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(maps["K"].dataobj))
    described = json.loads((tmp_path / "out" / "sub-01_model-kurtosis_dwimap.json").read_text(encoding="utf-8"))
    assert described["Settings"]["Bounds"] == "K from 0.0 to monotonic"
    assert described["Parameters"]["K"]["UpperBoundRule"] == "also at most 3/(b_max·D)"
    assert "UpperBoundRule" not in described["Parameters"]["D"]
    page = (tmp_path / "out" / "sub-01_model-kurtosis_quicklook.html").read_text(encoding="utf-8")
    assert re.search(r"% at the smaller of 5 and 3/\(b_max·D\)", page)


def test_echo_times_may_come_from_a_sidecar_for_each_volume(scan, output_of, tmp_path):
    sidecars = []
    for i in range(4):
        sidecars += ["--te", tmp_path / f"{i}.json"]
        sidecars[-1].write_text('{"EchoTime": 0.08}')
    output_of("fit", scan, "--model", "adc", "--out", tmp_path / "out", "--no-quicklook", *sidecars)
    described = json.loads((tmp_path / "out" / "sub-01_model-adc_dwimap.json").read_text(encoding="utf-8"))
    assert described["Protocol"]["te"] == [80.0] * 4


def test_a_scan_in_several_files_is_fitted_by_its_table(scan, error_of, output_of, tmp_path):
    loaded = nib.load(scan)
    lines = ["image\tbval"]
    for i, b in enumerate((0.5, 3, 498, 501)):
        nib.save(loaded.slicer[..., i : i + 1], scan.with_name(f"sub-01_acq-b{i}_dwi.nii.gz"))
        lines.append(f"sub-01_acq-b{i}_dwi.nii.gz\t{b}")
    table = scan.with_name("scan.tsv")
    table.write_text("\n".join(lines))
    out = output_of("fit", table, "--model", "adc", "--b-tolerance", "5", "--out", tmp_path / "out")
    assert "24 voxels" in out
    merged = "the fit merges b-values: 0.5, 3 → 0; 498, 501 → 500 s/mm²"
    assert f"{merged}\n" in out
    described = json.loads((tmp_path / "out" / "sub-01_model-adc_dwimap.json").read_text(encoding="utf-8"))
    assert described["MergedB"]["MeasuredB"] == [0.5, 3, 498, 501]
    assert (described["Parameters"]["S0"]["Units"], described["Cost"]["Units"]) == ("a.u.", "a.u.²")
    assert merged[1:] in (tmp_path / "out" / "sub-01_model-adc_quicklook.html").read_text(encoding="utf-8")
    assert str(tmp_path / "out" / "sub-01_model-adc_param-*_dwimap.nii.gz") in out
    maps = fit_image(scan, Protocol([0, 0, 500, 500]), "adc")
    written = nib.load(tmp_path / "out" / "sub-01_model-adc_param-ADC_dwimap.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(maps["ADC"].dataobj))
    err = error_of("fit", table, "--model", "adc", "--te", "80", "--out", tmp_path / "other")
    assert "leave out --te" in err


INTERRUPTED = """
import signal, sys, time
import nibabel as nib
from dmrifit.cli import program

def save(image, path):
    path.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)

# A shell that starts the tests in the background has switched Ctrl-C off.
signal.signal(signal.SIGINT, signal.default_int_handler)
nib.save = save
program.main()
"""


def test_ctrl_c_leaves_nothing_and_says_so(scan, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", INTERRUPTED, "fit", scan, "--model", "adc", "--out", out]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "dmrifit: interrupted" in err
    assert "Traceback" not in err
    assert not out.exists()


def test_without_the_extra_maps_are_written_and_the_way_to_the_page_is_named(scan, run, tmp_path, monkeypatch):
    monkeypatch.setattr("dmrifit.cli.case_runs.find_spec", lambda name: None if name == "jinja2" else name)
    code, out, err = run("fit", scan, "--model", "adc", "--out", tmp_path / "out")
    assert code == 0
    assert 'pip install "dmrifit[report]"' in err
    assert "page" not in out
    assert (tmp_path / "out" / "sub-01_model-adc_param-ADC_dwimap.nii.gz").exists()
    assert not list((tmp_path / "out").glob("*quicklook*"))


def test_one_echo_time_for_relaxation_is_told_unless_its_parameters_are_fixed(data_dir, run, tmp_path):
    scan = data_dir / "dipy_small_dwi" / "small_101D.nii.gz"
    fixed = ("--fix", "T2v=200", "--fix", "T2t=80")
    told = "the scan has one echo time (90 ms), which cannot separate T2v, T2t from the amplitude"
    arguments = ("fit", scan, "--te", "90", "--model", "t2-ivim-kurtosis", "--no-quicklook", "--out")
    for options, out in (((), "maps"), (fixed, "more")):
        code, text, err = run(*arguments, tmp_path / out, *options)
        assert code == 0, err
        assert (told in err) == ("No voxel determines S0, f, T2v, " in text) == (not options)
        assert "--fix T2t=VALUE" not in text
        assert (" ".join(fixed) in err) == (not options)


def test_without_a_model_the_richest_that_the_protocol_determines_is_fitted(scan, run, tmp_path):
    code, out, err = run("fit", scan, "--out", tmp_path / "out", "--no-quicklook")
    assert code == 0, err
    assert "using model adc: 4 b-values support adc; kurtosis needs a b-value above 1500 s/mm²" in err
    assert re.search("medians without doubts .*: S0 .*, 0 % in doubt; ADC .*\n(.*\n)*least standard deviation of an unbi", out)
    assert re.search(r"\(signal at b = 0 s/mm² over the noise\): S0 ±.*, ADC ±.* Cramér–Rao bounds; bounds of", out)
    described = json.loads((tmp_path / "out" / "sub-01_model-adc_dwimap.json").read_text(encoding="utf-8"))
    precision = described["ExpectedPrecision"]
    assert set(precision["CoefficientOfVariation"]) == {"S0", "ADC"}
    assert precision["SNR"] > 0
    assert precision["Inseparable"] == []


def test_models_are_cited_with_their_publications_all_without_a_name_and_unknown_ones_not(run, error_of):
    software, name, *references = run("cite", "Kurtosis")[1].splitlines()
    assert f"dmrifit (version {dmrifit.__version__})" in software
    assert name == "kurtosis:"
    assert references == ["  Jensen et al., Magn Reson Med 53:1432–1440, 2005."]
    lines = run("cite")[1].splitlines()
    assert [line[:-1] for line in lines if line.endswith(":")] == list(MODELS)
    assert len(lines) == 1 + len(MODELS) + sum(len(model.references) for model in MODELS.values())
    assert "did you mean ivim?" in error_of("cite", "ivm")


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_references_with_journal_and_year(name):
    assert MODELS[name].references
    for reference in MODELS[name].references:
        assert re.fullmatch(r"\S.+ et al\., .+ \d[\d()]*:N?\d+–N?\d+, (19|20)\d\d\.", reference)
    assert pickle.loads(pickle.dumps(MODELS[name])).references == MODELS[name].references
