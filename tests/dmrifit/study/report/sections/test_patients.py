"""The patients that a report shows: which ones, and what is drawn of their voxels."""

import numpy as np
import pytest

from dmrifit.report.page import render
from dmrifit.report.style import new_figure
from dmrifit.study.predictions import PatientPredictions
from dmrifit.study.report.sections import patients
from dmrifit.study.report.sections.patients import (
    example_patients,
    has_picture,
    joint_histograms,
    lesion_order,
    lesion_ranking,
    typical_patient,
)
from dmrifit.study.summaries import Board

INDEX = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]])
REFERENCE = np.column_stack([np.full(4, 100.0), [1.0, 2.0, 3.0, 4.0]])
MEASURED = np.array([[1.0, 0.5, 0.25], [0.9, 0.4, 0.2], [0.8, 0.6, 0.3], [0.7, 0.3, 0.0]])


def predicted(cohort="A", patient="p1", **changes):
    """Predictions for four voxels by LR, of which the third contrast is unseen."""
    values = {"index": INDEX, "shape": (2, 2, 2), "affine": np.diag([2.0, 2, 4, 1]), "names": ("S0", "Dt")}
    values |= {"units": ("signal", "µm²/ms"), "labels": ("a", "b", "c"), "b": np.array([0.0, 500.0, 1000.0])}
    values |= {"te": np.array([70.0, 70.0, 90.0]), "seen": np.array([True, True, False]), "truth": None}
    values |= {"reference": REFERENCE, "measured": MEASURED}
    values["maps"] = {"LR s2s": 1.1 * REFERENCE, "LR m2m": 0.8 * REFERENCE}
    values["signals"] = {"LR s2s": 1.2 * MEASURED, "LR m2m": 0.9 * MEASURED}
    return PatientPredictions(cohort, patient, **values | changes)


@pytest.fixture
def calls(monkeypatch):
    """Record tables and options of figures and layers of the viewer, and draw nothing."""
    drawn = {"plot_decays": [], "plot_joint_histograms": [], "plot_lesion": [], "html_viewer": []}

    def recorder(name):
        def record(data, *arguments, **options):
            drawn[name].append((data, arguments, options))
            return "" if name == "html_viewer" else new_figure(1, 1)

        return record

    for name in drawn:
        monkeypatch.setattr(f"dmrifit.study.report.sections.patients.{name}", recorder(name))
    return drawn


def board_of(make_evaluation, skills, predictions=None, study=None):
    """Make a board of patients with these skills, predicted by LR in both strategies."""
    rows = []
    for patient, skill in skills.items():
        for strategy in ("s2s", "m2m"):
            keys = {"patient": patient, "strategy": strategy, "skill": skill}
            rows += [keys | {"metric": "Dt"}, keys | {"metric": "S0", "skill": 99.0}]
    if predictions is None:
        predictions = {("A", patient): predicted(patient=patient) for patient in skills}
    return Board(make_evaluation(rows, study=study, predictions=predictions))


@pytest.mark.parametrize(
    ("skills", "typical"),
    [
        ({"p1": 0.3, "p2": 0.1, "p3": 0.2}, "p3"),
        ({"p1": 0.4, "p2": 0.1, "p3": 0.2, "p4": 0.9}, "p3"),
        ({"p1": np.nan, "p2": 0.1, "p3": 0.2, "p4": 0.9}, "p3"),
    ],
)
def test_the_patient_with_the_median_skill_is_shown(make_evaluation, read, calls, skills, typical):
    board = board_of(make_evaluation, skills)
    html = read(example_patients(board))
    assert f"A: {typical} (measured)" in html
    assert typical_patient(board, "A").patient == typical
    assert len(calls["html_viewer"]) == 1


