"""Tables of participants, read with every check before work starts."""

import gzip
import json
import warnings

import nibabel as nib
import numpy as np
import pytest

from dmrifit.cohort.participants_table import participant_rows, read_participants, simulations_of

SHAPE, AFFINE = (4, 5, 3), np.diag([2.0, 2, 5, 1])
B = [0, 500, 1000]
COLUMNS = ("patient", "cohort", "image", "mask", "lesion", "bval", "te", "synthetic")


def save(path, values, affine=AFFINE):
    nib.save(nib.Nifti1Image(values, affine), path)


@pytest.fixture
def folder(tmp_path):
    """Write three patients whose lesion is the first slice, and a mask of the other slices."""
    rng = np.random.default_rng(0)
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[0] = 1
    for name in "abc":
        save(tmp_path / f"{name}.nii", rng.uniform(50, 100, (*SHAPE, 3)).astype(np.float32))
        save(tmp_path / f"{name}_mask.nii", np.ones(SHAPE, np.uint8))
        save(tmp_path / f"{name}_lesion.nii", lesion)
    save(tmp_path / "rest.nii", 1 - lesion)
    (tmp_path / "protocol.bval").write_text("0 500 1000\n")
    return tmp_path


def row(name, **changes):
    files = {"image": f"{name}.nii", "mask": f"{name}_mask.nii", "lesion": f"{name}_lesion.nii"}
    return {"patient": name, "cohort": "one", **files, "bval": "protocol.bval", "te": "80", "synthetic": "no"} | changes


def table(folder, *rows, separator="\t", titles=None, columns=COLUMNS):
    path = folder / ("participants.csv" if separator == "," else "participants.tsv")
    lines = [[(titles or {}).get(name, name) for name in columns], *([cells[key] for key in columns] for cells in rows)]
    path.write_text("\n".join(separator.join(line) for line in lines) + "\n")
    return path


def test_scans_come_by_cohort_in_the_order_of_the_table(folder):
    path = table(folder, row("c"), row("a", cohort="two", synthetic="Yes"), row("b", te="n/a"))
    participants = read_participants(path)
    names = {cohort: [scan.patient for scan in scans] for cohort, scans in participants.scans.items()}
    assert names == {"one": ["c", "b"], "two": ["a"]}
    assert participants.skipped == participants.simulations == {}
    (c, b), (a,) = participants.scans.values()
    assert a.synthetic
    assert not b.synthetic
    assert c.protocol.b.tolist() == B
    assert c.protocol.te.tolist() == [80, 80, 80]
    assert b.protocol.te is None
    np.testing.assert_array_equal(a.signal, np.asarray(nib.load(folder / "a.nii").dataobj))
    np.testing.assert_array_equal(a.affine, AFFINE)
    assert a.lesion.sum() == 15
    assert a.mask.all()
    assert a.cohort == "two"


def read_one(folder, *rows, **options):
    """Read the scans of the cohort `one` of a table of these rows."""
    return read_participants(table(folder, *rows, **options)).scans["one"]


@pytest.mark.parametrize("separator", ["\t", ","])
@pytest.mark.parametrize("space", ["_", " "])
def test_columns_have_other_names_too(folder, separator, space):
    titles = {"patient": "participant_id", "mask": f"body{space}mask", "lesion": f"lesion{space}mask"}
    (scan,) = read_one(folder, row("a"), separator=separator, titles=titles)
    assert (scan.patient, scan.mask.all(), scan.lesion.sum()) == ("a", True, 15)


def test_rows_are_read_without_opening_the_files_that_they_name(tmp_path):
    rows = participant_rows(table(tmp_path, row("a"), row("b", te="n/a")))
    assert [(line, cells["image"], cells["te"]) for line, cells in rows] == [(2, "a.nii", "80"), (3, "b.nii", "")]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tsv: no such table"):
        participant_rows(tmp_path / "nowhere.tsv")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("YES", True), ("0", False), ("n/a", False)])
def test_truth_values_may_be_written_in_several_ways(folder, text, value):
    assert read_one(folder, row("a", synthetic=text))[0].synthetic is value


def test_echo_times_and_noise_levels_may_be_numbers_or_files(folder):
    (folder / "te.txt").write_text("60 60 90")
    assert read_one(folder, row("a", te="te.txt"))[0].protocol.te.tolist() == [60, 60, 90]
    save(folder / "sigma.nii", np.full(SHAPE, 2.5, np.float32))
    rows = row("a", sigma="3.5"), row("b", sigma="sigma.nii")
    number, image = read_one(folder, *rows, columns=(*COLUMNS, "sigma"))
    assert number.sigma == 3.5
    np.testing.assert_array_equal(image.sigma, np.full(SHAPE, 2.5))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row("a"), row("b", cohort="two", patient="a")], "rows 2 and 3: patient a is in cohort 'one' and in cohort 'two'"),
        ([row("a", participant_id="a")], "more than one column patient; keep one"),
        ([row("a"), row("a")], "row 3: image and masks are those of row 2, and would count twice"),
        ([row("a"), row("b", mask="rest.nii")], r"row 3 .*: no voxel of the lesion mask 'b_lesion.nii' is inside .* 'rest.nii'"),
        ([row("a", sigma="-1")], r"row 2 \(patient a\): sigma \(standard deviation of the noise\) must be"),
        ([row("a", te="93 ms")], r"row 2 \(patient a\): te '93 ms' is neither a number nor a file; paths are"),
    ],
)
def test_rows_that_contradict_each_other_or_their_files_are_refused(folder, rows, said):
    columns = [*COLUMNS, *(name for name in ("participant_id", "sigma") if name in rows[0])]
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read_participants(table(folder, *rows, columns=columns))


