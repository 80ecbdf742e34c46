"""Signals from the table of walks have the parameters that they are asked for."""

import numpy as np
import pytest

from benchmarks.prediction._random_walks import Pulses, pack_spheres, walk_blood, walk_tissue
from dmrifit import Protocol
from dmrifit.simulate import walk_table
from dmrifit.simulate.walk_table import (
    FAMILIES,
    Microstructure,
    draw_microstructures,
    walk_parameters,
    walk_rows,
    walk_signals,
)

PULSES = Pulses(walk_table.PULSE_START, walk_table.PULSE_DURATION, walk_table.PULSE_SEPARATION)


@pytest.fixture(scope="module")
def tissue():
    """Draw parameters of voxels that hold no blood."""
    rng = np.random.default_rng(0)
    n = 60
    columns = {
        "S0": rng.uniform(1, 3, n),
        "f": np.zeros(n),
        "Dv": rng.uniform(5, 90, n),
        "T2v": rng.uniform(150, 250, n),
        "Dt": rng.uniform(0.4, 2.5, n),
        "K": rng.uniform(0.05, 1.6, n),
        "T2t": rng.uniform(40, 130, n),
    }
    return np.column_stack(list(columns.values()))


def slope_and_bend(weighting, signals):
    """Fit the first two coefficients of signals over b D, (n_voxels, n_b), the first of them at 0."""
    powers = np.arange(1, 8)
    rows = [
        np.linalg.lstsq(x[:, None] ** powers, y / y[0] - 1, rcond=None)[0][:2]
        for x, y in zip(weighting, signals, strict=True)
    ]
    return np.array(rows).T


@pytest.mark.parametrize("family", FAMILIES)
def test_tissues_have_the_cumulants_that_they_are_asked_for_and_t2_as_slope_between_two_echoes(tissue, family):
    protocol = Protocol(np.linspace(0, 400, 41), np.full(41, walk_table.CUMULANT_TE))
    weighting = protocol.b / 1000 * tissue[:, 4:5]
    slope, bend = slope_and_bend(weighting, walk_signals(tissue, Microstructure(family, 0), protocol))
    np.testing.assert_allclose(slope, -1, atol=1e-4)
    np.testing.assert_allclose(6 * (bend - 0.5), tissue[:, 5], atol=0.02)
    protocol = Protocol([0, 0, 1000], [*walk_table.SLOPE_TES, 60])
    signals = walk_signals(tissue, Microstructure(family, 0), protocol)
    first, last = walk_table.SLOPE_TES
    np.testing.assert_allclose((last - first) / np.log(signals[:, 0] / signals[:, 1]), tissue[:, 6])
    expected = tissue[:, 0] * np.exp(-first / tissue[:, 6])
    # Two T2 decay faster before the first echo than between both.
    np.testing.assert_allclose(signals[:, 0], expected, rtol=0.04 if family == "two T2" else 1e-6)


def test_blood_has_its_share_its_first_cumulant_and_its_t2(tissue):
    blood = tissue.copy()
    blood[:, 1] = 1
    b = np.linspace(0, 0.4, 21)[None] / blood[:, 2:3]
    for row in range(0, len(blood), 20):
        protocol = Protocol(np.append(b[row] * 1000, 1000), np.full(22, 90.0))
        for microstructure in (Microstructure("permeable", 0), Microstructure("two T2", 19)):
            signals = walk_signals(blood[row : row + 1], microstructure, protocol)
            expected = blood[row, 0] * np.exp(-90 / blood[row, 3])
            assert signals[0, 0] == pytest.approx(expected, rel=1e-6)
            slope, _ = slope_and_bend(b[row : row + 1] * blood[row, 2], signals[:, :-1])
            assert slope[0] == pytest.approx(-1, abs=1e-3)
            mixed = blood[row : row + 1].copy()
            mixed[:, 1] = 0.3
            rest = walk_signals(tissue[row : row + 1], microstructure, protocol)
            np.testing.assert_allclose(walk_signals(mixed, microstructure, protocol), 0.3 * signals + 0.7 * rest)


