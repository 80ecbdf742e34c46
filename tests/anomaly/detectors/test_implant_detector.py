"""The detector that learns from lesions put into healthy scans."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from anomaly import ImplantDetector, VoxelwiseGaussian

SHAPE, N_CHANNELS = (18, 20, 16), 8
NOISE = 0.03


def person(seed, *, lesion=None, shift=0.0):
    """Make a scan of a brain with white matter, gray matter and fluid, each person's a little different."""
    rng = np.random.default_rng(seed)
    middle = (np.array(SHAPE) - 1) / 2
    warp = np.stack([ndimage.gaussian_filter(rng.standard_normal(SHAPE), 3) for _ in range(3)])
    where = np.indices(SHAPE) - middle.reshape(3, 1, 1, 1) + 0.5 * warp / warp.std()
    where = where - shift * rng.uniform(-1, 1, (3, 1, 1, 1))
    x, y, z = where
    radius = np.sqrt((x / 7.5) ** 2 + (y / 8.5) ** 2 + (z / 6.5) ** 2)
    mask = radius < 1
    mean = 0.42 + 0.06 * np.cos(0.8 * x) * np.sin(0.7 * y) - 0.3 * np.exp(-(x**2 + (y - 1) ** 2) / 4)
    fibers = (
        0.1 * np.clip(1.2 - radius, 0, 1) * np.sin(np.arange(N_CHANNELS) + 0.5 * y[..., None]).transpose(3, 0, 1, 2)
    )
    signal = mean + fibers
    truth = np.zeros(SHAPE, dtype=bool)
    if lesion is not None:
        center, size, level = lesion
        apart = np.indices(SHAPE) - np.reshape(center, (3, 1, 1, 1))
        truth = mask & ((apart**2).sum(axis=0) < size**2)
        signal = np.where(truth, level, signal)
    signal = signal + NOISE * rng.standard_normal(signal.shape) + 0.5 * NOISE * rng.standard_normal(SHAPE)
    scan = np.where(mask, np.clip(signal, 0, 1), 0).astype(np.float32)
    return np.moveaxis(scan, 0, -1), mask, truth


def people(seeds, **options):
    found = [person(seed, **options) for seed in seeds]
    return [np.stack(one) for one in zip(*found, strict=True)]


@pytest.fixture(scope="module")
def world():
    healthy, masks, _ = people(range(10), shift=1.5)
    ill = [
        person(100 + i, lesion=((5 + 2 * i, 9, 8), 2.6, level), shift=1.5)
        for i, level in enumerate((0.3, 0.3, 0.55, 0.55))
    ]
    return healthy, masks, [np.stack(one) for one in zip(*ill, strict=True)]


@pytest.fixture(scope="module")
def fitted(world):
    healthy, masks, _ = world
    return ImplantDetector(n_trees=30, n_implants=2, random_state=0).fit(healthy, masks)


def test_lesions_are_found_whatever_the_side_and_registration_by_trees_that_saw_none(fitted, world):
    healthy, masks, (ill, ill_masks, truths) = world
    reference = VoxelwiseGaussian(calibration=None).fit(healthy, masks)
    aucs = {}
    for name, detector in (("own", fitted), ("z", reference)):
        maps = detector.anomaly_map(ill, ill_masks)
        aucs[name] = [roc_auc_score(t[m], s[m]) for t, m, s in zip(truths, ill_masks, maps, strict=True)]
    assert min(aucs["own"]) > 0.9
    assert np.mean(aucs["own"]) > np.mean(aucs["z"])


def test_foreign_patches_come_from_scans_of_other_subjects(world, monkeypatch):
    from anomaly.detectors import implant_detector

    healthy, masks, _ = world
    pairs = []

    def recorded(look, source, floor, rng):
        pairs.append((look, source))
        return look, look.mask & (look.mean > 0.45)

    monkeypatch.setattr(implant_detector, "implant_patch", recorded)
    options = {"n_implants": 1, "n_trees": 2, "calibration": None, "random_state": 0}
    detector = ImplantDetector(n_patches=4, smoothness=None, **options)
    detector.fit(healthy[:5], masks[:5], groups=["a", "a", "b", "b", "c"])
    assert len(pairs) == 20
    looks = list(dict.fromkeys(id(look) for look, _ in pairs))
    subject = dict(zip(looks, "aabbc", strict=True))
    assert all(subject[id(look)] != subject[id(source)] for look, source in pairs)
    assert len({id(source) for _, source in pairs}) > 2
