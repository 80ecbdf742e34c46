"""The model that comes along is small, is read by the rules of all model files, and has a card."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from metastasis.candidates.two_stage import CARD, PATH, load_small_model, small_model_threshold
from metastasis.study.findings import model_figures

ROOT = Path(__file__).parents[3]


def test_model_is_small_and_has_a_card():
    assert PATH.stat().st_size <= 1.5e6
    card = CARD.read_text()
    for word in ("## Data", "## Figures", "## Limits", "## License", "## Command", "CC BY"):
        assert word in card, word
    assert "brats" not in card.partition("## Figures")[0].lower()


@pytest.mark.deep
@pytest.mark.slow
def test_model_finds_a_ball_in_even_tissue():
    pytest.importorskip("torch")
    model = load_small_model()
    grid = np.stack(np.indices((64, 64, 64)), axis=-1)
    radius = np.linalg.norm(grid - 32, axis=-1)
    brain = radius < 28
    distance = np.linalg.norm(grid - (26, 36, 30), axis=-1)
    ball = distance < 5
    # A brain ends with fluid.
    volume = gaussian_filter(np.where(radius < 26, 300.0, 150.0), 0.7)
    volume += np.random.default_rng(0).normal(0, 6, brain.shape)
    without = volume.copy()
    volume[ball] = 480
    marked, nothing = model.predict([volume * brain, without * brain])
    assert (marked > 0)[ball].mean() > 0.5
    # Edges of implants are blurred, so the model marks up to 3 mm around a sharp ball.
    assert not marked[distance >= 8].any()
    assert not nothing.any()
    assert model.prior_ is None


def test_figures_beside_the_model_are_those_measured_at_its_threshold():
    measured = json.loads((ROOT / "benchmarks" / "results" / "metastasis_people.json").read_text())
    figures = model_figures(PATH)
    cut = json.loads(PATH.with_suffix(".json").read_text())["figures"]["threshold"]
    found = found_small = n_all = n_small = 0
    card = CARD.read_text()
    for name, row in measured["new implants"].items():
        assert row["threshold"] == cut
        n, n_of_small = sum(row["n"].values()), row["n"]["small"]
        found, n_all = found + round(row["sensitivity"] * n), n_all + n
        found_small += round(row["by_kind"]["small"] * n_of_small)
        n_small += n_of_small
        assert f"| {name} | {row['sensitivity']:.2f} | {row['by_kind']['small']:.2f} |" in card
    assert figures["sensitivity"] == pytest.approx(found / n_all, abs=1e-3)
    assert figures["sensitivity_small"] == pytest.approx(found_small / n_small, abs=1e-3)
    assert f"Marked from a score of {cut:g} on" in card
    for name, rows in measured["gliomas"].items():
        (row,) = [row for row in rows if row["threshold"] == cut]
        assert f"| {name} | {cut:g} | {row['enhancing_mL']:.0f} | {row['covered']:.2f} |" in card


def test_threshold_in_the_card_is_that_of_the_model():
    with zipfile.ZipFile(PATH) as archive:
        stored = json.loads(archive.read("model.json"))
    assert stored["fitted"]["threshold_"] == small_model_threshold()
    assert stored["parameters"]["comparable"] is True
