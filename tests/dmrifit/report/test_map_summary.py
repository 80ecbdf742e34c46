"""What a notebook shows of maps: a verdict, a table, three slices in at most 300 kB, and the viewer in a frame."""

import base64
import html
import io
import re
import time

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from dmrifit import MODELS, Protocol, fit_image
from dmrifit.report import map_summary as module
from dmrifit.report.map_summary import map_summary, map_verdict

PROTOCOL = Protocol([0, 200, 500, 1000])
MOST_BYTES = 300_000


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
    assert "image, model adc: 599 of 600 voxels fitted (99.8 %), 1 " in text
    assert re.search(r"in doubt in most of them: ADC \(7\d %\)", text)
    assert "ADC µm²/ms 0.7" in text
    assert maps.advice()[0] in text
    picture = re.search(r'<img src="data:image/png;base64,([^"]+)" alt="Slices of S0, ADC"', page)
    shown = imread(io.BytesIO(base64.b64decode(picture[1])))
    assert shown.shape[1] > 300
    assert shown[..., :3].std() > 0.02


def test_noise_in_seven_fine_maps_stays_below_300_kb():
    rng = np.random.default_rng(0)
    names = ("S0", "f", "Dv", "T2v", "Dt", "K", "T2t")
    arrays = {name: rng.uniform(1, 2, (256, 256, 4)).astype(np.float32) for name in names}
    entry = {"Units": "ms"}
    sidecar = {
        "Parameters": dict.fromkeys(names, entry),
        "Voxels": {"InMask": 262144, "WithSignal": 262144, "NegativeSignal": 0},
    }
    page = map_summary(arrays, np.eye(4), sidecar, title="noise")
    assert 50_000 < len(page.encode()) <= MOST_BYTES


def test_a_prediction_says_that_it_is_one():
    sidecar = {"Voxels": {"InMask": 9, "WithSignal": 8, "NegativeSignal": 2}}
    assert map_verdict(sidecar) == (
        "8 of 9 voxels predicted from images of another protocol; a predicted signal is negative in 2"
    )
    signals = {"signals": np.ones((3, 3, 1, 2))}
    assert "<img" not in map_summary(signals, np.eye(4), sidecar, title="signals alone")


def test_a_sound_fit_is_called_one():
    signals = np.tile(MODELS["adc"].signal([[300.0, 1.0]], PROTOCOL), (27, 1)).reshape(3, 3, 3, 4)
    maps = fit_image(nib.Nifti1Image(signals, np.eye(4)), PROTOCOL, "adc")
    assert map_verdict(maps.sidecar) == (
        "27 of 27 voxels fitted (100 %); no parameter is in doubt in most of them"
    )


def test_fixed_parameters_are_named_but_not_drawn():
    signals = np.tile(MODELS["adc"].signal([[300.0, 1.0]], PROTOCOL), (27, 1)).reshape(3, 3, 3, 4)
    maps = fit_image(nib.Nifti1Image(signals, np.eye(4)), PROTOCOL, "adc", fixed={"ADC": 1.0})
    page = maps._repr_html_()
    assert "fixed" in words(page)
    assert 'alt="Slices of S0"' in page


def test_without_matplotlib_the_text_stays(maps, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    page = maps._repr_html_()
    assert "<img" not in page
    assert "599 of 600 voxels" in page


def test_names_of_files_are_escaped(tmp_path):
    signals = MODELS["adc"].signal(np.column_stack([np.full(8, 300.0), np.linspace(0.5, 2, 8)]), PROTOCOL)
    path = tmp_path / "a<b>.nii"
    nib.save(nib.Nifti1Image(signals.reshape(2, 2, 2, 4), np.eye(4)), path)
    maps = fit_image(path, PROTOCOL, "adc")
    assert "a&lt;b&gt;" in maps._repr_html_()
    assert "<b>" not in maps._repr_html_() + maps.view().html


def test_the_viewer_runs_in_a_frame_of_a_notebook(maps, tmp_path, tab):
    frame = maps.view()
    assert repr(frame).startswith("<page of ")
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