def test_patients_may_have_two_lesions_and_those_without_are_named_unless_another_scan_is_used(folder):
    assert [scan.patient for scan in read_one(folder, row("a"), row("a", lesion="rest.nii"))] == ["a", "a"]
    save(folder / "b_lesion.nii", np.zeros(SHAPE, np.uint8))
    path = table(folder, row("a"), row("b"), row("c"))
    with pytest.warns(UserWarning, match=r"row 3: patient b left out: the lesion mask b_lesion\.nii is empty"):
        participants = read_participants(path)
    assert [scan.patient for scan in participants.scans["one"]] == ["a", "c"]
    assert participants.skipped == {"one": {"b": "the lesion mask b_lesion.nii is empty"}}
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match="no usable patient"):
        read_participants(table(folder, row("b")))
    save(folder / "b_lesion.nii", np.zeros(SHAPE, np.uint8))
    path = table(folder, row("a"), row("b", patient="a"))
    with pytest.warns(UserWarning, match="row 3: one scan of patient a, of whom another is used, left out"):
        participants = read_participants(path)
    assert (len(participants.scans["one"]), participants.skipped) == (1, {})


def protocol_of(folder, b, te="80", **options):
    values = np.random.default_rng(0).uniform(50, 100, (*SHAPE, len(b))).astype(np.float32)
    save(folder / "a.nii", values)
    (folder / "protocol.bval").write_text(" ".join(map(str, b)))
    (folder / "te.txt").write_text(te)
    path = table(folder, row("a", te="te.txt" if " " in te else te))
    return read_participants(path, **options).scans["one"][0], values


@pytest.mark.parametrize("options", [{}, {"average": "geometric"}, {"average": "arithmetic"}, {"average": None}])
def test_repeats_are_averaged_as_asked(folder, options):
    scan, values = protocol_of(folder, [0, 500, 500, 1000], **options)
    means = {"arithmetic": values[..., 1:3].mean(axis=-1), None: values[..., 1]}
    expected = means.get(options.get("average", "geometric"), np.sqrt(values[..., 1] * values[..., 2]))
    assert scan.protocol.b.tolist() == ([0, 500, 500, 1000] if options == {"average": None} else [0, 500, 1000])
    np.testing.assert_allclose(scan.signal[..., 1], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="None, geometric, arithmetic, not 'median'"):
        protocol_of(folder, [0, 500, 500, 1000], average="median")


@pytest.mark.parametrize(
    ("b", "te", "n"),
    [([0, 500, 501, 1000], "80", 3), ([0, 500, 520, 1000], "80", 4), ([0, 500, 509, 1000], "80", 3),
     ([0, 500, 4, 503], "60 60 90 90", 4)],
)  # fmt: skip
def test_b_values_within_two_percent_at_one_echo_time_are_repeats(folder, b, te, n):
    assert len(protocol_of(folder, b, te=te)[0].protocol) == n


def test_repeats_without_echo_times_and_directions_are_doubted(folder):
    message = r"the 4 measurements of patient a have 3 b-values and no directions; .*give the column te"
    with pytest.warns(UserWarning, match=message):
        protocol_of(folder, [0, 500, 500, 1000], te="n/a")


@pytest.mark.parametrize(
    ("b", "told", "tolerance"),
    [([0, 5, 5, 10, 10, 1000, 1000], "0, 5, 10 s/mm² are averaged as one; if they differ .*b_tolerance=1.$", 1),
     ([0.2, 0.2, 1, 1, 2, 2, 500, 500], "0.2, 1, 2 s/mm² are averaged as one; if they differ .*b_tolerance=0.2.$", 0.1)],
)  # fmt: skip
def test_low_b_values_that_are_joined_are_told_and_kept_apart_on_request(folder, b, told, tolerance):
    with pytest.warns(UserWarning, match=f"row 2 .*b = {told}"):
        joined, _ = protocol_of(folder, b)
    assert len(joined.protocol) == 2
    apart, values = protocol_of(folder, b, b_tolerance=tolerance)
    np.testing.assert_allclose(apart.protocol.b, np.unique(b))
    np.testing.assert_allclose(apart.signal[..., -1], np.sqrt(values[..., -1] * values[..., -2]), rtol=1e-5)


