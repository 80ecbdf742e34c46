"""Fits of many scans by one command."""

import html
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit._utils.text_files import read_sealed, sealed
from dmrifit.cli import fit_runs
from dmrifit.engine.protocol import Protocol

BODY = "derivatives/masks/sub-*/*_desc-body_mask.nii.gz"


def fits(out):
    return pd.read_csv(out / "fits.tsv", sep="\t", dtype={"subject": str, "visit": str})


def test_a_bids_folder_of_four_becomes_a_folder_of_derivatives_with_a_page(bids, run, output_of, tmp_path):
    out = tmp_path / "maps"
    code, printed, err = run("fit", bids, "--mask", BODY, "--out", out)
    assert code == 0, err
    assert "4 scans: 4 fitted" in printed
    assert len(re.findall(r"/4 (\(about .* left\) )?sub-", err)) == 4  # one line for each scan where there is no terminal
    table = fits(out)
    assert table["model"].tolist() == ["adc", "kurtosis", "adc", "t2-ivim-kurtosis"]
    assert table["fitted"].tolist() == [100] * 4
    assert table["visit"].tolist() == ["1", "1", "a", "1"]
    sidecar = out / "sub-03" / "ses-a" / "dwi" / "sub-03_ses-a_model-adc_dwimap.json"
    assert (out / table["maps"][2]).samefile(sidecar)
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "./sub-02/dwi/sub-02_model-kurtosis_quicklook.html" in page
    assert len(re.findall(r"<img[^>]*A slice of \w+, [\d.]+ to [\d.]+[ \"]", page)) == page.count("<img") == 4
    # The table is one that roi reads.
    labels = bids / "derivatives" / "masks" / "sub-01" / "sub-01_desc-lesion_mask.nii.gz"
    arguments = ("roi", out / "fits.tsv", "--out", tmp_path / "roi.csv")
    assert "name the label image of each, relative to the table, in a column labels, which dmrifit fit" in run(*arguments)[2]
    printed = output_of(*arguments, "--labels", labels)
    assert "4 scans, 1 label:" in printed


def test_a_bad_subject_is_a_row_and_is_fitted_when_it_is_mended(bids, run, output_of, tmp_path):
    bval = bids / "sub-01" / "dwi" / "sub-01_dwi.bval"
    good = bval.read_text()
    bval.write_text("0 500 many")
    (bids / "derivatives" / "masks" / "sub-02" / "sub-02_desc-body_mask.nii.gz").unlink()
    arguments = ("fit", bids, "--mask", BODY, "--no-quicklook", "--out", tmp_path / "maps")
    printed = output_of(*arguments)
    assert "4 scans: 2 fitted, 2 failed (failed.tsv)" in printed
    assert "failed: sub-01: " in printed
    assert "failed: sub-02: --mask" in printed
    assert pd.read_csv(tmp_path / "maps" / "failed.tsv", sep="\t")["name"].tolist() == ["sub-01", "sub-02"]
    assert fits(tmp_path / "maps")["name"].tolist() == ["sub-03_ses-a", "sub-04"]
    bval.write_text(good)
    code, printed, err = run(*arguments)
    assert code == 0, err
    assert "2 scans of 4 finished before" in err
    assert err.count("fitted, ") == 1
    assert "4 scans: 3 fitted" in printed
    assert len(fits(tmp_path / "maps")) == 3


def test_only_scans_that_changed_are_fitted_again(bids, run, error_of, tmp_path):
    arguments = ("fit", bids, "--no-quicklook", "--out", tmp_path / "maps")
    assert run(*arguments)[0] == 0
    image = bids / "sub-02" / "dwi" / "sub-02_dwi.nii.gz"
    image.touch()
    # That of an earlier version, which described a fit in other words.
    path = tmp_path / "maps" / ".fits" / "sub-01.json"
    path.write_text(json.dumps(sealed({**read_sealed(path), "version": None})))
    (tmp_path / "maps" / ".bidsignore").write_text("own\nfits.tsv\n")
    _, _, err = run(*arguments)
    assert re.findall(r"\d/2 .*(sub-\d+: \w+)", err) == ["sub-01: adc", "sub-02: kurtosis"]
    assert (tmp_path / "maps" / ".bidsignore").read_text().startswith("own\nfits.tsv\nfits.*\nfailed.tsv\n")
    _, _, err = run(*arguments, "--overwrite")
    assert "4/4 sub-" in err
    assert "finished before" not in err
    assert "(model was not given, now adc) or another version; repeat the earlier ones" in error_of(*arguments, "--model", "adc")


