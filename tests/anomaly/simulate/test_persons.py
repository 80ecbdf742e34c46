"""Synthetic diffusion scans have the tissues, signals and tumors that they are said to have, and repeat bit by bit."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform

from anomaly import simulate_dmri
from anomaly.generators.generator_table import GENERATORS
from anomaly.generators.gliomas import GRADES
from dmrifit.simulate.heads import standard_head

SMALL = {"n_directions": 6, "shape": (20, 24, 16), "spacing": 8.0}


def same(case, other):
    for key in ("signal", "brain", "tissue", "lesion", "followup", "b0", "affine", "directions"):
        np.testing.assert_array_equal(getattr(case, key), getattr(other, key))
    for key in ("name", "patient", "age", "sex", "site", "grade", "kind", "b"):
        assert getattr(case, key) == getattr(other, key)
    return True


@pytest.fixture(scope="module")
def cohort():
    return simulate_dmri(3, 6, n_directions=32, random_state=4)


@pytest.fixture(scope="module")
def gliomas():
    return simulate_dmri(0, 40, **SMALL, random_state=5)[1]


def test_a_case_depends_on_its_number_and_the_seed_alone():
    healthy, lesions = simulate_dmri(3, 2, **SMALL, random_state=8)
    more, others = simulate_dmri(1, 1, **SMALL, skip=1, random_state=8)
    assert same(more[0], healthy[1])
    assert same(others[0], lesions[1])
    assert [case.name for case in healthy] == [f"synthetic-healthy-00{i}" for i in (1, 2, 3)]
    assert lesions[1].name == lesions[1].patient == "synthetic-glioma-002"
    different = simulate_dmri(1, 0, **SMALL, random_state=9)[0][0]
    assert not np.array_equal(different.signal, healthy[0].signal)


def test_cases_are_the_same_from_any_number_of_processes():
    one, two = (simulate_dmri(2, 2, **SMALL, n_jobs=n, random_state=1) for n in (1, 2))
    for case, other in zip(one[0] + one[1], two[0] + two[1], strict=True):
        same(case, other)


def test_brains_look_like_those_of_the_study(cohort):
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


def test_only_gliomas_of_high_grade_grow(gliomas):
    grown = {grade: [] for grade in GRADES}
    for case in gliomas:
        assert not (case.lesion & ~case.brain).any()
        assert not (case.lesion & ~case.followup).any()
        grown[case.grade].append(case.followup.sum() / case.lesion.sum())
    assert max(grown["II"]) == 1
    for grade in ("III", "IV"):
        assert np.mean(np.array(grown[grade]) > 1) > 0.8
        assert np.mean(grown[grade]) > 1.1


def test_grades_and_kinds_have_their_shares(gliomas):
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


def test_poor_registration_moves_the_same_persons():
    good, shifted = (simulate_dmri(4, 2, **SMALL, registration=name, random_state=6) for name in ("good", "shifted"))
    moved = []
    for one, other in zip(good[0] + good[1], shifted[0] + shifted[1], strict=True):
        assert (one.age, one.sex, one.site, one.grade, one.kind) == (other.age, other.sex, other.site, other.grade,
                                                                      other.kind)  # fmt: skip
        centers = [np.argwhere(case.brain).mean(axis=0) for case in (one, other)]
        moved.append(np.abs(centers[0] - centers[1]).max())
    assert 0.5 < np.mean(moved) < 2.2


@pytest.mark.parametrize("shape", [(12, 16, 13), (25, 30, 21)])
def test_brains_of_other_fields_of_view_are_whole(shape):
    (case,), (patient,) = simulate_dmri(1, 1, n_directions=1, shape=shape, spacing=6, random_state=0)
    assert case.shape == shape
    assert set(np.unique(case.tissue)) == {0, 1, 2, 3, 4}
    assert 0.2 < case.brain.mean() < 0.8
    assert patient.lesion.any()


@pytest.mark.parametrize("codes", ["LAS", "PIR"])
def test_persons_are_the_same_however_maps_of_tissue_are_stored(codes):
    head = standard_head((6.0,) * 3)
    shares = head.matter.gray + head.matter.deep, head.matter.white
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    stored = [nib.Nifti1Image(share, head.affine) for share in shares]
    (one,), (other,) = (
        simulate_dmri(1, 0, **SMALL, tissues=images, random_state=0)[0]
        for images in (stored, [image.as_reoriented(turn) for image in stored])
    )
    np.testing.assert_array_equal(one.tissue, other.tissue)
    np.testing.assert_allclose(one.signal, other.signal, atol=1e-5)


def test_real_maps_of_tissue_are_taken(data_dir):
    folder = data_dir / "mni152_tissue"
    maps = [folder / f"mni_icbm152_{kind}_1mm.nii.gz" for kind in ("gm", "wm")]
    (case,), _ = simulate_dmri(1, 0, n_directions=6, tissues=maps, random_state=0)
    volumes = np.bincount(case.tissue[case.brain], minlength=5) * 0.064
    assert (volumes[1:] > [300, 400, 20, 5]).all()
    assert case.signal[case.scored].mean() == pytest.approx(0.4, abs=0.06)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_healthy": 0}, "both|at least one person"),
        ({"n_healthy": -1}, "n_healthy must be a whole number of at least 0, not -1"),
        ({"n_healthy": True}, "n_healthy must be"),
        ({"n_directions": 0}, "n_directions must be a whole number from 1 to 512, not 0"),
        ({"registration": "bad"}, "must be one of good, shifted, not 'bad'"),
        ({"generator": "strokes"}, "generator must be"),
        ({"shape": (20, 24)}, "three numbers of voxels"),
        ({"shape": (20, 24, 5)}, "each axis of shape must be a whole number from 12 to 512, not 5"),
        ({"spacing": 0}, "above 0 and up to 12 mm, not 0"),
        ({"spacing": 2.0}, "see 32 mm along an axis"),
        ({"snr": 0.5}, "snr must be a number of at least 1"),
        ({"snr": np.ones(2)}, "snr must be a number of at least 1"),
        ({"cellular": 0.9}, "cellular must be a number from 0 to 0.75"),
        ({"tissues": "gm.nii"}, "tissues must be two images"),
        ({"skip": -1}, "skip must be"),
        ({"random_state": -1}, "must not be negative"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message):
    arguments = {"n_healthy": 1, "n_lesions": 0, **SMALL} | changes
    with pytest.raises(ValueError, match=message):
        simulate_dmri(arguments.pop("n_healthy"), arguments.pop("n_lesions"), **arguments)


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
