"""Detectors of users' series."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from anomaly.detectors.aligned import AlignedMahalanobis
from anomaly.detectors.gaussian import OneMinusMean, VoxelwiseGaussian
from anomaly.detectors.thresholds import FixedThreshold, HealthyRateThreshold, HealthyScanThreshold
from anomaly.scans.cases import write_cases
from anomaly.scans.series import SeriesDetector, SeriesFiles, read_series
from anomaly.simulate.persons import simulate_dmri
from dmrifit.model_files.model_file import load_model, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Synthetic series as users have them: healthy ones and gliomas."""
    made = tmp_path_factory.mktemp("series")
    healthy, lesions = simulate_dmri(8, 2, n_directions=8, shape=(24, 28, 20), spacing=6.5, random_state=3)
    write_cases(healthy, made / "healthy")
    write_cases(lesions, made / "lesions")
    return made


@pytest.fixture(scope="module")
def healthy(folder):
    return read_series(folder / "healthy" / "cases.tsv")


@pytest.fixture(scope="module")
def sick(folder):
    return read_series(folder / "lesions" / "cases.tsv")


@pytest.fixture(scope="module")
def model(healthy):
    return SeriesDetector(VoxelwiseGaussian(side="low", calibration=2)).fit(healthy)


def test_a_series_of_files_comes_back_as_maps_on_its_own_grid(model, sick):
    detection = model.detect(sick[0])
    images = detection.images()
    grid = nib.load(sick[0].image)
    for image in images.values():
        assert image.shape == grid.shape[:3]
        np.testing.assert_allclose(image.affine, grid.affine)
    expected = model.detector_.anomaly_map([detection.scan.case.signal], [detection.scan.case.brain])[0]
    np.testing.assert_array_equal(np.asarray(images["map"].dataobj), expected)
    assert detection.threshold == model.detector_.threshold_.threshold_
    assert not (detection.found & ~detection.scan.case.scored).any()
    assert not (detection.opened & ~detection.found).any()
    np.testing.assert_array_equal(detection.found, (expected > detection.threshold) & detection.scan.case.scored)


def test_what_is_anomalous_is_scored_above_what_is_not(model, sick):
    from sklearn.metrics import roc_auc_score

    case = model.detect(sick[0])
    truth = case.scan.case.lesion[case.scan.case.scored]
    assert roc_auc_score(truth, case.map[case.scan.case.scored]) > 0.8


def test_a_model_file_prepares_and_finds_the_same(tmp_path, model, sick):
    save_model(model, tmp_path / "model.dmrifit")
    again = load_model(tmp_path / "model.dmrifit")
    for one in sick:
        before, now = model.detect(one), again.detect(one)
        np.testing.assert_array_equal(before.map, now.map)
        np.testing.assert_array_equal(before.found, now.found)
    np.testing.assert_array_equal(again.protocol_.b, model.protocol_.b)
    np.testing.assert_allclose(again.protocol_.directions, model.protocol_.directions, atol=1e-15)
    assert (again.shape_, again.edges_, again.synthetic_) == (model.shape_, model.edges_, True)
    assert again.get_params(deep=False).keys() == model.get_params(deep=False).keys()


def test_a_series_stored_in_another_orientation_is_found_the_same_in(tmp_path, model, sick):
    from nibabel.orientations import axcodes2ornt, ornt_transform

    from anomaly.scans.directions import directions_on_grid
    from dmrifit.engine.protocol import Protocol

    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt("PLS"))
    image = nib.load(sick[0].image)
    files = {}
    for role in ("image", "brain", "tissue"):
        turned = nib.load(getattr(sick[0], role)).as_reoriented(turn)
        files[role] = tmp_path / f"{role}.nii.gz"
        nib.save(turned, files[role])
    protocol = Protocol.read(sick[0].bval, bvec=sick[0].bvec)
    along = directions_on_grid(protocol.directions, image.affine)
    along = along @ directions_on_grid(np.eye(3), turned.affine).T
    np.savetxt(tmp_path / "image.bval", protocol.b[None])
    np.savetxt(tmp_path / "image.bvec", along.T)
    found = model.detect(SeriesFiles(**files))
    expected = model.detect(sick[0])
    np.testing.assert_array_equal(found.map, expected.map)
    assert nib.aff2axcodes(found.images()["map"].affine) == ("P", "L", "S")
    np.testing.assert_allclose(found.lesions[["x", "y", "z"]], expected.lesions[["x", "y", "z"]])


