"""The page to look at after a fit."""

import base64
import gzip
import html
import io
import json
import math
import re
import time

import browser
import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from dmrifit._utils.counts import percent
from dmrifit.engine.fit_maps import unpack_bits
from dmrifit.engine.models import MODELS, Parameter, SignalModel
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging import fit_predict, image_maps
from dmrifit.imaging.fit_predict import fit_image, predict_image
from dmrifit.predict.strategies import SignalToSignal
from dmrifit.report import quicklook as module
from dmrifit.report.quicklook import ShownMaps, map_summary
from dmrifit.report.slice_figures import COUNT_COLORS

PROTOCOL = Protocol([0, 200, 500, 1000])
MOST_BYTES = 300_000


@pytest.fixture
def image(tmp_path):
    """A synthetic scan; half of its voxels diffuse faster than the upper bound of the fits below."""
    rng = np.random.default_rng(0)
    adc = np.concatenate([rng.uniform(0.3, 0.9, 50), rng.uniform(1.5, 2, 50)])
    signals = MODELS["adc"].signal(np.column_stack([np.full(100, 300.0), adc]), PROTOCOL).reshape(5, 5, 4, 4)
    signals[0, 0, 0] = -1
    path = tmp_path / "a<b>.nii"
    nib.save(nib.Nifti1Image(signals, np.diag([-2.0, 2, 4, 1])), path)
    return path


@pytest.fixture
def page(image, tmp_path):
    with pytest.warns(UserWarning, match="times sigma"):
        fit_image(image, PROTOCOL, "adc", bounds={"ADC": (0, 1)}, sigma=1.5, out=tmp_path / "out", quicklook=True)
    return (tmp_path / "out" / "a<b>_model-adc_quicklook.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_from_elsewhere(page):
    addresses = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s]+)", page)
    assert addresses
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    # The viewer's own script and its numbers; nothing else may run, and nothing may be asked for.
    assert len(re.findall("<script", page)) == 2
    assert "default-src &#39;none&#39;; img-src data:;" in page
    assert "@import" not in page
    assert "Research software; not for clinical use." in page


def test_without_the_extra_the_error_comes_before_the_fit(image, tmp_path, monkeypatch):
    def absent(name):
        msg = f'{name} is not installed; to install it: pip install "dmrifit[report]"'
        raise ImportError(msg)

    monkeypatch.setattr(image_maps, "import_optional", absent)
    monkeypatch.setattr(fit_predict, "fit_with", lambda *_, **__: pytest.fail("fitted"))
    with pytest.raises(ImportError, match="pip install"):
        fit_image(image, PROTOCOL, "adc", out=tmp_path / "out", quicklook=True)
    assert not (tmp_path / "out").exists()


def stretched(b, S0, D, a):
    # Cut to whole s/mm², which no formula can say.
    whole = int(1000.0 * b + 0.5)
    return S0 * math.exp(-((whole * D / 1000.0) ** a))


def test_a_model_that_is_a_function_is_shown_and_described_by_its_source(image, tmp_path):
    parameters = [Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0.1, 5), Parameter("a", "", 0.3, 1)]
    model = SignalModel.from_function(stretched, parameters, name="stretched")
    fit_image(image, PROTOCOL, model, out=tmp_path / "out", quicklook=True)
    described = json.loads((tmp_path / "out" / "a<b>_model-stretched_dwimap.json").read_text(encoding="utf-8"))
    assert described["Model"]["Source"] == model.source
    assert "Expression" not in described["Model"]
    page = (tmp_path / "out" / "a<b>_model-stretched_quicklook.html").read_text(encoding="utf-8")
    assert "whole = int(1000.0 * b + 0.5)" in page


def test_doubts_are_told_and_shown(image, tmp_path):
    """Where nothing is perfused, the diffusivity of the blood is undetermined."""
    with pytest.warns(UserWarning, match="does not determine ivim"):
        fit_image(image, PROTOCOL, "ivim", method="nlls", sigma=1.5, out=tmp_path / "out", quicklook=True)
    page = (tmp_path / "out" / "a<b>_model-ivim_quicklook.html").read_text(encoding="utf-8")
    described = json.loads((tmp_path / "out" / "a<b>_model-ivim_dwimap.json").read_text(encoding="utf-8"))
    doubt = np.asanyarray(nib.load(tmp_path / "out" / described["Doubt"]["File"]).dataobj)
    shares = described["Doubt"]["Share"]
    for bit, name in enumerate(("S0", "f", "Dv", "Dt")):
        assert shares[name] == pytest.approx(np.count_nonzero(doubt & 2**bit) / 99)
    disagree = described["Doubt"]["StartsDisagree"]
    assert disagree == pytest.approx(np.count_nonzero(doubt & 16) / 99)
    assert shares["Dv"] > 0.9
    assert f"In {percent(disagree)} of the voxels with signal another starting point" in page
    assert "Dv is in doubt in" in page
    assert "f is the T2-weighted signal fraction at the echo time of the scan" in page
    assert 'alt="Number of parameters in doubt"' in page


