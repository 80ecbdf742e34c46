"""Detectors of users' series."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from model_archives import parts_of, write
from nibabel.orientations import axcodes2ornt, ornt_transform
from sklearn.metrics import roc_auc_score

from anomaly.detectors.aligned import AlignedMahalanobis
from anomaly.detectors.gaussian import OneMinusMean, VoxelwiseGaussian
from anomaly.detectors.thresholds import (
    FixedThreshold,
    HealthyRateThreshold,
    HealthyScanThreshold,
    open_map,
)
from anomaly.scans.cases import write_cases
from anomaly.scans.series import SeriesDetector, SeriesFiles, model_in_words, read_series
from anomaly.simulate.persons import simulate_dmri
from dmrifit.model_files.model_file import load_model, save_model

SMALL = {"n_directions": 8, "shape": (24, 28, 20), "spacing": 6.5}


def simulated(folder, n_healthy, n_lesions=0, **options):
    """Give synthetic series as users have them, in files: healthy ones or gliomas."""
    groups = simulate_dmri(n_healthy, n_lesions, **SMALL | {"random_state": 3} | options)
    write_cases([case for group in groups for case in group], folder)
    return read_series(folder / "cases.tsv")


def renamed(series, name="other"):
    return [replace(one, patient=name, name=name) for one in series]


def turned(series, folder, axes):
    """Store the images of a series in another order of the axes."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    files = {role: folder / f"{role}.nii.gz" for role in ("image", "brain", "tissue")}
    for role, path in files.items():
        nib.save(nib.load(getattr(series, role)).as_reoriented(turn), path)
    return files


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("healthy"), 8)


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("lesions"), 0, 2)


@pytest.fixture(scope="module")
def model(healthy):
    return SeriesDetector(VoxelwiseGaussian(side="low", calibration=2)).fit(healthy)


def test_a_series_of_files_comes_back_as_maps_on_its_own_grid_in_another_orientation_too(model, sick, tmp_path):
    detection = model.detect(sick[0])
    np.testing.assert_allclose(detection.images()["map"].affine, nib.load(sick[0].image).affine)
    assert "array" not in repr(detection)
    expected = model.detector_.anomaly_map([detection.scan.case.signal], [detection.scan.case.brain])[0]
    np.testing.assert_array_equal(np.asarray(detection.images()["map"].dataobj), expected)
    scored = detection.scan.case.scored
    np.testing.assert_array_equal(detection.found, (expected > detection.threshold) & scored)
    assert roc_auc_score(detection.scan.case.lesion[scored], detection.map[scored]) > 0.8
    from anomaly.scans.directions import directions_on_grid
    from dmrifit.engine.protocol import Protocol

    files = turned(sick[0], tmp_path, "PLS")
    protocol = Protocol.read(sick[0].bval, bvec=sick[0].bvec)
    along = directions_on_grid(protocol.directions, nib.load(sick[0].image).affine)
    along = along @ directions_on_grid(np.eye(3), nib.load(files["image"]).affine).T
    np.savetxt(tmp_path / "image.bval", protocol.b[None])
    np.savetxt(tmp_path / "image.bvec", along.T)
    found = model.detect(SeriesFiles(**files))
    np.testing.assert_array_equal(found.map, detection.map)
    assert nib.aff2axcodes(found.images()["map"].affine) == ("P", "L", "S")
    np.testing.assert_allclose(found.lesions[["x", "y", "z"]], detection.lesions[["x", "y", "z"]])
    assert model.detect(str(sick[0].image)).scan.notes["brain"] == "found"


