"""Runs write what was found on the grids of the scans, go on where they stopped, and are read again."""

from dataclasses import replace
from functools import partial

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit.cli.case_runs import RunOptions
from dmrifit.io.components import drop_small
from metastasis import SensitivitySpecificityEnsemble
from metastasis.cli.case_runs import RUN, inputs, read_segmentations, scans_of, segment_case
from metastasis.scans.cases import Case
from metastasis.study.evaluation import evaluate_segmentations
from metastasis.study.findings import open_ring_notes
from metastasis.study.lesion_sizes import FIGURES


@pytest.fixture
def cases(synthetic_cases):
    turned = np.array([[0, -2.5, 0, 7.0], [2.5, 0, 0, -3.0], [0, 0, 2.5, 11.0], [0, 0, 0, 1]])
    return [replace(synthetic_cases[0], affine=turned), *synthetic_cases[1:]]


def run(model, cases, out, **options):
    records = {}
    RUN.run(
        [(case, ()) for case in cases],
        {},
        RunOptions(out, **{"figure": False} | options),
        names=lambda scan: {"name": scan[0].name, "patient": scan[0].patient},
        work=partial(segment_case, segmenter=model, figure=False, figures={}),
        inputs=inputs,
        say=lambda finished: records.update(finished) or [],
    )
    return list(records.values())


def test_probabilities_and_labels_lie_on_the_grid_of_the_scan(brightness, cases, tmp_path):
    model = brightness(3)
    run(model, cases, tmp_path)
    expected = model.predict_proba(**{key: value for key, value in scans_of(cases).items() if key != "priors"})
    for case, probability in zip(cases, expected, strict=True):
        images = {name: nib.load(tmp_path / case.name / f"{name}.nii.gz") for name in ("probability", "label")}
        for image in images.values():
            np.testing.assert_array_equal(image.affine, case.affine)
        np.testing.assert_array_equal(np.asarray(images["probability"].dataobj), probability)
        np.testing.assert_array_equal(np.asarray(images["label"].dataobj), probability >= 0.5)
    table = pd.read_csv(tmp_path / "segmentations.tsv", sep="\t")
    assert table["synthetic"].all()
    lesions = pd.read_csv(tmp_path / "lesions.tsv", sep="\t")
    n_lesions = lesions.groupby("name").size().reindex(table["name"], fill_value=0)
    assert list(table["n_lesions"]) == list(n_lesions)
    assert "change" not in lesions
    predictions, threshold, least = read_segmentations(tmp_path, cases[::-1])
    assert (threshold, least) == (0.5, 1)
    np.testing.assert_array_equal(predictions[0], expected[2])


def test_the_smallest_finding_goes_with_the_run(brightness, cases, tmp_path):
    model = brightness(3)
    run(model, cases, tmp_path / "all")
    model.min_voxels = 3
    run(model, cases, tmp_path / "large")
    predictions, threshold, least = read_segmentations(tmp_path / "large" / "segmentations.tsv", cases)
    assert (threshold, least) == (0.5, 3)
    kept = [nib.load(tmp_path / "large" / case.name / "label.nii.gz").get_fdata() > 0 for case in cases]
    for mask, probability in zip(kept, predictions, strict=True):
        np.testing.assert_array_equal(mask, drop_small(probability >= threshold, 3))
    options = {"controls": False, "n_bootstrap": 0}
    read = evaluate_segmentations(cases, {"model": predictions}, min_voxels={"model": least}, **options)
    marked = evaluate_segmentations(cases, {"model": kept}, **options)
    pd.testing.assert_frame_equal(read["summary"], marked["summary"])
    every, _, _ = read_segmentations(tmp_path / "all" / "segmentations.tsv", cases)
    assert any((one >= 0.5).sum() > mask.sum() for one, mask in zip(every, kept, strict=True))


