"""Intervals of predicted maps of an image, as maps, in the sidecar and on the page."""

import json

import nibabel as nib
import numpy as np
import pytest

from dmrifit.cohort.scaling import PatientScale
from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.fit_predict import predict_image
from dmrifit.model_files.model_file import load_model, save_model
from dmrifit.predict.conformal import ConformalIntervals
from dmrifit.predict.novelty import NOVEL
from dmrifit.predict.strategies import MapsToMaps, SignalToSignal
from dmrifit.report.quicklook import bound_cells, value_lines
from dmrifit.simulate.body_phantoms import simulate_cohort

TARGET = Protocol.preset("cohort1")
SOURCE = TARGET.take(TARGET.clinical())
NAMES = MODELS["t2-ivim-kurtosis"].names


@pytest.fixture(scope="module", params=[SignalToSignal, MapsToMaps])
def intervals(request):
    cohort = simulate_cohort("cohort1", 6, shape=(16, 16, 4), random_state=2)
    voxels = cohort.arrays(mask="body", max_voxels=80, random_state=0)
    estimator = request.param("LR", source=voxels.source, target=voxels.target)
    return ConformalIntervals(estimator, random_state=0).fit(voxels.X, voxels.Y, voxels.groups)


@pytest.fixture(scope="module")
def scan():
    return simulate_cohort("cohort1", 1, shape=(16, 16, 4), random_state=9).scans[0]


@pytest.fixture(scope="module")
def inputs(scan):
    signal = scan.signal[..., TARGET.clinical()].astype(np.float32)
    image = nib.Nifti1Image(signal, scan.affine)
    mask = nib.Nifti1Image(scan.mask.astype(np.uint8), scan.affine)
    return image, mask


def data(image):
    return np.asanyarray(image.dataobj)


def test_maps_of_intervals_are_those_of_the_scaled_voxels(intervals, inputs):
    image, mask = inputs
    maps = predict_image(intervals, image, mask=mask)
    inside = data(mask) > 0
    voxels = data(image)[inside].astype(float)
    unit = PatientScale().of(voxels, SOURCE)
    ends = intervals.predict_interval(voxels / unit)
    ends[:, 0] *= unit
    for end, values in {"low": ends[..., 0], "high": ends[..., 1]}.items():
        made = np.column_stack([data(maps[f"{name}_{end}"])[inside] for name in NAMES])
        np.testing.assert_allclose(made, values, rtol=1e-5, atol=1e-6)
    typicality = intervals.typicality(voxels / unit)
    np.testing.assert_allclose(data(maps["typicality"])[inside], typicality, atol=1e-6)
    assert not data(maps["Dt_high"])[~inside].any()
    assert np.isnan(data(maps["typicality"])[~inside]).all()
    plain = predict_image(intervals.estimator_, image, mask=mask)
    assert set(plain) == set(NAMES)
    is_at_bound = sum(plain.sidecar["Parameters"]["T2v"]["ShareAtBounds"].values()) > 0.5
    assert ("T2v – (under 10 % left, or most at a bound)" in str([*value_lines(plain.sidecar)])) == is_at_bound
    np.testing.assert_array_equal(data(plain["Dt"]), data(maps["Dt"]))


def test_a_saved_model_writes_intervals_and_says_what_they_are_worth(intervals, inputs, tmp_path):
    image, mask = inputs
    save_model(intervals, tmp_path / "model")
    model = load_model(tmp_path / "model")
    maps = predict_image(model, image, mask=mask, out=tmp_path / "out", quicklook=True)
    described = json.loads(next((tmp_path / "out").glob("*.json")).read_text(encoding="utf-8"))
    section, entry = described["Intervals"], described["Parameters"]["K"]
    values = data(maps["K"])[data(mask) > 0]
    shares = {"Lower": np.mean(values == 0), "Upper": np.mean(values == 5)}
    assert (entry["Bounds"], entry["ShareAtBounds"]) == ([0, 5], pytest.approx(shares, abs=0.02))
    assert "Bounds" not in described["Parameters"]["S0"]
    assert section["Coverage"] == 0.9
    assert section["Guarantee"].startswith("90 % cannot be promised with 6 patients (9 are needed); ")
    for name in NAMES:
        low, high = (tmp_path / "out" / file for file in section["Parameters"][name]["Files"])
        np.testing.assert_array_equal(data(nib.load(low)), data(maps[f"{name}_low"]))
        np.testing.assert_array_equal(data(nib.load(high)), data(maps[f"{name}_high"]))
    # The interval of T2v is the box in every voxel.
    assert section["Parameters"]["T2v"]["MedianShareOfBounds"] == 1
    assert [section["Parameters"][name]["Determined"] for name in ("T2v", "Dt")] == [False, True]
    unlike = data(maps["typicality"])[data(mask) > 0] < NOVEL
    assert section["Typicality"]["ShareUnlike"] == round(float(unlike.mean()), 4)
    text = next((tmp_path / "out").glob("*.html")).read_text(encoding="utf-8")
    for sentence in [*maps.advice(), *bound_cells(entry)]:
        assert sentence.replace("<", "&lt;") in text
    assert any("T2v (100 %)" in sentence for sentence in maps.advice())
    assert [f"{name} " in [*value_lines(described)][-1] for name in ("medians: S0", "T2v")] == [True, False]


def test_intervals_learned_without_sigma_refuse_it(intervals, inputs):
    with pytest.raises(ValueError, match="the intervals were learned without sigma"):
        predict_image(intervals, inputs[0], sigma=3.0)