@pytest.mark.parametrize("section", [example_patients, joint_histograms])
def test_without_predictions_there_is_nothing_to_draw(make_evaluation, read, section):
    board = board_of(make_evaluation, {"p1": 0.3}, {})
    assert "kept no predictions of single voxels" in read(section(board))
    controls = make_evaluation([{"algorithm": "constant"}], predictions={("A", "p1"): predicted()})
    assert "kept no predictions" in read(section(Board(controls)))


def test_decays_are_those_of_the_median_and_of_one_typical_voxel(make_evaluation, read, calls):
    signals = {"LR s2s": MEASURED * np.array([[1.1], [1.3], [1.2], [1.6]]), "LR m2m": MEASURED}
    board = board_of(make_evaluation, {"p1": 0.3}, {("A", "p1"): predicted(signals=signals)})
    html = read(example_patients(board))
    (median, *_), (voxel, *_) = calls["plot_decays"]
    # Magnitudes of errors are 0.1, 0.3, 0.2 and 0.6: the lower median is that of the third voxel.
    assert "Voxel (0, 1, 0), of typical error" in html
    assert median["kind"].tolist() == ["measured"] * 3 + ["s2s"] * 3 + ["m2m"] * 3
    np.testing.assert_allclose(median["signal"][:3], [0.85, 0.45, 0.225])
    np.testing.assert_allclose(voxel["signal"][3:6], 1.2 * MEASURED[2])
    assert voxel["known"].tolist() == [True, True, False] * 3
    assert voxel["te"].tolist() == [70.0, 70.0, 90.0] * 3


def test_voxels_with_a_gap_are_left_out_of_decays(make_evaluation, read, calls):
    measured = MEASURED.copy()
    measured[0, 2] = np.nan
    predictions = {("A", "p1"): predicted(measured=measured)}
    read(example_patients(board_of(make_evaluation, {"p1": 0.3}, predictions)))
    np.testing.assert_allclose(calls["plot_decays"][0][0]["signal"][:3], [0.8, 0.4, 0.2])
    none = {("A", "p1"): predicted(measured=np.full((4, 3), np.nan))}
    calls["plot_decays"].clear()
    read(example_patients(board_of(make_evaluation, {"p1": 0.3}, none)))
    assert not calls["plot_decays"]


def test_maps_of_a_patient_are_in_one_figure_with_truth_and_predictions(make_evaluation, read, calls):
    truth = 1.05 * REFERENCE
    predictions = {("A", "p1"): predicted(truth=truth)}
    read(example_patients(board_of(make_evaluation, {"p1": 0.3}, predictions)))
    ((patient, ((dt,), _), _),) = calls["plot_lesion"]
    assert (patient.patient, dt.name, dt.unit) == ("p1", "Dt", "µm²/ms")
    assert list(dt.maps) == ["truth", "reference", "s2s", "m2m"]
    np.testing.assert_allclose(dt.maps["truth"], truth[:, 1])
    np.testing.assert_allclose(dt.predictions["s2s"], 1.1 * REFERENCE[:, 1])
    assert "maps_A" in read.figures


def test_planes_show_the_maps_on_the_anatomy_with_the_colors_of_the_reference(make_evaluation, read, calls):
    anatomy = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    predictions = {("A", "p1"): predicted(anatomy=anatomy)}
    read(example_patients(board_of(make_evaluation, {"p1": 0.3}, predictions)))
    ((layers, (affine,), options),) = calls["html_viewer"]
    np.testing.assert_array_equal(affine, np.diag([2.0, 2, 4, 1]))
    names = ["image, least b and TE", "Dt, reference", "Dt, s2s", "Dt, m2m"]
    assert [layer.name for layer in layers] == names
    np.testing.assert_array_equal(layers[0].values, anatomy)
    assert len({layer.window for layer in layers[1:]}) == 1
    volume = layers[2].values
    np.testing.assert_allclose(volume[tuple(INDEX.T)], 1.1 * REFERENCE[:, 1])
    assert np.isnan(volume).sum() == 4
    assert (options["image"], options["overlay"]) == (names[0], "Dt, reference")
    read(example_patients(board_of(make_evaluation, {"p1": 0.3})))
    assert [layer.name for layer in calls["html_viewer"][1][0]] == names[1:]