@pytest.mark.parametrize("axes", ["LAS", "RPS", "SAR"])
def test_powder_averages_of_any_storage_order_are_the_same_bits(tmp_path, healthy, sick, axes):
    from nibabel.orientations import axcodes2ornt, ornt_transform

    powder = SeriesDetector(VoxelwiseGaussian(calibration=2), directions="powder").fit(healthy[:4])
    assert (len(powder.protocol_), powder.detector_.n_channels_) == (1, 1)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    files = {}
    for role in ("image", "brain", "tissue"):
        files[role] = tmp_path / f"{role}.nii.gz"
        nib.save(nib.load(getattr(sick[0], role)).as_reoriented(turn), files[role])
    # No directions are needed, nor turned with the grid.
    turned = powder.detect(SeriesFiles(**files, bval=sick[0].bval))
    expected = powder.detect(sick[0])
    np.testing.assert_array_equal(turned.map, expected.map)
    assert expected.map[expected.scan.case.lesion].mean() > expected.map[expected.scan.case.scored].mean()


def test_scans_of_other_directions_are_resampled_where_they_are_detected(tmp_path, model):
    more, _ = simulate_dmri(1, 0, n_directions=12, shape=(24, 28, 20), spacing=6.5, random_state=3)
    write_cases(more, tmp_path)
    detection = model.detect(read_series(tmp_path / "cases.tsv")[0])
    assert "estimated from 12 other ones" in detection.scan.notes["lost"]
    assert detection.figures.share < 0.05


def test_other_voxels_are_resampled_to_those_that_were_learned_from(tmp_path, model, sick):
    from dmrifit.io.grids import resampled, scan_of

    image = nib.load(sick[0].image)
    values = np.asarray(image.dataobj)
    parts = [resampled(scan_of(values[..., i], image.affine), 4.0) for i in range(values.shape[3])]
    nib.save(nib.Nifti1Image(np.stack([p.get_fdata() for p in parts], -1), parts[0].affine), tmp_path / "fine.nii.gz")
    brain = resampled(scan_of(nib.load(sick[0].brain).get_fdata().astype(np.float32), image.affine), 4.0)
    mask = nib.Nifti1Image((brain.get_fdata() > 0.5).astype(np.uint8), brain.affine)
    nib.save(mask, tmp_path / "mask.nii.gz")
    fine = SeriesFiles(tmp_path / "fine.nii.gz", bval=sick[0].bval, bvec=sick[0].bvec, brain=tmp_path / "mask.nii.gz")
    found = model.detect(fine)
    assert found.images()["map"].shape == mask.shape
    inner = found.scan.case.brain & model.detect(sick[0]).scan.case.brain
    assert np.corrcoef(found.map[inner], model.detect(sick[0]).map[inner])[0, 1] > 0.8


def test_voxels_of_the_same_edges_in_another_order_are_others(tmp_path):
    settings = {"n_directions": 6, "shape": (20, 20, 20), "random_state": 1}
    write_cases(simulate_dmri(3, 0, spacing=(6, 6, 9), **settings)[0], tmp_path / "healthy")
    write_cases(simulate_dmri(0, 1, spacing=(9, 6, 6), **settings)[1], tmp_path / "other")
    detector = AlignedMahalanobis(smoothness=None, calibration=None)
    model = SeriesDetector(detector).fit(read_series(tmp_path / "healthy" / "cases.tsv"))
    # Lengths in mm are those along each axis.
    assert model.detector_.spacing == pytest.approx((6, 6, 9))
    with pytest.raises(ValueError, match="has voxels of 9 × 6 × 6 mm, and the model learned from 6 × 6 × 9 mm"):
        model.prepare(read_series(tmp_path / "other" / "cases.tsv")[0])


