"""The commands that describe and list scans, preprocess, summarize regions, train and predict."""

import json
import re
import shlex

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit.cohort.cohort import Cohort
from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.fit_predict import fit_image, predict_image
from dmrifit.imaging.regions import repeatability, repeatability_text, roi_table
from dmrifit.model_files.model_file import load_model
from dmrifit.report.numerals import significant

PROTOCOL = Protocol([0, 200, 500, 1000])
AFFINE = np.diag([2.0, 2, 4, 1])
GRID = (4, 3, 2)
BODY = "derivatives/masks/sub-*/*_desc-body_mask.nii.gz"
LESION = "derivatives/masks/sub-*/*_desc-lesion_mask.nii.gz"


@pytest.fixture
def fitted(tmp_path):
    """Folders of maps of two subjects at two visits, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.zeros(GRID, np.uint8)
    labels[:2], labels[2:] = 1, 5
    nib.save(nib.Nifti1Image(labels, AFFINE), tmp_path / "labels.nii.gz")
    for subject in ("A", "B"):
        adc = rng.uniform(0.5, 2, 24)
        for visit in (1, 2):
            parameters = np.column_stack([np.full(24, 500.0), adc * (1 + 0.05 * rng.normal(size=24))])
            signals = MODELS["adc"].signal(parameters, PROTOCOL).reshape(*GRID, 4)
            path = tmp_path / f"sub-{subject}_ses-{visit}_dwi.nii"
            nib.save(nib.Nifti1Image(signals, AFFINE), path)
            np.savetxt(path.with_suffix(".bval"), PROTOCOL.b[None], fmt="%g")
            fit_image(path, PROTOCOL, "adc", bounds={"ADC": (0, 1.5)}, out=tmp_path / f"maps{subject}{visit}")
    return tmp_path


def test_regions_of_many_scans_become_one_table(fitted, run, error_of, output_of):
    names = fitted / "names.tsv"
    names.write_text("index\tname\n1\tliver\n5\tspleen\n")
    folders = [fitted / f"mapsA{visit}" for visit in (1, 2)]
    out = fitted / "roi.csv"
    arguments = ("roi", *folders, "--labels", fitted / "labels.nii.gz", "--names", names, "--out", out)
    printed = output_of(*arguments)
    assert "2 scans, 2 labels" in printed
    table = pd.read_csv(out)
    assert len(table) == 2 * 2 * 5
    assert set(table["scan"]) == {"sub-A_ses-1", "sub-A_ses-2"}
    assert set(table["name"]) == {"liver", "spleen"}
    beginning = f"{folders[1]}/sub-A_ses-2_model-adc_param-"
    map_names = ("S0", "ADC", "S0_se", "ADC_se", "status", "at_bound")
    maps = {name: f"{beginning}{name.replace('_', '')}_dwimap.nii.gz" for name in map_names}
    expected = roi_table(maps, fitted / "labels.nii.gz").query("map == 'ADC'")
    found = table[(table["scan"] == "sub-A_ses-2") & (table["map"] == "ADC")]
    for column in ("n", "median", "iqr", "at_high"):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-5)
    assert found["at_high"].max() > 0
    assert not (fitted / "roi_repeatability.csv").exists()
    assert "--overwrite" in error_of(*arguments)
    assert run(*arguments, "--overwrite")[0] == 0


def test_two_visits_give_the_repeatability(fitted, output_of):
    lines = ["subject\tvisit\tmaps\tlabels"]
    lines += [f"{subject}\t{visit}\tmaps{subject}{visit}\tlabels.nii.gz" for subject in "AB" for visit in (1, 2)]
    (fitted / "scans.tsv").write_text("\n".join(lines))
    printed = output_of("roi", fitted / "scans.tsv", "--out", fitted / "roi.csv")
    assert re.search(r"ADC +2 +\d+ % +[\d.]+ \[[\d.]+, [\d.]+\] µm²/ms +\d+ %\n", printed)
    assert "one subject" not in printed
    table = pd.read_csv(fitted / "roi.csv", dtype={"name": str})
    found = pd.read_csv(fitted / "roi_repeatability.csv", dtype={"name": str})
    assert table["subject"].drop_duplicates().tolist() == ["A", "B"]
    pd.testing.assert_frame_equal(found, repeatability(table), rtol=1e-4)
    adc = found[found["map"] == "ADC"]
    assert (adc["n_subjects"] == 2).all()
    assert (adc["wcv"] > 0).all()
    assert set(adc["unit"]) == {"µm²/ms"}
    text = repeatability_text(repeatability(table[table["subject"] == "A"]))
    assert re.search(r"ADC +1 .* \[[\d.]+, [\d.]+\] µm²/ms(?s:.*)one subject alone says little", text)
    other = table.assign(model=table["visit"].map({1: "ivim", 2: "adc"}))
    assert repeatability_text(repeatability(other)).startswith("nothing repeats: no subject has a map of one model")
    (fitted / "scans.tsv").write_text("\n".join([lines[0], lines[1], lines[4]]))
    assert "nothing repeats: no subject has a map" in output_of("roi", fitted / "scans.tsv", "--out", fitted / "once.csv")
    (fitted / "scans.tsv").write_text("\n".join([*lines[:2], lines[2].replace("\t2\t", "\t1\t"), lines[4]]))
    printed = output_of("roi", fitted / "scans.tsv", "--out", fitted / "once.csv", "--overwrite")
    assert "repeatability is not computed: subject A has label 1, map " in printed
    assert not (fitted / "once_repeatability.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mapsA1", "--labels", "none.nii"], "none.nii: no such label image"),
        (["mapsA1"], "0 label images for 1 folder of maps; give --labels once for all, or"),
        (["mapsA1", "mapsA2", "mapsB1", "--labels", "labels.nii.gz", "--labels", "labels.nii.gz"], "2 label images"),
        (["none", "--labels", "labels.nii.gz"], "none: no such folder of maps"),
        (["scans.tsv", "mapsA1"], "scans.tsv among others"), (["scans.tsv"], "no column maps"),
        (["mapsA1", "--labels", "labels.nii.gz", "--names", "scans.tsv"], "no column name"),
    ],
)
def test_bad_input_of_roi_is_one_line_and_writes_nothing(fitted, run, monkeypatch, arguments, message):
    (fitted / "scans.tsv").write_text("subject\tvisit\nA\t1\n")
    monkeypatch.chdir(fitted)
    code, out, err = run("roi", *arguments, "--out", "new/roi.csv")
    assert (code, out) == (2, "")
    assert err.startswith("dmrifit: error: ")
    assert message in err
    assert not (fitted / "new").exists()


def test_a_real_scan_is_preprocessed_and_then_fitted_by_the_line_printed(data_dir, error_of, output_of, tmp_path):
    pytest.importorskip("dipy")
    folder = data_dir / "dipy_small_dwi"
    few = nib.load(folder / "small_64D.nii").slicer[..., :8]
    nib.save(few, tmp_path / "sub-1_dwi.nii.gz")
    for ending in ("bval", "bvec"):
        numbers = np.loadtxt(folder / f"small_64D.{ending}")[:8]
        np.savetxt(tmp_path / f"sub-1_dwi.{ending}", numbers)
    out = tmp_path / "clean"
    options = ("--steps", "denoise", "--te", 90, "--mask", "none", "--out", out)
    printed = output_of("preprocess", tmp_path / "sub-1_dwi.nii.gz", *options)
    assert "noise: median sigma" in printed
    program, *words = shlex.split(printed.splitlines()[-1].removeprefix("to fit: "))
    assert (program, words[0], words[-4:-2]) == ("dmrifit", "fit", ["--mask", "none"])
    printed = output_of(*words)
    assert "1000 voxels" in printed
    described = json.loads((tmp_path / "clean_maps" / "sub-1_model-adc_desc-preproc_dwimap.json").read_text(encoding="utf-8"))
    assert described["Settings"]["Sigma"] == "map"
    assert described["Sources"]["Sigma"]["Name"] == "sub-1_param-sigma_desc-preproc_dwimap.nii.gz"


def test_the_noise_is_estimated_in_a_fit_on_request(data_dir, output_of, tmp_path):
    pytest.importorskip("dipy")
    scan = data_dir / "dipy_small_dwi" / "small_64D.nii"
    options = ("--sigma", "estimate", "--average-directions", "geometric", "--no-quicklook", "--out", tmp_path)
    output_of("fit", scan, "--model", "adc", *options)
    described = json.loads((tmp_path / "small_64D_model-adc_dwimap.json").read_text(encoding="utf-8"))
    assert described["Settings"]["Sigma"] == "estimate"


def test_a_model_is_trained_and_predicts_a_new_image(output_of, tmp_path):
    output_of(*("simulate", "--out", tmp_path / "data", "--patients", 2, "--same-protocol", "--shape", "20,20,4"))
    table, model = tmp_path / "data" / "participants.tsv", tmp_path / "model.dmrifit"
    printed = output_of("train", table, "--out", model, "--max-voxels", 50)
    assert "trained on 200 body voxels of 4 patients" in printed
    image = next((tmp_path / "data").glob("sub-*/dwi/*_dwi.nii.gz"))
    mask = next(image.parent.glob("*body_mask.nii.gz"))
    printed = output_of("predict", model, image, "--mask", mask, "--signals", "--out", tmp_path / "out")
    protocol = Protocol.read(image.with_name(image.name.replace("nii.gz", "bval")), image.with_name(
        image.name.replace("nii.gz", "te")))  # fmt: skip
    made = predict_image(load_model(model), image, protocol=protocol, mask=mask)
    written = next((tmp_path / "out").glob("*param-Dt*.nii.gz"))
    np.testing.assert_array_equal(np.asarray(nib.load(written).dataobj), np.asarray(made["Dt"].dataobj))
    assert len(list((tmp_path / "out").glob("*_dwi.nii.gz"))) == 1
    values = made["Dt"].get_fdata()
    medians = f"; Dt {significant(np.median(values[values > 0]))} µm²/ms; K "
    for text in ("voxels have predicted maps of the advanced protocol", "page: ", "signals: ", "Without intervals", "its accuracy in people is unknown"):
        assert all(words in printed for words in (text, "\nmedians: S0 ", medians))


def test_what_a_prediction_lacks_is_named(run, error_of, tmp_path):
    run("simulate", "--out", tmp_path / "data", "--patients", 1, "--same-protocol", "--shape", "16,16,3")
    model = tmp_path / "model.dmrifit"
    assert run("train", tmp_path / "data" / "participants.tsv", "--out", model, "--max-voxels", 20)[0] == 0
    image = next((tmp_path / "data").glob("sub-*/dwi/*_dwi.nii.gz"))
    image.with_name(image.name.replace("nii.gz", "te")).unlink()
    assert "needs echo times" in error_of("predict", model, image, "--out", tmp_path / "out")
    assert "is a model file; leave out the options of a scan" in error_of("info", model, "--mask", "auto")


def test_the_share_at_a_bound_is_printed_where_the_other_is_none(fitted, output_of):
    scan = fitted / "sub-A_ses-1_dwi.nii"
    options = ("--model", "adc", "--bounds", "ADC=5,inf", "--no-quicklook", "--out", fitted / "bound")
    printed = output_of("fit", scan, *options)
    assert "ADC, voxels with signal at its bounds: 100 % at 5 µm²/ms (lower)\n" in printed


def test_maps_with_a_learned_prior_are_refused_for_tables_of_regions(fitted, error_of, output_of):
    scan = fitted / "sub-A_ses-1_dwi.nii"
    out = fitted / "prior"
    printed = output_of("fit", scan, "--model", "adc", "--method", "map", "--no-quicklook", "--out", out)
    assert "pulled toward the region's mean" in printed
    err = error_of("roi", out, "--labels", fitted / "labels.nii.gz", "--out", fitted / "roi.csv")
    assert "were pulled toward the region's mean by a prior learned" in err.replace("\n", " ")


def test_values_that_are_no_plain_data_are_printed_with_their_reasons(fitted, output_of):
    protocol = Protocol([0, 200, 400, 600, 800])
    signals = MODELS["adc"].signal(np.column_stack([np.full(24, 500.0), np.linspace(0.5, 2, 24)]), protocol)
    signals[0, 1] = np.nan
    signals[1, [1, 2]] = np.nan
    signals[2, 4] = -7.0
    scan = fitted / "gaps.nii"
    nib.save(nib.Nifti1Image(signals.reshape(*GRID, 5), AFFINE), scan)
    np.savetxt(fitted / "gaps.bval", protocol.b[None], fmt="%g")
    printed = output_of("fit", scan, "--model", "adc", "--no-quicklook", "--out", fitted / "gaps")
    assert "3 values in 2 voxels left out: 3 not finite\n" in printed
    assert "1 negative value in 1 voxel fitted unchanged: " in printed
    assert re.search(r"24 voxels, 96 % fitted: 23 [a-z ]+; 1 not fitted\n.*not fitted: 1 voxel with more than a fifth", printed, re.DOTALL)


def test_options_of_the_methods_reach_the_fit(fitted, output_of):
    scan = fitted / "sub-A_ses-1_dwi.nii"
    values = np.asarray(nib.load(scan).dataobj).copy()
    values[0, 0, 0, 3] = -1
    nib.save(nib.Nifti1Image(values, AFFINE), scan)
    options = ["--method", "wls", "--weights", "1,1,1,3", "--no-quicklook"]
    printed = output_of("fit", scan, "--model", "adc", "--out", fitted / "wls", *options)
    assert "1 value in 1 voxel left out" in printed
    expected = fit_image(scan, PROTOCOL, "adc", method="wls", weights=[1, 1, 1, 3])
    written = nib.load(fitted / "wls" / "sub-A_ses-1_model-adc_param-ADC_dwimap.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(expected["ADC"].dataobj))


def test_intervals_and_the_meaning_of_f_stand_in_the_terminal(tmp_path, output_of):
    """A scan without perfusion: f is a well-measured zero, and Dv is not determined."""
    protocol = Protocol([0, 10, 20, 40, 80, 150, 300, 500, 800])
    clean = MODELS["ivim"].signal(np.tile([1000.0, 0.0, 20, 1.0], (24, 1)), protocol)
    signals = clean + np.random.default_rng(0).normal(0, 3, clean.shape)
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(signals.reshape(*GRID, 9), AFFINE), path)
    np.savetxt(tmp_path / "scan.bval", protocol.b[None], fmt="%g")
    printed = output_of("fit", path, "--model", "ivim", "--no-quicklook", "--out", tmp_path / "maps")
    line = next(line for line in printed.splitlines() if line.startswith("95 % intervals, with doubts"))
    assert "f (T2-weighted signal fraction at the echo time of the scan) none found, < 0.0" in line
    assert "Dv not determined (4 to 100 µm²/ms searched)" in line


def test_precision_is_that_of_tissue_and_air_is_named(write_scan, output_of, tmp_path):
    protocol = Protocol(np.repeat([0, 500, 1000], 4))
    write_scan(tmp_path, "scan", protocol)
    image = nib.load(tmp_path / "scan.nii.gz")
    values = image.get_fdata(dtype=np.float32)
    inside = np.zeros((18, *values.shape[1:3]), np.uint8)
    inside[: len(values)] = 1
    air = np.abs(np.random.default_rng(0).normal(0, 2, (12, *values.shape[1:])))
    nib.save(nib.Nifti1Image(np.concatenate([values, air]), image.affine), tmp_path / "scan.nii.gz")
    nib.save(nib.Nifti1Image(inside, image.affine), tmp_path / "mask.nii.gz")
    snr = []
    for mask in ("none", tmp_path / "mask.nii.gz"):
        out = tmp_path / f"maps{len(snr)}"
        printed = output_of("fit", tmp_path / "scan.nii.gz", "--mask", mask, "--no-quicklook", "--out", out)
        assert ("; --mask auto leaves it out of the fit, too" in printed) == (mask == "none")
        (sidecar,) = out.glob("*.json")
        snr.append(json.loads(sidecar.read_text())["ExpectedPrecision"]["SNR"])
    assert snr[0] == pytest.approx(snr[1], rel=0.02)


def test_maps_of_other_programs_are_summarized_and_shown(fitted, error_of, output_of):
    adc = next((fitted / "mapsA1").glob("*param-ADC_*"))
    options = ("--map", f"MD={adc}", "--unit", "MD=um2/ms", "--labels", fitted / "labels.nii.gz")
    output_of("roi", *options, "--out", fitted / "own.csv")
    assert pd.read_csv(fitted / "own.csv")[["map", "unit"]].drop_duplicates().to_numpy().tolist() == [["MD", "µm²/ms"]]
    assert "own.html" in output_of("view", *options, "--out", fitted / "own.html")
    assert "gray.html" in output_of("view", adc, *options[4:], "--out", fitted / "gray.html")
    content = adc.read_bytes()
    for out, message in ((adc, "ends in .html"), (fitted / "map.html", "is an input")):
        if out != adc:
            out.write_bytes(content)
        assert message in error_of("view", "--map", f"MD={out}", "--out", out, "--overwrite")
        assert out.read_bytes() == content
    assert all("--map" in error_of(command, "--out", fitted / "none") for command in ("roi", "view"))
    told = "in place of the folder .*mapsA1 by --map NAME=FILE, such as --map ADC=.*param-ADC_dwimap"
    assert re.search(told, error_of("view", fitted / "mapsA1", "--out", fitted / "none"))
    (fitted / "x y").symlink_to(fitted / "mapsA1")
    assert f"such as --map 'ADC={fitted / 'x y'}" in error_of("view", fitted / "x y", "--out", fitted / "none")


def test_the_table_of_a_folder_is_one_that_is_read_as_cohorts(bids, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (bids / "derivatives" / "masks" / "sub-02" / "sub-02_desc-body_mask.nii.gz").unlink()
    code, printed, err = run("table", "bids", "--mask", BODY, "--lesion", LESION, "--cohort", "A")
    assert code == 0, err
    assert "sub-02 is left out" in err
    (tmp_path / "participants.tsv").write_text(printed)
    scans = Cohort.read("participants.tsv")["A"].scans
    assert [scan.patient for scan in scans] == ["01", "03", "04"]
    several = scans[2]
    next(bids.rglob("sub-03*.bval")).unlink()
    assert "sub-03_ses-a is left out: no .bval file is of it" in run("table", "bids", "--mask", BODY)[2]
    assert len(several.protocol) == 21
    assert sorted(set(several.protocol.te)) == [60, 90, 120]
    echo = nib.load(bids / "sub-04" / "dwi" / "sub-04_echo-2_dwi.nii.gz")
    np.testing.assert_array_equal(several.signal[..., 7:14], np.asarray(echo.dataobj))
    assert several.lesion.sum() < several.mask.sum()


def test_a_folder_without_subjects_is_named(error_of, tmp_path):
    assert "no BIDS folder" in error_of("table", tmp_path, "--mask", "*")
    assert "dmrifit table makes one" in error_of("benchmark", tmp_path, "--out", tmp_path / "board")


def test_a_scan_is_described_with_the_models_it_carries(bids, output_of):
    printed = output_of("info", bids / "sub-02" / "dwi" / "sub-02_dwi.nii.gz")
    assert "grid: 6 × 5 × 4 voxels of 2 × 2 × 3 mm, 4 volumes" in printed
    assert "axes: RAS" in printed
    assert "protocol: b = 0, 700, 1400, 2800 s/mm², echo time unknown" in printed
    assert "model: kurtosis: yes; SD of an unbiased fit at least D 1 ± " in printed
    assert "model: ivim: no, it needs" in printed
    assert "looks wrong: nothing" in printed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b, image: (b / 1000, image), "these look like ms/µm²"),
        (lambda b, image: (b[:-1], image), "4 volumes, but 3 b-values"),
        (lambda b, image: (b[::-1], image), "probably in the reverse order of the volumes"),
        (lambda b, image: (b, [1e3, 1050, 1100, 1100] * image / image.mean((0, 1, 2))), "another order than the volumes, or"),
        (lambda b, image: (b, -image), "are negative"), (lambda b, image: (b, np.minimum(image, 100)), "clipped"),
        (lambda b, image: (b, image * [1, 1, 3, 3]), "scaled differently"),
    ],
)
def test_what_looks_wrong_is_said(bids, output_of, spoil, message):
    folder = bids / "sub-02" / "dwi"
    image = nib.load(folder / "sub-02_dwi.nii.gz")
    b, values = spoil(np.loadtxt(folder / "sub-02_dwi.bval"), np.asarray(image.dataobj))
    np.savetxt(folder / "sub-02_dwi.bval", b[None], fmt="%g")
    nib.save(nib.Nifti1Image(values.astype(np.float32), image.affine), folder / "sub-02_dwi.nii.gz")
    printed = output_of("info", folder / "sub-02_dwi.nii.gz")
    doubts = [line for line in printed.splitlines() if line.startswith("looks wrong")]
    assert any(message in line for line in doubts), printed
    assert pd.Series(doubts).str.contains("nothing").sum() == 0
