"""Cohorts written as files: what others have written stays, and every accepted name comes back."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit import Cohort, Protocol, Scan, simulate_cohort
from dmrifit.io.atomic_files import write_text

SMALL = (12, 12, 2)
MINE = {"Name": "My study", "Authors": ["A. Person"], "Funding": ["none"]}


@pytest.fixture(scope="module")
def cohort():
    return simulate_cohort("cohort1", 3, shape=SMALL, random_state=1)


def changed(scan, **values):
    """Make a scan like another."""
    arguments = {
        "patient": scan.patient, "signal": scan.signal, "protocol": scan.protocol, "mask": scan.mask,
        "affine": scan.affine, "lesion": scan.lesion, "cohort": scan.cohort, "sigma": scan.sigma,
        "truth": scan.truth, "synthetic": scan.synthetic,
    }  # fmt: skip
    return Scan(**{**arguments, **values})


@pytest.fixture
def users(cohort, tmp_path):
    """Make a data set of a user's own: other columns, another order of them, other names, further words."""
    Cohort(cohort.scans[:1], "cohort1").write(tmp_path)
    table = tmp_path / "participants.tsv"
    row = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False).iloc[0].to_dict()
    kept = {key: row[key] for key in ("cohort", "image", "bval", "te")}
    cells = {"participant_id": row["patient"], "age": "64", **kept, "body_mask": row["mask"], "sex": 'F "x"\u00e9'}
    text = "\ufeff" + "\t".join(cells) + "\r\n" + "\t".join(cells.values()) + "\r\n"
    table.write_bytes(text.encode())
    (tmp_path / "dataset_description.json").write_text(json.dumps(MINE))
    columns = {"age": {"Units": "year"}, "cohort": {"Description": "Scanner", "Levels": {"a": "b"}}}
    (tmp_path / "participants.json").write_text(json.dumps(columns))
    return table


def test_a_users_table_keeps_its_cells_columns_names_and_ends_of_lines(cohort, users):
    options = {"sep": "\t", "dtype": str, "keep_default_na": False}
    before = pd.read_csv(users, **options)
    Cohort(cohort.scans[1:], "cohort1").write(users.parent)
    text = users.read_bytes().decode()
    assert text.startswith("\ufeffparticipant_id")
    assert text.count("\r\n") == text.count("\n") == 4
    after = pd.read_csv(users, **options)
    added = ["lesion", "sigma", "truth", "noise_free", "synthetic"]
    assert list(after) == [*before, *added]
    pd.testing.assert_frame_equal(after.iloc[:1][[*before]], before)
    assert set(after.loc[0, added]) == {"n/a"}
    assert after.iloc[1:, :3].to_numpy().tolist() == [[f"cohort1p0{k}", "n/a", "cohort1"] for k in (2, 3)]
    assert Cohort.read(users)["cohort1"].patients == cohort.patients


def test_a_users_descriptions_keep_what_they_say(cohort, users):
    Cohort(cohort.scans[1:], "cohort1", simulation=cohort.simulation).write(users.parent)
    assert json.loads((users.parent / "dataset_description.json").read_text()) == MINE
    columns = json.loads(users.with_suffix(".json").read_text())
    assert columns["age"] == {"Units": "year"}
    assert columns["cohort"]["Description"] == "Scanner"
    assert columns["cohort"]["Levels"] == {"a": "b"}
    assert columns["cohort"]["Simulation"]["cohort1"] == cohort.simulation
    assert {"participant_id", "body_mask", "truth"} < set(columns)
    assert not {"patient", "mask", "bvec"} & set(columns)


def test_a_table_that_cannot_be_added_to_stays_as_it_is(cohort, tmp_path):
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tage\nsub-01\t5\n")
    with pytest.raises(ValueError, match=r"no column cohort, image.*write to another folder"):
        cohort.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["participants.tsv"]
    assert table.read_text() == "participant_id\tage\nsub-01\t5\n"


@pytest.mark.parametrize("described", [True, False])
def test_images_of_others_are_not_replaced(cohort, tmp_path, described):
    image = tmp_path / "sub-cohort1p02" / "dwi" / "sub-cohort1p02_dwi.nii.gz"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"mine")
    if described:
        (tmp_path / "dataset_description.json").write_text(json.dumps(MINE))
    for scans in (cohort.scans, cohort.scans[1:]):
        with pytest.raises(ValueError, match=r"already has sub-cohort1p02.*another folder"):
            Cohort(scans, "cohort1").write(tmp_path)
    Cohort(cohort.scans[:1], "cohort1").write(tmp_path)
    assert image.read_bytes() == b"mine"


def test_an_interrupted_run_can_be_repeated(cohort, tmp_path, monkeypatch):
    def stop_at_the_table(path, text):
        if path.suffix == ".tsv":
            raise KeyboardInterrupt
        write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr("dmrifit.cohort.bids_dataset.write_text", stop_at_the_table)
        with pytest.raises(KeyboardInterrupt):
            cohort.write(tmp_path)
    assert next(tmp_path.glob("sub-cohort1p03/dwi/*_dwi.nii.gz"))
    assert Cohort.read(cohort.write(tmp_path))["cohort1"].patients == cohort.patients