def test_scans_that_were_learned_from_are_alike(tmp_path, healthy, sick):
    with pytest.raises(ValueError, match="scans with a lesion: synthetic-glioma-001; detectors learn from"):
        SeriesDetector(VoxelwiseGaussian()).fit([*healthy, sick[0]])
    with pytest.raises(ValueError, match="there are no scans"):
        SeriesDetector(VoxelwiseGaussian()).fit([])
    with pytest.raises(ValueError, match="one subject"):
        SeriesDetector(VoxelwiseGaussian(calibration=2)).fit([healthy[0], healthy[0]])
    others, _ = simulate_dmri(1, 0, n_directions=8, shape=(26, 28, 20), spacing=6.5, random_state=4)
    write_cases(others, tmp_path / "size")
    with pytest.raises(ValueError, match="26 × 28 × 20 voxels, where synthetic-healthy-001 has 24 × 28 × 20; give a"):
        SeriesDetector(VoxelwiseGaussian()).fit([*healthy[:2], *_renamed(read_series(tmp_path / "size" / "cases.tsv"))])
    more, _ = simulate_dmri(1, 0, n_directions=12, shape=(24, 28, 20), spacing=6.5, random_state=4)
    write_cases(more, tmp_path / "directions")
    odd = _renamed(read_series(tmp_path / "directions" / "cases.tsv"))
    with pytest.raises(ValueError, match=r"other: .* has 12 directions, and the detector was fitted to 8"):
        SeriesDetector(VoxelwiseGaussian()).fit([*healthy[:2], *odd])
    resampled = SeriesDetector(VoxelwiseGaussian(calibration=None), directions="resampled").fit([*healthy[:2], *odd])
    assert len(resampled.protocol_) == 8
    coarse, _ = simulate_dmri(1, 0, n_directions=8, shape=(24, 28, 20), spacing=7, random_state=4)
    write_cases(coarse, tmp_path / "coarse")
    with pytest.raises(ValueError, match=r"voxels of 7 × 7 × 7 mm, where .* give a spacing"):
        SeriesDetector(VoxelwiseGaussian()).fit([*healthy[:2], *_renamed(read_series(tmp_path / "coarse/cases.tsv"))])


def test_a_lesion_put_into_real_tissue_is_scored_higher(data_dir):
    from sklearn.metrics import roc_auc_score

    from anomaly.detectors.gaussian import OneMinusMean
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
    above = [scan.map > scan.threshold for scan in scans]
    scored, fluid = (
        np.concatenate([found[part(scan.scan.case)] for found, scan in zip(above, scans, strict=True)]).mean()
        for part in (lambda case: case.scored, lambda case: case.tissue == 3)
    )
    assert scored == pytest.approx(0.01, abs=0.002)
    assert fluid > 0.1
    for scan, found in zip(scans, above, strict=True):
        np.testing.assert_array_equal(scan.found, found & scan.scan.case.scored)


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
    for role in ("image", "brain"):
        one = nib.load(getattr(healthy[0], role))
        nib.save(nib.Nifti1Image(np.asarray(one.dataobj), affine), tmp_path / f"{role}.nii.gz")
    moved = SeriesFiles(
        tmp_path / "image.nii.gz",
        patient="moved",
        bval=healthy[0].bval,
        bvec=healthy[0].bvec,
        brain=tmp_path / "brain.nii.gz",
    )
    with pytest.warns(UserWarning, match="field of view of moved lies 30 mm from that of the training scans"):
        model.detect(moved)
    with pytest.warns(UserWarning, match="lie up to 30 mm from each other"):
        SeriesDetector(VoxelwiseGaussian(calibration=None)).fit([*healthy[:3], moved])