def test_voxels_with_many_parameters_in_doubt_have_a_color(image, tmp_path):
    """At one echo time most of the seven parameters are in doubt."""
    protocol = Protocol([0, 10, 50, 100, 200, 500, 1000, 2000], 90.0)
    signals = MODELS["adc"].signal(np.tile([300.0, 0.8], (100, 1)), protocol).reshape(5, 5, 4, 8)
    signals += np.random.default_rng(0).normal(0, 15, signals.shape)
    nib.save(nib.Nifti1Image(signals, np.diag([-2.0, 2, 4, 1])), image)
    with pytest.warns(UserWarning, match="one echo time"):
        maps = fit_image(image, protocol, "t2-ivim-kurtosis", out=tmp_path / "out", quicklook=True)
    doubts = unpack_bits(np.asanyarray(maps["doubt"].dataobj), 7).sum(axis=-1)
    assert (doubts > 3).mean() > 0.5
    page = next((tmp_path / "out").glob("*_quicklook.html")).read_text(encoding="utf-8")
    text = re.search(r'base64,([^"]+)" alt="Number of parameters in doubt"', page)[1]
    pixels = imread(io.BytesIO(base64.b64decode(text)))[..., :3]
    is_color = np.abs(pixels - to_rgb(COUNT_COLORS[3])).max(axis=-1) < 0.01
    assert is_color.mean() > 0.1


def test_both_orders_of_storage_give_the_same_pictures(image, tmp_path):
    turned = nib.load(image).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]], float))
    path = tmp_path / "turned" / image.name
    path.parent.mkdir()
    nib.save(turned, path)
    for name, scan in (("one", image), ("two", path)):
        fit_image(scan, PROTOCOL, "adc", out=tmp_path / name, quicklook=True)
    one, two = (tmp_path / name / "a<b>_model-adc_quicklook.png" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_prediction_has_a_page_of_its_own_with_its_maps_in_it(image, tmp_path):
    """Maps are stored as they were written; what was not predicted has no value."""
    source = PROTOCOL.take([0, 3])
    signals = np.asanyarray(nib.load(image).dataobj).reshape(-1, 4)[1:]
    estimator = SignalToSignal("LR", source=source, target=PROTOCOL, model="adc").fit(signals[:, [0, 3]], signals)
    maps = predict_image(estimator, image, protocol=PROTOCOL, scale=None, out=tmp_path / "out", quicklook=True)
    page = (tmp_path / "out" / "a<b>_model-adc_desc-predicted_quicklook.html").read_text(encoding="utf-8")
    assert "<b>_" not in page
    assert "a&lt;b&gt;" in page
    assert "SignalToSignal" in page
    assert page.count("<img") == 2
    stored = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL).group(1))
    assert [layer["name"] for layer in stored["layers"]] == ["input", "S0", "ADC"]
    layer = stored["layers"][2]
    high, low = np.frombuffer(gzip.decompress(base64.b64decode(layer["data"])), np.uint8).reshape(2, -1)
    codes = 256 * high.astype(int) + low
    values = layer["low"] + (codes - 1) / 4094 * (layer["high"] - layer["low"])
    written = nib.as_closest_canonical(maps["ADC"]).get_fdata()
    values = np.where(codes == 0, np.nan, values).reshape(stored["shape"])
    step = (layer["high"] - layer["low"]) / 4094
    np.testing.assert_allclose(values, np.clip(written, layer["low"], layer["high"]), rtol=0, atol=step)


