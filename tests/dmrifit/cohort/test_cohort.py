"""Cohorts: tables checked before work starts, files written and read back, tables of voxels that line up."""

import gzip

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit import (
    Cohort,
    PatientScale,
    Protocol,
    Scan,
    rank_contrasts_by_prediction,
    simulate_cohort,
)

SMALL = (16, 16, 3)


@pytest.fixture(scope="module")
def cohort():
    return simulate_cohort("cohort1", 3, shape=SMALL, random_state=1)


@pytest.fixture
def written(cohort, tmp_path):
    return cohort.write(tmp_path / "data")


def test_what_is_written_is_read_back(cohort, written):
    (name, back), *rest = Cohort.read(written).items()
    assert (name, rest) == ("cohort1", [])
    assert back.patients == cohort.patients
    assert back.synthetic
    for one, other in zip(cohort, back, strict=True):
        for name in ("signal", "mask", "lesion", "affine"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_array_equal(one.truth["K"], other.truth["K"])
        assert one.protocol == other.protocol
        assert other.sigma == pytest.approx(one.sigma, rel=1e-8)


def test_signals_without_noise_are_looked_up_like_the_table_of_voxels(cohort, written):
    table = cohort.arrays(scale=None)
    clean = cohort.noise_free_at(table.index, table.target)
    first = table.index[:, 0] == 0
    i, j, k = table.index[first][0, 1:]
    np.testing.assert_array_equal(clean[first][0], cohort.scans[0].noise_free[i, j, k])
    (again,) = Cohort.read(written).values()
    np.testing.assert_array_equal(again.noise_free_at(table.index, table.target), clean)
    assert again.has_noise_free
    region = Cohort.from_signals([[9, 8], [7, 6]], Protocol([0, 50]), ["A", "B"], noise_free=[[8, 7], [6, 5]])
    index = np.array([[1, 0, 0, 0], [0, 0, 0, 0]])
    assert region.noise_free_at(index, Protocol([50])).tolist() == [[5], [7]]
    unknown = Cohort.from_signals([[9, 8], [7, 6]], Protocol([0, 50]), ["A", "B"])
    assert repr(unknown).startswith("<cohort: 2 patients, ")
    assert "Cohort: 2 patients" in unknown._repr_html_()
    assert unknown.noise_free_at(index, Protocol([50])) is None
    with pytest.raises(ValueError, match="must have the shape of the signals"):
        Cohort.from_signals([[9, 8]], Protocol([0, 50]), ["A"], noise_free=[[9]])


def test_cohorts_written_to_one_folder_share_its_table_and_may_be_moved(written, tmp_path, monkeypatch):
    other = simulate_cohort("cohort2", 2, shape=SMALL, random_state=1)
    other.write(written.parent)
    cohorts = Cohort.read(written)
    assert {name: len(cohort) for name, cohort in cohorts.items()} == {"cohort1": 3, "cohort2": 2}
    with pytest.raises(ValueError, match="already has cohort2p01"):
        other.write(written.parent)
    monkeypatch.chdir(tmp_path)
    written.parent.rename("moved")
    assert len(Cohort.read("moved/participants.tsv")["cohort1"].scans[0].signal)


def test_scans_are_read_when_they_are_asked_for(written):
    scan = Cohort.read(written)["cohort1"].scans[0]
    np.testing.assert_array_equal(scan.affine, np.diag([3, 3, 6, 1]))
    image = next(written.parent.glob("sub-cohort1p01/dwi/*_dwi.nii.gz"))
    image.write_bytes(gzip.compress(b"no longer an image"))
    with pytest.raises(ValueError, match="cannot be read"):
        _ = scan.signal


def test_rows_of_a_voxel_table_are_the_same_voxels_and_drawn_whoever_else_is_there(cohort):
    table = cohort.arrays(mask="body", max_voxels=50, random_state=3)
    clinical = cohort.scans[0].protocol.clinical()
    assert table.X.shape == (150, 5)
    assert table.Y.shape == (150, 21)
    np.testing.assert_array_equal(table.X, table.Y[:, clinical])
    for row in (0, 70, 149):
        position, i, j, k = table.index[row]
        scan = cohort.scans[position]
        assert scan.patient == table.groups[row]
        assert scan.mask[i, j, k]
        np.testing.assert_allclose(table.Y[row] * table.scale[row], scan.signal[i, j, k], rtol=1e-12)
        np.testing.assert_allclose(table.sigma[row] * table.scale[row], scan.sigma, rtol=1e-12)
    alone = Cohort([cohort.scans[1]]).arrays(mask="body", max_voxels=20, random_state=4)
    together = cohort.arrays(mask="body", max_voxels=20, random_state=4)
    mine = together.groups == cohort.scans[1].patient
    np.testing.assert_array_equal(alone.index[:, 1:], together.index[mine, 1:])
    other = cohort.arrays(mask="body", max_voxels=20, random_state=5)
    assert not np.array_equal(together.index, other.index)


def test_the_scale_is_that_of_the_source_images_in_the_body_however_small_the_tumor(cohort):
    scan = cohort.scans[0]
    source = scan.protocol.take(scan.protocol.clinical())
    expected = np.percentile(scan.signal[scan.mask][:, 0].astype(float), 95)
    table = Cohort([scan]).arrays()
    np.testing.assert_allclose(table.scale, expected, rtol=1e-12)
    targets = scan.signal.copy()
    targets[..., 5:] *= 1000
    changed = scan_like(scan, signal=targets)
    np.testing.assert_array_equal(Cohort([changed]).arrays(source).X, table.X)
    np.testing.assert_array_equal(Cohort([scan]).arrays(scale=PatientScale()).X, table.X)
    assert Cohort([scan]).arrays(scale=None).X.max() == scan.signal[scan.lesion][:, :5].max()
    # A tumor of one voxel is a tumor.
    one = np.zeros(SMALL, bool)
    one[tuple(np.argwhere(scan.lesion)[0])] = True
    assert len(Cohort([scan_like(scan, lesion=one)]).arrays()) == 1


def test_patches_hold_the_neighbors_in_the_documented_order(cohort):
    table = cohort.arrays(mask="body", patch_shape=(3, 3, 1), max_voxels=30, random_state=0)
    neighbors = table.X.reshape(len(table), 9, 5)
    single = cohort.arrays(mask="body", max_voxels=30, random_state=0)
    np.testing.assert_array_equal(neighbors[:, 4], single.X)
    position, i, j, k = table.index[7]
    signal = cohort.scans[position].signal
    np.testing.assert_allclose(neighbors[7, 1] * table.scale[7], signal[i - 1, j, k, :5], rtol=1e-12)
    corner = np.ones(SMALL, bool)
    scan = Scan("p", cohort.scans[0].signal, cohort.scans[0].protocol, corner, np.eye(4))
    at_edge = Cohort([scan]).arrays(mask="body", patch_shape=(3, 3, 1)).X.reshape(-1, 9, 5)
    np.testing.assert_array_equal(at_edge[0, :3], at_edge[0, [4, 4, 4]])
    assert not np.array_equal(at_edge[0, 8], at_edge[0, 4])


def test_a_cohort_on_disk_knows_how_it_was_simulated(tmp_path):
    options = {"shape": SMALL, "random_state": 1, "template": "pelvis"}
    easy = simulate_cohort("cohort1", 2, difficulty="easy", snr=np.inf, artifacts=("shift",), **options)
    mixed = simulate_cohort("cohort2", 2, **options)
    easy.write(tmp_path)
    back = Cohort.read(mixed.write(tmp_path))
    assert back["cohort1"].simulation == easy.simulation
    assert back["cohort2"].simulation == mixed.simulation
    assert back["cohort2"].simulation["difficulty"] == "mixed"
    copy = back["cohort1"].write(tmp_path / "copy")
    assert Cohort.read(copy)["cohort1"].simulation == easy.simulation
    assert Cohort(easy.scans).simulation is None
    table = pd.read_csv(copy, sep="\t").assign(synthetic="no")
    table.to_csv(copy, sep="\t", index=False)
    assert Cohort.read(copy)["cohort1"].simulation is None
    table.assign(synthetic="yes").to_csv(copy, sep="\t", index=False)
    copy.with_suffix(".json").unlink()
    assert Cohort.read(copy)["cohort1"].simulation is None


@pytest.fixture
def directed(tmp_path):
    """A patient whose b = 1000 was measured along six directions, as a scanner writes it."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "directed"
    folder.mkdir()
    b = np.array([0, 995, 1000, 5, 1005, 990, 1000, 1000.0])
    directions = rng.standard_normal((3, 8))
    directions *= (b > 100) / np.linalg.norm(directions, axis=0)
    signal = (100 * np.exp(-b / 1000) * rng.uniform(0.8, 1.2, (4, 5, 3, 8))).astype(np.float32)
    affine = np.diag([2.0, 2, 2, 1])
    nib.save(nib.Nifti1Image(signal, affine), folder / "a.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 5, 3), np.uint8), affine), folder / "mask.nii.gz")
    np.savetxt(folder / "a.bval", b[None])
    np.savetxt(folder / "a.bvec", directions)
    table = folder / "patients.tsv"
    table.write_text(
        "patient\tcohort\timage\tbody_mask\tlesion_mask\tbval\tte\tbvec\n"
        "p1\treal\ta.nii.gz\tmask.nii.gz\tmask.nii.gz\ta.bval\t80\ta.bvec\n"
    )
    return table, signal


def test_directions_are_averaged_when_signals_are_asked_for_and_written_as_their_contrasts(directed, tmp_path):
    table, signal = directed
    scan = Cohort.read(table)["real"].scans[0]
    assert scan.protocol == Protocol([0, 1000], te=80)
    shell = [1, 2, 4, 5, 6, 7]
    np.testing.assert_allclose(scan.signal[..., 1], np.exp(np.log(signal[..., shell]).mean(axis=-1)), rtol=1e-6)
    np.testing.assert_allclose(scan.signal[..., 0] ** 2, signal[..., 0].astype(float) * signal[..., 3], rtol=1e-6)
    arithmetic = Cohort.read(table, average="arithmetic")["real"].scans[0]
    np.testing.assert_allclose(arithmetic.signal[..., 1], signal[..., shell].mean(axis=-1), rtol=1e-6)
    voxels = Cohort([scan]).arrays([0], [0, 1], scale=None)
    np.testing.assert_allclose(voxels.Y[7], scan.signal.reshape(-1, 2)[7])
    loaded = scan.loaded()
    np.testing.assert_array_equal(loaded.signal, scan.signal)
    assert loaded.protocol == scan.protocol
    scan = Cohort.read(directed[0])["real"].scans[0]
    back = Cohort.read(Cohort([scan], "real").write(tmp_path / "out"))["real"].scans[0]
    assert back.protocol == scan.protocol
    np.testing.assert_array_equal(back.signal, scan.signal)


def save_like(path, values, affine=None):
    loaded = nib.load(path)
    nib.save(nib.Nifti1Image(values, loaded.affine if affine is None else affine), path)


def scan_like(scan, **changes):
    parts = {name: getattr(scan, name) for name in ("signal", "protocol", "mask", "affine", "lesion")}
    return Scan("p9", **parts | changes)


def test_scaled_integers_are_read_as_their_values(cohort, written):
    path = next(written.parent.glob("sub-cohort1p01/dwi/*_dwi.nii.gz"))
    image = nib.Nifti1Image(cohort.scans[0].signal, nib.load(path).affine)
    image.set_data_dtype(np.int16)
    image.to_filename(path)  # nibabel chooses a slope
    stored = nib.load(path)
    assert stored.get_data_dtype() == np.int16
    assert stored.dataobj.slope != 1
    read = Cohort.read(written)["cohort1"].arrays()
    np.testing.assert_allclose(read.Y, cohort.arrays().Y, atol=2e-3)


def test_left_handed_images_have_the_same_voxels(cohort, written):
    flip = np.diag([-3.0, 3, 6, 1])
    flip[0, 3] = 45
    folder = written.parent / "sub-cohort1p01" / "dwi"
    # The signal alone: masks, noise and true maps stay as they are stored.
    (path,) = folder.glob("*_dwi.nii.gz")
    save_like(path, np.asarray(nib.load(path).dataobj)[::-1], flip)
    back = Cohort.read(written)["cohort1"].scans[0]
    assert np.linalg.det(back.affine) < 0
    np.testing.assert_array_equal(back.signal, cohort.scans[0].signal[::-1])
    for name in ("mask", "lesion", "noise_free"):
        np.testing.assert_allclose(getattr(back, name), getattr(cohort.scans[0], name)[::-1], rtol=1e-6)
    np.testing.assert_allclose(back.truth["K"], cohort.scans[0].truth["K"][::-1], rtol=1e-6)
    np.testing.assert_array_equal(
        np.sort(Cohort([back]).arrays().Y[:, 0]), np.sort(Cohort(cohort.scans[:1]).arrays().Y[:, 0])
    )


@pytest.fixture(scope="module")
def genu(data_dir):
    """Six real voxels of white matter, along many directions, as six patients."""
    table = pd.read_csv(data_dir / "isbi2015_wm_genu" / "genu_table.csv")
    table = table.assign(te=(1e3 * table.TE_s).round(3), b=table.b_s_per_mm2.round(-1))
    table = table[table.b <= 3000]
    protocol = Protocol(table.b, table.te, directions=table[["gx", "gy", "gz"]])
    one = np.ones((1, 1, 1))
    scans = [
        Scan(f"v{i}", table[f"vox{i}"].to_numpy()[None, None, None], protocol, one, np.eye(4), lesion=one,
             average="arithmetic")
        for i in range(1, 7)
    ]  # fmt: skip
    return Cohort(scans, "genu"), table


def test_real_directions_are_averaged_by_shell_and_contrasts_ranked(genu):
    cohort, table = genu
    expected = table.groupby(["te", "b"])[[f"vox{i}" for i in range(1, 7)]].mean()
    protocol = cohort.scans[0].protocol
    np.testing.assert_array_equal(protocol.te, expected.index.get_level_values("te"))
    np.testing.assert_array_equal(protocol.b, expected.index.get_level_values("b"))
    voxels = cohort.arrays(target=np.arange(len(protocol)), source=[0], scale=None)
    np.testing.assert_allclose(voxels.Y, expected.to_numpy().T)
    table = rank_contrasts_by_prediction(cohort, start=[0], n=2, train_mask="lesion", max_voxels=None)
    assert table["gain"].iloc[1] > 0
    assert table["error"].iloc[1] < table["error"].iloc[0]
