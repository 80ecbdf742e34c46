"""Maps of other programs (synthetic): shown, and predicted from."""

import json

import nibabel as nib
import numpy as np
import pytest

from dmrifit.engine.map_fitter import ClinicalMetrics
from dmrifit.imaging.foreign_maps import predict_from_maps, read_maps, view_maps
from dmrifit.predict.conformal import ConformalIntervals
from dmrifit.predict.strategies import MapsToMaps, SignalToSignal
from dmrifit.simulate.body_phantoms import simulate_cohort


@pytest.fixture(scope="module")
def trained():
    """A predictor of maps, one of signals, and the scan of a new patient."""
    scans = simulate_cohort("cohort1", 3, shape=(16, 16, 3), random_state=0).scans
    protocol = scans[0].protocol
    source = protocol.take(protocol.clinical())
    columns = source.indices_in(protocol)
    signals = np.concatenate([scan.signal[scan.mask] for scan in scans[:2]]).astype(float)
    options = {"source": source, "target": protocol, "random_state": 0}
    estimators = [cls("LR", **options).fit(signals[:, columns], signals) for cls in (MapsToMaps, SignalToSignal)]
    return *estimators, scans[2]


@pytest.fixture
def metrics(trained, tmp_path):
    """Maps of the clinical metrics of the new patient, as another program writes them: in mm²/s and percent."""
    estimator, _, scan = trained
    columns, inside = estimator.source.indices_in(scan.protocol), scan.mask
    fitted = ClinicalMetrics(estimator.source).fit_transform(scan.signal[inside][:, columns].astype(float))
    factors = {"S0": 1, "ADC_fast": 1e-3, "ADC_slow": 1e-3, "F": 100}
    files = {}
    for name, factor in factors.items():
        values = np.zeros(scan.shape)
        values[inside] = factor * fitted[:, ClinicalMetrics.names.index(name)]
        files[name] = tmp_path / f"p3_{name}.nii.gz"
        nib.save(nib.Nifti1Image(values, scan.affine), files[name])
    return files


UNITS = {"ADC_fast": "mm²/s", "ADC_slow": "mm2/s", "F": "%"}


def test_maps_give_the_prediction_of_the_signals_they_were_fitted_to(trained, metrics, tmp_path):
    estimator, _, scan = trained
    written = predict_from_maps(estimator, metrics, tmp_path / "out", units=UNITS)
    columns = estimator.source.indices_in(scan.protocol)
    expected = estimator.predict_maps(scan.signal[scan.mask][:, columns].astype(float))
    names = list(written)
    found = written["Dt"].get_fdata()[scan.mask]
    usable = np.isfinite(expected[:, names.index("Dt")])
    assert usable.mean() > 0.9
    np.testing.assert_allclose(found[usable], expected[usable, names.index("Dt")], rtol=1e-5)
    assert len(list((tmp_path / "out").glob("*.json"))) == 1


def test_a_predictor_with_intervals_predicts_from_maps_without_them(metrics, tmp_path):
    # A predictor of maps of five patients, with intervals, as ``dmrifit train`` makes it.
    voxels = simulate_cohort("cohort1", 5, shape=(16, 16, 3), random_state=0).arrays(mask="body", max_voxels=60, random_state=0)
    estimator = MapsToMaps("LR", source=voxels.source, target=voxels.target)
    intervals = ConformalIntervals(estimator, random_state=0).fit(voxels.X, voxels.Y, voxels.groups)
    written = predict_from_maps(intervals, metrics, tmp_path / "out", units=UNITS)
    plain = predict_from_maps(intervals.estimator_, metrics, tmp_path / "plain", units=UNITS)
    assert set(written) == set(intervals.names_)
    for name, image in written.items():
        np.testing.assert_array_equal(image.get_fdata(), plain[name].get_fdata())


@pytest.mark.parametrize(
    ("change", "units", "message"),
    [
        ({}, {}, "which no tissue has"), ({}, {**UNITS, "F": ""}, "F is a share"),
        ({}, {**UNITS, "F": "cm"}, "choose from"),
        ({}, {**UNITS, "ADC_fats": "mm²/s"}, "ADC_fats, which is not a map"),
        ({}, {**UNITS, "ADC_fast": "um2/ms"}, r"check the unit um2/ms.*b = 0 to 100 s/mm².*not a diffusivity of IVIM"),
        ({"F": None}, UNITS, "no map of F"), ({"MD": "S0"}, UNITS, "MD is no input"),
    ],
)
def test_maps_in_other_units_or_of_other_names_are_refused(trained, metrics, tmp_path, change, units, message):
    for name, other in change.items():
        if other is None:
            del metrics[name]
        else:
            metrics[name] = metrics[other]
    with pytest.raises(ValueError, match=message):
        predict_from_maps(trained[0], metrics, tmp_path / "out", units=units)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("unit", ["×10⁻³ mm²/s", "x10^-3 mm^2/s", "µm²/ms", "μm²/ms", "um^2/ms", "10-3 mm2/s"])
