"""Infiltration and hypercellular lesions change diffusivity by what they are said to."""

import numpy as np
import pytest

from anomaly.generators.diffusivity import add_hypercellular, add_infiltration

SHAPE = (24, 24, 24)
MASK = np.linalg.norm(np.indices(SHAPE) - 11.5, axis=0) <= 11
SIGNALS = np.exp(-np.array([0.6, 0.8, 1.0], dtype=np.float32))  # b·D


@pytest.mark.parametrize(
    ("add", "low", "high"), [(add_infiltration, 1.05, 1.4), (add_hypercellular, 0.6, 0.93)]
)
def test_diffusivity_changes_by_the_stated_range_in_all_directions(add, low, high):
    volume = np.where(MASK[..., None], SIGNALS, 0).astype(np.float32)
    for seed in range(6):
        changed, _, label = add(volume, MASK, np.random.default_rng(seed))
        ratios = np.log(changed[label]) / np.log(volume[label])
        assert ratios.min() >= low - 1e-3
        assert ratios.max() <= high + 1e-3
        np.testing.assert_allclose(ratios, ratios[:, :1].repeat(3, axis=1), rtol=1e-3)


def test_infiltration_has_no_edge():
    volume = np.where(MASK[..., None], SIGNALS, 0).astype(np.float32)
    changed, _, _ = add_infiltration(volume, MASK, np.random.default_rng(1))
    effect = np.log(changed[MASK]).sum(axis=1) / np.log(SIGNALS).sum() - 1
    whole = np.zeros(SHAPE)
    whole[MASK] = effect
    steps = np.abs(np.diff(whole, axis=0))[MASK[1:] & MASK[:-1]]
    assert steps.max() < 0.5 * effect.max()