def test_images_of_one_name_are_named_by_their_folders(write_scan, error_of, output_of, tmp_path):
    for seed, patient in enumerate(("ann", "bob")):
        write_scan(tmp_path / "p" / patient, "dwi", Protocol([0, 500, 1000]), seed=seed)
        image = nib.load(tmp_path / "p" / patient / "dwi.nii.gz")
        inside = np.ones(image.shape[:3], np.uint8)
        inside[: 1 + seed] = 0
        nib.save(nib.Nifti1Image(inside, image.affine), tmp_path / "p" / patient / "mask.nii.gz")
    masks = tmp_path / "p" / "*" / "mask.nii.gz"
    images = tmp_path / "p" / "*" / "dwi.nii.gz"
    output_of("fit", images, "--mask", masks, "--no-quicklook", "--out", tmp_path / "maps")
    table = fits(tmp_path / "maps")
    assert table["name"].tolist() == ["ann", "bob"]
    assert table["voxels"].tolist() == [100, 80]
    err = error_of("roi", tmp_path / "maps", "--labels", tmp_path / "p" / "ann" / "mask.nii.gz", "--out", tmp_path / "roi.csv")
    assert f"name the table of its scans, {tmp_path / 'maps' / 'fits.tsv'}" in err


@pytest.mark.parametrize("ending", ["bval", "bvec", "json", "te"])
def test_a_corrected_sidecar_is_a_reason_to_fit_again(bids, run, tmp_path, ending):
    dwi = bids / "sub-01" / "dwi"
    texts = {"bval": "0 500 1000", "bvec": "0 1 0\n0 0 1\n0 0 0", "json": "{}", "te": "60 60 60"}
    for name, text in texts.items():
        (dwi / f"sub-01_dwi.{name}").write_text(text)
    arguments = ("fit", dwi / "*.nii.gz", "--te", dwi / "sub-01_dwi.te", "--model", "adc", "--no-quicklook",
                 "--out", tmp_path / "maps")  # fmt: skip
    assert run(*arguments)[0] == 0
    assert "1 scan of 1 finished before" in run(*arguments)[2]
    corrected = {"bval": "0 600 1200", "bvec": "0 0 1\n0 1 0\n0 0 0", "json": '{"EchoTime": 0.07}', "te": "75 75 75"}
    (dwi / f"sub-01_dwi.{ending}").write_text(corrected[ending])
    _, _, err = run(*arguments)
    assert "1/1 sub-01: adc" in err
    assert "finished before" not in err


def test_maps_of_the_model_before_are_removed(bids, run, tmp_path):
    arguments = ("fit", bids, "--out", tmp_path / "maps", "--overwrite", "--model")
    assert run(*arguments, "kurtosis")[0] == 0
    folder = tmp_path / "maps" / "sub-02" / "dwi"
    own_file = folder / "sub-02_model-kurtosis_notes.txt"
    own_file.touch()
    assert run(*arguments, "adc")[0] == 0
    assert list(folder.glob("*model-adc*"))
    assert list(folder.glob("*model-kurtosis*")) == [own_file]


@pytest.mark.parametrize("place", ["..", "home", "absolute"])
def test_a_record_from_elsewhere_names_no_file_to_remove_or_to_show(write_scan, run, tmp_path, place):
    write_scan(tmp_path, "a", Protocol([0, 500, 1000]))
    out, home = tmp_path / "maps", tmp_path / "home"
    arguments = ("fit", tmp_path / "a*.nii.gz", "--out", out, "--model", "adc")
    assert run(*arguments)[0] == 0
    home.mkdir()
    (out / "home").symlink_to(home)
    for folder in (home, tmp_path):
        names = ("v_model-adc_dwimap.json", "v_model-adc_param-ADC_dwimap.nii.gz", "v_model-adc_quicklook.png")
        for name in names:
            (folder / name).write_text(f'"{names[1]}"')
    folder = home if place == "absolute" else place
    record = json.loads((out / ".fits" / "a.json").read_text())
    record |= {"sidecar": f"{folder}/v_model-adc_dwimap.json", "model": f"{folder}/v_model-adc"}
    for overwrite in ((), ("--overwrite",)):
        (out / ".fits" / "a.json").write_text(json.dumps(record))
        code, _, err = run(*arguments, *overwrite)
        assert code == 0, err
        assert "finished before" not in err
        assert "v_model" not in (out / "index.html").read_text(encoding="utf-8")
        assert [len(list(folder.glob("v_*"))) for folder in (home, tmp_path)] == [3, 3]