def test_values_left_out_and_negative_ones_are_told_with_their_reasons(tmp_path):
    protocol = Protocol([0, 200, 500, 800, 1000])
    signals = MODELS["adc"].signal(np.column_stack([np.full(40, 300.0), np.linspace(0.5, 2.5, 40)]), protocol)
    signals[0, 2] = np.nan
    signals[1, 1] = 0.0
    signals[2, [1, 2]] = 0.0
    signals[3:5, 4] = -20.0
    signals[4, 3] = -5.0
    path = tmp_path / "gaps.nii"
    nib.save(nib.Nifti1Image(signals.reshape(5, 4, 2, 5), np.eye(4)), path)
    maps = fit_image(path, protocol, "adc", out=tmp_path / "out", quicklook=True)
    described = json.loads((tmp_path / "out" / "gaps_model-adc_dwimap.json").read_text(encoding="utf-8"))
    assert (described["LeftOut"]["Values"], described["LeftOut"]["Voxels"]) == (4, 3)
    assert (described["Negative"]["Values"], described["Negative"]["Voxels"]) == (3, 2)
    assert described["NotFitted"]["Voxels"] == np.isnan(np.asarray(maps["ADC"].dataobj)).sum() == 1
    page = (tmp_path / "out" / "gaps_model-adc_quicklook.html").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]+>", " ", page.partition("<body>")[2]).split())
    assert "4 values in 3 voxels left out: 1 not finite, 3 zero (a dropout, or outside the field of view)" in text
    assert "3 negative values in 2 voxels fitted unchanged" in text
    assert re.search("Not fitted: 1 voxel with more than a fifth of the values left out.* --starts auto ", text)


IVIM = Protocol([b for b in (0, 50, 200, 600, 1000, 1600) for _ in range(3)], te=[60, 80, 110] * 6)


SIGMA = 3.0


