"""Small tables that users write, and tables of results."""

import csv
import io

import numpy as np
import pandas as pd
import pytest

from dmrifit.io.tables import csv_text, named_file, read_rows, read_texts, table_text, table_with


def test_rows_come_with_their_lines_and_columns_of_another_name_are_understood(tmp_path):
    (tmp_path / "a.tsv").write_text("\ufeffname \tvalue\tnote\nliver\t 1 \tn/a\nspleen\t\tx y\n", encoding="utf-8")
    assert read_rows(tmp_path / "a.tsv", required=["name"], optional=["value"]) == [
        (2, {"name": "liver", "value": "1", "note": ""}),
        (3, {"name": "spleen", "value": "", "note": "x y"}),
    ]
    (tmp_path / "a.csv").write_text('\nname,value\n \n\n"a, b",001\n\n')
    assert read_rows(tmp_path / "a.csv", required=["name"]) == [(5, {"name": "a, b", "value": "001"})]
    (tmp_path / "a.csv").write_text("id, value\na, nan\nb, n/a\nc, 2\n")
    rows = read_rows(tmp_path / "a.csv", required=["name"], optional=["value"], aliases={"id": "name"})
    assert [(row["name"], row["value"]) for _, row in rows] == [("a", ""), ("b", ""), ("c", "2")]


def test_names_of_many_columns_are_compared_a_few_times_each(tmp_path):
    n_comparisons = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other):
            nonlocal n_comparisons
            n_comparisons += 1
            return str.__eq__(self, other)

    n = 2000
    titles = [f"c{i}" for i in range(n)]
    (tmp_path / "a.tsv").write_text("\t".join(titles) + "\n" + "\t".join("1" * n) + "\n")
    aliases = {title: Name(title) for title in titles}
    ((_, row),) = read_rows(tmp_path / "a.tsv", required=["c0", "c1999"], aliases=aliases)
    assert row == dict.fromkeys(titles, "1")
    assert n_comparisons < 20 * n


#: Names that a spreadsheet would run, names like those that are written for them, and numbers.
FORMULAS = ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "'=1", "''-x", "'-1", "＝1"]
HARMLESS = ["-1.5", "+3", "-inf", "-1e-05", "'90s", "p-1", "a=b", "'", "n/a"]


@pytest.mark.parametrize(("write", "separator"), [(table_text, "\t"), (csv_text, ",")])
def test_no_cell_is_a_formula_and_all_names_come_back(write, separator):
    names = FORMULAS + HARMLESS
    numbers = np.linspace(-1.5, 2, len(names))
    table = pd.DataFrame({"name": names, "x": numbers, "=col": [None, *names[1:]], "is": True})
    text = write(table)
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    assert rows[0] == ["name", "x", "'=col", "is"]
    assert [row[0] for row in rows[1:]] == [f"'{name}" for name in FORMULAS] + HARMLESS
    assert [float(row[1]) for row in rows[1:]] == pytest.approx(numbers)
    assert rows[1][2] == ("n/a" if separator == "\t" else "")
    read = read_texts(io.StringIO(text, newline=""), separator)
    assert list(read) == list(table)
    assert list(read["name"]) == names
    # The table that is written stays as it was.
    assert list(table["name"]) == names


def test_tables_of_results_have_as_many_digits_as_asked_for_and_names_as_they_were_written(tmp_path):
    table = pd.DataFrame({"name": ["a", "b"], "mL": [1 / 3, None]})
    assert table_text(table) == "name\tmL\na\t0.3333333333\nb\tn/a\n"
    assert csv_text(table, 2, missing="nan") == "name,mL\na,0.33\nb,nan\n"
    assert csv_text(table) == "name,mL\na,0.3333333333333333\nb,\n"
    names = ["=1+1", "@SUM(A1)", "'=1", "-x", "-1.5", "'90s"]
    for file, write in (("a.tsv", table_text), ("a.csv", csv_text)):
        (tmp_path / file).write_text(write(pd.DataFrame({"name": names, "=other": "-y"})))
        for verbatim in ((), ("name",)):
            rows = read_rows(tmp_path / file, required=["name"], verbatim=verbatim)
            assert [row for _, row in rows] == [{"name": name, "=other": "-y"} for name in names]
    options = {"columns": ["name"], "aliases": {}}
    text, _ = table_with(tmp_path / "b.tsv", [{"name": name} for name in names], **options)
    (tmp_path / "b.tsv").write_text(text)
    assert text.splitlines()[1] == "'=1+1"
    assert [row["name"] for _, row in read_rows(tmp_path / "b.tsv", required=["name"])] == names