def test_a_scan_of_which_no_voxel_is_fitted_has_failed(write_scan, output_of, tmp_path):
    for name in ("a", "b"):
        write_scan(tmp_path, name, Protocol([0, 500, 1000]))
    image = nib.load(tmp_path / "a.nii.gz")
    values = image.get_fdata(dtype=np.float32)
    values[..., 1] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), tmp_path / "a.nii.gz")
    printed = output_of("fit", tmp_path / "*.nii.gz", "--out", tmp_path / "maps")
    assert "2 scans: 1 fitted" in printed
    assert "none of 120 voxels" in printed.partition("failed: a: ")[2]
    assert fits(tmp_path / "maps")["name"].tolist() == ["b"]


def test_maps_are_not_written_among_raw_data(bids, run, error_of):
    assert "derivatives/dmrifit" in error_of("fit", bids, "--out", bids)
    assert not (bids / "settings.json").exists()
    assert run("fit", bids, "--no-quicklook", "--out", bids / "derivatives" / "dmrifit")[0] == 0


def test_ctrl_c_keeps_finished_scans_and_the_same_command_goes_on(bids, run, tmp_path, monkeypatch):
    finished = []

    def interrupted(case, folder, **options):
        if len(finished) == 2:
            raise KeyboardInterrupt
        finished.append(case[0].name)
        return fit_runs_fit_one(case, folder, **options)

    fit_runs_fit_one = fit_runs.fit_one
    arguments = ("fit", bids, "--no-quicklook", "--out", tmp_path / "maps")
    with monkeypatch.context() as patched:
        patched.setattr(fit_runs, "fit_one", interrupted)
        code, _, err = run(*arguments)
    assert code == 130
    assert f"scans are kept in {tmp_path / 'maps'}; the same command (without --overwrite) resumes there" in err
    assert len(fits(tmp_path / "maps")) == 2
    code, printed, err = run(*arguments)
    assert code == 0
    assert "2 scans of 4 finished before" in err
    assert "4 scans: 4 fitted" in printed


def test_workers_make_the_maps_that_one_process_makes(bids, output_of, tmp_path):
    (tmp_path / "link").symlink_to(bids)
    for jobs in (1, 2):
        arguments = ("--jobs", jobs, "--no-quicklook", "--out", tmp_path / f"maps{jobs}")
        output_of("fit", tmp_path / "link", *arguments)
    for path in (tmp_path / "maps1").rglob("*.nii.gz"):
        twin = tmp_path / "maps2" / path.relative_to(tmp_path / "maps1")
        np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), np.asarray(nib.load(twin).dataobj))