@pytest.mark.parametrize("axes", ["LAS", "RPS", "SAR"])
def test_powder_averages_of_any_storage_order_are_the_same_bits(tmp_path, healthy, sick, axes):
    powder = SeriesDetector(VoxelwiseGaussian(calibration=2), directions="powder").fit(healthy[:4])
    assert (len(powder.protocol_), powder.detector_.n_channels_) == (1, 1)
    # No directions are needed, nor turned with the grid.
    found = powder.detect(SeriesFiles(**turned(sick[0], tmp_path, axes), bval=sick[0].bval))
    expected = powder.detect(sick[0])
    np.testing.assert_array_equal(found.map, expected.map)
    assert expected.map[expected.scan.case.lesion].mean() > expected.map[expected.scan.case.scored].mean()


def test_other_voxels_and_directions_are_resampled_to_those_that_were_learned_from(tmp_path, model, sick):
    from dmrifit.io.grids import Volume

    image = nib.load(sick[0].image)
    values = np.asarray(image.dataobj)
    parts = [Volume.of(values[..., i], image.affine).resampled(4.0) for i in range(values.shape[3])]
    nib.save(nib.Nifti1Image(np.stack([p.get_fdata() for p in parts], -1), parts[0].affine), tmp_path / "fine.nii.gz")
    brain = Volume.of(nib.load(sick[0].brain).get_fdata().astype(np.float32), image.affine).resampled(4.0)
    mask = nib.Nifti1Image((brain.get_fdata() > 0.5).astype(np.uint8), brain.affine)
    nib.save(mask, tmp_path / "mask.nii.gz")
    fine = SeriesFiles(tmp_path / "fine.nii.gz", bval=sick[0].bval, bvec=sick[0].bvec, brain=tmp_path / "mask.nii.gz")
    found = model.detect(fine)
    assert found.images()["map"].shape == mask.shape
    inner = found.scan.case.brain & model.detect(sick[0]).scan.case.brain
    assert np.corrcoef(found.map[inner], model.detect(sick[0]).map[inner])[0, 1] > 0.8
    detection = model.detect(simulated(tmp_path, 1, n_directions=12)[0])
    assert "estimated from 12 other ones" in detection.scan.notes["lost"]
    assert detection.figures.share < 0.05


def test_voxels_of_the_same_edges_in_another_order_are_others(tmp_path):
    settings = {"n_directions": 6, "shape": (20, 20, 20)}
    detector = AlignedMahalanobis(smoothness=None, calibration=None)
    model = SeriesDetector(detector).fit(simulated(tmp_path / "healthy", 3, spacing=(6, 6, 9), **settings))
    # Lengths in mm are those along each axis.
    assert model.detector_.spacing == pytest.approx((6, 6, 9))
    with pytest.raises(ValueError, match="has voxels of 9 × 6 × 6 mm, and the model learned from 6 × 6 × 9 mm"):
        model.prepare(simulated(tmp_path / "other", 0, 1, spacing=(9, 6, 6), **settings)[0])


def test_scans_that_were_learned_from_are_alike(tmp_path, healthy, sick):
    changes = ({"shape": (26, 28, 20)}, {"n_directions": 12}, {"spacing": 7})
    odd = [renamed(simulated(tmp_path / str(i), 1, **change)) for i, change in enumerate(changes)]
    for scans, message in (
        ([*healthy, sick[0]], "scans with a lesion: synthetic-glioma-001; detectors learn from"),
        ([], "there are no scans"),
        ([healthy[0]] * 2, "one subject"),
        ([*healthy[:2], *renamed(healthy[:1])], "synthetic-healthy-001 and other are the same file and would count twice"),
        ([*healthy[:2], *odd[0]], "26 × 28 × 20 voxels, where synthetic-healthy-001 has 24 × 28 × 20; give a"),
        ([*healthy[:2], *odd[1]], r"other: .* has 12 directions, and the detector was fitted to 8"),
        ([*healthy[:2], *odd[2]], r"voxels of 7 × 7 × 7 mm, where .* give a spacing"),
    ):
        with pytest.raises(ValueError, match=message):
            SeriesDetector(VoxelwiseGaussian()).fit(scans)
    resampled = SeriesDetector(VoxelwiseGaussian(calibration=None), directions="resampled")
    assert len(resampled.fit([*healthy[:2], *odd[1]]).protocol_) == 8


