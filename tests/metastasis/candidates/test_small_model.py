"""The model that comes along is small, is read by the rules of all model files, and has a card."""

import numpy as np
import pytest

from metastasis.candidates.small_model import CARD, PATH, load_small_model


def test_model_is_small_and_has_a_card():
    assert PATH.stat().st_size <= 1.5e6
    card = CARD.read_text()
    for word in ("## Data", "## Figures", "## Limits", "## License", "## Command", "CC BY"):
        assert word in card, word
    assert "brats" not in card.lower()


@pytest.mark.deep
@pytest.mark.slow
def test_model_finds_a_ball_in_even_tissue():
    pytest.importorskip("torch")
    model = load_small_model()
    grid = np.stack(np.indices((64, 64, 64)), axis=-1)
    brain = np.linalg.norm(grid - 32, axis=-1) < 28
    ball = np.linalg.norm(grid - (26, 36, 30), axis=-1) < 5
    volume = np.random.default_rng(0).normal(300, 6, brain.shape)
    volume[ball] = 480
    marked, nothing = model.predict([volume * brain, np.where(ball, 300, volume) * brain])
    assert (marked > 0)[ball].mean() > 0.5
    assert (marked > 0)[~ball].sum() < 200
    assert nothing.sum() < 50
    assert model.prior_ is None