TWENTY = [0.2, 0.5, 1, 2, 3, 5, 8, 10, 15, 20, 30, 40, 60, 80, 100, 200, 300, 400, 600, 800]


def test_twenty_low_b_values_are_twenty_contrasts(folder):
    scan, values = protocol_of(folder, TWENTY)
    assert scan.protocol.b.tolist() == TWENTY
    np.testing.assert_array_equal(scan.signal, values)
    source = scan.protocol.take(scan.protocol.clinical())
    assert source.b.tolist() == TWENTY[:5]
    assert source.indices_in(scan.protocol).tolist() == [0, 1, 2, 3, 4]


def sidecar(folder, fields):
    (folder / "participants.json").write_text(json.dumps(fields))


def test_simulations_are_those_of_cohorts_all_of_whose_scans_are_synthetic(folder):
    described = {"one": {"snr": 30}, "two": {"snr": 60}, "three": {"snr": 90}}
    sidecar(folder, {"cohort": {"Simulation": described}})
    path = table(folder, row("a", synthetic="yes"), row("b"), row("c", cohort="two", synthetic="yes"))
    assert read_participants(path).simulations == {"two": {"snr": 60}}
    assert simulations_of(path) == described


@pytest.mark.parametrize("fields", [None, {}, {"age": {"Units": "years"}}, {"cohort": {"Description": "x"}}])
def test_a_table_without_simulations_is_a_table(tmp_path, fields):
    if fields is not None:
        sidecar(tmp_path, fields)
    assert simulations_of(tmp_path / "participants.tsv") == {}


@pytest.mark.parametrize(
    "content",
    [
        *(b"[]", b'{"cohort": 3}', b'{"cohort": {"Simulation": 3}}', b'{"cohort": {"Simulation": {"a": 1}}}'),
        *(b"{", b"\xff\xfe{", b"[" * 100_000),
    ],
)
def test_a_sidecar_of_another_form_is_named(tmp_path, content):
    (tmp_path / "participants.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"participants\.json: not a sidecar of participants\.tsv .*repair or remove it"):
        simulations_of(tmp_path / "participants.tsv")


@pytest.mark.parametrize("kind", ["copy", "hard link", "soft link", "compressed", "other path"])
def test_one_image_under_two_patients_is_refused_whatever_its_name(folder, kind):
    original = folder / "a.nii"
    (folder / "sub").mkdir()
    image = {"compressed": folder / "x.nii.gz", "other path": folder / "sub" / ".." / "a.nii"}.get(kind, folder / "x.nii")
    if kind == "hard link":
        image.hardlink_to(original)
    elif kind == "soft link":
        image.symlink_to(original)
    elif kind != "other path":
        content = original.read_bytes()
        image.write_bytes(gzip.compress(content) if kind == "compressed" else content)
    path = table(folder, row("a"), row("c"), row("b", image=str(image)))
    with pytest.raises(ValueError, match="rows 2 and 4: patients a and b have the same image"):
        read_participants(path)


def test_images_that_differ_at_their_end_are_two(folder):
    for name, last in (("a", 1), ("b", 2)):
        values = np.ones((*SHAPE[:2], 6000, 3), np.float32)
        values[-1, -1, -1, -1] = last
        save(folder / f"{name}.nii", values)
        save(folder / f"{name}_mask.nii", np.ones(values.shape[:3], np.uint8))
    rows = [row(name, lesion="n/a") for name in "ab"]
    assert len(read_one(folder, *rows)) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [("a", "A"), ("a", "a "), ("a", "a\u00a0"), ("\u00e9", "e\u0301"), ("a b", "a  b"), ("ﬁ", "fi"), ("p1", "p\u200b1"),
     ("p1", "p1\u2060"), ("p1", "p1\ufe0f"), ("p1", "p01"), ("1", "1.0"), ("001", "1")],
)  # fmt: skip
def test_names_that_look_alike_are_refused(folder, first, second):
    path = table(folder, row("a", patient=first), row("c"), row("b", patient=second))
    with pytest.raises(ValueError, match=r"rows 2 and 4: patients .* differ only in case"):
        read_participants(path)


@pytest.mark.parametrize(("first", "second"), [("1", "10"), ("1.5", "1.05"), ("p0", "p"), ("a1", "a 1")])
def test_names_that_differ_are_two_patients(folder, first, second):
    path = table(folder, row("a", patient=first), row("b", patient=second))
    assert [cells["patient"] for _, cells in participant_rows(path)] == [first, second]


def test_a_misspelled_column_is_told(folder):
    columns = ("patient", "cohort", "image", "mask", "bval")
    for title in ("leson", "Lesion", "lesionn", "lesi0n", "TE", "body-mask"):
        path = table(folder, row("a") | {title: "x"}, columns=(*columns, title))
        with pytest.warns(UserWarning, match=f"column '{title}' is not read"):
            participant_rows(path)
    path = table(folder, row("a", age="61", tr="9"), columns=(*columns, "age", "tr"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert participant_rows(path)[0][1]["age"] == "61"