def test_an_ensemble_tells_what_has_changed_and_is_read_as_labels(brightness, cases, tmp_path):
    both = SensitivitySpecificityEnsemble(brightness(2.5), brightness(4))
    cases = [replace(case, affine=np.diag(np.float32([1.1, 1.1, 1.1, 1]))) for case in cases]
    cases[1] = replace(cases[1], prior=None)
    contents = run(both, cases, tmp_path)
    lesions = pd.read_csv(tmp_path / "lesions.tsv", sep="\t", keep_default_na=False)
    changes = lesions.groupby(lesions["name"] == cases[1].name)["change"].agg(set)
    assert changes[False] <= {"new", "grown", "stable", "shrunk", "vanished"}
    assert changes[True] == {""}
    pytest.importorskip("jinja2")
    # The run goes on for its page; a scan alone has no number of any prior scan.
    for scans, out in ((cases, tmp_path), (cases[1:2], tmp_path / "alone")):
        run(both, scans, out, figure=True)
        assert "with its core, mL" in (out / "index.html").read_text(encoding="utf-8")
    predictions, threshold, _ = read_segmentations(tmp_path / "segmentations.tsv", cases)
    assert threshold is None
    assert {0, 1, 2} == set(np.unique(np.concatenate([one.ravel() for one in predictions])))
    for content, labels in zip(contents, predictions, strict=True):
        assert content["n_marked_by_both"] <= content["n_lesions"]
        # Exactly: sums of voxels, whose edges have single precision in files, are rounded.
        assert content["volume_mL"] == round((labels > 0).sum() * 1.331 / 1000, 6)
        assert content["volume_with_core_mL"] >= content["volume_mL"]
        # The record and the table have the same figures.
        rows = lesions[(lesions["name"] == content["name"]) & (lesions["finding"] != "prior only")]
        stored = pd.DataFrame(content["lesions"]).query("finding != 'prior only'")
        for name in FIGURES:
            np.testing.assert_allclose(stored[name].astype(float), rows[name].astype(float), rtol=1e-6)


def test_a_ring_that_does_not_close_is_flagged_and_its_scan_is_not_called_unlike_others(brightness, tmp_path):
    distance = np.linalg.norm(np.indices((44, 44, 44)) - 22.0, axis=0)
    ring = (distance <= 18) & (distance > 15)
    brain = distance <= 21
    for name, lesion in (("closed", ring), ("open", ring & (np.indices(ring.shape)[1] < 30))):
        case = Case(name, np.where(lesion, 9, brain).astype(np.float32), brain=brain)
        (content,) = run(brightness(0.5), [case], tmp_path / name)
        (sizes,) = content["lesions"]
        assert sizes["open_ring"] == (name == "open")
        *rings, side = content["notes"]
        assert [f"{name}: {note}" for note in rings] == open_ring_notes(name, pd.DataFrame(content["lesions"]))
        assert (len(rings), "x = 0 is not in this head" in side) == (sizes["open_ring"], True)
        assert "the notes on this scan" not in content["statement"]
        # An ensemble says of a scan in what it differs from those that its sensitive model has seen.
        (pair := SensitivitySpecificityEnsemble(brightness(0.5), brightness(5))).sensitive.seen_ = {"marked": [1e-3]}
        (content,) = run(pair, [case], tmp_path / f"both-{name}")
        assert content["notes"][0].startswith("this scan is unlike the training scans")
        written = pd.read_csv(tmp_path / name / "lesions.tsv", sep="\t")
        assert written[list(FIGURES)].to_dict("records") == [pytest.approx({name: sizes[name] for name in FIGURES})]


def test_a_run_sees_changed_scans(brightness, cases, tmp_path):
    run(brightness(3), cases, tmp_path)
    written = [tmp_path / case.name / "label.nii.gz" for case in cases]
    before = [path.stat().st_mtime_ns for path in written]
    changed = [replace(cases[0], image=cases[0].image + np.float32(1)), *cases[1:]]
    run(brightness(3), changed, tmp_path)
    assert [path.stat().st_mtime_ns == time for path, time in zip(written, before, strict=True)] == [False, True, True]


def test_what_cannot_be_read_is_named(brightness, cases, tmp_path):
    run(brightness(3), cases[:2], tmp_path)
    table = tmp_path / "segmentations.tsv"
    with pytest.raises(ValueError, match=f"has no {cases[2].name}"):
        read_segmentations(table, cases)
    with pytest.raises(ValueError, match=r"probability.nii.gz"):
        read_segmentations(table, [replace(cases[0], affine=np.eye(4))])
    rows = pd.read_csv(table, sep="\t", dtype=str)
    tables = {
        "different values of threshold": rows.assign(threshold=["0.5", "0.7"]),
        "'high' is not a number": rows.assign(threshold="high"),
        f"row 4: {cases[0].name} has a row above": pd.concat([rows, rows[:1]]),
    }
    for words, faulty in tables.items():
        faulty.to_csv(table, sep="\t", index=False)
        with pytest.raises(ValueError, match=words):
            read_segmentations(table, cases[:2])


def test_what_is_known_of_a_case_is_that_of_its_table_when_a_run_goes_on(brightness, cases, tmp_path):
    run(brightness(3), cases[:1], tmp_path)
    known = replace(cases[0], patient="p07", synthetic=False)
    content = run(brightness(3), [known], tmp_path)[0]
    assert (content["patient"], content["synthetic"]) == ("p07", False)
    row = pd.read_csv(tmp_path / "segmentations.tsv", sep="\t").iloc[0]
    assert (row["patient"], row["synthetic"]) == ("p07", False)
