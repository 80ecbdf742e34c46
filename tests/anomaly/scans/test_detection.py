"""Scans that differ as a whole, and lesions that do not make a scan differ."""

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from anomaly.detectors.aligned import AlignedMahalanobis
from anomaly.detectors.gaussian import VoxelwiseGaussian
from anomaly.scans.cases import write_cases
from anomaly.scans.detection import (
    HealthyScans,
    ScanFigures,
    TrainingScans,
    lesions_of,
    mean_over_scans,
    plain_record,
    scan_figures,
)
from anomaly.scans.series import SeriesDetector, SeriesFiles, read_series
from anomaly.simulate.persons import simulate_dmri

SIMULATED = {"n_directions": 8, "shape": (24, 28, 20), "spacing": 6.5, "random_state": 5}
N_TRAINING = 12


@pytest.fixture(scope="module")
def healthy():
    return simulate_dmri(N_TRAINING + 2, 0, **SIMULATED)[0]


DETECTORS = {
    "both sides": VoxelwiseGaussian(),
    "Mahalanobis": VoxelwiseGaussian(features=("mean", "spread"), distance="mahalanobis"),
    "aligned Mahalanobis": AlignedMahalanobis(),
}


@pytest.fixture(scope="module", params=DETECTORS)
def model(request, healthy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    write_cases(healthy[:N_TRAINING], folder)
    return SeriesDetector(DETECTORS[request.param]).fit(read_series(folder / "cases.tsv"))


def detect(model, case, tmp_path):
    write_cases([replace(case, lesion=None)], tmp_path, overwrite=True)
    return model.detect(read_series(tmp_path / "cases.tsv")[0])


def implanted(case, volume_ml, contrast):
    """Change the diffusivity of the tissue nearest to a place in white matter."""
    rng = np.random.default_rng([0, volume_ml])
    white = np.argwhere(case.scored & (case.tissue == 1))
    center = white[rng.integers(len(white))].reshape(3, 1, 1, 1)
    distance = np.where(case.scored, ((np.indices(case.shape) - center) ** 2).sum(0), np.inf)
    n_voxels = round(1000 * volume_ml / np.prod(case.spacing))
    lesion = distance < np.sort(distance.ravel())[n_voxels]
    signal = case.signal.copy()
    signal[lesion] **= contrast
    return replace(case, signal=signal)


def test_scans_with_lesions_of_any_size_do_not_differ_as_a_whole_but_noisy_ones_do(model, healthy, tmp_path):
    for case in healthy[N_TRAINING:]:
        assert detect(model, case, tmp_path).differs is False
    for volume_ml in (20, 80, 200):
        for case, contrast in zip(healthy[N_TRAINING:], (0.65, 1.6), strict=True):
            detection = detect(model, implanted(case, volume_ml, contrast), tmp_path)
            assert detection.differs is False, (volume_ml, contrast)
    # The largest lesions are well above the rate of healthy scans.
    assert detection.figures.share > 0.05
    for case in simulate_dmri(2, 0, skip=N_TRAINING, snr=22 / 4, **SIMULATED)[0]:
        assert detect(model, case, tmp_path).differs is True


@pytest.mark.slow
def test_a_healthy_block_of_another_site_differs_as_a_whole(data_dir, tmp_path):
    write_cases(simulate_dmri(6, 0, n_directions=6, random_state=5)[0], tmp_path)
    detector = VoxelwiseGaussian(("mean", "spread"), distance="mahalanobis", calibration=2)
    model = SeriesDetector(detector).fit(read_series(tmp_path / "cases.tsv"))
    block = SeriesFiles(data_dir / "dipy_small_dwi" / "small_64D.nii")
    with pytest.warns(UserWarning, match="field of view"):
        detection = model.detect(block, mask=False, directions="resampled")
    assert detection.figures.share > 0.1
    assert detection.differs is True


SHAPE = (21, 16, 12)


def figures_of(scores, marked, scored=None):
    scored = np.ones(SHAPE, bool) if scored is None else scored
    return scan_figures(scores.astype(np.float32), scored, marked, marked, np.diag([5.0, 5, 5, 1]))


def test_the_bulk_leaves_out_the_largest_component_and_its_mirror_image():
    scores = np.random.default_rng(0).normal(size=SHAPE)
    plain = figures_of(scores, np.zeros(SHAPE, bool))
    assert (plain.share, plain.n_components, plain.largest_mL) == (0, 0, 0)
    left, right = scores[:10], scores[11:]
    expected = [np.quantile(side, q) for side in (left, right) for q in (0.5, 0.75)]
    np.testing.assert_allclose(plain.bulk, expected, rtol=1e-6)
    marked = np.zeros(SHAPE, bool)
    marked[2:6, 4:10, 3:9] = True
    marked[18:20, 12:14, 9:11] = True
    raised = figures_of(np.where(marked, 50, scores), marked)
    assert raised.n_components == 2
    assert raised.largest_mL == pytest.approx(144 * 0.125)
    assert raised.share == pytest.approx(152 / scores.size)
    # The values inside the component and in its mirror image do not matter.
    largest = marked & (np.arange(SHAPE[0]) < 10)[:, None, None]
    mirrored = np.where(largest | largest[::-1], -50, scores)
    np.testing.assert_array_equal(figures_of(mirrored, marked).bulk[:2], raised.bulk[:2])
    edge = np.roll(largest, -6, axis=0)
    assert edge[-1].any()
    low, high = (figures_of(np.where(edge | edge[::-1], value, scores), edge).bulk for value in (-50, 50))
    assert low == high
    assert max(np.abs(np.subtract(raised.bulk, plain.bulk))) < 0.1
    # A component that is most of the scan is not left out.
    most = np.arange(SHAPE[0])[:, None, None] + np.zeros(SHAPE) > 0
    assert figures_of(np.where(most, 9.0, 0.0), most).bulk == (9, 9, 9, 9)


def healthy_scans(n, seed=0):
    bulks = np.random.default_rng(seed).normal(1, 0.1, (n, 4))
    return HealthyScans(tuple(ScanFigures(0.01, 0, 0.0, tuple(bulk)) for bulk in bulks), (1.0, 2.0))


def noise_of(signal, scored=None):
    scored = np.ones(SHAPE, dtype=bool) if scored is None else scored
    return scan_figures(np.zeros(SHAPE), scored, 0 * scored > 0, 0 * scored > 0, np.eye(4), signal).noise


def test_noise_is_measured_without_a_lesion_in_one_hemisphere_and_told_from_three_times_on():
    rng = np.random.default_rng(0)
    signal = 0.5 + 0.05 * rng.standard_normal((*SHAPE, 12)).astype(np.float32)
    # Noise of one hemisphere counts where the other has no neighbors.
    for side in (slice(None, SHAPE[0] // 2), slice(SHAPE[0] // 2, None)):
        scored = np.ones(SHAPE, dtype=bool)
        scored[side, ::2] = False
        assert noise_of(signal, scored) == pytest.approx(0.05, rel=0.05)
    usual = noise_of(signal)
    assert usual == pytest.approx(0.05, rel=0.05)
    signal[:10] += 0.5 * rng.standard_normal((10, *SHAPE[1:], 12))
    assert noise_of(signal) == pytest.approx(usual, rel=0.05)
    scans = HealthyScans(tuple(replace(scan, noise=0.05) for scan in healthy_scans(8).scans))
    bulk = scans.scans[0].bulk
    for times, differs in ((1, False), (2, False), (3, True), (float("nan"), False)):
        assert scans.differs(ScanFigures(0, 0, 0, bulk, 0.05 * times)) is differs
    # A scan whose noise was not measured changes nothing.
    gap = HealthyScans((replace(scans.scans[0], noise=float("nan")), *scans.scans[1:]))
    assert gap.differs(ScanFigures(0, 0, 0, bulk, 0.15)) is True
    # Of files without noise the bulk alone is judged, and where usual scans have none.
    assert healthy_scans(8).differs(ScanFigures(0, 0, 0, bulk, 0.5)) is False
    clean = HealthyScans(tuple(replace(scan, noise=0.0) for scan in scans.scans))
    assert clean.differs(ScanFigures(0, 0, 0, bulk, 0.001)) is False


@pytest.mark.parametrize(
    ("n", "bulk", "differs"),
    [
        (8, (1, 1, 1, 1), False),
        (8, (3, 1, 3, 1), True),
        (8, (1, 3, 1, 3), True),
        (8, (-1, 1, -1, 1), True),
        # One hemisphere, other sides, another quantile in each.
        (8, (3, 3, 1, 1), False),
        (8, (3, 1, -1, 1), False),
        (8, (3, 1, 1, 3), False),
        (8, (np.nan,) * 4, None),
        # Few healthy scans judge mildly or not at all.
        (20, (1.7,) * 4, True),
        (3, (1.7,) * 4, False),
        (3, (5.0,) * 4, True),
        (2, (5.0,) * 4, None),
    ],
)
def test_a_scan_differs_where_both_hemispheres_are_shifted_alike(n, bulk, differs):
    assert healthy_scans(n).differs(ScanFigures(0, 0, 0, bulk)) is differs


def test_healthy_scans_are_judged_against_the_others():
    scans = healthy_scans(12)
    assert scans.verdicts().count(True) == 0
    assert replace(scans, scans=(*scans.scans, ScanFigures(0, 0, 0, (9.0,) * 4))).verdicts().count(True) == 1
    levels = HealthyScans(tuple(ScanFigures(0, 0, 0, (level,) * 4) for level in (1, 1.01, 0.99, 1, 1.005, 0.9)))
    assert [levels.verdicts(division)[-1] for division in (1.0, 1.3)] == [True, False]
    assert [healthy_scans(n).verdicts().count(None) for n in (1, 2, 3, 4)] == [1, 2, 3, 0]


def test_hemispheres_of_few_voxels_are_not_judged_and_scans_without_any_are_refused():
    scored = np.zeros(SHAPE, bool)
    with pytest.raises(ValueError, match="no voxel of the brain is white or gray matter"):
        figures_of(np.zeros(SHAPE), scored, scored)
    scored[3:6, 3:6, 3:6] = True
    assert np.isnan(figures_of(np.zeros(SHAPE), np.zeros(SHAPE, bool), scored).bulk).all()


def test_healthy_scans_keep_their_figures_in_a_file():
    measured = tuple(replace(scan, noise=0.1) for scan in healthy_scans(4).scans)
    scans = HealthyScans(measured, (1.0, 2.0), left_out=True, adjusted=True)
    content = plain_record(scans)
    assert HealthyScans.from_dict(content) == scans
    first = {key: content[key] for key in ("scans", "spread")}
    assert HealthyScans.from_dict(first) == HealthyScans(measured, (1.0, 2.0))
    assert HealthyScans.from_dict(content | {"spread": None}).spread is None
    with pytest.raises(ValueError, match="has 3 values"):
        HealthyScans.from_dict({"scans": [content["scans"][0] | {"bulk": [1, 2, 3]}], "spread": None})
    with pytest.raises(ValueError, match="unknown or missing figure"):
        HealthyScans.from_dict({"scans": [{"share": 0.1}], "spread": None})


def test_anomalies_are_counted_by_healthy_scan_and_intervals_are_over_scans():
    counts = [replace(scan, n_components=n) for scan, n in zip(healthy_scans(3).scans, (0, 2, 0), strict=True)]
    assert HealthyScans(tuple(counts)).anomalies_per_scan == pytest.approx(2 / 3)
    assert HealthyScans(()).anomalies_per_scan is None
    mean, low, high = mean_over_scans([0.0, 0.02, 0.01, 0.01, 0.01])
    assert mean == pytest.approx(0.01)
    assert 0 <= low < mean < high <= 0.02
    for few_or_equal in ([0.3, 0.2, 0.1, 0.2], [0.1] * 5, [0] * 20):
        assert np.isnan(mean_over_scans(few_or_equal)[1:]).all()


NOTES = {"brain": "given", "tissue": "given", "directions_resampled": False, "lost": "", "unused": "3 volumes"}


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f"{name}.nii" for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def recorded(images):
    scans = [SimpleNamespace(case=SimpleNamespace(patient=name), notes=NOTES) for name in ("p1", "p2")]
    return TrainingScans.of(scans, images)


def test_scans_patients_and_preparation_of_a_training_are_known_again_and_its_file_names_no_patient(images):
    record = recorded(images[:2])
    # A known file under another name, a known patient with another file, and neither.
    assert record.overlap([images[0], images[2], images[2]], ["other", "p2", "p3"]) == [0, 1]
    assert record.remarks == ("3 volumes",)
    assert record.differences(NOTES) == []
    assert record.differences(NOTES | {"tissue": "none"}) == ["tissue map: none (calibration scans: given)"]
    # Digests of names are those of one training.
    assert recorded(images[:2]) == record
    assert not set(recorded(images[1:]).patients) & set(record.patients)
    content = plain_record(record)
    assert TrainingScans.from_dict(content) == record
    assert "p1" not in str(content["patients"])
    # Nor does a quick digest of a guessed name, or that of another training.
    assert hashlib.sha256(b"p1").hexdigest() not in content["patients"]
    with pytest.raises(ValueError, match="unknown or missing"):
        TrainingScans.from_dict(content | {"names": []})
    # Files with plain digests are read.
    content["patients"] = [hashlib.sha256(name.encode()).hexdigest() for name in ("p1", "p2")]
    del content["salt"]
    assert TrainingScans.from_dict(content).overlap([images[2], images[2]], ["p2", "p3"]) == [0]


def test_lesions_are_listed_the_largest_first_in_world_coordinates():
    found = np.zeros((12, 12, 12), bool)
    found[1:3, 1:3, 1:3] = True
    found[6:10, 6:9, 6:9] = True
    scores = np.where(found, 0.5, 0).astype(np.float32)
    scores[7, 7, 7] = 0.9
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-10, 0, 5)
    table = lesions_of(found, scores, affine)
    assert table["n_voxels"].tolist() == [36, 8]
    assert table["number"].tolist() == [1, 2]
    np.testing.assert_allclose(table["volume_mL"], [0.288, 0.064])
    np.testing.assert_allclose(table.loc[0, ["x", "y", "z"]].astype(float), [5, 14, 19])
    assert table["score"].tolist() == pytest.approx([0.9, 0.5])
    np.testing.assert_allclose(np.pi / 6 * table["diameter_mm"] ** 3, 1000 * table["volume_mL"])
    assert lesions_of(np.zeros((3, 3, 3), bool), np.zeros((3, 3, 3)), affine).empty
