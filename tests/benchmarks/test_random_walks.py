"""Random walks against theory: free, in a sphere, through membranes, and with the blood."""

import csv

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import spherical_jn

from benchmarks.prediction._random_walks import (
    Pulses,
    Spheres,
    pack_spheres,
    walk_blood,
    walk_tissue,
)

PULSES = Pulses(10, 25, 45)
ONE_SPHERE = Spheres(np.full((1, 3), 10.0), np.array([6.0]), 20.0)


@pytest.fixture(scope="module")
def packing():
    return pack_spheres(6, 0.5, np.random.default_rng(0))


@pytest.fixture(scope="module")
def permeable(packing):
    """Walks from inside, through membranes that mix both sides within about 10 ms."""
    rng = np.random.default_rng(1)
    starts = rng.uniform(0, packing.edge, (4000, 3))
    apart = starts[:, None] - packing.centers
    apart -= packing.edge * np.round(apart / packing.edge)
    starts = starts[(np.linalg.norm(apart, axis=2) < packing.radii).any(axis=1)]
    return walk_tissue(packing, PULSES, [80, 100, 140], d_inside=1.0, d_outside=2.0, permeability=0.15, starts=starts)


def test_free_walks_decay_with_their_diffusivity_and_pulses_state_their_b():
    speck = Spheres(np.full((1, 3), 10.0), np.array([1e-3]), 20.0)
    walks = walk_tissue(speck, PULSES, [80], d_inside=1.0, d_outside=2.0, n_walkers=2500)
    b = np.array([0, 0.1, 0.4, 0.8, 1.6])
    np.testing.assert_allclose(walks.signals(b)[:, 0], np.exp(-2 * b), atol=0.015)
    diffusivity, kurtosis = walks.cumulants(0)
    assert diffusivity == pytest.approx(2, rel=0.04)
    assert kurtosis == pytest.approx(0, abs=0.1)
    # A constant velocity v along the gradient has the phase strength · v · duration · separation.
    b = PULSES.strength**2 * PULSES.duration**2 * (PULSES.separation - PULSES.duration / 3)
    assert b == pytest.approx(1)
    assert PULSES.end == 80


def diffusivity_in_sphere(radius, diffusivity, pulses):
    """Apparent diffusivity in a sphere with Gaussian phases (Murday and Cotts, J. Chem. Phys. 48:4938, 1968)."""
    grid = np.arange(0.5, 200, 0.5)
    slopes = spherical_jn(1, grid, derivative=True)
    changes = np.flatnonzero(slopes[:-1] * slopes[1:] < 0)
    roots = np.array([brentq(lambda x: spherical_jn(1, x, derivative=True), grid[i], grid[i + 1]) for i in changes])
    alpha = roots / radius
    rate = alpha**2 * diffusivity
    short, long = pulses.duration, pulses.separation
    decays = (
        2 + np.exp(-rate * (long - short)) - 2 * np.exp(-rate * short)
        - 2 * np.exp(-rate * long) + np.exp(-rate * (long + short))
    )  # fmt: skip
    terms = (2 * short / rate - decays / rate**2) / (alpha**2 * (roots**2 - 2))
    return 2 * pulses.strength**2 * terms.sum()


