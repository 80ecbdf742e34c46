"""Regions: the maps in them, and how well they repeat."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.fit_predict import fit_image
from dmrifit.imaging.regions import (
    doubt_lines,
    find_fits,
    read_label_names,
    repeatability,
    roi_table,
    summarize_fits,
)

PROTOCOL = Protocol([0, 200, 500, 1000])
AFFINE = np.diag([-2.0, 2, 4, 1])
GRID = (4, 5, 6)


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(10, 2, GRID)


@pytest.fixture
def labels():
    numbers = np.zeros(GRID, np.int16)
    numbers[1], numbers[2, 2:] = 3, 7
    return numbers


def row(table, label, name):
    (found,) = table[(table["label"] == label) & (table["map"] == name)].to_dict("records")
    return found


def test_intervals_of_medians_hold_the_median_that_was_drawn_from():
    draws = np.random.default_rng(4901).lognormal(0.5, 1, (400, 25, 1))
    regions = np.repeat(np.arange(1, 401), 25).reshape(draws.shape)
    table = roi_table({"D": draws}, regions)
    holds = table["median_low"].le(np.exp(0.5)) & table["median_high"].ge(np.exp(0.5))
    assert 0.92 < holds.mean() < 0.99
    assert (table["median_low"] < table["median"]).all()


def test_medians_of_two_b_values_have_an_interval_unless_most_voxels_are_in_doubt(labels):
    # Two measurements of two parameters leave residuals of the size of rounding.
    two_b = Protocol([0, 800])
    sigma = np.where(labels == 3, 5.0, 200.0)
    signals = MODELS["adc"].signal([[1000, 1.0]], two_b) + np.random.default_rng(4).normal(0, 5, (*GRID, 2))
    image, noise = nib.Nifti1Image(signals, AFFINE), nib.Nifti1Image(sigma, AFFINE)
    table = roi_table(fit_image(image, two_b, "adc", sigma=noise), labels)
    assert 0.99 < row(table, 3, "ADC")["median_low"] < 1 < row(table, 3, "ADC")["median_high"] < 1.01
    assert np.isnan([row(table, 7, "ADC")[column] for column in ("median_low", "median_high")]).all()
    assert doubt_lines(table)[-1].startswith("ADC: 1 of 2 medians without interval")
    segmented = table.assign(method="segmented", model="ivim-by-te", threshold=100.0)
    assert doubt_lines(segmented)[-1].startswith("ivim was fitted in two steps: 95 % intervals")
    segmented.loc[1:, "threshold"] = 200
    assert "(b ≥ 100 s/mm², b ≥ 200 s/mm²;" in doubt_lines(segmented)[-1]


def test_statistics_are_those_of_pandas_over_solutions_only(values, labels):
    table = roi_table({"D": values}, labels)
    assert table[["label", "name", "map"]].to_numpy().tolist() == [[3, "3", "D"], [7, "7", "D"]]
    for label in (3, 7):
        inside = pd.Series(values[labels == label])
        found = row(table, label, "D")
        assert found["n"] == found["n_voxels"] == len(inside)
        assert found["median"] == pytest.approx(inside.median())
        assert found["mean"] == pytest.approx(inside.mean())
        assert found["iqr"] == pytest.approx(inside.quantile(0.75) - inside.quantile(0.25))
        assert (found["q25"], found["q75"]) == pytest.approx(tuple(inside.quantile([0.25, 0.75])))
    assert table["at_low"].isna().all()
    assert table["median_low"].isna().tolist() == [np.sum(labels == label) < 6 for label in (3, 7)]
    status = np.zeros(GRID, np.uint8)
    status[1, 0], status[1, 1], status[1, 2], status[1, 3] = 255, 3, 2, 1
    values[1, 4, 0] = np.nan
    table = roi_table({"D": values}, labels, status=status)
    expected = values[1, 3:].ravel()
    expected = expected[np.isfinite(expected)]
    assert row(table, 3, "D")["n"] == len(expected) == 11
    assert row(table, 3, "D")["median"] == np.median(expected)
    assert row(table, 3, "D")["n_voxels"] == 30


def test_shares_at_bounds_are_those_of_the_fit(labels):
    parameters = np.column_stack([np.full(120, 300.0), np.random.default_rng(1).uniform(0.2, 2.0, 120)])
    signals = MODELS["adc"].signal(parameters, PROTOCOL)
    signals[:10] = -1
    bounds = {"ADC": (0.5, 1.2)}
    mask = np.ones(GRID, np.uint8)
    mask[1, 0] = 0
    maps = fit_image(
        nib.Nifti1Image(signals.reshape(*GRID, 4), AFFINE), PROTOCOL, "adc", bounds=bounds,
        mask=nib.Nifti1Image(mask, AFFINE),
    )  # fmt: skip
    stored = nib.Nifti1Image(labels, AFFINE).as_reoriented(np.array([[2, 1], [0, -1], [1, 1]]))
    table = roi_table(maps, stored, names={3: "liver", 9: "spleen"})
    result = fit_voxels(signals, PROTOCOL, "adc", bounds=bounds)
    inside = ((labels == 3) & (mask > 0)).ravel() & np.isfinite(result["ADC"])
    assert 0 < inside.sum() < (labels == 3).sum()
    found = row(table, 3, "ADC")
    assert (found["name"], found["n"], found["n_voxels"]) == ("liver", inside.sum(), 30)
    assert found["median"] == pytest.approx(np.median(result["ADC"][inside]), rel=1e-6)
    assert found["at_low"] == pytest.approx(result.at_low[inside, 1].mean())
    assert found["at_high"] == pytest.approx(result.at_high[inside, 1].mean())
    assert found["at_low"] > 0
    assert found["at_high"] > 0
    assert found["doubtful"] == result.doubt[inside, 1].mean()
    assert row(table, 3, "S0")["at_low"] == row(table, 3, "S0")["at_high"] == 0
    assert np.isnan(row(table, 3, "cost")["at_low"])
    assert set(table["map"]) == {"S0", "ADC", "S0_se", "ADC_se", "cost"}
    missing = row(table, 9, "ADC")
    assert (missing["name"], missing["n"], missing["n_voxels"]) == ("spleen", 0, 0)
    assert np.isnan(missing["median"])


def test_labels_are_whole_numbers_on_the_grid_of_the_map_and_others_are_refused(values, labels, tmp_path):
    table = roi_table({"D": values}, labels * np.float32(0.99999997))
    pd.testing.assert_frame_equal(table, roi_table({"D": values}, labels))
    path = tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(labels, AFFINE @ np.diag([-1, 1, 1, 1])), path)
    with pytest.raises(ValueError, match=r"labels\.nii\.gz and the image of D.*apart"):
        roi_table({"D": nib.Nifti1Image(values, AFFINE)}, path)


def test_labels_of_a_real_tumor_are_counted(data_dir):
    folder = data_dir / "brats2013_deepmedic" / "brats_2013_pat0005_1"
    table = roi_table({"T1c": folder / "T1c_subtrMeanDivStd.nii.gz"}, folder / "OTMultiClass.nii.gz")
    assert table["label"].tolist() == [1, 2, 3, 4]
    assert table["n_voxels"].tolist() == [23030, 35416, 3882, 18354]
    image, label = (np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj) for name in (
        "T1c_subtrMeanDivStd", "OTMultiClass"))  # fmt: skip
    assert row(table, 4, "T1c")["median"] == pytest.approx(np.median(image[label == 4]))


def test_fits_are_found_in_their_folder(data_dir, tmp_path):
    folder = data_dir / "dipy_small_dwi"
    scan = folder / "small_101D.nii.gz"
    protocol = Protocol.read(folder / "small_101D.bval")
    for model in ("adc", "kurtosis"):
        maps = fit_image(scan, protocol, model, out=tmp_path)
    adc, kurtosis = find_fits(tmp_path)
    assert (adc.scan, adc.model, kurtosis.model) == ("small_101D", "adc", "kurtosis")
    assert kurtosis.units["D"] == "µm²/ms"
    numbers = np.ones((6, 10, 10), np.uint8)
    labels = nib.Nifti1Image(numbers, nib.load(scan).affine)
    found = roi_table(kurtosis.maps, labels, units=kurtosis.units)
    expected = roi_table(maps, labels)
    assert [row(found, 1, name)["unit"] for name in ("K", "D", "cost")] == ["", "µm²/ms", "a.u.²"]
    assert row(found, 1, "D")["at_low"] >= 0
    pd.testing.assert_frame_equal(found, expected)
    described = json.loads((tmp_path / "small_101D_model-kurtosis_dwimap.json").read_text(encoding="utf-8"))
    assert row(found, 1, "K")["at_low"] == pytest.approx(described["Parameters"]["K"]["ShareAtBounds"]["Lower"])
    kurtosis.maps["D"].unlink()
    with pytest.raises(FileNotFoundError, match="param-D"):
        find_fits(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no maps of a fit"):
        find_fits(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_fits(tmp_path / "none")


def test_names_of_labels_are_read(tmp_path):
    (tmp_path / "a.tsv").write_text("index\tname\tcolor\n1\tleft liver\tred\n12\tspleen\tblue\n")
    assert read_label_names(tmp_path / "a.tsv") == {1: "left liver", 12: "spleen"}
    for text, message in (
        ("index\tlabel\n1\t2\n", "no column name"),
        ("index\tname\nx\tliver\n", "row 2: index 'x' is not a whole number"),
        ("index\tname\n1\tliver\n1\tspleen\n", "row 3: index '1' is listed twice"),
    ):
        (tmp_path / "b.tsv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_label_names(tmp_path / "b.tsv")


def visits(first, second):
    rows = [
        {"subject": subject, "visit": visit, "label": 1, "name": "liver", "map": "D", "median": value}
        for visit, column in enumerate((first, second))
        for subject, value in enumerate(column)
    ]
    return pd.DataFrame(rows)


def test_coefficients_of_variation_are_those_of_the_formula_known_and_of_subjects_with_two_visits():
    (found,) = repeatability(visits([1.0, 2.0, 4.0], [1.1, 1.8, 4.0])).to_dict("records")
    difference, mean = np.array([0.1, 0.2, 0]), np.array([1.05, 1.9, 4])
    wcv = np.sqrt(np.mean((difference / np.sqrt(2) / mean) ** 2))
    assert found["n_subjects"] == 3
    assert found["wcv"] == pytest.approx(wcv)
    assert found["within_sd"] == pytest.approx(np.sqrt(np.mean(difference**2 / 2)))
    assert found["rc_percent"] == pytest.approx(277.186 * wcv, rel=1e-4)
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.5, 3, 20000)
    first, second = truth * (1 + 0.07 * rng.normal(size=(2, 20000)))
    (found,) = repeatability(visits(first, second)).to_dict("records")
    assert found["wcv"] == pytest.approx(0.07, rel=0.02)
    assert found["mean"] == pytest.approx(truth.mean(), rel=0.01)
    table = visits([1.0, 2.0], [1.2, np.nan])
    (found,) = repeatability(table).to_dict("records")
    (alone,) = repeatability(visits([1.0], [1.2])).to_dict("records")
    assert found["n_subjects"] == 1
    assert found["wcv"] == alone["wcv"]
    (none,) = repeatability(table[table["visit"] == 0]).to_dict("records")
    assert (none["n_subjects"], np.isnan(none["wcv"])) == (0, True)
    (signed,) = repeatability(visits([-1.0, 1], [-1.2, 1])).to_dict("records")
    assert np.isnan(signed["wcv"])
    assert signed["within_sd"] > 0
    assert repeatability(visits([1.0], [1.0]))[["within_sd", "wcv", "rc_low"]].isna().all(axis=None)


def test_a_region_twice_at_one_visit_is_refused():
    with pytest.raises(ValueError, match=r"subject 0 has label 1, map D twice at visit 0; .* in the column visit"):
        repeatability(visits([1.0], [2.0]).assign(visit=0))


def test_the_repeatability_coefficient_is_in_its_interval_as_often_as_it_says():
    rng = np.random.default_rng(0)
    rows = []
    for study in range(200):
        for subject, n_visits in enumerate((2, 2, 2, 10)):
            for visit in range(1, n_visits + 1):
                value = 1.0 + 0.1 * subject + 0.05 * rng.normal()
                rows.append((study, f"p{subject}", visit, 1, "liver", "ADC", value))
    table = pd.DataFrame(rows, columns=["model", "subject", "visit", "label", "name", "map", "median"])
    found = repeatability(table)
    truth = 1.96 * np.sqrt(2) * 0.05
    assert found["rc"].mean() == pytest.approx(truth, rel=0.05)
    assert 0.91 < ((found["rc_low"] < truth) & (truth < found["rc_high"])).mean() < 0.99
    np.testing.assert_allclose(found["rc"], 1.96 * np.sqrt(2) * found["within_sd"])
    assert (found["rc_percent_low"] < found["rc_percent"]).all()
    alone = repeatability(table[table["visit"] == 1].query("model == 0"))
    assert alone[["rc", "rc_low"]].isna().all(axis=None)


def test_maps_of_other_programs_are_summarized_from_a_table_or_by_their_names(tmp_path):
    # Synthetic maps of another program: two subjects, two visits, two maps, and a label image.
    rng = np.random.default_rng(0)
    labels = np.zeros((4, 4, 2), np.uint8)
    labels[:2] = 3
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "labels.nii.gz")
    rows = []
    for subject in "AB":
        for visit in "12":
            for name, unit, level in (("MD", "µm²/ms", 0.8), ("FA", "", 0.4)):
                file = f"{subject}{visit}_{name}.nii.gz"
                values = level * (1 + 0.05 * rng.normal(size=labels.shape))
                nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), tmp_path / file)
                rows.append((subject, visit, name, file, unit or "n/a", "labels.nii.gz"))
    columns = ["subject", "visit", "map", "file", "unit", "labels"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "maps.tsv", sep="\t", index=False)
    table = summarize_fits([tmp_path / "maps.tsv"])
    assert table["map"].tolist() == ["MD", "FA"] * 4
    assert set(table["unit"]) == {"µm²/ms", ""}
    assert table["subject"].tolist() == ["A"] * 4 + ["B"] * 4
    assert table["median"][0] == pytest.approx(0.8, rel=0.05)
    assert (repeatability(table)["n_subjects"] == 2).all()
    text = (tmp_path / "maps.tsv").read_text()
    (tmp_path / "twice.tsv").write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(ValueError, match="stands in an earlier row"):
        summarize_fits([tmp_path / "twice.tsv"])
    maps = {"MD": tmp_path / "A1_MD.nii.gz"}
    table = summarize_fits([], [tmp_path / "labels.nii.gz"], maps=maps, units={"MD": "µm²/ms"})
    assert table[["map", "unit", "n", "scan"]].to_numpy().tolist() == [["MD", "µm²/ms", 16, "A1_MD"]]
    with pytest.raises(ValueError, match="given to FA, which is not a map"):
        summarize_fits([], [tmp_path / "labels.nii.gz"], maps=maps, units={"FA": "1"})
    with pytest.raises(FileNotFoundError, match="no such file"):
        summarize_fits([], [tmp_path / "labels.nii.gz"], maps={"MD": tmp_path / "none.nii"}, units={"MD": "um2/ms"})
    with pytest.raises(ValueError, match="need one label image"):
        summarize_fits([tmp_path], [], maps=maps)