def test_joint_histograms_gather_all_patients_of_a_parameter_and_the_unseen_signals(make_evaluation, read, calls):
    board = board_of(make_evaluation, {"p1": 0.3, "p2": 0.1})
    read(joint_histograms(board))
    (dt, _, options), (signals, _, signal_options) = calls["plot_joint_histograms"]
    assert dt.groupby(["cohort", "strategy"]).size().to_dict() == {("A", "m2m"): 8, ("A", "s2s"): 8}
    pairs = dt[dt["strategy"] == "m2m"]
    np.testing.assert_allclose(pairs["predicted"], 0.8 * pairs["reference"])
    np.testing.assert_allclose(sorted(pairs["reference"]), sorted([*REFERENCE[:, 1]] * 2))
    assert options == {"unit": "µm²/ms", "log": False}
    pairs = signals[signals["strategy"] == "s2s"]
    np.testing.assert_allclose(pairs["reference"], [*MEASURED[:, 2]] * 2)
    np.testing.assert_allclose(pairs["predicted"], [*1.2 * MEASURED[:, 2]] * 2)
    assert signal_options == {"unit": "", "log": True}
    assert list(read.figures) == ["joint_Dt", "joint_signals"]


def test_parameters_without_a_usable_voxel_have_no_histogram(make_evaluation, read, calls):
    predictions = {("A", "p1"): predicted(reference=np.full((4, 2), np.nan))}
    read(joint_histograms(board_of(make_evaluation, {"p1": 0.3}, predictions)))
    assert list(read.figures) == ["joint_signals"]


@pytest.mark.parametrize(
    ("changes", "n_decays"),
    [
        ({"names": ("f", "Dt"), "reference": REFERENCE * [1, np.nan]}, 2),
        ({"index": np.eye(4, 3, dtype=int)[[0, 0, 0, 0]] * np.arange(4)[:, None], "shape": (4, 1, 1)}, 2),
    ],
    ids=["no reference", "no image"],
)
def test_patients_without_a_reference_or_an_image_have_decays_and_no_maps(make_evaluation, read, calls, changes, n_decays):
    predictions = {("A", "p1"): predicted(**changes)}
    assert has_picture(predictions["A", "p1"]) == ("index" not in changes)
    study = {"cohorts": {"A": {"regions": {"p1": list("stuv")}}}}
    html = read(example_patients(board_of(make_evaluation, {"p1": 0.3}, predictions, study)))
    assert ("Region t, of typical error" in html, "gray have no E" in html) == (True, "index" not in changes)
    assert not calls["plot_lesion"] + calls["html_viewer"]
    assert len(calls["plot_decays"]) == n_decays


def test_the_order_of_lesions_is_tabulated_with_its_gain_over_adc(make_evaluation, html_tables, monkeypatch):
    row = {"cohort": "A", "parameter": "K", "estimator": "LR s2s", "n_lesions": 8, "rho_predicted": 0.5}
    row |= {"rho_adc": 0.75, "gain": -0.25, "gain_low": -0.5, "gain_high": 0.125, "rho_predicted_adc": 0.9}
    row |= {"reordered": 0.25, "reordered_rightly": 0.4}
    board = Board(make_evaluation([{}]))
    assert "No cohort has 6 or more lesions" in render(*lesion_order(board))
    table = lesion_ranking(board.evaluation).reindex([0]).assign(**row)
    monkeypatch.setattr(patients, "lesion_ranking", lambda evaluation: table)
    _, cells = html_tables(lesion_order(board)).tables[0][1]
    assert cells == ["A", "K", "LR s2s", "8", "0.50", "0.75", "−0.25 [−0.50, 0.12]", "25", "40"]