def test_a_lesion_put_into_real_tissue_is_scored_higher(data_dir):
    from anomaly.study.evaluation import evaluate_detectors

    series = SeriesFiles(data_dir / "dipy_small_dwi" / "small_64D.nii")
    case = series.prepare(mask=False, tissue=True, shape=(12, 12, 12)).case
    sick, where = case.signal.copy(), np.zeros(case.shape, bool)
    where[3:8, 3:8, 3:8] = True
    where &= case.scored
    sick[where] **= 2  # twice the diffusivity
    detector = OneMinusMean(smooth_mm=0.0, calibration=None).fit([case.signal] * 2, [case.brain] * 2, groups=[0, 1])
    healthy_map, sick_map = detector.anomaly_map([case.signal, sick], [case.brain] * 2)
    inside = case.scored
    before, after = (roc_auc_score(where[inside], scores[inside]) for scores in (healthy_map, sick_map))
    assert after > max(0.8, before + 0.2)
    tables = evaluate_detectors([replace(case, signal=sick, lesion=where)], {"mean": [sick_map]})
    own = tables["summary"].query("method == 'mean' and part == 'all'")
    np.testing.assert_allclose(own["auc"], after)


def test_the_threshold_counts_what_is_scored_and_not_fluid(healthy):
    model = SeriesDetector(OneMinusMean(calibration=2)).fit(healthy)
    scans = [model.detect(one) for one in healthy]
    scored = np.concatenate([(scan.map > scan.threshold)[scan.scan.case.scored] for scan in scans]).mean()
    fluid = np.concatenate([(scan.map > scan.threshold)[scan.scan.case.tissue == 3] for scan in scans]).mean()
    assert scored == pytest.approx(0.01, abs=0.002)
    assert fluid > 0.1


def test_covariates_are_taken_from_the_table(healthy, sick):
    plain = SeriesDetector(VoxelwiseGaussian(calibration=None)).fit(healthy)
    aged = SeriesDetector(VoxelwiseGaussian(calibration=None), covariates=("age", "sex")).fit(healthy)
    assert aged.detector_.coefficients_.shape[1] > plain.detector_.coefficients_.shape[1] == 1
    with pytest.raises(ValueError, match="no threshold"):
        aged.detect(sick[0])
    with pytest.raises(ValueError, match="covariates must be one of age, sex, site, not 'weight'"):
        SeriesDetector(VoxelwiseGaussian(), covariates=("weight",)).fit(healthy)


def test_fields_of_view_that_do_not_lie_on_each_other_are_told(tmp_path, model, healthy):
    image = nib.load(healthy[0].image)
    affine = image.affine.copy()
    affine[2, 3] += 30
    files = {role: tmp_path / f"{role}.nii.gz" for role in ("image", "brain")}
    for role, path in files.items():
        nib.save(nib.Nifti1Image(np.asarray(nib.load(getattr(healthy[0], role)).dataobj), affine), path)
    moved = replace(healthy[0], patient="moved", name="moved", tissue=None, **files)
    with pytest.warns(UserWarning, match="moved: the field of view lies 30 mm from that of the training"):
        assert "the field of view lies 30 mm" in "; ".join(model.detect(moved).flags)
    with pytest.warns(UserWarning, match="lie up to 30 mm from each other"):
        SeriesDetector(VoxelwiseGaussian(calibration=None)).fit([*healthy[:3], moved])