def test_tissue_without_kurtosis_is_free_water(tissue):
    water = tissue.copy()
    water[:, 5] = 0
    protocol = Protocol([0, 300, 1000], [90, 90, 110])
    b, te = protocol.b_ms_per_um2, protocol.te
    for family in FAMILIES:
        expected = water[:, :1] * np.exp(-b * water[:, 4:5] - te / water[:, 6:])
        signals = walk_signals(water, Microstructure(family, 0), protocol)
        np.testing.assert_allclose(signals, expected, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_signals_fall_with_b_and_echo_time_without_jumps(family):
    b = np.append(np.linspace(0, 5000, 101), 1000)
    rungs = np.array([row["K"] for row in walk_rows()[family]])
    parameters = np.tile([1.0, 0.1, 20, 200, 0.9, 0, 70], (2 * len(rungs), 1))
    parameters[:, 5] = np.concatenate([rungs - 1e-7, rungs])
    signals = walk_signals(parameters, Microstructure(family, 5), Protocol(b, np.append(np.full(101, 90.0), 130)))
    assert np.diff(signals[:, :-1], axis=1).max() < 2e-3
    assert (signals[:, -1] < signals[:, 20]).all()
    below, at = np.split(signals, 2)
    np.testing.assert_allclose(below, at, atol=1e-5)


def kurtosis_error(walks, t2_inside):
    """Standard error of the kurtosis at the second echo time, from the spread between walkers."""
    weights = walks.relaxation(t2_inside, np.inf)[:, 1]
    weights = weights / weights.sum()
    squares, fourths = (walks.phases**2).mean(axis=1), (walks.phases**4).mean(axis=1)
    second, fourth = weights @ squares, weights @ fourths
    influence = fourths / second**2 - 2 * fourth / second**3 * squares
    return np.sqrt(np.sum((weights * (influence - weights @ influence)) ** 2))


# Neighbors in the table differ by less than the error of so few walkers, its ends do not.
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", [0, -1])
def test_rows_of_the_table_are_walks_of_their_microstructures(family, number):
    row, other = walk_rows()[family][number], walk_rows()[family][-1 - number]
    walks = walk_tissue(
        pack_spheres(row["radius_um"], row["packed"], np.random.default_rng(0)),
        PULSES,
        [60.0, 100.0],
        d_inside=row["d_inside"],
        d_outside=row["d_outside"],
        permeability=row["permeability"],
        n_walkers=2000,
    )
    difference = row["relaxation_difference"]
    t2_inside = 1 / difference if difference else np.inf
    diffusivity, kurtosis = walks.cumulants(1, t2_inside)
    tolerance = min(4 * kurtosis_error(walks, t2_inside), 0.5)
    assert diffusivity == pytest.approx(row["D"], rel=0.1)
    assert kurtosis == pytest.approx(row["K"], abs=tolerance)
    assert abs(kurtosis - other["K"]) > tolerance


def test_blood_is_walks_through_capillaries_and_tissues_draw_all_families():
    row = walk_rows()["blood"][0]
    walks = walk_blood(PULSES, speed=row["speed_mm_per_s"], segment=row["segment_um"], n_walkers=20_000)
    assert walks.cumulants(0)[0] == pytest.approx(row["D"], rel=0.05)
    names = [f"tissue {i}" for i in range(200)]
    microstructures = draw_microstructures(names, np.random.default_rng(0))
    assert list(microstructures) == names
    assert {one.family for one in microstructures.values()} == set(FAMILIES)
    assert {one.blood for one in microstructures.values()} == set(range(20))
    assert draw_microstructures(names, np.random.default_rng(0)) == microstructures


def test_kurtosis_is_limited_to_what_was_walked(tissue):
    steep = tissue.copy()
    steep[::2, 5] = 5
    limited = walk_parameters(steep, Microstructure("permeable", 0))
    np.testing.assert_allclose(limited[::2, 5], walk_rows()["permeable"][-1]["K"])
    np.testing.assert_array_equal(limited[1::2], tissue[1::2])
