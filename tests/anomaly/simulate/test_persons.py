"""Synthetic diffusion scans have the tissues, signals and tumors that they are said to have, and repeat bit by bit."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform

from anomaly import simulate_dmri
from anomaly.generators.generator_table import GENERATORS
from anomaly.generators.gliomas import GRADES, Component
from anomaly.simulate.persons import (
    Brain,
    add_noise,
    brain_signals,
    draw_brain,
    spread_directions,
    standard_brain,
    tensor_signals,
)
from dmrifit.simulate.heads import StandardHead, TissueMaps

SMALL = {"n_directions": 6, "shape": (20, 24, 16), "spacing": 8.0}


def same(case, other):
    for key in ("signal", "brain", "tissue", "lesion", "followup", "b0", "affine", "directions"):
        np.testing.assert_array_equal(getattr(case, key), getattr(other, key))
    for key in ("name", "patient", "age", "sex", "site", "grade", "kind", "b"):
        assert getattr(case, key) == getattr(other, key)
    return True


def test_a_case_depends_on_its_number_and_the_seed_alone():
    healthy, lesions = simulate_dmri(3, 2, **SMALL, random_state=8)
    # In other processes, too.
    more, others = simulate_dmri(1, 1, **SMALL, skip=1, n_jobs=2, random_state=8)
    assert same(more[0], healthy[1])
    assert same(others[0], lesions[1])
    assert [case.name for case in healthy] == [f"synthetic-healthy-00{i}" for i in (1, 2, 3)]
    assert lesions[1].name == lesions[1].patient == "synthetic-glioma-002"
    different = simulate_dmri(1, 0, **SMALL, random_state=9)[0][0]
    assert not np.array_equal(different.signal, healthy[0].signal)


def test_brains_look_like_those_of_the_study():
    cohort = simulate_dmri(3, 6, n_directions=32, random_state=4)
    healthy, _ = cohort
    for case in healthy:
        mean = case.signal.mean(axis=-1)
        # The published code takes 0.4 and 0.12 for the mean and standard deviation of tissue.
        assert mean[case.scored].mean() == pytest.approx(0.4, abs=0.04)
        assert case.signal[case.scored].std() == pytest.approx(0.12, abs=0.025)
        white, gray, fluid, deep = (mean[case.tissue == number].mean() for number in (1, 2, 3, 4))
        # Deep gray matter and white matter of all directions are nearly alike.
        assert deep == pytest.approx(white, rel=0.06)
        assert white > 1.1 * gray > gray > 2 * fluid
        spread = [case.signal[case.tissue == number].std(axis=-1).mean() for number in (1, 2)]
        assert spread[0] > 2 * spread[1]
        assert case.healthy
        assert case.followup is None
        assert case.grade == case.kind == ""
        assert 25 <= case.age <= 75
        volumes = np.bincount(case.tissue[case.brain], minlength=5) * 0.064
        assert 1200 < volumes.sum() < 1700
        assert (volumes[1:] > [350, 450, 20, 10]).all()


def test_grades_and_kinds_have_their_shares_and_only_gliomas_of_high_grade_grow():
    gliomas = simulate_dmri(0, 40, **SMALL, random_state=5)[1]
    grown = {grade: [] for grade in GRADES}
    for case in gliomas:
        assert not (case.lesion & ~case.brain).any()
        assert not (case.lesion & ~case.followup).any()
        grown[case.grade].append(case.followup.sum() / case.lesion.sum())
    assert max(grown["II"]) == 1
    for grade in ("III", "IV"):
        assert np.mean(np.array(grown[grade]) > 1) > 0.8
        assert np.mean(grown[grade]) > 1.1
    for grade, share in GRADES.items():
        assert np.mean([case.grade == grade for case in gliomas]) == pytest.approx(share, abs=0.06)
    assert np.mean([case.kind == "cellular" for case in gliomas]) == pytest.approx(0.3, abs=0.08)
    assert not any(case.kind == "cellular" for case in gliomas if case.grade == "II")
    none = simulate_dmri(0, 12, **SMALL, cellular=0, random_state=5)[1]
    assert {case.kind for case in none} == {"infiltrating"}


def test_where_a_tumor_will_grow_it_is_there_already():
    settings = {"n_directions": 16, "snr": np.inf, "random_state": 3}
    changes = []
    for case in simulate_dmri(0, 12, **settings)[1]:
        later = case.followup & ~case.lesion & (case.tissue == 1)
        ring = (case.tissue == 1) & ~case.followup
        if later.sum() > 20:
            changes.append(case.signal[later].mean() - case.signal[ring].mean())
    assert len(changes) >= 3
    assert np.mean(changes) < -0.02


def test_poor_registration_moves_the_same_persons_and_leaves_a_change_of_size_of_up_to_5_percent():
    good, shifted = (simulate_dmri(4, 2, **SMALL, registration=name, random_state=6) for name in ("good", "shifted"))
    moved = []
    for one, other in zip(good[0] + good[1], shifted[0] + shifted[1], strict=True):
        for key in ("age", "sex", "site", "grade", "kind"):
            assert getattr(one, key) == getattr(other, key)
        centers = [np.argwhere(case.brain).mean(axis=0) for case in (one, other)]
        moved.append(np.abs(centers[0] - centers[1]).max())
    assert 0.5 < np.mean(moved) < 2.2
    standard, where = standard_brain((8.0,) * 3), ((30, 35, 28), (8.0,) * 3)
    sizes = []
    for seed in range(8):
        good, shifted = (
            draw_brain(standard, *where, np.random.default_rng(seed), shifted=way).head.brain.sum()
            for way in (False, True)
        )
        sizes.append((shifted / good) ** (1 / 3))
    assert 0.94 < min(sizes) < 0.97
    assert 1.03 < max(sizes) < 1.06


@pytest.mark.parametrize("shape", [(12, 16, 13), (25, 30, 21)])
def test_brains_of_other_fields_of_view_are_whole(shape):
    (case,), (patient,) = simulate_dmri(1, 1, n_directions=1, shape=shape, spacing=6, random_state=0)
    assert case.shape == shape
    assert set(np.unique(case.tissue)) == {0, 1, 2, 3, 4}
    assert 0.2 < case.brain.mean() < 0.8
    assert patient.lesion.any()


@pytest.mark.parametrize("codes", ["LAS", "PIR"])
def test_persons_are_the_same_however_maps_of_tissue_are_stored(codes):
    head = StandardHead.of((6.0,) * 3)
    shares = head.matter.gray + head.matter.deep, head.matter.white
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    stored = [nib.Nifti1Image(share, head.affine) for share in shares]
    (one,), (other,) = (
        simulate_dmri(1, 0, **SMALL, tissues=images, random_state=0)[0]
        for images in (stored, [image.as_reoriented(turn) for image in stored])
    )
    np.testing.assert_array_equal(one.tissue, other.tissue)
    np.testing.assert_allclose(one.signal, other.signal, atol=1e-5)


def test_real_maps_of_tissue_are_taken_and_fine_ones_make_the_same_standard_brain_as_coarse_ones(data_dir):
    folder = data_dir / "mni152_tissue"
    maps = [folder / f"mni_icbm152_{kind}_1mm.nii.gz" for kind in ("gm", "wm")]
    (case,), _ = simulate_dmri(1, 0, n_directions=6, tissues=maps, random_state=0)
    volumes = np.bincount(case.tissue[case.brain], minlength=5) * 0.064
    assert (volumes[1:] > [300, 400, 20, 5]).all()
    assert case.signal[case.scored].mean() == pytest.approx(0.4, abs=0.06)
    maps = (maps_of(standard_brain((4.0,) * 3), repeats) for repeats in (1, 2))
    coarse, fine = (standard_brain((4.0,) * 3, tissues) for tissues in maps)
    np.testing.assert_allclose(coarse.head.affine, fine.head.affine)
    for coarse_map, fine_map in zip(coarse.head.matter, fine.head.matter, strict=True):
        np.testing.assert_allclose(coarse_map, fine_map, atol=1e-5)
    np.testing.assert_allclose(coarse.fibers, fine.fibers, atol=1e-5)


@pytest.mark.parametrize("name", GENERATORS)
def test_patients_have_the_anomalies_of_each_generator(name):
    _, patients = simulate_dmri(0, 2, **SMALL, generator=name, random_state=3)
    (again,) = simulate_dmri(0, 1, **SMALL, skip=1, generator=name, random_state=3)[1]
    assert same(again, patients[1])
    _, gliomas = simulate_dmri(0, 2, **SMALL, random_state=3)
    for case, patient in zip(patients, gliomas, strict=True):
        # The same person with another anomaly: away from both, scan and noise are the same.
        assert case.lesion.any()
        assert not (case.lesion & ~case.brain).any()
        assert (case.age, case.site) == (patient.age, patient.site)
        np.testing.assert_array_equal(case.brain, patient.brain)
        change = np.abs(case.signal - patient.signal).mean(axis=-1)
        assert np.median(change[case.brain]) < 1e-3


def maps_of(standard, repeats=1):
    """Make maps of tissue from a standard head, of voxels that are so many times finer."""
    matter = standard.head.matter
    shares = (matter.gray + matter.deep, matter.white, (matter.brain > 0.5).astype(np.float32))
    fine = [share.repeat(repeats, 0).repeat(repeats, 1).repeat(repeats, 2) for share in shares]
    affine = standard.head.affine @ np.diag([*np.full(3, 1 / repeats), 1])
    affine[:3, 3] -= (1 - 1 / repeats) * np.diag(standard.head.affine)[:3] / 2
    return TissueMaps(*fine, affine, standard.head.half_axes)


def test_shares_of_tissues_add_up_to_one_and_the_largest_names_the_tissue(brain):
    shares = np.stack(list(brain.shares.values()))
    assert shares.min() >= 0
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    assert brain.fibers.shape == (2, brain.head.brain.sum(), 3)
    lengths = np.linalg.norm(brain.fibers, axis=-1)
    np.testing.assert_allclose(lengths[:, brain.shares["white"] > 0.5], 1, atol=1e-5)
    crossed = (brain.crossing > 0.2) & (brain.shares["white"] > 0.9)
    assert np.median(np.abs((brain.fibers[0] * brain.fibers[1]).sum(axis=1))[crossed]) < 0.2
    assert 0 <= brain.crossing.min() <= brain.crossing.max() <= 0.5
    assert 0.4 - 1e-6 <= brain.order[brain.shares["white"] > 0.5].min() <= brain.order.max() <= 1
    shares = dict(zip((1, 2, 3, 4), map(brain.shares.get, ("white", "gray", "fluid", "deep")), strict=True))
    tissue = brain.tissue[brain.head.brain]
    for number, share in shares.items():
        largest = tissue == number
        assert largest.any()
        assert all((share >= other - 1e-6)[largest].all() for other in shares.values())
    assert not brain.tissue[~brain.head.brain].any()


def test_a_brain_fills_a_small_field_of_view_and_older_persons_have_larger_ventricles():
    standard = standard_brain((8.0,) * 3)
    small = draw_brain(standard, (20, 24, 16), (4.0,) * 3, np.random.default_rng(0))
    # Half of 80, 96 and 64 mm less 4 mm; no axis may exceed the smallest scale, 28 / 64, by more than a quarter.
    np.testing.assert_allclose(small.head.half_axes, [36, 44, 28])
    assert small.head.size == pytest.approx((36 / 68 + 44 / 85 + 28 / 64) / 3)
    flat = draw_brain(standard, (40, 48, 14), (4.0,) * 3, np.random.default_rng(0))
    scale = 1.25 * 24 / 64
    np.testing.assert_allclose(flat.head.half_axes, [68 * scale, 85 * scale, 24])
    standard, shape, spacing = standard_brain((4.0,) * 3), (40, 48, 32), (4.0,) * 3
    volumes = []
    for growth in (-2, 0, 3):
        person = draw_brain(standard, shape, spacing, np.random.default_rng(0), growth=growth)
        volumes.append(person.head.ventricles.sum())
    assert volumes == sorted(volumes)
    assert volumes[2] > 2 * volumes[0]


def uniform_brain(*, white=0.0, gray=0.0, deep=0.0, fluid=0.0, crossing=0.0, order=1.0):
    """Make a brain of one voxel whose fibers go along x, and along y where they cross."""
    shares = {"white": white, "gray": gray, "fluid": fluid, "deep": deep}
    shares = {name: np.full(1, share, dtype=np.float32) for name, share in shares.items()}
    return Brain(None, shares, np.eye(3)[:2, None], *np.float32([[crossing], [order]]))


def signals_of(brain, b=1000.0, factor=1.0, lesion=()):
    signals, b0 = brain_signals(brain, np.eye(3), b, np.full(len(brain.shares["white"]), factor), lesion)
    return signals[0], b0[0]


def test_signals_are_tensors_of_dipy_and_noise_is_rician():
    from dipy.core.gradients import gradient_table
    from dipy.sims.voxel import multi_tensor

    directions = spread_directions(20)
    fibers = np.random.default_rng(0).standard_normal((2, 5, 3))
    fibers /= np.linalg.norm(fibers, axis=-1, keepdims=True)
    table = gradient_table(np.full(20, 1000.0), bvecs=directions, b0_threshold=0)
    first, second = (tensor_signals(one, 1.6, 0.35, np.ones(5), directions) for one in fibers)
    eigenvalues = np.array([[1.6e-3, 0.35e-3, 0.35e-3]] * 2)
    for i in range(5):
        options = {"angles": [tuple(fiber[i]) for fiber in fibers], "fractions": [70, 30]}
        expected, _ = multi_tensor(table, eigenvalues, S0=1.0, snr=None, **options)
        np.testing.assert_allclose(0.7 * first[i] + 0.3 * second[i], expected, rtol=1e-5)
    rng = np.random.default_rng(0)
    dark = add_noise(np.zeros(100_000, np.float32), 0.5, rng)
    assert dark.mean() == pytest.approx(0.5 * (np.pi / 2) ** 0.5, rel=0.01)
    bright = add_noise(np.full(100_000, 50.0, np.float32), 0.5, rng)
    np.testing.assert_allclose((bright.mean(), bright.std()), (50.0025, 0.5), rtol=0.01)
    values = np.ones(4, np.float32)
    np.testing.assert_array_equal(add_noise(values, 0.0, rng), values)


@pytest.mark.parametrize(
    ("brain", "expected", "b0"),
    [
        ({"white": 1}, np.exp([-1.6, -0.35, -0.35]), 1),
        # In the third direction both fibers are seen across.
        ({"white": 1, "crossing": 0.3}, np.array([[0.7, 0.3], [0.3, 0.7], [0, 1]]) @ np.exp([-1.6, -0.35]), 1),
        ({"white": 1, "order": 0}, np.exp([-0.77] * 3), 1),
        ({"white": 1, "order": 0.5}, 0.5 * np.exp([-1.6, -0.35, -0.35]) + 0.5 * np.exp(-0.77), 1),
        ({"gray": 1}, 1.15 * np.exp([-0.82] * 3), 1.15),
        ({"deep": 1}, 0.95 * np.exp([-0.74] * 3), 0.95),
        ({"fluid": 1}, 2.8 * np.exp([-3.0] * 3), 2.8),
        ({"gray": 0.5, "fluid": 0.5}, 0.575 * np.exp([-0.82] * 3) + 1.4 * np.exp(-3.0), 1.975),
    ],
    ids=str,
)
def test_voxels_of_known_tissue_have_the_signals_written_out(brain, expected, b0):
    signals, without = signals_of(uniform_brain(**brain))
    np.testing.assert_allclose(signals, expected, rtol=1e-5)
    assert without == pytest.approx(b0, rel=1e-6)


def test_a_component_takes_the_place_of_its_share_of_everything_else():
    brain = uniform_brain(white=0.5, gray=0.5)
    (before, b0), share = signals_of(brain), np.full(1, 0.25, dtype=np.float32)
    after, after_b0 = signals_of(brain, lesion=[Component(share, 0.5, 1.1), Component(share, 2.0, 2.2)])
    expected = 0.5 * before + 0.25 * 1.1 * np.exp(-0.5) + 0.25 * 2.2 * np.exp(-2.0)
    np.testing.assert_allclose(after, expected, rtol=1e-5)
    # Diffusivities differ by a factor as weighting does.
    mixed = uniform_brain(white=0.6, gray=0.3, fluid=0.1, crossing=0.2, order=0.8)
    np.testing.assert_allclose(signals_of(mixed, factor=1.2)[0], signals_of(mixed, b=1200.0)[0], rtol=1e-5)
    assert after_b0 == pytest.approx(0.5 * b0 + 0.25 * 1.1 + 0.25 * 2.2, rel=1e-6)


def test_directions_cover_half_a_sphere():
    directions = spread_directions(64)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    np.testing.assert_allclose(directions.T @ directions / 64, np.eye(3) / 3, atol=0.02)
    apart = np.abs(directions @ directions.T) - np.eye(64)
    assert np.degrees(np.arccos(apart.max())) > 6