def test_missing_tables_bytes_and_files_of_numbers_are_named_without_filling_the_screen(tmp_path, data_dir):
    with pytest.raises(FileNotFoundError, match="no such table"):
        read_rows(tmp_path / "a.tsv", required=["name"])
    (tmp_path / "a.tsv").write_bytes(b"\x1f\x8b\xff\xfe\x00")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_rows(tmp_path / "a.tsv", required=["name"])
    with pytest.raises(ValueError, match="no column name in ") as error:
        read_rows(data_dir / "dipy_small_dwi" / "small_64D.bval", required=["name"])
    assert len(str(error.value)) < 400


def test_a_table_with_further_rows_keeps_its_cells(tmp_path):
    path = tmp_path / "a.tsv"
    options = {"columns": ["name", "value", "more", "never"], "aliases": {"id": "name"}}
    path.write_text('id\tnote\na\t"two\nlines"\nb\n\n')
    text, names = table_with(path, [{"name": '"c"', "value": "3"}], **options)
    assert text == 'id\tnote\tvalue\na\t"two\nlines"\tn/a\nb\t\tn/a\n"""c"""\tn/a\t3\n'
    assert names == {"name": "id", "value": "value"}
    path.write_text(text)
    rows = [row for _, row in read_rows(path, required=["name"], aliases=options["aliases"])]
    assert [(row["name"], row["note"], row["value"]) for row in rows] == [
        ("a", "two\nlines", ""), ("b", "", ""), ('"c"', "", "3")
    ]  # fmt: skip
    text, names = table_with(tmp_path / "new.tsv", [{"name": "a"}], **options)
    assert text == "name\tvalue\tmore\tnever\na\tn/a\tn/a\tn/a\n"


def test_a_file_that_a_table_names_is_found_or_told_apart_from_a_folder(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"")
    (tmp_path / "b").mkdir()
    assert named_file(tmp_path, "a.nii", "scan.tsv, row 1: image") == tmp_path / "a.nii"
    (tmp_path / "l").symlink_to(tmp_path / "b")
    (tmp_path / "m").symlink_to(tmp_path / "no")
    comma = r"'1,5' does not exist .a number has a decimal point"
    link = "'m' is a link to a missing file"
    for name, told in (("b", "'b' is a folder"), ("l", "'l' is a folder"), ("m", link), ("c", "'c' does not exist"), ("", "'' does not exist"), ("1,5", comma)):
        with pytest.raises(FileNotFoundError, match=f"^scan.tsv, row 1: image {told}.*; paths are relative to /"):
            named_file(tmp_path, name, "scan.tsv, row 1: image")


def test_a_table_of_an_interrupted_set_is_refused(tmp_path):
    complete = tmp_path / ".dmrifit-x.complete"
    (complete / "map.nii.gz").mkdir(parents=True)
    (complete / ".last" / "cases.tsv").mkdir(parents=True)
    (complete / ".last" / "cases.tsv" / "cases.tsv").write_text("patient\nP1\n")
    with pytest.raises(ValueError, match=r"incomplete set of files.*give its command again"):
        read_rows(tmp_path / "cases.tsv", required=["patient"])
    (tmp_path / "foreign.tsv").write_text("patient\nP1\n")
    assert len(read_rows(tmp_path / "foreign.tsv", required=["patient"])) == 1