def test_walks_in_a_sphere_have_the_diffusivity_of_gaussian_phases():
    rng = np.random.default_rng(0)
    direction = rng.standard_normal((4000, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    starts = 10 + 6 * rng.random((4000, 1)) ** (1 / 3) * direction
    walks = walk_tissue(ONE_SPHERE, PULSES, [80], d_inside=1.0, d_outside=1.0, step=0.02, starts=starts)
    expected = diffusivity_in_sphere(6, 1, PULSES)
    assert expected == pytest.approx(0.0867, abs=1e-4)
    assert walks.cumulants(0)[0] == pytest.approx(expected, rel=0.03)
    np.testing.assert_allclose(walks.time_inside, 80)


def test_walkers_stay_on_their_side_of_closed_membranes_and_a_uniform_density_stays_uniform(packing):
    walks = walk_tissue(packing, PULSES, [80, 120], d_inside=1.0, d_outside=2.0, n_walkers=1000)
    share = walks.time_inside / walks.te
    assert set(np.unique(share)) == {0.0, 1.0}
    assert share.mean() == pytest.approx(packing.packed, abs=0.02)
    assert walks.phases[share[:, 0] == 1].std() < 0.7 * walks.phases[share[:, 0] == 0].std()
    options = {"d_inside": 0.8, "d_outside": 2.5, "permeability": 0.05, "n_walkers": 2500}
    walks = walk_tissue(packing, PULSES, [80, 120], **options)
    for time_inside, te in zip(walks.time_inside.T, walks.te, strict=True):
        error = (time_inside / te).std() / np.sqrt(len(time_inside))
        assert np.mean(time_inside) / te == pytest.approx(packing.packed, abs=3.5 * error)
        assert 0 < error < 0.01


def test_walkers_from_inside_fill_both_sides_and_relaxation_follows_the_time_on_each(packing, permeable):
    late = (permeable.time_inside[:, 2] - permeable.time_inside[:, 1]) / 40
    early = permeable.time_inside[:, 0] / 80
    assert late.mean() == pytest.approx(packing.packed, abs=3.5 * late.std() / np.sqrt(len(late)))
    assert early.mean() > late.mean()
    signal = permeable.signals(0, 50, 100)[0]
    expected = np.exp(-permeable.te / 100 - permeable.time_inside * (1 / 50 - 1 / 100)).mean(axis=0)
    np.testing.assert_allclose(signal, expected)
    np.testing.assert_allclose(permeable.signals([0, 0.5], 80, 80)[0], np.exp(-permeable.te / 80))


def test_cumulants_are_those_of_the_signal(permeable):
    diffusivity, kurtosis = permeable.cumulants(1, 50, 100)
    b = np.array([0.01, 0.02])
    signals = permeable.signals([0, *b], 50, 100)[:, 1]
    logarithms = np.log(signals[1:] / signals[0])
    slope, bend = np.linalg.solve(np.column_stack([b, b**2]), logarithms)
    assert diffusivity == pytest.approx(-slope, rel=1e-3)
    assert kurtosis == pytest.approx(6 * bend / diffusivity**2, abs=0.1)


@pytest.mark.parametrize(("segment", "exact"), [(1e9, True), (1.0, False)])
def test_blood_in_long_and_short_segments_has_the_diffusivity_of_its_flow(segment, exact):
    walks = walk_blood(PULSES, speed=2, segment=segment, n_walkers=40_000)
    turning_never = 1.25 * 2**2 / 3 * PULSES.separation**2 / (PULSES.separation - PULSES.duration / 3) / 2
    turning_often = 2 * segment / 3
    expected = 1.5 + (turning_never if exact else turning_often)
    assert walks.cumulants(0)[0] == pytest.approx(expected, rel=0.03)


def test_spheres_do_not_overlap(packing):
    apart = packing.centers[:, None] - packing.centers
    apart -= packing.edge * np.round(apart / packing.edge)
    gaps = np.linalg.norm(apart, axis=2) - packing.radii[:, None] - packing.radii
    assert gaps[~np.eye(len(gaps), dtype=bool)].min() > -1e-9
    assert packing.packed == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"up to 0\.62 of the volume, not 0\.8"):
        pack_spheres(5, 0.8, np.random.default_rng(0))


def test_the_same_seed_makes_the_same_walks(packing):
    options = {"d_inside": 1.0, "d_outside": 2.0, "permeability": 0.02, "n_walkers": 20}
    first, again, other = (walk_tissue(packing, PULSES, [80], **options, seed=seed).phases for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("number", ["1", "12", "24"])
def test_walks_agree_with_the_reference_walks_within_their_noise(data_dir, number):
    with (data_dir / "walk_reference" / "microstructures.csv").open() as stream:
        row = next(row for row in csv.DictReader(stream) if row["number"] == number)
    value = {name: float(text) for name, text in row.items() if name != "group"}
    b, te = np.array([0, 50, 100, 400, 900, 1200, 1600]), np.array([93, 105, 120])
    t2 = value["T2in_ms"], value["T2ex_ms"]
    spheres = pack_spheres(value["radius_um"], value["packed"], np.random.default_rng(0))
    diffusivity = {"d_inside": value["D_in_um2_per_ms"], "d_outside": value["D_ex_um2_per_ms"]}
    permeability = value["permeability_um_per_ms"]
    walks = walk_tissue(spheres, PULSES, te, **diffusivity, permeability=permeability, n_walkers=2000)
    blood = walk_blood(PULSES, speed=value["speed_mm_per_s"], segment=value["segment_um"], n_walkers=40_000)
    reference = np.array([[value[f"tissue_b{x}_TE{y}"] for y in te] for x in b])
    weights = walks.relaxation(*t2)
    for i, one in enumerate(b):
        each = np.cos(np.sqrt(one / 1000) * walks.phases).mean(axis=1)[:, None] * weights
        # The reference has 20,000 walkers, packed in another way by another seed.
        error = each.std(axis=0) * np.sqrt(1 / 2000 + 1 / 20_000)
        assert (np.abs(each.mean(axis=0) - reference[i]) < 3.5 * error + 1e-6).all()
        blood_signal = blood.signals(one / 1000)[0, 0] * np.exp(-93 / value["T2v_ms"])
        assert blood_signal == pytest.approx(value[f"blood_b{one}_TE93"], abs=0.008)
