"""Gliomas have the grades, parts, edges and growth that they are said to have."""

import numpy as np
import pytest

from anomaly.generators.gliomas import GRADES, KINDS, add_glioma, draw_diffusion_glioma
from anomaly.simulate.persons import brain_signals, draw_brain, spread_directions, standard_brain

#: Signals at b = 0 of parts, of white matter's.
CORE, NECROSIS, EDEMA, TUMOR = 1.1, 2.2, 1.5, 1.3


@pytest.fixture(scope="module")
def drawn():
    """Draw gliomas of all grades and kinds, always from the same streams."""
    head = draw_brain(standard_brain((8.0,) * 3), (20, 24, 16), (8.0,) * 3, np.random.default_rng(0)).head
    kinds = [(grade, kind) for grade in GRADES for kind in KINDS]
    return {one: [draw_diffusion_glioma(head, *one, np.random.default_rng(seed)) for seed in range(60)] for one in kinds}


def parts_of(glioma):
    return [component.brightness for component in glioma.components]


def test_infiltration_raises_diffusivity_and_cores_of_cells_lower_it(brain):
    n = len(brain.shares["white"])
    directions = spread_directions(16)
    before, _ = brain_signals(brain, directions, 1000.0, np.ones(n))
    for seed in range(6):
        found = {kind: draw_diffusion_glioma(brain.head, "III", kind, np.random.default_rng(seed)) for kind in KINDS}
        np.testing.assert_array_equal(found["cellular"].lesion, found["infiltrating"].lesion)
        cells = found["cellular"].components[0]
        assert cells.diffusivity < 0.6
        core = cells.share > 0.6
        assert core.sum() > 3
        for kind, glioma in found.items():
            total = sum(part.share for part in glioma.components)
            assert total.min() >= 0
            assert (total <= brain.shares["white"] + brain.shares["gray"] + brain.shares["deep"] + 1e-5).all()
            signals, b0 = brain_signals(brain, directions, 1000.0, np.ones(n), glioma.components)
            change = (signals / b0[:, None]).mean(axis=1)[core] - np.exp(-0.8)
            assert (change.mean() > 0) == (kind == "cellular")
            inside = glioma.lesion & (brain.shares["white"] > 0.9)
            if inside.any():
                assert signals[inside].std(axis=1).mean() < before[inside].std(axis=1).mean()


def test_a_glioma_grows_to_one_side(brain):
    n_seen = 0
    places = brain.head.places[brain.head.brain]
    for seed in range(12):
        glioma = draw_diffusion_glioma(brain.head, "III", "cellular", np.random.default_rng(seed))
        later = glioma.followup & ~glioma.lesion
        if EDEMA in parts_of(glioma) or later.sum() < 20:
            continue
        ahead = places[later] - places[glioma.lesion].mean(axis=0)
        front = ahead.mean(axis=0)
        assert np.mean(ahead @ front > 0) > 0.9
        n_seen += 1
    assert n_seen >= 2


def test_cores_necrosis_and_edema_are_as_frequent_and_as_diffusive_as_stated(drawn):
    for (grade, kind), gliomas in drawn.items():
        has_core = [CORE in parts_of(glioma) for glioma in gliomas]
        has_necrosis = [NECROSIS in parts_of(glioma) for glioma in gliomas]
        assert np.mean(has_core) == (kind == "cellular")
        if (grade, kind) == ("IV", "infiltrating"):
            assert np.mean(has_necrosis) == pytest.approx(0.5, abs=0.2)
        else:
            assert not any(has_necrosis)
    for grade, share in (("II", 0.2), ("III", 0.6), ("IV", 0.9)):
        frequency = np.mean([EDEMA in parts_of(glioma) for glioma in drawn[grade, "infiltrating"]])
        assert frequency == pytest.approx(share, abs=3 * np.sqrt(share * (1 - share) / 60))
    ranges = {CORE: (0.42, 0.58), NECROSIS: (2.0, 2.5), EDEMA: (1.2, 1.6)}
    infiltrated = {"II": (1.3, 1.7), "III": (1.2, 1.7), "IV": (1.1, 1.8)}
    seen = {}
    for (grade, _), gliomas in drawn.items():
        for glioma in gliomas:
            for component in glioma.components:
                low, high = {**ranges, TUMOR: infiltrated[grade]}[component.brightness]
                assert low <= component.diffusivity <= high
                seen.setdefault((component.brightness, low, high), []).append(component.diffusivity)
    for (_, low, high), values in seen.items():
        assert min(values) < low + 0.25 * (high - low)
        assert max(values) > high - 0.25 * (high - low)


def test_infiltration_falls_to_half_at_the_border_of_the_lesion(brain):
    n_seen = 0
    for seed in range(12):
        glioma = draw_diffusion_glioma(brain.head, "II", "infiltrating", np.random.default_rng(seed))
        if len(glioma.components) > 1:
            continue
        white = brain.shares["white"] > 0.98
        share = glioma.components[0].share / (brain.shares["white"] + brain.shares["gray"] + brain.shares["deep"] + 1e-9)
        inside, outside = share[glioma.lesion & white], share[~glioma.lesion & white]
        if len(inside) < 30:
            continue
        # The largest share is that of the middle: 0.6 to 1.
        assert 0.55 < inside.max() <= 1
        assert inside.min() >= outside.max()
        assert outside.max() == pytest.approx(inside.max() / 2, rel=0.15)
        n_seen += 1
    assert n_seen >= 3


def test_gliomas_are_as_large_as_stated_and_those_of_scans_of_adult_size_with_averaged_noise(brain):
    radii = []
    for seed in range(20):
        glioma = draw_diffusion_glioma(brain.head, "II", "infiltrating", np.random.default_rng(seed))
        if len(glioma.components) == 1:
            volume = np.count_nonzero(glioma.lesion) * 4.0**3
            radii.append((3 * volume / (4 * np.pi)) ** (1 / 3) / brain.head.size)
    # 9 to 24 mm, axes of 0.7 to 1.2 of that, rough by 0.12, and cut at the surface and by fluid.
    assert 5 < min(radii) < 13
    assert 16 < max(radii) < 24 * 1.2 * 1.2
    signals, _ = brain_signals(brain, spread_directions(8), 1000.0, np.ones(len(brain.shares["white"])))
    mask = brain.head.brain
    volume = np.zeros((*mask.shape, 8), dtype=np.float32)
    volume[mask] = np.clip(signals / 1.5, 0, 1)
    for seed in range(4):
        _, factor, lesion = add_glioma(volume, mask, np.random.default_rng(seed))
        assert lesion.sum() > 20
        assert factor.min() >= -1e-6
        assert factor.max() <= 1 + 1e-6
        assert factor[lesion].max() < 1