def test_a_unit_is_written_in_many_ways(trained, metrics, tmp_path, unit):
    expected = predict_from_maps(trained[0], metrics, tmp_path / "a", units=UNITS)
    for name in ("ADC_fast", "ADC_slow"):
        image = nib.load(metrics[name])
        nib.save(nib.Nifti1Image(1e3 * image.get_fdata(), image.affine), metrics[name])
    written = predict_from_maps(trained[0], metrics, tmp_path / "b", units=UNITS | {"ADC_fast": unit, "ADC_slow": unit})
    for name in ("f", "Dt"):
        values = [maps[name].get_fdata() for maps in (expected, written)]
        np.testing.assert_allclose(*values, rtol=1e-5)


def test_the_sidecar_says_that_maps_were_the_input(trained, metrics, tmp_path):
    folder = tmp_path / "out"
    unnamed = {name: path.rename(tmp_path / f"{name}.nii.gz") for name, path in metrics.items()}
    predict_from_maps(trained[0], unnamed, folder, units=UNITS)
    (sidecar,) = folder.glob("*.json")
    description = json.loads(sidecar.read_text())
    assert description["Settings"]["Factors"] == {"ADC_fast": 1000, "ADC_slow": 1000, "F": 0.01}
    assert description["Voxels"]["InMask"] == description["Voxels"]["WithSignal"] == np.count_nonzero(trained[2].mask)
    assert "ADC_slow of b = 100, 400 and 900" in description["Settings"]["TakenAs"]
    assert sidecar.name.startswith("out_model-")
    assert "maps of a clinical protocol" in description["Description"]
    assert (description["Parameters"]["S0"]["Units"], "ShareAtBounds" in description["Parameters"]["K"]) == ("a.u.", True)
    del unnamed["S0"]
    predict_from_maps(trained[0], unnamed, folder, units=UNITS, overwrite=True)
    description = json.loads(sidecar.read_text())
    assert description["Parameters"]["S0"]["Units"] == "multiples of the signal at b = 0"


def test_a_predictor_of_signals_is_refused(trained, metrics, tmp_path):
    with pytest.raises(ValueError, match="predicts from an image"):
        predict_from_maps(trained[1], metrics, tmp_path / "out", units=UNITS)


def test_maps_of_one_grid_are_shown_on_a_page(metrics, tmp_path):
    page = tmp_path / "view.html"
    maps = {"fast": metrics["ADC_fast"], "F": metrics["F"]}
    image = nib.load(metrics["S0"])
    numbers = np.resize([0, 7, 2, 1], image.shape).astype(np.int16)
    nib.save(nib.Nifti1Image(numbers, image.affine), tmp_path / "labels.nii")
    view_maps(maps, page, units={"fast": "mm²/s"}, image=metrics["S0"], labels=tmp_path / "labels.nii")
    text = page.read_text(encoding="utf-8")
    assert all(words in text for words in ("mm²/s", "fast", "label 1", "label 2", "label 7"))
    assert "label 3" not in text
    nib.save(nib.Nifti1Image(0.1 * numbers, image.affine), tmp_path / "shares.nii")
    with pytest.raises(ValueError, match=r"shares.nii: labels are whole numbers from 0, but not in .* such as 0\.7"):
        view_maps(maps, page, units={}, image=metrics["S0"], labels=tmp_path / "shares.nii")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4)), np.eye(4)), tmp_path / "other.nii")
    with pytest.raises(ValueError, match="different grids"):
        read_maps({**maps, "other": tmp_path / "other.nii"})
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 2)), np.eye(4)), tmp_path / "series.nii")
    with pytest.raises(ValueError, match="save one volume alone"):
        read_maps({"series": tmp_path / "series.nii"})


def test_units_and_names_that_fit_no_map_are_refused(metrics, tmp_path):
    with pytest.raises(ValueError, match="fats, which is not a map"):
        view_maps({"fast": metrics["ADC_fast"]}, tmp_path / "a.html", units={"fats": "mm²/s"})
    with pytest.raises(ValueError, match="map image has the name of the image"):
        view_maps({"image": metrics["F"]}, tmp_path / "a.html", units={}, image=metrics["S0"])
    assert not (tmp_path / "a.html").exists()