def test_files_that_are_no_model_are_refused(tmp_path, model):
    save_model(model, tmp_path / "model.dmrifit")
    parts = parts_of(tmp_path / "model.dmrifit")
    content = json.loads(parts["model.json"])
    detector = content["fitted"]["detector"]
    for change, message in (
        ({"detector": detector | {"class": "SignalToSignal"}}, "unknown class 'SignalToSignal'; import the module"),
        ({"detector": detector | {"more": 1}}, "finds no anomalies"),
        ({"detector": detector | {"parameters": {"color": 3}}}, "unknown or missing parameter of VoxelwiseGaussian"),
        ({"shape": [1, 2, 3]}, "takes .* voxels"),
        ({"edges": [1]}, "are invalid"),
        ({"more": 1}, "unknown or missing"),
    ):
        altered = content | {"fitted": content["fitted"] | change}
        write(tmp_path / "altered.dmrifit", parts | {"model.json": json.dumps(altered).encode()})
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / "altered.dmrifit")


def test_a_model_file_finds_the_same_and_keeps_the_healthy_scans_of_its_threshold(tmp_path, model, healthy, sick):
    assert np.mean([scan.share for scan in model.healthy_.scans]) == pytest.approx(0.01, abs=0.001)
    low, high = model.healthy_.spread
    assert low < model.detector_.threshold_.threshold_ < high
    save_model(model, tmp_path / "model.dmrifit")
    again = load_model(tmp_path / "model.dmrifit")
    assert again.healthy_ == model.healthy_
    assert len(again.healthy_.scans) == len(healthy)
    np.testing.assert_array_equal(again.protocol_.b, model.protocol_.b)
    np.testing.assert_allclose(again.protocol_.directions, model.protocol_.directions, atol=1e-15)
    assert (again.shape_, again.edges_, again.synthetic_) == (model.shape_, model.edges_, True)
    assert again.get_params(deep=False).keys() == model.get_params(deep=False).keys()
    expected, usual = model.detect(sick[0]), again.detect(sick[0])
    np.testing.assert_array_equal(usual.map, expected.map)
    np.testing.assert_array_equal(usual.found, expected.found)
    assert usual.differs is False
    assert "trained or calibrated on this scan" in again.detect(healthy[0]).notes[0]
    assert usual.figures.share == pytest.approx(usual.found.sum() / usual.scan.case.scored.sum())
    assert usual.figures.n_components == len(usual.lesions)
    # A scan is judged as a whole by the threshold and the opening of the model.
    changed = again.detect(sick[0], threshold=usual.threshold / 2)
    assert changed.figures.share > usual.figures.share
    for detection in (changed, again.detect(sick[0], opening=1)):
        assert (detection.figures.bulk, detection.figures.noise) == (usual.figures.bulk, usual.figures.noise)
    assert SeriesDetector(VoxelwiseGaussian(calibration=None)).fit(healthy[:3]).healthy_ is None


def test_a_model_file_of_before_has_no_healthy_scans_and_judges_no_scan(model, healthy, sick):
    _, fitted, files = model.stored()
    del fitted["healthy"], fitted["training"]
    again = SeriesDetector()
    again.restore(fitted, files)
    assert again.healthy_ is None
    assert again.detect(sick[0]).differs is None
    assert again.detect(sick[0]).healthy_per_scan is None
    with pytest.warns(UserWarning, match="is among the calibration scans could not be checked"):
        again.calibrate(healthy[:3])


def test_a_guarantee_needs_scans_that_were_not_learned_from(healthy):
    rule = HealthyScanThreshold(0.75)
    half = VoxelwiseGaussian(threshold=rule, calibration=0.5)
    twice = [*healthy[:4], *(replace(one, patient=healthy[0].patient) for one in healthy[4:])]
    for detector, scans, message in (
        (VoxelwiseGaussian(threshold=rule, calibration=4), healthy, r"not learned from: calibration=0\.5"),
        # By default a quarter is held out for a guarantee, however few they are.
        (AlignedMahalanobis(threshold=rule), healthy, "no guarantee at this level with 2 scans: "),
        (half, healthy[:4], "no guarantee at this level with 2 scans: "),
        (VoxelwiseGaussian(threshold=rule, calibration=0.9), healthy[:3], "no guarantee at this level with 2 scans: "),
        (half, twice, r"several scans of .*; a guarantee needs one of each subject"),
    ):
        with pytest.raises(ValueError, match=message):
            SeriesDetector(detector).fit(scans)
    model = SeriesDetector(half).fit(healthy)
    assert len(model.healthy_.scans) == 4
    # The highest scan is above what the three others set, as one in four is on average.
    assert sum(scan.n_components > 0 for scan in model.healthy_.scans) == 1