def test_a_table_names_its_rows_in_errors(tmp_path, folder):
    table = tmp_path / "table.tsv"
    image = next((folder / "healthy").glob("*dwi.nii.gz"))
    table.write_text(f"patient\timage\nA\t{image}\nA\t{image}\n")
    with pytest.raises(ValueError, match=r"row 3 \(patient A\): row 2 has a scan of the name 'A' too"):
        read_series(table)
    table.write_text(f"patient\timage\tage\nA\t{image}\told\n")
    with pytest.raises(ValueError, match=r"row 2 .*age must be a number of years"):
        read_series(table)
    table.write_text("patient\timage\nA\tnone.nii.gz\n")
    with pytest.raises(FileNotFoundError, match=r"row 2 .*image 'none.nii.gz' does not exist"):
        read_series(table)


def test_files_that_are_no_model_are_refused(tmp_path, model):
    import json
    import zipfile

    save_model(model, tmp_path / "model.dmrifit")
    with zipfile.ZipFile(tmp_path / "model.dmrifit") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    content = json.loads(parts["model.json"])
    for change, message in (
        ({"detector": content["fitted"]["detector"] | {"class": "SignalToSignal"}}, "finds no anomalies"),
        ({"shape": [1, 2, 3]}, "takes .* voxels"),
        ({"edges": [1]}, "are invalid"),
        ({"more": 1}, "unknown or missing"),
    ):
        altered = content | {"fitted": content["fitted"] | change}
        with zipfile.ZipFile(tmp_path / "altered.dmrifit", "w") as archive:
            for name, part in (parts | {"model.json": json.dumps(altered).encode()}).items():
                archive.writestr(name, part)
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / "altered.dmrifit")


# Healthy scans of the threshold, and of another site ----------------------------------------------


def test_a_model_file_keeps_the_healthy_scans_of_its_threshold(tmp_path, model, healthy, sick):
    assert len(model.healthy_.scans) == len(healthy)
    shares = [scan.share for scan in model.healthy_.scans]
    assert np.mean(shares) == pytest.approx(0.01, abs=0.001)
    low, high = model.healthy_.spread
    assert low < model.detector_.threshold_.threshold_ < high
    save_model(model, tmp_path / "model.dmrifit")
    again = load_model(tmp_path / "model.dmrifit")
    assert again.healthy_ == model.healthy_
    detection = again.detect(sick[0])
    assert detection.differs is False
    assert detection.figures.share == pytest.approx(detection.found.sum() / detection.scan.case.scored.sum())
    assert detection.figures.n_components == len(detection.lesions)
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
    with pytest.raises(ValueError, match=r"not learned from: calibration=0\.5"):
        SeriesDetector(VoxelwiseGaussian(threshold=rule, calibration=4)).fit(healthy)
    # By default a quarter is held out for a guarantee, however few they are.
    with pytest.raises(ValueError, match="no guarantee at this level with 2 scans: "):
        SeriesDetector(AlignedMahalanobis(threshold=rule)).fit(healthy)
    half = VoxelwiseGaussian(threshold=rule, calibration=0.5)
    with pytest.raises(ValueError, match="no guarantee at this level with 2 scans: "):
        SeriesDetector(half).fit(healthy[:4])
    twice = [*healthy[:4], *(replace(one, patient=healthy[0].patient) for one in healthy[4:])]
    with pytest.raises(ValueError, match=r"several scans of .*; a guarantee needs one of each subject"):
        SeriesDetector(half).fit(twice)
    model = SeriesDetector(half).fit(healthy)
    assert len(model.healthy_.scans) == 4
    # The highest scan is above what the three others set, as one in four is on average.
    assert sum(scan.n_components > 0 for scan in model.healthy_.scans) == 1


