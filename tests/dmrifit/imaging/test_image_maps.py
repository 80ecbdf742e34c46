"""Maps of an image as a mapping: what it holds, how it prints, and that saving later is saving at once."""

import json
import pickle
import re
from collections.abc import Mapping

import nibabel as nib
import numpy as np
import pytest

from dmrifit import MODELS, ImageMaps, Protocol, SignalToSignal, fit_image, predict_image
from dmrifit.report import quicklook

PROTOCOL = Protocol([0, 200, 500, 1000])


@pytest.fixture
def scan(tmp_path):
    """A synthetic scan in a file, with a voxel that has no signal."""
    truth = np.column_stack([np.full(48, 300.0), np.linspace(0.4, 2.4, 48)])
    signals = MODELS["adc"].signal(truth, PROTOCOL).reshape(4, 4, 3, 4)
    signals[0, 0, 0] = -1
    path = tmp_path / "in" / "sub-01_dwi.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(signals, np.diag([-2.0, 2, 4, 1])), path)
    return path


def predicted(scan, **options):
    source = PROTOCOL.take([0, 3])
    signals = MODELS["adc"].signal(np.column_stack([np.full(9, 300.0), np.linspace(0.4, 2.4, 9)]), PROTOCOL)
    estimator = SignalToSignal("LR", source=source, target=PROTOCOL, model="adc").fit(signals[:, [0, 3]], signals)
    return predict_image(estimator, scan, protocol=PROTOCOL, scale=None, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_maps_are_a_mapping_by_name(scan):
    maps = fit_image(scan, PROTOCOL, "adc")
    assert isinstance(maps, ImageMaps)
    assert isinstance(maps, Mapping)
    assert list(maps)[:2] == ["S0", "ADC"]
    assert len(maps) == len(maps.keys()) == 12
    assert "ADC" in maps
    assert "Dt" not in maps
    assert maps["ADC"].shape == (4, 4, 3)
    assert dict(**maps).keys() == maps.keys()
    with pytest.raises(KeyError, match=r"no map 'Dt'; there are S0, ADC"):
        maps["Dt"]


def test_text_of_maps_is_three_lines_with_parameters_apart_and_verdict_and_advice_of_the_fit(scan):
    maps = fit_image(scan, PROTOCOL, "adc")
    lines = repr(maps).splitlines()
    assert lines[0] == "<ImageMaps of sub-01_dwi, model adc, 4 × 4 × 3 voxels: S0, ADC"
    assert maps.names == ("S0", "ADC")
    assert lines[1].startswith("beside them: S0_se")
    assert lines[2].startswith("47 of 48 voxels fitted (98 %); ")
    assert len(lines) == 3
    steady = MODELS["adc"].signal([[300.0, 1.0]], PROTOCOL).reshape(1, 1, 1, 4)
    image = nib.Nifti1Image(np.tile(steady, (3, 3, 3, 1)), np.eye(4))
    assert fit_image(image, PROTOCOL, "adc").advice() == []
    at_bound = fit_image(image, PROTOCOL, "adc", bounds={"ADC": (0, 0.7)})
    assert 'widen the bounds (bounds={"ADC": (LOW, HIGH)}), or fix it (fixed={"ADC": VALUE}).' in at_bound.advice()[0]
    assert "(--fix ADC=VALUE)" in at_bound.sidecar["Doubt"]["Advice"][0]
    assert ["ADC=VALUE" in page for page in (at_bound.view().html, str(at_bound.sidecar))] == [False, True]
    assert "--coverage" in " ".join(predicted(scan).advice())


@pytest.mark.parametrize("make", [lambda scan, **options: fit_image(scan, PROTOCOL, "adc", **options), predicted])
def test_tables_of_maps_have_places_in_mm_and_the_values_of_the_images(make, scan):
    maps = make(scan)
    table, dataset = maps.to_dataframe(), maps.to_xarray()
    places = table[["i", "j", "k"]].to_numpy()
    np.testing.assert_allclose(table[["x", "y", "z"]], places * [-2.0, 2, 4])
    for name in maps.names:
        values = np.asarray(maps[name].dataobj)
        np.testing.assert_array_equal(table[name], values[tuple(places.T)])
        np.testing.assert_array_equal(dataset[name], values)
        assert dataset[name].attrs["units"] == maps.sidecar["Parameters"][name]["Units"]
    np.testing.assert_allclose([dataset["x"][3, 1, 2], dataset["z"][3, 1, 2]], [-6, 8])
    assert all(table.attrs["units"][name] == "µm²/ms" for name in maps if name in ("ADC", "ADC_se", "ADC_low"))
    mask = nib.Nifti1Image(np.repeat(1 - np.eye(4)[..., None], 3, axis=2), maps["ADC"].affine)
    assert np.isnan(make(scan, mask=mask).to_xarray()["ADC"]).sum() == 12
    if "status" in table:
        assert table["status"].value_counts().to_dict() == {"converged": 47, "not_fitted": 1}
        bits = np.asarray(maps["doubt"].dataobj)[tuple(places.T)]
        assert (table["S0_doubt"] + 2 * table["ADC_doubt"] + 4 * table["starts_disagree"]).tolist() == bits.tolist()
    assert table.attrs["units"]["x"] == dataset["x"].units == "mm"


def test_a_picture_shows_the_map_and_the_curve_of_a_voxel(scan):
    maps = fit_image(scan, PROTOCOL, "adc")
    axes = maps.plot("ADC", voxel=(1, 2, 0)).axes[-1]
    assert axes.figure.get_tightbbox().y1 <= axes.figure.get_figheight()
    assert axes.get_title() == "voxel at -2, 4, 0 mm"
    measured = axes.lines[1]
    np.testing.assert_array_equal(measured.get_xdata(), PROTOCOL.b)
    np.testing.assert_allclose(measured.get_ydata(), nib.load(scan).get_fdata()[1, 2, 0], rtol=1e-6)
    np.testing.assert_allclose(axes.lines[0].get_ydata()[-1], measured.get_ydata()[-1], rtol=1e-3)
    for one in (maps, predicted(scan)):
        assert one.plot().axes[0].get_title(loc="left") == "ADC (µm²/ms)"
    with pytest.raises(KeyError, match="no parameter 'D'; there are S0, ADC"):
        maps.plot("D")
    inside = np.ones((4, 4, 3), np.uint8)
    inside[3, 1, 2] = 0
    masked = fit_image(scan, PROTOCOL, "adc", mask=nib.Nifti1Image(inside, nib.load(scan).affine))
    with pytest.raises(ValueError, match="the voxel at -6, 2, 8 mm has no signals; choose one that was fitted"):
        masked.plot(voxel=(3, 1, 2))


def test_the_picture_is_the_same_however_the_scan_is_stored(scan):
    image = nib.load(scan)
    flipped = nib.Nifti1Image(image.get_fdata()[::-1], image.affine @ [[-1, 0, 0, 3], *np.eye(4)[1:]])
    figures = [fit_image(one, PROTOCOL, "adc").plot("ADC") for one in (image, flipped)]
    curves = [figure.axes[-1].lines[1].get_ydata() for figure in figures]
    slices = [[picture.get_array() for picture in figure.axes[0].images] for figure in figures]
    np.testing.assert_array_equal(*slices)
    np.testing.assert_array_equal(*curves)


@pytest.mark.parametrize("make", [lambda *args, **options: fit_image(args[0], PROTOCOL, "adc", **options), predicted])
def test_saving_later_writes_the_same_files_as_out(make, scan, tmp_path):
    maps = make(scan, out=tmp_path / "at-once", quicklook=True)
    make(scan).save(tmp_path / "later", quicklook=True)
    assert contents(tmp_path / "at-once") == contents(tmp_path / "later")
    sidecar = next((tmp_path / "later").glob("*.json"))
    assert json.loads(sidecar.read_text(encoding="utf-8"))["Sources"]["Image"]["Name"] == scan.name
    with pytest.raises(FileExistsError):
        maps.save(tmp_path / "later")
    maps.save(tmp_path / "later", quicklook=True, overwrite=True)


def test_a_prediction_beside_a_fit_of_the_same_scan_has_its_colors(scan, tmp_path):
    # In a third of the voxels the fit finds zero, which is a value.
    image = nib.load(scan)
    signals = image.get_fdata()
    signals[1:3, :, :2] = [300, 310, 320, 330]
    nib.save(nib.Nifti1Image(signals, image.affine), scan)
    mask = np.ones(image.shape[:3], np.uint8)
    mask[3] = 0
    region = nib.Nifti1Image(mask, image.affine)
    fitted = fit_image(scan, PROTOCOL, "adc", mask=region, out=tmp_path / "both")
    predicted(scan, mask=region, out=tmp_path / "both", quicklook=True)
    text = (tmp_path / "both" / "sub-01_model-adc_desc-predicted_quicklook.html").read_text(encoding="utf-8")
    assert "Maps have the colors of the fit in the same folder." in text
    values = np.asarray(fitted["ADC"].dataobj)
    low, high = np.nanpercentile(values[mask > 0], (2, 98))
    assert low == 0
    window = re.search(r'"name":"ADC",.*?"window":\[([^],]*),([^]]*)\]', text)
    np.testing.assert_allclose([float(window[1]), float(window[2])], [low, high])
    predicted(scan, out=tmp_path / "alone", quicklook=True)
    alone = (tmp_path / "alone" / "sub-01_model-adc_desc-predicted_quicklook.html").read_text(encoding="utf-8")
    assert "colors of the fit" not in alone


@pytest.mark.parametrize("make", [lambda *args, **options: fit_image(args[0], PROTOCOL, "adc", **options), predicted])
def test_the_scan_below_the_maps_is_seen_around_a_mask(make, scan, monkeypatch):
    shown, show = [], quicklook.html_viewer

    def spy(layers, *args, **options):
        shown.extend(layers)
        return show(layers, *args, **options)

    monkeypatch.setattr(quicklook, "html_viewer", spy)
    image = nib.load(scan)
    mask = np.zeros(image.shape[:3], np.uint8)
    mask[1, 1:3, 1] = 1
    make(scan, mask=nib.Nifti1Image(mask, image.affine)).view()
    (layer,) = [layer for layer in shown if layer.kind == "image"]
    lowest = nib.as_closest_canonical(image).get_fdata()[:, :, 1, 0]
    np.testing.assert_allclose(layer.values[:, :, 1], lowest, rtol=1e-6)


def test_saving_never_replaces_the_image_that_was_fitted(scan, tmp_path):
    maps = fit_image(scan, PROTOCOL, "adc")
    name = "sub-01_model-adc_param-ADC_dwimap.nii.gz"
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / name).hardlink_to(scan)
    with pytest.raises(ValueError, match=r"sub-01_dwi\.nii\.gz is an input"):
        maps.save(tmp_path / "link", overwrite=True)


def test_maps_travel_between_processes(scan):
    maps = fit_image(scan, PROTOCOL, "adc")
    again = pickle.loads(pickle.dumps(maps))
    assert repr(again) == repr(maps)
    np.testing.assert_array_equal(again["ADC"].get_fdata(), maps["ADC"].get_fdata())
