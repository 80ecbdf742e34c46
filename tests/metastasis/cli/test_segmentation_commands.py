"""The commands segment and ensemble: what they write, how options act, what they refuse."""

import hashlib
import html
import inspect
import itertools
import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

pytest.importorskip("torch")
pytest.importorskip("skorch")

from dmrifit import MapFitter, Protocol, load_model, save_model
from dmrifit.cli.case_runs import CaseRun, RunOptions
from dmrifit.networks.training import Training
from metastasis import DeepMedicSegmenter, segment_image
from metastasis.cli.segmentation_commands import ModelOptions, ensemble, segment
from metastasis.scans.cases import Case, read_cases, write_cases
from metastasis.scans.scan_checks import _prior_note
from metastasis.segmentation.ensemble import merge_segmentations

pytestmark = pytest.mark.deep

SHAPE = (15, 14, 13)
TINY = {"segment_size": 5, "low_resolution": (), "widths": (2,), "dense": (2,), "training": Training(epochs=1)}
TINY |= {"segments_per_epoch": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def cases():
    """Give three scans, of which two have a prior."""
    rng = np.random.default_rng(0)
    affine = np.diag([2.0, 2.0, 2.5, 1.0])
    scans = []
    for i in range(3):
        label = np.zeros(SHAPE, dtype=np.uint8)
        label[4:7, 4:7, 3 + i : 6 + i] = 1
        image = rng.normal(size=SHAPE) + 3 * label
        prior = rng.normal(size=SHAPE) if i else None
        scans.append(Case(f"p{i}", image, label=label, prior=prior, affine=affine))
    return scans


@pytest.fixture(scope="module")
def table(cases, tmp_path_factory):
    return write_cases(cases, tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def models(cases, tmp_path_factory):
    """Give model files: two of different weights that look at priors, and one that does not."""
    folder = tmp_path_factory.mktemp("models")
    images, labels = [case.image for case in cases], [case.label for case in cases]
    priors = [case.prior for case in cases]
    for name, seed in (("sensitive", 0), ("specific", 1)):
        segmenter = DeepMedicSegmenter(**TINY, random_state=seed)
        save_model(segmenter.fit(images, labels, priors=priors), folder / f"{name}.dmrifit")
    segmenter = DeepMedicSegmenter(**TINY, random_state=2).fit(images, labels)
    save_model(segmenter, folder / "plain.dmrifit")
    return SimpleNamespace(**{name: folder / f"{name}.dmrifit" for name in ("sensitive", "specific", "plain")})


@pytest.fixture
def run_calls(models, tmp_path, monkeypatch):
    """Start a command that ends before the first scan, and give the segmenter and the scans."""

    class StoppedError(Exception):
        """Raised where scans would be segmented."""

    calls = []

    def stop(attempt, tasks, **_):
        work = inspect.getclosurevars(attempt).nonlocals["work"]
        calls.append((work.keywords["segmenter"], [case for _, (case, _) in tasks]))
        raise StoppedError

    def start(command, *words, **options):
        words = [list(words)] if command is segment else [*words[:2], list(words[2:])]
        of_run = {name: options.pop(name) for name in ("flips", "device", "prior", "mask") if name in options}
        with pytest.raises(StoppedError):
            command(*words, options=ModelOptions(**of_run), run=RunOptions(tmp_path / "out", overwrite=True), **options)
        return calls[-1]

    monkeypatch.setattr("dmrifit.cli.case_runs.run_tasks", stop)
    return start


def volumes(table, key):
    """Read the images of a run that its table names."""
    rows = pd.read_csv(table, sep="\t")
    return [np.asarray(nib.load(table.parent / name).dataobj) for name in rows[key]]


def probabilities(path, cases, **options):
    """Predict by a model file as its class does."""
    segmenter = load_model(path).set_params(**options)
    images, priors = [case.image for case in cases], [case.prior for case in cases]
    return np.stack(list(segmenter.predict_proba(images, priors=priors)))


def test_a_folder_of_scans_is_as_good_as_a_table(run, table, models, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for path in table.parent.glob("*.nii.gz"):
        (folder / path.name.replace("_image", "")).symlink_to(path)
    for scans, name in ((table, "table"), (folder, "folder"), (table.parent, "whole")):
        words = ("segment", models.sensitive, scans, "--out", tmp_path / name, "--no-figure")
        code, out, error = run(*words)
        assert code == 0, error
        assert "3 scans," in out
        told = {"table": "", "folder": f"3 cases in {folder}: p0, p1, p2; with label 3, prior 2\n"}
        assert error == told.get(name, f"using {table}\n")
    tables = [tmp_path / name / "segmentations.tsv" for name in ("table", "folder", "whole")]
    by_table, by_folder, whole = (volumes(path, "probability") for path in tables)
    np.testing.assert_array_equal(by_folder, by_table)
    np.testing.assert_array_equal(whole, by_table)
    images = [folder / f"p{i}.nii.gz" for i in range(3)]
    told = {}
    for words in (images, [folder / "*.nii.gz"], [*images, "--mask", "none", "--jobs", 2]):
        out = tmp_path / f"images{len(told)}"
        assert run("segment", models.plain, *words, "--out", out, "--no-figure")[0] == 0
        told[out] = volumes(out / "segmentations.tsv", "probability")
    first, *others = told.values()
    np.testing.assert_array_equal(others, [first] * len(others))
    error = run("segment", models.sensitive, folder, "--prior", table, "--out", tmp_path / "x")[2]
    assert "files of several images lie beside them, or are named in the columns of their table; leave out --prior" in error


def test_scans_that_fail_leave_the_others(run, output_of, table, models, tmp_path):
    rows = pd.read_csv(table, sep="\t")
    rows["image"] = [str(table.parent / name) for name in rows["image"]]
    series, broken = tmp_path / "series.nii.gz", tmp_path / "broken.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((*SHAPE, 2), np.float32), np.eye(4)), series)
    nib.save(nib.Nifti1Image(np.full(SHAPE, np.nan, np.float32), np.eye(4)), broken)
    rows = rows[["patient", "image"]]
    rows.loc[[0, 1], "image"] = [str(series), str(broken)]
    rows.loc[3] = ["p3", str(tmp_path / "none.nii.gz")]
    rows.to_csv(tmp_path / "cases.tsv", sep="\t", index=False)
    out = tmp_path / "out"
    said = output_of("segment", models.plain, tmp_path / "cases.tsv", "--out", out)
    assert "1 scan," in said
    failed = pd.read_csv(out / "failed.tsv", sep="\t")
    assert failed["name"].tolist() == ["p0", "p1", "p3"]
    assert said.endswith("; failed: 3 (failed.tsv)\n")
    assert "has 4 axes" in failed["problem"][0]
    assert "non-finite" in failed["problem"][1]
    assert "none.nii.gz: no such file" in failed["problem"][2]
    assert pd.read_csv(out / "segmentations.tsv", sep="\t")["name"].tolist() == ["p2"]
    page = html.unescape((out / "index.html").read_text(encoding="utf-8"))
    for row in failed.itertuples():
        assert f"failed: {row.name}: {row.problem}" in said
        assert row.problem in page
    # Where no scan is left, nothing of the earlier run is touched.
    rows.loc[2, "image"] = str(tmp_path / "none.nii.gz")
    rows.to_csv(tmp_path / "cases.tsv", sep="\t", index=False)
    code, said, _ = run("segment", models.plain, tmp_path / "cases.tsv", "--out", out)
    assert code == 2
    assert "failed: p2: " in said
    assert (out / "segmentations.tsv").exists()


def test_the_scan_whose_prior_lies_on_another_grid_fails_alone(output_of, table, models, tmp_path):
    image = table.parent / pd.read_csv(table, sep="\t")["image"][0]
    loaded = nib.load(image)
    moved = loaded.affine.copy()
    moved[0, 3] += 40
    nib.save(nib.Nifti1Image(loaded.get_fdata(dtype=np.float32), moved), tmp_path / "moved.nii.gz")
    priors = {"one": image, "two": tmp_path / "moved.nii.gz", "three": "n/a"}
    rows = [f"{name}\tp0\t{image}\t{prior}" for name, prior in priors.items()]
    text = "\n".join(["name\tpatient\timage\tprior", *rows]) + "\n"
    (tmp_path / "cases.tsv").write_text(text)
    out = tmp_path / "out"
    words = ("segment", models.sensitive, tmp_path / "cases.tsv", "--out", out, "--no-figure")
    output_of(*words)
    (row,) = pd.read_csv(out / "failed.tsv", sep="\t").itertuples()
    assert row.name == "two"
    assert "moved.nii.gz" in row.problem
    assert pd.read_csv(out / "segmentations.tsv", sep="\t")["name"].tolist() == ["one", "three"]


def test_segmentations_are_those_of_the_model_at_its_threshold(output_of, cases, table, models, tmp_path):
    expected = probabilities(models.sensitive, cases)
    middle = float(np.median(expected))
    for words, threshold in (((), 0.5), (("--threshold", middle), middle)):
        out = tmp_path / str(threshold)
        output_of("segment", models.sensitive, table, "--out", out, "--no-figure", *words)
        for key, arrays in (("probability", expected), ("label", [array >= threshold for array in expected])):
            written = volumes(out / "segmentations.tsv", key)
            for values, array in zip(written, arrays, strict=True):
                np.testing.assert_allclose(values, array, atol=1e-6)
        rows = pd.read_csv(out / "segmentations.tsv", sep="\t")
        np.testing.assert_allclose(rows["threshold"], threshold)


def test_probabilities_do_not_depend_on_how_a_scan_is_stored(cases, models):
    segmenter = load_model(models.sensitive)
    case = cases[1]
    images = [nib.Nifti1Image(values, case.affine) for values in (case.image, case.prior)]
    expected = segment_image(segmenter, images[0], prior=images[1])["probability"]
    for order in ([[0, -1], [1, 1], [2, 1]], [[2, 1], [0, -1], [1, -1]], [[1, 1], [0, 1], [2, 1]]):
        scan, prior = images[0].as_reoriented(np.array(order)), images[1]
        answer = segment_image(segmenter, scan, prior=prior)["probability"]
        np.testing.assert_allclose(answer.affine, scan.affine)
        stored = expected.as_reoriented(np.array(order))
        np.testing.assert_allclose(answer.get_fdata(), stored.get_fdata(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("threshold", "n_said", "sentence"),
    [
        ("1", 3, "nothing marked; this is not 'no metastases': how many of all and of small metastases this model finds"),
        ("0.01", 1, "the model marks candidates, many of which may be false positives: how much is marked in brains"),
    ],
)
def test_what_findings_and_none_mean_is_said_where_they_stand(
    output_of, table, models, tmp_path, threshold, n_said, sentence
):
    words = ("segment", models.plain, table, "--threshold", threshold, "--out", tmp_path / "out")
    said = output_of(*words)
    assert said.count(sentence) == n_said
    rows = pd.read_csv(tmp_path / "out" / "segmentations.tsv", sep="\t")
    assert rows["statement"].str.startswith(sentence).all()
    assert ((rows["n_lesions"] > 0) == (threshold != "1")).all()
    record = json.loads((tmp_path / "out" / "p0" / "segmentation.json").read_text(encoding="utf-8"))
    assert record["statement"].startswith(sentence)
    for page in ("index.html", "p0/view.html"):
        text = (tmp_path / "out" / page).read_text(encoding="utf-8").replace("&#39;", "'")
        assert sentence[1:] in text
        assert "prior scans are ignored: the model was trained without prior scans" in text
        assert f"by the model {models.plain.name} at a probability threshold of {threshold}" in text


@pytest.mark.parametrize("command", ["segment", "ensemble"])
def test_sensitivities_are_said_only_of_a_model_used_as_measured(output_of, table, models, tmp_path, command):
    path = tmp_path / "model.dmrifit"
    segmenter = load_model(models.plain)
    segmenter.threshold_ = 1.0
    save_model(segmenter, path)
    figures = {"sensitivity": 0.8, "sensitivity_small": 0.7}
    path.with_suffix(".json").write_text(json.dumps({"figures": figures}))
    other = tmp_path / "other.dmrifit"
    save_model(segmenter.set_params(random_state=3), other)
    files = (path, table) if command == "segment" else (path, other, table)
    option, unlike = ("--threshold", "0.9999") if command == "segment" else ("--thresholds", "0.9999,1")
    same, find = ("1", "this model finds") if command == "segment" else ("1,1", "these models find")
    known = "on implants (synthetic lesions) 80 % of all and 70 % of those"
    other = f"figures at threshold {unlike} are unknown; at {same}, as measured, {known}".replace(",1", " and 1")
    for words, text in ((), known), ((option, same), known), ((option, unlike), other), (["--flips"], f"{find} is un"):
        said = output_of(command, *files, *words, "--no-figure", "--overwrite", "--out", tmp_path / "out")
        assert said.count(text) == said.count("nothing marked") == 3


def test_a_prior_of_another_person_is_told():
    pytest.importorskip("SimpleITK")
    rng = np.random.default_rng(0)
    inside = np.linalg.norm(np.stack(np.indices((48, 48, 48)), axis=-1) - 23.5, axis=-1) < 22
    brains = [inside * (100 + 30 * gaussian_filter(rng.normal(size=inside.shape), 1.5) / 0.1) for _ in range(2)]
    brains = [np.clip(brain, 0, 300) for brain in brains]
    affine = np.diag([2.5, 2.5, 2.5, 1])
    later = brains[0] * 1.3 + inside * rng.normal(size=inside.shape)
    same, other = (_prior_note(Case("p", later, prior=prior, affine=affine)) for prior in brains)
    assert same == ""
    assert "p: the prior scan does not look like the scan in its place" in other


def test_scans_of_other_voxels_are_refused_before_they_are_read_or_resampled(
    run, error_of, cases, tmp_path, monkeypatch
):
    images = [nib.Nifti1Image(case.image, np.diag([1, 1, 1, 1.0])) for case in cases]
    segmenter = DeepMedicSegmenter(**TINY, random_state=0).fit(images, [case.label for case in cases])
    save_model(segmenter, tmp_path / "model.dmrifit")
    fine = np.kron(cases[0].image, np.ones((2, 2, 2))).astype(np.float32)
    affine = np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = -0.25
    nib.save(nib.Nifti1Image(fine, affine), tmp_path / "fine.nii.gz")
    words = ("segment", tmp_path / "model.dmrifit", tmp_path / "fine.nii.gz", "--no-figure", "--out")
    assert run(*words, tmp_path / "resampled", "--resample")[0] == 0
    answer = nib.load(tmp_path / "resampled" / "fine" / "probability.nii.gz")
    np.testing.assert_allclose(answer.affine, affine)
    assert answer.shape == fine.shape
    expected = segmenter.predict_proba([nib.Nifti1Image(cases[0].image, np.eye(4))])[0]
    centers = answer.get_fdata().reshape(15, 2, 14, 2, 13, 2).mean(axis=(1, 3, 5))
    assert np.corrcoef(centers.ravel(), expected.ravel())[0, 1] > 0.8
    monkeypatch.setattr("metastasis.scans.cases.read_case", lambda *_, **__: pytest.fail("the scan was read"))
    error = error_of(*words, tmp_path / "refused")
    assert "fine.nii.gz has voxels of 0.5 × 0.5 × 0.5 mm, the training scans of 1 mm; segment it with --resample" in error


def test_threshold_and_device_of_the_user_replace_those_of_the_model(table, models, tmp_path, run_calls):
    segmenter = load_model(models.sensitive)
    segmenter.threshold_, segmenter.false_positives_ = 0.25, 3.0
    path = tmp_path / "model.dmrifit"
    save_model(segmenter, path)
    kept, _ = run_calls(segment, path, table)
    assert (kept.threshold_, kept.false_positives_) == (0.25, 3.0)
    changed, _ = run_calls(segment, path, table, threshold=1.0)
    assert (changed.threshold_, changed.false_positives_) == (1.0, None)
    assert run_calls(segment, models.sensitive, table, device="auto")[0].device == "auto"
    assert run_calls(segment, models.sensitive, table)[0].device == "cpu"


def test_a_single_image_comes_with_a_prior_and_a_mask(table, models, run_calls):
    paths = {key: table.parent / f"p1_{key}.nii.gz" for key in ("image", "prior", "label")}
    _, (case,) = run_calls(segment, models.sensitive, paths["image"], prior=paths["prior"], mask=str(paths["label"]))
    stored = read_cases(table)[1]
    np.testing.assert_array_equal(case.image, stored.image)
    np.testing.assert_array_equal(case.prior, stored.prior)
    np.testing.assert_array_equal(case.brain, stored.label > 0)
    _, (case,) = run_calls(segment, models.sensitive, paths["image"])
    assert case.prior is None


def test_priors_are_left_out_with_a_warning_where_no_model_saw_any(table, models, run_calls, capsys):
    _, scans = run_calls(segment, models.plain, table)
    assert [case.prior for case in scans] == [None] * 3
    assert "trained without prior scans" in capsys.readouterr().err
    _, scans = run_calls(segment, models.sensitive, table)
    assert [case.prior is None for case in scans] == [True, False, False]
    run_calls(ensemble, models.plain, models.specific, table)
    assert capsys.readouterr().err == ""


def test_an_ensemble_joins_both_models_at_their_thresholds(output_of, cases, table, models, tmp_path):
    pairs = [probabilities(path, cases) for path in (models.sensitive, models.specific)]
    low, high = np.quantile(pairs[0], 0.97), np.quantile(pairs[1], 0.98)
    words = ("ensemble", models.sensitive, models.specific, table, "--no-figure")
    words += ("--thresholds", f"{low},{high}", "--out", tmp_path)
    out = output_of(*words)
    expected = [merge_segmentations(first >= low, second >= high) for first, second in zip(*pairs, strict=True)]
    assert set(np.unique(expected)) == {0, 1, 2}
    for values, labels in zip(volumes(tmp_path / "segmentations.tsv", "label"), expected, strict=True):
        np.testing.assert_array_equal(values, labels)
    rows = pd.read_csv(tmp_path / "segmentations.tsv", sep="\t")
    n, n_of_both = rows["n_lesions"].sum(), rows["n_marked_by_both"].sum()
    assert f"3 scans, {n} findings, {n_of_both} of them marked by both models: {tmp_path}" in out
    record = json.loads((tmp_path / "p1" / "segmentation.json").read_text())
    assert rows["threshold"].tolist() == [str([float(f"{low}"), float(f"{high}")])] * 3 == [str(record["threshold"])] * 3
    assert [file["Name"] for file in record["files"].values()] == ["p1_image.nii.gz", "p1_prior.nii.gz"]


def test_an_ensemble_has_the_options_of_the_command(table, models, tmp_path, run_calls):
    words = (models.sensitive, models.specific, table)
    joined, _ = run_calls(ensemble, *words)
    assert joined.thresholds is None
    joined, _ = run_calls(ensemble, *words, thresholds=(0.2, 0.9), flips=True, device="auto")
    assert joined.thresholds == (0.2, 0.9)
    parts = (joined.sensitive, joined.specific)
    assert all(part.flips and part.device == "auto" for part in parts)
    assert [part.random_state for part in parts] == [0, 1]
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in words[:2]]
    expected = {"command": "ensemble", "sensitive": digests[0], "specific": digests[1], "thresholds": [0.2, 0.9]}
    assert settings == expected | {"flips": True, "resample": False, "figure": True, "threshold": None}


@pytest.mark.parametrize(
    ("counts", "of_both", "sentence"),
    [
        ([1, 0, 0], [None] * 3, "3 scans, 1 finding"),
        ([0, 0, 0], [None] * 3, "3 scans, 0 findings"),
        ([2, 3], [0, 1], "2 scans, 5 findings, 1 of them marked by both models"),
        ([1], [0], "1 scan, 1 finding, 0 of them marked by both models"),
    ],
)
def test_the_summary_counts_scans_and_lesions(
    cases, table, models, tmp_path, monkeypatch, capsys, counts, of_both, sentence
):
    record = {"synthetic": False, "notes": [], "statement": ""}
    pairs = zip(counts, of_both, strict=True)
    contents = [record | {"n_lesions": n, "n_marked_by_both": n_of_both} for n, n_of_both in pairs]

    def finish(_, tasks, **__):
        for (name, _), content in itertools.zip_longest(tasks, contents):
            yield name, content or "damaged"

    monkeypatch.setattr("dmrifit.cli.case_runs.run_tasks", finish)
    monkeypatch.setattr(CaseRun, "write", lambda *_, **__: None)
    segment([models.sensitive, table], options=ModelOptions(), run=RunOptions(tmp_path))
    said = capsys.readouterr().out
    n_failed = len(cases) - len(counts)
    failures = f"; failed: {n_failed} (failed.tsv)" if n_failed else ""
    assert said.endswith(f"{sentence}: {tmp_path}\nflagged: 0 of {len(counts)}{failures}\n")


def test_model_files_that_are_missing_or_of_another_kind_are_named(error_of, table, models, tmp_path):
    out, missing = tmp_path / "out", tmp_path / "none.dmrifit"
    assert f"{missing}: no such model file" in error_of("segment", missing, table, "--out", out)
    error = error_of("ensemble", models.sensitive, missing, table, "--out", out)
    assert f"{missing}: no such model file" in error
    fitter = tmp_path / "fitter.dmrifit"
    save_model(MapFitter("adc", Protocol([0, 500, 1000])).fit(np.array([[1.0, 0.6, 0.4]])), fitter)
    words = (table, "--out", out)
    assert "MapFitter, which segments nothing" in error_of("segment", fitter, *words)
    assert "MapFitter, which segments" in error_of("ensemble", models.plain, fitter, *words)
    copy = tmp_path / "copy.dmrifit"
    copy.write_bytes(models.plain.read_bytes())
    for second, names in ((models.plain, models.plain), (copy, f"{models.plain} and {copy}")):
        error = error_of("ensemble", models.plain, second, *words)
        assert f"the sensitive and the specific model are the same ({names}); name two different ones" in error
    assert not out.exists()


def test_a_run_of_another_model_or_threshold_is_not_continued(error_of, run, output_of, models, table, tmp_path):
    image = table.parent / "p0_image.nii.gz"
    out = ("--out", tmp_path, "--no-figure")
    assert run("segment", models.sensitive, image, *out)[0] == 0
    error = error_of("segment", models.specific, image, *out)
    assert "other options (model was " in error
    error = error_of("segment", models.sensitive, image, *out, "--threshold", 0.4, "--flips")
    assert "other options (flips was False, now True; threshold was 0.5, now 0.4)" in error
    output_of("segment", models.specific, image, *out, "--overwrite")
