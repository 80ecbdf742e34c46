"""What tests of figures and pages share: small synthetic scans, and maps that know the lesions more or less."""

from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture(scope="session")
def brain():
    """Draw a person's brain on a grid of 4 mm."""
    from anomaly.anatomy import draw_brain, standard_brain

    return draw_brain(standard_brain((4.0,) * 3), (40, 48, 32), (4.0,) * 3, np.random.default_rng(0))


@pytest.fixture(scope="session")
def compared():
    from anomaly import evaluate_detectors, simulate_dmri

    healthy, cases = simulate_dmri(3, 4, n_directions=3, shape=(16, 20, 14), spacing=9.0, random_state=3)
    rng = np.random.default_rng(0)

    def scores(some, strength):
        found = []
        for case in some:
            lesion = 0 if case.lesion is None else case.lesion
            found.append((0.1 * rng.random(case.shape) + strength * lesion).astype(np.float32) * case.brain)
        return found

    strengths = {"sharp": 0.3, "dull $x_1$": 0.05}
    maps = {name: scores(cases, strength) for name, strength in strengths.items()}
    healthy_maps = {name: scores(healthy, strength) for name, strength in strengths.items()}
    tables = evaluate_detectors(cases, maps, healthy=healthy, healthy_maps=healthy_maps)
    return SimpleNamespace(cases=cases, healthy=healthy, maps=maps, healthy_maps=healthy_maps, tables=tables)
