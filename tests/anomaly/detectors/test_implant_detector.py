"""The detector that learns from lesions put into healthy scans."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from anomaly import ImplantDetector, VoxelwiseGaussian, simulate_dmri


@pytest.fixture(scope="module")
def world():
    """Give signals, masks and lesions of healthy persons and of patients, none of them well registered."""
    options = {"n_directions": 8, "shape": (20, 24, 16), "spacing": 8.0, "registration": "shifted", "random_state": 0}
    groups = simulate_dmri(10, 6, **options)
    return [[[getattr(case, key) for case in cases] for key in ("signal", "brain", "lesion")] for cases in groups]


def test_lesions_are_found_whatever_the_registration_by_trees_that_saw_none(world):
    (healthy, masks, _), (ill, ill_masks, lesions) = world
    aucs = []
    for detector in (ImplantDetector(n_trees=30, n_implants=2, random_state=0), VoxelwiseGaussian(calibration=None)):
        maps = detector.fit(healthy, masks).anomaly_map(ill, ill_masks)
        scans = zip(lesions, ill_masks, maps, strict=True)
        aucs.append([roc_auc_score(lesion[mask], scores[mask]) for lesion, mask, scores in scans])
    assert min(aucs[0]) > 0.95
    assert np.mean(aucs[0]) > np.mean(aucs[1]) + 0.1


def test_foreign_patches_come_from_scans_of_other_subjects(world, monkeypatch):
    pairs = []

    def recorded(look, source, floor, rng):
        pairs.append((look, source))
        return look, look.mask & (look.mean > 0.45)

    monkeypatch.setattr("anomaly.detectors.implant_detector.implant_patch", recorded)
    options = {"n_implants": 1, "n_trees": 2, "calibration": None, "random_state": 0}
    detector = ImplantDetector(n_patches=4, smoothness=None, **options)
    detector.fit(world[0][0][:5], world[0][1][:5], groups=["a", "a", "b", "b", "c"])
    assert len(pairs) == 20
    looks = list(dict.fromkeys(id(look) for look, _ in pairs))
    subject = dict(zip(looks, "aabbc", strict=True))
    assert all(subject[id(look)] != subject[id(source)] for look, source in pairs)
    assert len({id(source) for _, source in pairs}) > 2