def test_several_images_and_a_glob_are_fitted_each_into_its_folder(bids, run, error_of, output_of, tmp_path, monkeypatch):
    images = [bids / "sub-01" / "dwi" / "sub-01_dwi.nii.gz", bids / "sub-02" / "dwi" / "sub-02_dwi.nii.gz"]
    # A mask whose name is of no scan is that of all on its grid; its path is not relative to the BIDS folder.
    mask = nib.load(bids / "derivatives" / "masks" / "sub-01" / "sub-01_desc-body_mask.nii.gz")
    nib.save(mask, tmp_path / "body.nii.gz")
    nib.save(mask.slicer[:-1], tmp_path / "other.nii.gz")
    monkeypatch.chdir(tmp_path)
    options = ("--model", "adc", "--no-quicklook", "--out")
    assert "body.nii.gz for 2 scans" in run("fit", *images, *options, "a", "--mask", "body.nii.gz")[2]
    assert fits(tmp_path / "a")["voxels"].tolist() == [100, 100]
    assert (tmp_path / "a" / "sub-02" / "sub-02_model-adc_param-ADC_dwimap.nii.gz").is_file()
    printed = run("fit", "bids", *options, "d", "--mask", "other.nii.gz")[1]
    assert re.search("failed: sub-02: .*other.nii.gz has 5 × 5 × 4 voxels and .*sub-02_dwi.nii.gz has 6 × 5 × 4", printed)
    nib.save(mask, tmp_path / "sub-09_mask.nii.gz")
    assert "no file of this scan" in error_of("fit", *images, "--mask", tmp_path / "sub-09_mask.nii.gz", "--out", tmp_path / "d")
    output_of("fit", bids / "sub-0*" / "dwi" / "*_dwi.nii.gz", "--no-quicklook", "--out", tmp_path / "b")
    assert fits(tmp_path / "b")["name"].tolist() == ["sub-01", "sub-02", *[f"sub-04_echo-{n}" for n in (1, 2, 3)]]
    output_of("fit", images[0].parent, "--no-quicklook", "--out", tmp_path / "folder")
    assert fits(tmp_path / "folder")["name"].tolist() == ["sub-01"]
    (tmp_path / "SUB-01_dwi.nii.gz").symlink_to(images[0])
    err = error_of("fit", images[0], tmp_path / "SUB-01_dwi.nii.gz", "--out", tmp_path / "c")
    assert "'sub-01' is there twice" in err
    assert not (tmp_path / "c").exists()
    assert "one BIDS folder alone" in error_of("fit", bids, images[0], "--out", tmp_path / "c")
    assert "--bval" in error_of("fit", bids, "--bval", images[0], "--out", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_run_without_one_good_scan_is_an_error(bids, run, tmp_path):
    arguments = ("--sigma", "estimate", "--likelihood", "none", "--jobs", 2, "--out", tmp_path / "maps")
    code, printed, err = run("fit", bids, *arguments)
    assert code == 2
    assert "sub-01: " in err
    assert len(re.findall("^failed: .*: --likelihood must be", printed, re.MULTILINE)) == 3


@pytest.mark.slow
def test_workers_of_a_cluster_fit_and_one_may_die(bids, run, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        killed = []

        def kill(row):
            if not killed:
                killed.append(next(iter(cluster.workers.values())).pid)
                os.kill(killed[0], signal.SIGKILL)
            return row["name"]

        # It writes the line of the first scan that is done.
        monkeypatch.setattr(fit_runs, "_RUN", replace(fit_runs._RUN, line=kill))
        arguments = ("--cluster", cluster.scheduler_address, "--no-quicklook", "--out", tmp_path / "maps")
        code, printed, err = run("fit", bids, *arguments)
    assert code == 0, err
    assert killed
    assert "4 scans: 4 fitted" in printed


CLUSTER = """
import sys
import distributed
if __name__ == "__main__":
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@pytest.mark.slow
def test_a_run_whose_scheduler_dies_ends_with_a_line_and_goes_on_with_another(bids, run, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    (tmp_path / "cluster.py").write_text(CLUSTER)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    words = [sys.executable, str(tmp_path / "cluster.py")]
    arguments = ("fit", bids, "--no-quicklook", "--out", tmp_path / "maps", "--cluster")
    plain_run = fit_runs._RUN

    def kill(row):
        # With its workers, which are its children.
        os.killpg(cluster.pid, signal.SIGKILL)
        return row["name"]

    with subprocess.Popen(words, start_new_session=True, **pipes) as cluster:
        monkeypatch.setattr(fit_runs, "_RUN", replace(fit_runs._RUN, line=kill))
        code, _, err = run(*arguments, cluster.stdout.readline().strip())
    monkeypatch.setattr(fit_runs, "_RUN", plain_run)
    assert code == 2
    assert "the scheduler is gone; start it again and give the same command" in err
    assert "Traceback" not in err
    with subprocess.Popen(words, start_new_session=True, **pipes) as cluster:
        code, printed, err = run(*arguments, cluster.stdout.readline().strip())
    assert code == 0, err
    assert re.search(r"[123] scans? of 4 finished before", err)
    assert "4 scans: 4 fitted" in printed


def capped_scan(folder, name):
    """Write a scan of which half is air, and whose signal ends in a floor beyond b = 2000."""
    b = np.arange(0, 4001, 250.0)
    rng = np.random.default_rng(3)
    tissue = np.maximum(np.exp(-b / 1e3 * 1.0 + (b / 1e3) ** 2 * 0.9 / 6), 0)
    tissue[b > 2000] = tissue[b == 2000] * 0.9
    clean = np.zeros((12, 6, 4, len(b)))
    clean[:5] = 1000 * tissue
    signals = np.hypot(clean + rng.normal(0, 4, clean.shape), rng.normal(0, 4, clean.shape))
    nib.save(nib.Nifti1Image(signals.astype(np.float32), np.diag([2.0, 2, 3, 1])), folder / f"{name}.nii.gz")
    np.savetxt(folder / f"{name}.bval", b[None], fmt="%g")


def test_one_scan_and_many_show_the_same_sentences_everywhere(output_of, tmp_path):
    for name in ("a", "b"):
        capped_scan(tmp_path, name)
    options = ("--model", "kurtosis")
    single = output_of("fit", tmp_path / "a.nii.gz", *options, "--out", tmp_path / "single")
    scans = (tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    many = output_of("fit", *scans, *options, "--out", tmp_path / "many")
    table = fits(tmp_path / "many")
    sidecar = json.loads((tmp_path / "many" / table["maps"][0]).read_text())
    doubt = np.asanyarray(nib.load(tmp_path / "many" / "a" / sidecar["Doubt"]["File"]).dataobj)[:5]
    for bit, (name, share) in enumerate(sidecar["Doubt"]["Share"].items()):
        assert share == pytest.approx(np.mean(doubt >> bit & 1)), "share of the tissue, without air"
        assert table[f"in_doubt_{name}"][0] == pytest.approx(share, rel=0.01)
    numbers = table[["air", "noise_sigma"]].iloc[0].tolist()
    assert (np.isnan(table["believed_median_K"][0]), numbers) == (True, pytest.approx([7 / 12, sidecar["Noise"]["Sigma"]], rel=0.02))
    described = json.loads((tmp_path / "many" / "fits.json").read_text(encoding="utf-8"))
    assert list(described) == list(table)
    assert [described[name].get("Units") for name in ("believed_median_D", "in_doubt_D", "seconds")] == ["µm²/ms", "1", "s"]
    pages = [tmp_path / "many" / "index.html", *(tmp_path / "many" / "a").glob("*.html")]
    texts = [" ".join(re.sub("<[^>]+>", " ", page.read_text(encoding="utf-8")).split()) for page in pages]
    assert len(texts) == 2
    advice = [*sidecar["Doubt"]["Advice"], "58 % of the fitted voxels look like air, left out of medians, intervals and shares"]
    assert len(advice) > 1
    for sentence in advice:
        assert all(sentence in shown for shown in (single, many, table["notes"][0], *texts)), sentence
    for line in re.findall("^(?:fit|noise|SNR|residuals): (.*)$", single, re.MULTILINE):
        assert all(line in text for text in texts), line
    path = tmp_path / "many" / ".fits" / "a.json"
    path.write_text(json.dumps(sealed({**read_sealed(path), "in_doubt": {"D": 0.89, "K": 0.5}})))
    output_of("fit", *scans, *options, "--out", tmp_path / "many")
    words = re.findall(r'<p class="note">[\d.]+ (in 11 % of voxels)</p>|alt="A slice of (\w+)', pages[0].read_text(encoding="utf-8"))
    assert sorted(words) == [("", "D"), ("", "D"), ("in 11 % of voxels", "")], "one parameter, least in doubt over all scans"


def test_the_scan_that_differs_comes_first_and_a_heading_sorts(output_of, tmp_path, tab):
    b = np.array([0, 300, 600, 900.0])
    rng = np.random.default_rng(5)
    # Six scans of like tissue, and one whose diffusion is twice as fast.
    adc = [0.80, 0.81, 0.79, 0.82, 1.60, 0.80, 0.78]
    for i, value in enumerate(adc):
        signals = 1000 * np.exp(-b / 1e3 * value) + rng.normal(0, 5, (5, 5, 3, 4))
        nib.save(nib.Nifti1Image(signals.astype(np.float32), np.diag([2.0, 2, 3, 1])), tmp_path / f"s{i}.nii.gz")
        np.savetxt(tmp_path / f"s{i}.bval", b[None], fmt="%g")
    scans = [tmp_path / f"s{i}.nii.gz" for i in range(7)]
    said = output_of("fit", *scans, "--model", "adc", "--out", tmp_path / "maps")
    assert re.findall("^s.*differs from the others: median of ADC: .*it$", said, re.MULTILINE)[0][:2] == "s4"
    np.testing.assert_allclose(fits(tmp_path / "maps")["believed_median_ADC"], adc, rtol=0.01)
    page = tab.open(tmp_path / "maps" / "index.html")

    def rows():
        return [" ".join(row.split()) for row in page.locator("table.sortable tbody tr").all_inner_texts()]

    words = r"ADC, 1.\d+ to 1.\d+ µm²/ms s4 median of ADC: above the median of adc scans, \d+\.\d times the usual distance from it adc 75 "
    assert re.match(words, rows()[0])
    assert not any("usual distance" in row for row in rows()[1:])
    page.get_by_role("button", name="ADC, µm²/ms").click()
    assert [row.partition("ms ")[2][:2] for row in (rows()[0], rows()[-1])] == ["s4", "s6"]
    page.get_by_role("button", name="ADC, µm²/ms").click()
    assert [row.partition("ms ")[2][:2] for row in (rows()[0], rows()[-1])] == ["s6", "s4"]
    sizes = page.evaluate("[...document.images].map((image) => [image.naturalWidth, image.clientWidth])")
    assert sizes == [[5, 110]] * 7


def test_few_scans_are_not_told_apart_and_a_missing_figure_makes_none_unusual():
    same = [{"fitted": 1.0, "median D": 1.0}] * 3
    others = [*same, {"fitted": 1.0}, {"fitted": 1.0, "median D": 1.1}]
    assert [distance for distance, _ in fit_runs._unusual(others, ["adc"] * 5)] == pytest.approx([0, 0, 0, 0, 0.1 / 0.022])
    zero = [{"fitted": 1.0, "median D": 0.0}] * 5
    assert np.isfinite(fit_runs._unusual([*zero, {"fitted": 1.0, "median D": 1.0}], ["adc"] * 6)[-1][0])
    mixed = fit_runs._unusual([*zero[:3], {"fitted": 0.5}, *zero, {"fitted": 0.5}], ["adc"] * 4 + ["kurtosis"] * 6)
    assert [distance for distance, _ in mixed] == pytest.approx([0] * 9 + [-0.5 / 0.02])


def test_models_and_first_steps_that_differ_between_scans_are_told():
    ivim = {"model": "ivim-by-te", "threshold": 100.0}
    (steps,) = fit_runs._differences([ivim, ivim, ivim | {"threshold": None}, ivim | {"threshold": 200}])
    assert "(all b-values, b ≥ 100 s/mm², b ≥ 200 s/mm²;" in steps
    assert steps.endswith("(--threshold 200; for regions 150 or more)")
    (models,) = fit_runs._differences([ivim, ivim, {"model": "adc", "threshold": None}])
    assert models.startswith("models differ between scans (adc, ivim-by-te): ")
    assert not list(fit_runs._differences([ivim, ivim]))


@pytest.mark.parametrize(("mask", "n_counted"), [("none", 5), ("everything.nii.gz", 12)])
def test_medians_leave_out_air_but_nothing_of_a_mask(output_of, tmp_path, mask, n_counted):
    capped_scan(tmp_path, "a")
    nib.save(nib.Nifti1Image(np.ones((12, 6, 4), np.uint8), np.diag([2.0, 2, 3, 1])), tmp_path / "everything.nii.gz")
    mask = mask if mask == "none" else tmp_path / mask
    output_of("fit", tmp_path / "a.nii.gz", "--model", "adc", "--no-quicklook", "--mask", mask, "--out", tmp_path / "maps")
    sidecar = json.loads((tmp_path / "maps" / "a_model-adc_dwimap.json").read_text())
    values = nib.load(tmp_path / "maps" / sidecar["Parameters"]["S0"]["File"]).get_fdata()
    low, median, high = sidecar["Parameters"]["S0"]["Quartiles"]
    np.testing.assert_allclose((low, median, high), np.percentile(values[:n_counted], (25, 50, 75)), rtol=1e-5)
    assert sidecar["Air"]["Share"] == pytest.approx(0 if n_counted == 12 else 7 / 12, abs=0.01)
    ends = [float(text) for text in sidecar["Parameters"]["S0"]["Interval"].split(" to ")]
    assert ends[0] <= median <= ends[1]


def test_the_line_of_advice_runs_and_is_not_repeated(output_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    capped_scan(tmp_path, "a")
    inside = np.zeros((12, 6, 4), np.uint8)
    inside[:5] = 1
    nib.save(nib.Nifti1Image(inside, np.diag([2.0, 2, 3, 1])), tmp_path / "mask.nii.gz")
    options = ("--b-tolerance", "0.1234567", "--model", "kurtosis", "--mask", tmp_path / "mask.nii.gz")
    printed = output_of("fit", tmp_path / "a.nii.gz", *options, "--out", tmp_path / "maps")
    assert "rerun with --b-max " in printed
    (line,) = re.findall("^to refit: (.*)$", printed, re.MULTILINE)
    words = shlex.split(line)
    assert words[:2] == ["dmrifit", "fit"]
    assert set(map(str, options)) <= set(words)
    printed = output_of(*words[1:])
    assert "--b-max" not in printed.replace(line, "").partition("protocol:")[0]
    assert "to refit" not in printed
    refit = json.loads((tmp_path / "maps_refit" / "a_model-kurtosis_dwimap.json").read_text())
    assert refit["Settings"]["BMax"] == float(words[words.index("--b-max") + 1])
    assert max(refit["Protocol"]["b"]) <= refit["Settings"]["BMax"]
    assert refit["Parameters"]["K"]["ShareAtBounds"]["Upper"] < 0.05
    command = refit["Settings"]["Command"]
    assert command == line.replace(f"{tmp_path}/", "") + " --overwrite"
    assert html.escape(command) in next((tmp_path / "maps_refit").glob("*.html")).read_text(encoding="utf-8")
    output_of(*shlex.split(command)[1:])
    truth = nib.load(tmp_path / "maps_refit" / refit["Parameters"]["K"]["File"]).get_fdata()[:5]
    assert np.median(truth) == pytest.approx(0.9, rel=0.1)


def test_b_values_are_left_out(bids, output_of, tmp_path):
    image = bids / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    options = ("--leave-out-b", "500", "--model", "adc", "--no-quicklook")
    output_of("fit", image, *options, "--out", tmp_path / "one")
    signals = np.asarray(nib.load(image).dataobj)
    plain = np.log(signals[..., 0] / signals[..., 2])
    sidecar = tmp_path / "one" / "sub-01_model-adc_dwimap.json"
    described = json.loads(sidecar.read_text())
    assert described["Settings"]["LeaveOutB"] == [500]
    assert described["Protocol"]["b"] == [0, 1000]
    fitted = nib.load(sidecar.with_name(described["Parameters"]["ADC"]["File"])).get_fdata()
    np.testing.assert_allclose(fitted, plain, rtol=1e-4)


def test_a_refit_is_linked_from_the_page_of_all_scans_in_the_row_of_its_scan(output_of, tmp_path):
    (dwi := tmp_path / "bids" / "sub-1" / "dwi").mkdir(parents=True)
    for name in ("sub-1_run-1", "sub-1_run-2"):
        capped_scan(dwi, f"{name}_dwi")
        (dwi / f"{name}_dwi.bval").replace(tmp_path / "bids" / "dwi.bval")  # inherited
    arguments = ("fit", tmp_path / "bids", "--model", "kurtosis", "--out", tmp_path / "maps")
    lines = re.findall("^sub-1_run-.: to refit: dmrifit (.*)$", output_of(*arguments), re.MULTILINE)
    output_of(*shlex.split(lines[0]))
    assert re.findall(": to refit: dmrifit (.*)$", output_of(*arguments), re.MULTILINE) == lines[1:]
    assert re.findall(r"dwi_refit/(\S+)_model-\w+_q", (tmp_path / "maps" / "index.html").read_text()) == ["sub-1_run-1"]
    output_of(*shlex.split(lines[1]))
    assert fits(tmp_path / "maps")["visit"].tolist() == ["run-1", "run-2"]