def test_a_guarantee_says_where_it_does_not_hold(healthy, sick):
    model = SeriesDetector(VoxelwiseGaussian(threshold=HealthyScanThreshold(0.75), calibration=0.5)).fit(healthy)
    for opening in (3, 5):
        assert model.detect(sick[0], opening=opening).no_guarantee == ""
    assert "guaranteed at level 0.75 for healthy scans, unless a note says why not" in model_in_words(sick[0].image, model)
    bare = replace(sick[0], tissue=None)
    assert model.detect(sick[0], opening=2).no_guarantee == "opening 2, it holds from 3 on"
    assert model.detect(sick[0], threshold=3.0).no_guarantee == "another threshold than the model's"
    assert model.detect(bare).no_guarantee == "tissue map: none (calibration scans: given)"
    # A brain mask given as a tissue map leaves no fluid out either.
    masked = model.detect(replace(sick[0], tissue=sick[0].brain))
    assert [masked.counts_fluid, model.detect(bare).counts_fluid] == [True, True]
    assert masked.no_guarantee == "tissue map: a map of one tissue (calibration scans: given)"
    # A guarantee of voxels holds for any opening; a model file of before says nothing of tissue maps.
    model.detector_.threshold_.counted, model.training_ = "voxels", None
    assert model.detect(bare, opening=2).no_guarantee == ""


def test_a_smallest_lesion_sets_the_opening_of_model_guarantee_and_scans(tmp_path, healthy, sick):
    half = VoxelwiseGaussian(threshold=HealthyScanThreshold(0.75), calibration=0.5)
    model = SeriesDetector(half, smallest_lesion=3.0).fit(healthy)
    save_model(model, tmp_path / "model.dmrifit")
    again = load_model(tmp_path / "model.dmrifit")
    edge = (3000 * 6 / np.pi) ** (1 / 3) / np.linalg.norm(model.edges_)
    assert again.opening_ == model.opening_ == model.detector_.threshold_.opening == int(edge) < 3
    found = again.detect(sick[0])
    np.testing.assert_array_equal(found.opened, open_map(found.found, again.opening_))
    assert (found.opening, found.no_guarantee, found.too_small) == (again.opening_, "", "")
    assert found.healthy_per_scan == np.mean([scan.n_components for scan in model.healthy_.scans])
    # Where no anomaly fits in, none found says nothing.
    assert "no cube of 30 voxels" in again.detect(sick[0], opening=30).too_small
    with pytest.raises(ValueError, match="smallest lesion must have a volume above 0 mL, not 0"):
        SeriesDetector(half, smallest_lesion=0).fit(healthy)


def test_healthy_scans_are_counted_above_the_threshold_of_the_others(healthy):
    half = VoxelwiseGaussian(calibration=0.25)
    scans = SeriesDetector(half).fit(healthy).healthy_
    assert scans.left_out
    # Two scans that set one threshold together would have 1 % on average.
    assert np.mean([scan.share for scan in scans.scans]) != pytest.approx(0.01, abs=1e-4)
    one = SeriesDetector(half).fit(healthy[:3]).healthy_
    assert len(one.scans) == 1
    assert not one.left_out