def test_a_guarantee_says_where_it_does_not_hold(healthy, sick):
    half = VoxelwiseGaussian(threshold=HealthyScanThreshold(0.75), calibration=0.5)
    model = SeriesDetector(half).fit(healthy)
    for opening in (3, 5):
        assert model.detect(sick[0], opening=opening).no_guarantee == ""
    smaller, other, bare = (
        model.detect(sick[0], opening=2),
        model.detect(sick[0], threshold=3.0),
        model.detect(replace(sick[0], tissue=None)),
    )
    assert smaller.no_guarantee == "opening 2, it holds from 3 on"
    assert other.no_guarantee == "another threshold than the model's"
    assert bare.no_guarantee == "tissue map: none (calibration scans: given)"


def test_a_scan_is_judged_as_a_whole_by_the_threshold_of_the_model(model, sick):
    usual = model.detect(sick[0])
    changed = model.detect(sick[0], threshold=usual.threshold / 2, opening=1)
    assert changed.threshold == usual.threshold / 2
    assert changed.figures.share > usual.figures.share
    assert changed.figures.bulk == usual.figures.bulk
    assert len(changed.healthy.scans) == 8


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
    made = tmp_path_factory.mktemp("site")
    options = {"n_directions": 8, "shape": (24, 28, 20), "spacing": 6.5, "random_state": 3}
    write_cases(simulate_dmri(9, 0, skip=8, snr=11.0, **options)[0], made)
    return read_series(made / "cases.tsv")


def test_a_calibration_adjusts_the_threshold_to_another_site(tmp_path, healthy, other_site):
    detector = VoxelwiseGaussian(("mean", "spread"), distance="mahalanobis", calibration=4)
    model = SeriesDetector(detector).fit(healthy)
    new = other_site[5:]
    before = [model.detect(scan) for scan in new]
    assert np.mean([detection.figures.share for detection in before]) > 0.05
    assert all(detection.differs for detection in before)
    model.calibrate(other_site[:5])
    after = [model.detect(scan) for scan in new]
    assert np.mean([detection.figures.share for detection in after]) < 0.02
    assert not any(detection.differs for detection in after)
    assert len(model.healthy_.scans) == 5
    save_model(model, tmp_path / "adjusted.dmrifit")
    assert load_model(tmp_path / "adjusted.dmrifit").detect(new[0]).threshold == after[0].threshold


def test_a_calibration_takes_healthy_scans_of_several_subjects(healthy, sick, other_site):
    model = SeriesDetector(VoxelwiseGaussian(calibration=2)).fit(healthy[:4])
    with pytest.raises(ValueError, match="1 subject for the calibration; two healthy ones"):
        model.calibrate(other_site[:1])
    with pytest.raises(ValueError, match="scans with a lesion: synthetic-glioma-001; a calibration takes"):
        model.calibrate([other_site[0], sick[0]])
    known = "synthetic-healthy-002: the model was trained on this scan or patient"
    with pytest.raises(ValueError, match=known):
        model.calibrate([other_site[0], healthy[1]])
    # The same file under another name, and another scan of a patient.
    for scan in (_renamed(healthy[1:2])[0], replace(other_site[1], patient=healthy[0].patient)):
        with pytest.raises(ValueError, match="the model was trained on this scan or patient"):
            model.calibrate([other_site[0], scan])
    half = VoxelwiseGaussian(threshold=HealthyScanThreshold(0.75), calibration=0.5)
    guaranteed = SeriesDetector(half).fit(healthy)
    with pytest.raises(ValueError, match=r"3 scans for the calibration .* level 0\.75; 4 are needed"):
        guaranteed.calibrate(other_site[:3])
    assert "adjusted by a calibration" in guaranteed.calibrate(other_site[:4]).detect(sick[0]).no_guarantee
    fixed = SeriesDetector(VoxelwiseGaussian(threshold=FixedThreshold(2.0), calibration=2)).fit(healthy[:4])
    with pytest.raises(ValueError, match="does not come from healthy scans; leave the calibration out"):
        fixed.calibrate(other_site[:2])


def _renamed(series):
    return [replace(one, patient="other", name="other") for one in series]