READINGS = """(points) => { const { viewer } = document.querySelector('.viewer'); return points.map((point) => {
  viewer.go(point);
  const rows = [...document.querySelectorAll('[data-role=voxel-values] tr')];
  return [rows.map((row) => [...row.children].map((cell) => cell.textContent)), viewer.describeAt(point, () => true)];
}); }"""


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A synthetic scan of seven tissue parameters with Rician noise, stored from left to right, and its page."""
    rng = np.random.default_rng(1)
    shape, n = (11, 9, 6), 11 * 9 * 6
    low, high = np.array([[150, 0.05, 8, 100, 0.6, 0.3, 50], [600, 0.4, 60, 200, 2.0, 1.2, 110]])
    model = MODELS["t2-ivim-kurtosis"]
    clean = model.signal(rng.uniform(low, high, (n, 7)), IVIM)
    noisy = np.hypot(clean + rng.normal(0, SIGMA, clean.shape), rng.normal(0, SIGMA, clean.shape))
    signals = noisy.reshape(*shape, -1).astype(np.float32)
    signals[0, 0] = 0
    folder = tmp_path_factory.mktemp("page")
    image = nib.Nifti1Image(signals, np.diag([-2.0, 2.5, 4, 1]))
    nib.save(image, folder / "scan.nii")
    fit_image(folder / "scan.nii", IVIM, model, sigma=SIGMA, out=folder, quicklook=True)
    return folder, signals


def page_of(folder):
    return folder / "scan_model-t2ivimkurtosis_quicklook.html"


def volume(folder, name):
    described = json.loads((folder / "scan_model-t2ivimkurtosis_dwimap.json").read_text(encoding="utf-8"))
    return nib.load(folder / described["Parameters"][name]["File"]).get_fdata()


def world(voxel):
    return [float(x) for x in np.array([-2.0, 2.5, 4]) * voxel]


def number_and_unit_in_last_place(text):
    """The number at the start of a text, and what one more in its last digit means."""
    digits = re.match(r"[−\d.]+(?:e[+−-]?\d+)?", text)[0].replace("−", "-")
    mantissa, _, exponent = digits.partition("e")
    return float(digits), 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def test_200_readings_are_the_values_of_the_maps_within_the_digits_shown(fitted, tab):
    folder, _ = fitted
    names = MODELS["t2-ivim-kurtosis"].names
    maps = {name: volume(folder, name) for name in names}
    voxels = np.random.default_rng(0).permutation(np.argwhere(maps["S0"] != 0))[:200]
    page = tab.open(page_of(folder))
    read = page.evaluate(READINGS, [world(voxel) for voxel in voxels])
    assert len(read) == 200
    n_exact = 0
    for voxel, (rows, line) in zip(voxels, read, strict=True):
        assert [cells[0].split()[1] for cells in rows] == list(names)
        for name, cells in zip(names, rows, strict=True):
            value = maps[name][tuple(voxel)]
            shown, unit = number_and_unit_in_last_place(cells[1])
            third = 10.0 ** (np.floor(np.log10(abs(value))) - 2) if value else unit
            # Half of the third digit, and what 13 binary digits of the mantissa leave out.
            assert abs(shown - value) <= third / 2 + 1e-4 * abs(value), (name, value, cells)
            hovered = re.search(rf"(?:^|; ){name}: ([≤≥] )?([^;]*)", line)
            shown, unit = number_and_unit_in_last_place(hovered[2])
            if hovered[1]:
                assert value >= shown - unit if hovered[1] == "≥ " else value <= shown + unit
            else:
                assert abs(shown - value) <= unit, (name, value, line)
                n_exact += 1
    assert n_exact > 0.97 * 1400


def test_an_interval_without_width_is_shown_at_the_bound(tmp_path, tab):
    """The signal of a fluid over a floor: K is at its cap 3/(b_max·D), and in doubt, in every voxel."""
    protocol = Protocol(np.arange(0, 4001, 100.0))
    signals = 940 * np.exp(-2.5e-3 * protocol.b) + 60
    values = signals + np.random.default_rng(0).normal(0, 1, (4, 4, 2, len(protocol)))
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2, 2, 1])), tmp_path / "scan.nii")
    fit_image(tmp_path / "scan.nii", protocol, "kurtosis", method="nlls", out=tmp_path / "out", quicklook=True)
    page = tab.open(tmp_path / "out" / "scan_model-kurtosis_quicklook.html")
    ((rows, line),) = page.evaluate(READINGS, [[2.0, 2.0, 2.0]])
    amplitude, diffusivity, kurtosis = rows
    assert " to " in amplitude[2]
    assert " to " in diffusivity[2]
    assert kurtosis[2] == "at the bound"
    assert re.search(r"K: [^;]*\(in doubt\)", line)


def test_a_clicked_voxel_shows_its_signals_the_curve_of_the_model_and_what_is_left(fitted, tab):
    folder, signals = fitted
    page = tab.open(page_of(folder))
    voxel = np.array([4, 6, 2])
    page.evaluate("(point) => document.querySelector('.viewer').viewer.go(point)", world(voxel))
    # One voxel to the right on the screen, where the patient's left is, and the file's last column.
    canvas = page.locator("[data-plane=axial] canvas")
    box = canvas.bounding_box()
    where = {"x": box["width"] * (voxel[0] + 1.5) / 11, "y": box["height"] * (9 - voxel[1] - 0.5) / 9}
    canvas.hover(position=where)
    assert page.locator("[data-role=hover]").text_content().startswith("Pointer at ")
    canvas.click(position=where)
    voxel = np.add(voxel, (1, 0, 0))
    position = page.evaluate("document.querySelector('.viewer').viewer.position")
    np.testing.assert_allclose(position, world(voxel), atol=1e-9)
    for key, step in ((None, (0, 0, 0)), ("ArrowUp", (0, 1, 0)), ("PageUp", (0, 0, 1))):
        if key:
            page.keyboard.press(key)
        voxel = voxel + step
        model = MODELS["t2-ivim-kurtosis"]
        parameters = [volume(folder, name)[tuple(voxel)] for name in model.names]
        decays = page.evaluate("document.querySelector('.viewer').viewer.panel.decays")
        assert [one["te"] for one in decays] == [60, 80, 110]
        for one in decays:
            measured = signals[tuple(voxel)][IVIM.te == one["te"]]
            np.testing.assert_allclose(one["signals"], measured, rtol=2e-4)
            for b, found in ((one["grid"], one["curve"]), (one["b"], measured - np.array(one["residuals"]))):
                clean = model.signal(parameters, Protocol(b, te=[one["te"]] * len(b)))[0]
                with_floor = np.sqrt(clean**2 + np.pi / 2 * SIGMA**2)
                np.testing.assert_allclose(found, with_floor, rtol=2e-3, atol=0.05)
        # What is drawn lies on one straight axis each for b and signal.
        paths = [path.get_attribute("d") for path in page.locator(".decay .curve").all()]
        drawn = np.array([[float(x) for x in re.findall(r"[\d.]+", path)] for path in paths]).reshape(3, -1, 2)
        for axis, values in ((0, "grid"), (1, "curve")):
            pixels, numbers = drawn[..., axis].ravel(), np.array([one[values] for one in decays]).ravel()
            line = np.polyfit(numbers, pixels, 1)
            assert np.abs(np.polyval(line, numbers) - pixels).max() < 0.1
            assert (line[0] > 0) == (axis == 0)
    words = page.locator("[data-role=voxel-doubts]").text_content()
    assert words.startswith("The fit ")
    assert "% of the largest mean signal" in words


def test_voxels_outside_have_no_signals_and_lights_choose_the_overlay(fitted, tab):
    folder, _ = fitted
    page = tab.open(page_of(folder))
    page.evaluate("(point) => document.querySelector('.viewer').viewer.go(point)", world((0, 0, 2)))
    assert page.locator("[data-role=voxel-doubts]").text_content() == "No signals are stored here."
    assert page.locator(".decay .curve").count() == 0
    page.locator("[data-role=nearest]").click()
    np.testing.assert_allclose(page.evaluate("document.querySelector('.viewer').viewer.position"), world((1, 0, 2)))
    assert page.locator(".decay .curve").count() == 3
    page.locator(".lights button", has_text="T2t").click()
    assert page.locator("[data-role=overlay] option:checked").text_content() == "T2t"


def test_the_residuals_of_averaged_volumes_are_those_of_each_volume(tmp_path, tab):
    protocol = Protocol([0.0] * 3 + [500.0] * 20 + [1000.0] * 22)
    signals = MODELS["adc"].signal(np.tile([300.0, 0.8], (27, 1)), protocol)
    signals += np.random.default_rng(0).normal(0, 30, signals.shape)
    nib.save(nib.Nifti1Image(signals.reshape(3, 3, 3, -1), np.eye(4)), tmp_path / "scan.nii")
    maps = fit_image(tmp_path / "scan.nii", protocol, "adc", out=tmp_path, quicklook=True)
    page = tab.open(tmp_path / "scan_model-adc_quicklook.html")
    voxel = tuple(int(x) for x in page.evaluate("document.querySelector('.viewer').viewer.position"))
    fitted = [[maps[name].get_fdata()[voxel] for name in ("S0", "ADC")]]
    measured = signals.reshape(3, 3, 3, -1)[voxel]
    rms = np.sqrt(np.mean((measured - MODELS["adc"].signal(fitted, protocol)[0]) ** 2))
    largest = max(measured[protocol.b == b].mean() for b in (0, 500, 1000))
    words = page.locator("[data-role=voxel-doubts]").text_content()
    shown = float(re.search(r"Residuals \(rms of all volumes\): ([\d.]+) % of the largest mean signal", words)[1])
    assert shown == pytest.approx(100 * rms / largest, rel=0.05)  # two digits are shown


@pytest.mark.parametrize("width", browser.WIDTHS)
def test_the_first_screen_answers_at_every_width(fitted, tab, width):
    folder, _ = fitted
    page = tab.open(page_of(folder), width)
    assert tab.size()[0] <= width
    for place in (".verdict", ".lights tr:last-child button", "[data-plane=axial] canvas"):
        assert tab.is_on_first_screen(page.locator(place)), place
    if width >= 1120:
        for place in (".decay [data-role=log]", "[data-role=voxel]"):
            assert tab.is_on_first_screen(page.locator(place)), place
        assert page.locator(".side").bounding_box()["x"] > page.locator(".planes").bounding_box()["x"]
    # The scan is seen through the colors.
    assert page.locator("[data-role=image] option:checked").text_content() == "scan"
    assert int(page.locator("[data-role=opacity]").input_value()) < 75


def test_the_values_of_a_voxel_are_copied_as_rows_of_a_table(fitted, tab):
    page = tab.open(page_of(fitted[0]))
    page.locator("[data-role=copy]").click()
    rows = [row.split("\t") for row in page.evaluate("getSelection().toString()").strip("\n").splitlines()]
    cells = page.locator("[data-role=voxel] table tr").all()
    shown = [row.locator("th, td").all_inner_texts() for row in cells]
    # The empty corner of the table is not copied.
    assert [list(filter(None, map(str.strip, row))) for row in rows] == [list(filter(None, row)) for row in shown]
    assert len(rows) > 2


def test_a_model_without_a_formula_and_a_voxel_without_a_fit_are_shown_without_a_curve(image, tmp_path, tab):
    parameters = [Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0.1, 5), Parameter("a", "", 0.3, 1)]
    model = SignalModel.from_function(stretched, parameters, name="stretched")
    fit_image(image, PROTOCOL, model, out=tmp_path / "out", quicklook=True)
    page = tab.open(tmp_path / "out" / "a<b>_model-stretched_quicklook.html")
    assert page.locator(".decay circle").count() == 4
    assert page.locator(".decay .curve").count() == 0
    assert page.locator(".decay svg").get_attribute("aria-label").endswith("without a curve")
    page.evaluate("document.querySelector('.viewer').viewer.go([0, 0, 0])")
    assert page.locator("[data-role=voxel-doubts]").text_content() == "This voxel could not be fitted."
    values = page.locator("[data-role=voxel-values] td").all_text_contents()
    assert values == ["–"] * 6


@pytest.fixture(scope="module")
def maps():
    """A synthetic fit of which one voxel has no signal and most ADC are at a bound."""
    truth = np.column_stack([np.full(600, 300.0), np.linspace(0.2, 2.4, 600)])
    signals = MODELS["adc"].signal(truth, PROTOCOL).reshape(10, 10, 6, 4)
    signals[5, 5, 3] = -1
    image = nib.Nifti1Image(signals, np.diag([-2.0, 2, 4, 1]))
    return fit_image(image, PROTOCOL, "adc", bounds={"ADC": (0, 0.7)})


def words(text):
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def test_the_summary_has_verdict_table_and_picture(maps):
    page = maps._repr_html_()
    text = words(page)
    assert "image, model adc: 599 of 600 voxels fitted (99.8 %); in doubt" in text
    assert re.search(r"in doubt in most of them: ADC \(100 %\)", text)
    assert "median without doubts median, with doubts" in text
    assert re.search(r"ADC µm²/ms – .{,60} 0\.70", text)
    assert maps.advice()[0] in text
    picture = re.search(r'<img src="data:image/png;base64,([^"]+)" alt="Slices of S0, ADC"', page)
    shown = imread(io.BytesIO(base64.b64decode(picture[1])))
    assert shown.shape[1] > 300
    assert shown[..., :3].std() > 0.02


def test_without_matplotlib_the_text_stays(maps, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    page = maps._repr_html_()
    assert "<img" not in page
    assert "599 of 600 voxels" in page


def test_noise_in_seven_fine_maps_stays_below_300_kb():
    rng = np.random.default_rng(0)
    names = ("S0", "f", "Dv", "T2v", "Dt", "K", "T2t")
    arrays = {name: rng.uniform(1, 2, (256, 256, 4)).astype(np.float32) for name in names}
    entry = {"Units": "ms"}
    sidecar = {
        "Parameters": dict.fromkeys(names, entry),
        "Voxels": {"InMask": 262144, "WithSignal": 262144, "NegativeSignal": 0},
    }
    page = map_summary(ShownMaps(arrays, np.eye(4), sidecar), title="noise")
    assert 50_000 < len(page.encode()) <= MOST_BYTES


def test_names_of_files_are_escaped_in_notebooks(tmp_path):
    signals = MODELS["adc"].signal(np.column_stack([np.full(8, 300.0), np.linspace(0.5, 2, 8)]), PROTOCOL)
    path = tmp_path / "a<b>.nii"
    nib.save(nib.Nifti1Image(signals.reshape(2, 2, 2, 4), np.eye(4)), path)
    maps = fit_image(path, PROTOCOL, "adc")
    assert "a&lt;b&gt;" in maps._repr_html_()
    assert "<b>" not in maps._repr_html_() + maps.view().html


def test_the_viewer_runs_in_a_frame_of_a_notebook(maps, tmp_path, tab):
    frame = maps.view()
    assert (repr(frame)[:9], "pictures below" in frame.html) == ("<page of ", False)
    shown = frame._repr_html_()
    assert shown.isascii()
    assert len(shown.splitlines()) == 1
    # The frame is closed to what surrounds it, so that only a picture tells that its script drew colors.
    page = tmp_path / "notebook.html"
    page.write_text(shown, encoding="ascii")
    opened = tab.open(page)
    end = time.monotonic() + 30
    n_colored = 0
    while n_colored < 5000 and time.monotonic() < end:
        picture = imread(io.BytesIO(opened.screenshot()))
        n_colored = np.count_nonzero(np.ptp(picture[..., :3], axis=-1) > 0.2)
    assert n_colored >= 5000
