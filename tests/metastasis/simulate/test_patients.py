"""Synthetic patients have the metastases, mimics and priors that they claim, and are the same each time."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import binary_dilation, label

from dmrifit.simulate.heads import read_tissues
from metastasis import simulate_metastases
from metastasis.simulate import patients
from metastasis.simulate.enhancement import draw_varied_nodule
from metastasis.simulate.patients import DIAMETERS, HARD_STATUSES, STATUSES

FULL = np.ones((3, 3, 3))
SMALL = {"shape": (32, 36, 32), "spacing": 2.5}


@pytest.fixture(scope="module")
def cases():
    return simulate_metastases(6, random_state=2)


def brightness(case, picture, mask):
    """Give the mean of a region over that of the tissue around it."""
    around = binary_dilation(mask, iterations=3) & ~binary_dilation(mask) & case.brain
    return picture[mask].mean() / np.median(picture[around])


def test_cases_are_synthetic_and_whole_with_lesions_numbered_as_the_parts_of_the_label(cases):
    for number, case in enumerate(cases, start=1):
        assert case.synthetic
        assert case.name == case.patient == f"synthetic-{number:03d}"
        assert "synthetic" in repr(case)
        assert case.image.dtype == np.float32
        assert (case.image[~case.brain] == 0).all()
        assert not ((case.label > 0) & ~case.brain).any()
        assert not ((case.label > 0) & (case.mimics > 0)).any()
        np.testing.assert_allclose(case.affine[:3, :3], 1.5 * np.eye(3))
        np.testing.assert_allclose(case.affine @ [32.5, 32.5, 32.5, 1], [0, 0, 0, 1])
    for case in cases:
        parts, n = label(case.label, FULL)
        assert case.lesions["number"].tolist() == list(range(1, n + 1))
        volumes = np.bincount(parts.ravel())[1:] * 1.5**3 / 1000
        np.testing.assert_allclose(case.lesions["volume_mL"], volumes, rtol=1e-4)
        balls = np.pi / 6 * case.lesions["diameter_mm"].to_numpy() ** 3 / 1000
        large = case.lesions["diameter_mm"] > 6
        np.testing.assert_allclose(volumes[large], balls[large], rtol=0.35)


def test_sizes_and_courses_have_the_stated_shares():
    grid = {"shape": (28, 28, 28), "spacing": 3.5}
    made = simulate_metastases(36, **grid, prior=1, mimics=(0, 0), metastases=(6, 8), random_state=1)
    table = pd.concat([case.lesions for case in made])
    n = len(table)
    assert n > 200
    assert table["diameter_mm"].between(DIAMETERS[0], DIAMETERS[2]).all()
    assert (table["diameter_mm"] < DIAMETERS[1]).mean() == pytest.approx(0.5, abs=3 * 0.5 / np.sqrt(n))
    for status, share in STATUSES.items():
        assert (table["status"] == status).mean() == pytest.approx(share, abs=3 * np.sqrt(share * (1 - share) / n))


def test_few_patients_have_the_asked_share_of_priors_and_numbers_of_metastases_or_none():
    made = simulate_metastases(16, shape=(24, 24, 24), spacing=3, prior=0.75, random_state=4)
    assert sum(case.prior is not None for case in made) in (11, 12, 13)
    assert len({len(case.lesions) for case in made}) >= 6
    assert all(set(case.lesions["status"]) <= {"unknown"} for case in made if case.prior is None)
    assert all(set(case.lesions["status"]) <= set(STATUSES) for case in made if case.prior is not None)
    case = simulate_metastases(1, **SMALL, metastases=(0, 0), mimics=(2, 2), prior=1, random_state=1)[0]
    assert not case.label.any()
    assert not case.prior_label.any()
    assert list(case.lesions.columns) == ["number", "diameter_mm", "status", "volume_mL"]
    assert case.lesions.empty
    assert label(case.mimics, FULL)[1] == 2


def test_metastases_and_mimics_are_bright_and_only_known_ones_are_in_the_prior(cases):
    ratios = {"mimic": [], "new": [], "stable": []}
    for case in cases:
        parts, _ = label(case.label, FULL)
        for row in case.lesions.itertuples():
            mask = parts == row.number
            if row.diameter_mm > 3:
                assert brightness(case, case.image, mask) > 1.02
            if case.prior is not None and row.diameter_mm > 3 and row.status != "grown":
                ratios[row.status].append(brightness(case, case.prior, mask))
                assert (case.prior_label[mask] > 0).any() == (row.status == "stable")
        spots, n = label(case.mimics, FULL)
        if case.prior is not None:
            ratios["mimic"] += [brightness(case, case.prior, spots == i) for i in range(1, n + 1)]
        assert brightness(case, case.image, case.mimics > 0) > 1.1
    assert np.median(ratios["mimic"]) > 1.15
    assert np.median(ratios["stable"]) > 1.3
    assert np.median(ratios["new"]) < 1.15


def test_a_patient_depends_on_the_number_and_the_seed_alone():
    few = simulate_metastases(1, **SMALL, skip=2, random_state=7)
    more = simulate_metastases(4, **SMALL, n_jobs=2, random_state=7)
    for name in ("image", "label", "prior", "prior_label", "mimics"):
        one, other = getattr(few[0], name), getattr(more[2], name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)
    pd.testing.assert_frame_equal(few[0].lesions, more[2].lesions)
    assert few[0].name == "synthetic-003"
    assert not np.array_equal(simulate_metastases(1, **SMALL, random_state=8)[0].image, more[0].image)


def test_the_present_image_does_not_know_of_the_prior():
    without, bad, good = (
        simulate_metastases(1, **SMALL, prior=share, misregistration=amount, random_state=3)[0]
        for share, amount in ((0, 1.0), (1, 3.0), (1, 0.0))
    )
    assert without.prior is None
    assert without.prior_label is None
    np.testing.assert_array_equal(without.image, bad.image)
    np.testing.assert_array_equal(bad.image, good.image)
    inside = bad.brain
    close, far = (np.corrcoef(case.image[inside], case.prior[inside])[0, 1] for case in (good, bad))
    assert close > 0.85 > far + 0.1


def test_the_largest_voxels_and_the_smallest_fields_make_brains():
    for grid in ({"shape": (24, 24, 24), "spacing": 4.0}, {"shape": (40, 24, 26), "spacing": (1.0, 1.7, 1.6)}):
        for case in simulate_metastases(2, **grid, metastases=(1, 3), random_state=0):
            assert 0.1 < case.brain.mean() < 0.5
            assert len(case.lesions) == label(case.label, structure=FULL)[1] > 0


def test_maps_of_tissue_make_the_brain(tmp_path):
    places = np.indices((40, 48, 36)) - np.array([19.5, 23.5, 17.5])[:, None, None, None]
    radius = np.sqrt(((places / np.array([16, 20, 14])[:, None, None, None]) ** 2).sum(axis=0))
    white, gray = ((radius < 0.7).astype(np.float32), ((radius >= 0.7) & (radius < 1)).astype(np.float32))
    affine = np.diag([-4.0, 4.0, 4.0, 1.0])
    paths = [tmp_path / "gray.nii", tmp_path / "white.nii"]
    for path, values in zip(paths, (gray, (255 * white).astype(np.uint8)), strict=True):
        nib.save(nib.Nifti1Image(values, affine), path)
    case = simulate_metastases(1, **SMALL, tissues=paths, random_state=0)[0]
    assert case.label.any()
    assert case.synthetic
    nib.save(nib.Nifti1Image(gray * 9, affine), paths[0])
    with pytest.raises(ValueError, match=r"gray\.nii holds no probabilities"):
        read_tissues(*paths)
    nib.save(nib.Nifti1Image(gray * 0, affine), paths[0])
    with pytest.raises(ValueError, match="hold no brain"):
        read_tissues(paths[0], paths[0])


def test_real_maps_of_tissue_are_accepted(data_dir):
    folder = data_dir / "mni152_tissue"
    maps = [folder / f"mni_icbm152_{kind}_1mm.nii.gz" for kind in ("gm", "wm")]
    case = simulate_metastases(1, tissues=maps, random_state=0)[0]
    assert 0.1 < case.brain.mean() < 0.6
    assert len(case.lesions) >= 1
    white, gray = np.percentile(case.image[case.brain & (case.label == 0)], [75, 25])
    assert white > 1.1 * gray


def test_the_hard_world_has_vessels_as_bright_as_metastases_all_statuses_and_labeled_walls(cases):
    hard_cases = simulate_metastases(
        4, shape=(56, 56, 56), spacing=1.5, metastases=(4, 8), world="hard", prior=1, random_state=1
    )
    def brightest(some):
        """Give the brightest voxels outside of metastases and mimics against metastases."""
        ratios = []
        for case in some:
            outside = case.brain & (case.label == 0) & (case.mimics == 0)
            away = outside & ~binary_dilation(case.label > 0, iterations=2)
            high = np.quantile(case.image[away], 0.999)
            ratios.append(high / np.median(case.image[case.label > 0]))
        return np.median(ratios)

    assert brightest(hard_cases) > 1.1 > brightest(cases)
    table = pd.concat([case.lesions for case in hard_cases])
    assert set(table["status"]) <= set(HARD_STATUSES)
    assert table["diameter_mm"].max() > 15
    for case in hard_cases:
        assert (case.image[~case.brain] == 0).all()
        assert label(case.label, structure=FULL)[1] == case.lesions["number"].nunique()
    again = simulate_metastases(
        1, shape=(56, 56, 56), spacing=1.5, metastases=(4, 8), world="hard", prior=1, random_state=1
    )
    assert (again[0].image == hard_cases[0].image).all()


def test_lesions_in_pieces_or_contact_keep_rows_and_volumes_of_their_own():
    nodule = draw_varied_nodule(np.zeros(3), "solid", 8.0, np.random.default_rng(0), contrasts=(0.2, 0.3))
    nodules = [replace(nodule, status=status) for status in ("new", "stable", "grown")]
    shape = (20, 6, 6)
    parts = np.zeros((3, *shape), bool)
    parts[0, 0, 0, 0] = parts[0, 3:6] = True  # two pieces, the smaller one first
    parts[1, 8:10] = parts[2, 10:13] = True  # in contact
    masks = [(tuple(slice(0, n) for n in shape), part) for part in parts]
    mask = parts.any(axis=0).astype(np.uint8)
    table = patients._lesion_table(nodules, masks, mask, np.full(3, 2.0), has_prior=True)
    assert table["number"].tolist() == [2, 3, 3]
    assert table["status"].tolist() == ["new", "stable", "grown"]
    np.testing.assert_allclose(table["volume_mL"], parts.sum(axis=(1, 2, 3)) * 8e-3)