def test_a_data_set_says_how_much_of_it_is_synthetic(cohort, tmp_path):
    def name():
        return json.loads((tmp_path / "dataset_description.json").read_text())["Name"]

    Cohort([changed(cohort.scans[0], synthetic=False)], "cohort1").write(tmp_path)
    assert name() == "Patients"
    Cohort(cohort.scans[1:2], "cohort1").write(tmp_path)
    assert name() == "Patients, some of them synthetic (simulated)"
    cohort.write(tmp_path / "all")
    text = (tmp_path / "all" / "dataset_description.json").read_text()
    assert json.loads(text)["Name"] == "Synthetic patients (simulated; no person was scanned)"


@pytest.mark.parametrize("name", ['"q"', 'say "a"', "a,b", "d'é 3", "#1", '"open', "0012", "1e3", "True", "NULL"])
def test_accepted_names_come_back_equal(cohort, tmp_path, name):
    patient = f"{name} 1"
    for k, scan in enumerate(cohort.scans[:2]):
        mine = changed(scan, patient=name if k else patient, cohort=name, truth=None)
        table = Cohort([mine], "other").write(tmp_path)
    back = Cohort.read(table)
    assert list(back) == [name]
    assert back[name].patients == (patient, name)


@pytest.mark.parametrize("name", ["", " ", "n/a", "N/A", "nan", "a\tb", "a\nb", "a\rb", " a", "a ", "a\x00", "\ud800"])
@pytest.mark.parametrize("kind", ["patient", "cohort"])
def test_names_that_a_table_cannot_hold_are_refused_before_a_file_is_written(cohort, tmp_path, kind, name):
    scan = changed(cohort.scans[0], **{"cohort": "", kind: name})
    with pytest.raises(ValueError, match="name"):
        Cohort([cohort.scans[1], scan], name if kind == "cohort" else "c").write(tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"cohort": ""}], r"a name for each cohort.*Cohort\(scans, name\)"),
        ([{}, {"cohort": "other"}], "cohort1p01 is in cohort 'cohort1' and in cohort 'other'"),
        ([{"truth": {"S0": np.ones((12, 12, 2)), "ADC": np.ones((12, 12, 2))}}], r"S0, f, Dv.* not S0, ADC; .*truth=None"),
    ],
)
def test_cohorts_that_a_table_cannot_hold_are_refused_before_a_file_is_written(cohort, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Cohort([changed(cohort.scans[0], **change) for change in changes]).write(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_true_maps_come_back_under_their_names_and_on_their_grid_alone(cohort, tmp_path):
    scan = cohort.scans[0]
    table = Cohort([changed(scan, truth=dict(reversed(scan.truth.items())))]).write(tmp_path)
    back = Cohort.read(table)["cohort1"].scans[0].truth
    for name, values in scan.truth.items():
        np.testing.assert_array_equal(back[name], values)
    path = next(tmp_path.rglob("*truth*"))
    image = nib.load(path)
    for values, affine, message in (
        (image.get_fdata()[..., :2], image.affine, r"12 × 12 × 2 × 2 values; true maps are 7 volumes"),
        (image.get_fdata()[:6], image.affine, "different grids"),
        (image.get_fdata(), 2 * image.affine, "corners lie"),
    ):
        nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)
        with pytest.raises(ValueError, match=rf"row 2 .*truth_dwimap\.nii\.gz.*{message}"):
            Cohort.read(table)


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.float16, np.int16])
def test_numbers_of_every_type_are_written(cohort, tmp_path, kind):
    scan = cohort.scans[0]
    signal = np.round(scan.signal).astype(kind)
    back = Cohort.read(Cohort([changed(scan, signal=signal)]).write(tmp_path))["cohort1"].scans[0]
    np.testing.assert_array_equal(back.signal, signal.astype(float))


def test_further_patients_of_a_simulated_cohort_are_those_of_the_same_simulation(cohort, tmp_path):
    def part(scans, **other):
        patients = {scan.patient: cohort.simulation["patients"][scan.patient] for scan in scans}
        return Cohort(scans, "cohort1", simulation={**cohort.simulation, "patients": patients, **other})

    part(cohort.scans[:1]).write(tmp_path)
    table = part(cohort.scans[1:2]).write(tmp_path)
    told = Cohort.read(table)["cohort1"].simulation
    assert set(told["patients"]) == {"cohort1p01", "cohort1p02"}
    values = {"gain": np.float32(0.25), "field": np.int64(3), "shape": (1, 2), "nested": {1: np.bool_(True)}}
    plain = Cohort(cohort.scans, simulation=values).simulation
    assert plain == {"gain": 0.25, "field": 3, "shape": [1, 2], "nested": {"1": True}}
    assert json.loads(json.dumps(plain)) == plain
    assert told["seed"] == 1
    with pytest.raises(ValueError, match=r"'cohort1' .* simulated with another seed \(1, now 2\)"):
        part(cohort.scans[2:], seed=2).write(tmp_path)
    assert not (tmp_path / "sub-cohort1p03").exists()


def test_b_values_that_nearly_agree_are_told_how_to_be_joined(cohort, tmp_path):
    table = cohort.write(tmp_path)
    bval = next(tmp_path.glob("sub-cohort1p02/dwi/*.bval"))
    bval.write_text(bval.read_text().replace("900", "895"))
    with pytest.raises(ValueError, match=r"cohort1p02 .*lacks S_b900.*b_tolerance=5"):
        Cohort.read(table)["cohort1"].arrays()
    assert len(Cohort.read(table, b_tolerance=5)["cohort1"].arrays())
    with pytest.raises(ValueError, match="lacks S_b700") as error:
        Protocol([0, 700]).indices_in(Protocol([0, 900]))
    assert "b_tolerance" not in str(error.value)