def test_anomalies_of_a_healthy_scan_are_those_that_the_model_tells_of_others(tmp_path, healthy, sick):
    rule = VoxelwiseGaussian(threshold=HealthyRateThreshold(0.15), calibration=0.25)
    model = SeriesDetector(rule).fit(healthy[:3])
    (held_out,) = model.healthy_.scans
    # The threshold lies just where the scan that was held out reaches its rate.
    counts = {scan.figures.share: len(scan.lesions) for scan in map(model.detect, healthy[:3])}
    assert counts[held_out.share] > 0
    save_model(model, tmp_path / "model.dmrifit")
    again = load_model(tmp_path / "model.dmrifit")
    usual = again.detect(sick[0])
    assert usual.healthy_per_scan == counts[held_out.share]
    # Healthy scans were counted at one threshold and opening.
    assert again.detect(sick[0], threshold=usual.threshold / 2).healthy_per_scan is None
    assert again.detect(sick[0], opening=1).healthy_per_scan is None


@pytest.fixture(scope="module")
def other_site(tmp_path_factory):
    """Give healthy scans of a site with twice the noise."""
    return simulated(tmp_path_factory.mktemp("site"), 9, skip=8, snr=11.0)


def test_a_calibration_adjusts_the_threshold_to_another_site(tmp_path, healthy, other_site):
    detector = VoxelwiseGaussian(("mean", "spread"), distance="mahalanobis", calibration=4)
    model = SeriesDetector(detector).fit(healthy)
    new = other_site[5:]
    before = [model.detect(scan) for scan in new]
    assert np.mean([detection.figures.share for detection in before]) > 0.05
    assert all(detection.differs for detection in before)
    # Two of the five scans are of one subject, and are left out together.
    subjects = [other_site[0], replace(other_site[1], patient=other_site[0].patient), *other_site[2:5]]
    scores = [scan.map[scan.scan.case.scored] for scan in map(model.detect, other_site[:5])]
    rests = (scores[2:], *([*scores[:i], *scores[i + 1 :]] for i in (2, 3, 4)))
    highest = max(np.quantile(np.concatenate(rest), 0.99) for rest in rests)
    model.calibrate(subjects)
    after = [model.detect(scan) for scan in new]
    assert np.mean([detection.figures.share for detection in after]) < 0.02
    assert not any(detection.differs for detection in after)
    assert after[0].threshold == pytest.approx(highest, rel=1e-3)
    assert len(model.healthy_.scans) == 5
    save_model(model, tmp_path / "adjusted.dmrifit")
    assert load_model(tmp_path / "adjusted.dmrifit").detect(new[0]).threshold == after[0].threshold


def test_a_calibration_takes_healthy_scans_of_several_subjects(healthy, sick, other_site):
    model = SeriesDetector(VoxelwiseGaussian(calibration=2)).fit(healthy[:4])
    guaranteed = SeriesDetector(VoxelwiseGaussian(threshold=HealthyScanThreshold(0.75), calibration=0.5)).fit(healthy)
    fixed = SeriesDetector(VoxelwiseGaussian(threshold=FixedThreshold(2.0), calibration=2)).fit(healthy[:4])
    known = "the model was trained on this scan or patient"
    for detector, scans, message in (
        (model, other_site[:1], "1 subject for the calibration; two healthy ones"),
        (model, [other_site[0], sick[0]], "scans with a lesion: synthetic-glioma-001; a calibration takes"),
        (model, [other_site[0], healthy[1]], f"synthetic-healthy-002: {known}"),
        # The same file under another name, and another scan of a patient.
        (model, [other_site[0], *renamed(healthy[1:2])], known),
        (model, [other_site[0], replace(other_site[1], patient=healthy[0].patient)], known),
        (guaranteed, [*other_site[:4], *renamed(other_site[:1], other_site[1].patient)], "one of each subject"),
        (guaranteed, other_site[:3], r"3 scans for the calibration .* level 0\.75; 4 are needed"),
        (fixed, other_site[:2], "does not come from healthy scans; leave the calibration out"),
    ):
        with pytest.raises(ValueError, match=message):
            detector.calibrate(scans)
    assert "adjusted by a calibration" in guaranteed.calibrate(other_site[:4]).detect(sick[0]).no_guarantee
