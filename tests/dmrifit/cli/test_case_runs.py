"""Runs over many cases."""

import errno
import json
import shutil
from collections import namedtuple
from dataclasses import replace
from unittest.mock import Mock

import pandas as pd
import pytest
import typer

from dmrifit._utils.text_files import sealed
from dmrifit.cli.case_runs import CaseRun, RunOptions, RunPage, SimulationRun, begin_run

RUN = CaseRun(
    "{name}/done.json", "table.tsv", row=lambda name, record: {"name": name}, page=lambda *_: RunPage("Runs", [], [])
)


def processed_by(case_run, tmp_path, inputs, work, describe, *, names=None, failed=(), figure=False, **options):
    """Run over named inputs; give their records."""
    records = {}
    case_run.run(
        list(inputs.items()),
        {},
        RunOptions(tmp_path, figure=figure, **options),
        names=lambda case: names(case[1]) if names else {"name": case[0]},
        work=lambda case, folder: work(case[1], folder),
        inputs=lambda case: describe(case[1]),
        say=lambda finished: records.update(finished) or [],
        failed=failed,
    )
    return records


def run(tmp_path, inputs, *, overwrite=False, figure=False, case_run=RUN):
    """Run over named inputs; give the names of those that were processed."""
    processed = []

    def process(source, folder):
        processed.append(folder.name)
        record = {"name": folder.name, "source": source, "synthetic": False}
        folder.mkdir(exist_ok=True)
        (folder / "done.json").write_text(json.dumps(sealed(record)))
        return record

    def describe(source):
        return {"source": source}

    records = processed_by(case_run, tmp_path, inputs, process, describe, overwrite=overwrite, figure=figure)
    assert {name: record["source"] for name, record in records.items()} == inputs
    return processed


def test_only_what_is_new_changed_or_damaged_is_done_again(tmp_path):
    assert run(tmp_path, {"a": 1, "b": 2}) == ["a", "b"]
    assert run(tmp_path, {"a": 1, "b": 3, "c": 4}) == ["b", "c"]
    (tmp_path / "a" / "done.json").write_text('{"name": "a"}')
    assert run(tmp_path, {"a": 1, "b": 3}) == ["a"]
    assert run(tmp_path, {"a": 1, "b": 3}, overwrite=True) == ["a", "b"]


@pytest.mark.parametrize("folder", ["../a", "/", "b"])
def test_a_case_is_processed_again_where_its_record_names_another_folder(tmp_path, folder):
    assert run(tmp_path, {"a": 1}) == ["a"]
    (tmp_path / "a" / "done.json").write_text(json.dumps(sealed({"name": "a", "source": 1, "folder": folder})))
    assert run(tmp_path, {"a": 1}) == ["a"]


def test_missing_pictures_are_drawn_where_a_run_is_asked_for_them(tmp_path):
    case_run = replace(RUN, pictures=("a.png", "b.html"))
    inputs = {"a": 1, "b": 2}
    assert run(tmp_path, inputs, case_run=case_run) == ["a", "b"]
    assert run(tmp_path, inputs, case_run=case_run) == []
    for name in case_run.pictures:
        assert run(tmp_path, inputs, figure=True, case_run=case_run) == ["a", "b"]
        (tmp_path / "b" / name).touch()
    assert run(tmp_path, inputs, figure=True, case_run=case_run) == ["a"]


def run_with_failures(tmp_path, inputs, problems, **options):
    """Run over named inputs, of which those with a problem fail; give the names of the records."""

    def process(source, folder):
        if folder.name in problems:
            raise ValueError(problems[folder.name])
        folder.mkdir(exist_ok=True)
        (folder / "done.json").write_text(json.dumps(sealed({"name": folder.name, "source": source})))
        (folder / "numbers.txt").touch()
        return {"name": folder.name, "source": source}

    case_run = replace(RUN, files=("numbers.txt",))
    return list(processed_by(case_run, tmp_path, inputs, process, lambda source: {}, **options))


def failures(tmp_path):
    return pd.read_csv(tmp_path / "failed.tsv", sep="\t").to_dict("records")


def test_a_case_that_fails_is_listed_leaves_the_others_keeps_no_result_and_is_tried_again(tmp_path, capsys):
    assert run_with_failures(tmp_path, {"a": 1, "b": 2}, {"a": "case a: no tumor"}) == ["b"]
    assert failures(tmp_path) == [{"name": "a", "problem": "no tumor"}]
    assert "failed: a: no tumor" in capsys.readouterr().out
    assert run_with_failures(tmp_path, {"a": 1, "b": 2}, {}) == ["a", "b"]
    assert not (tmp_path / "failed.tsv").exists()
    inputs = {"a": 1, "b": 2}
    assert run_with_failures(tmp_path, inputs, {}) == ["a", "b"]
    (tmp_path / "b" / "of the user.txt").touch()
    problems = {"b": "no tumor"}
    assert run_with_failures(tmp_path, inputs, problems, overwrite=True) == ["a"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["of the user.txt"]
    assert run_with_failures(tmp_path, inputs, problems) == ["a"]
    assert failures(tmp_path) == [{"name": "b", "problem": "no tumor"}]


def test_where_all_cases_fail_their_problems_are_written_before_the_run_ends(tmp_path):
    assert run_with_failures(tmp_path, {"old": 1, "c": 2}, {"old": "of an earlier run"}) == ["c"]
    assert (tmp_path / "table.tsv").exists()
    with pytest.raises(ValueError, match=r"^a: no tumor$"):
        run_with_failures(tmp_path, {"a": 1, "b": 2}, {"a": "no tumor", "b": "no brain"})
    assert [failure["problem"] for failure in failures(tmp_path)] == ["no tumor", "no brain"]
    assert not (tmp_path / "table.tsv").exists()


def test_rows_that_fail_are_told_once_and_before_the_run(tmp_path, capsys):
    failed = [{"name": name, "problem": f"{name}.nii: no such file"} for name in "ab"]
    lines = [f"failed: {name}: {name}.nii: no such file" for name in "ab"]

    def work(source, folder):
        assert capsys.readouterr().out.splitlines() == lines
        return {"name": folder.name}

    functions = {"names": lambda source: {"name": "d"}, "work": work, "inputs": None, "say": lambda records: [], "failed": failed}
    RUN.run([3], {}, RunOptions(tmp_path, figure=False), **functions)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"^a\.nii: no such file$"):
        RUN.run([], {}, RunOptions(tmp_path, figure=False), **functions)
    assert capsys.readouterr().out.splitlines() == lines[1:]


def test_rows_that_fail_after_they_were_finished_keep_no_result_and_leave_those_of_others(tmp_path):
    assert run_with_failures(tmp_path, {"a": 1, "b-c": 2, "d": 3}, {}) == ["a", "b-c", "d"]
    (tmp_path / "b-c" / "of the user.txt").touch()
    # The folder of a case need not have its name.
    failed = [{"name": "b c", "patient": "p", "problem": "no such file"}]
    names = {1: {"name": "a", "patient": "p"}}.get
    assert run_with_failures(tmp_path, {"a": 1}, {}, failed=failed, names=names) == ["a"]
    assert [path.name for path in (tmp_path / "b-c").iterdir()] == ["of the user.txt"]
    for name in "ad":
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["done.json", "numbers.txt"]
    assert failures(tmp_path) == failed


def test_a_file_that_vanishes_during_the_run_is_the_problem_of_its_case(tmp_path, capsys):
    def process(source, folder):
        raise FileNotFoundError(errno.ENOENT, "No such file", "gone.nii")

    with pytest.raises(ValueError, match=r"^a: gone\.nii: No such file; check that it exists"):
        processed_by(RUN, tmp_path, {"a": 1}, process, None)
    assert "failed: " not in capsys.readouterr().out


def test_a_file_that_vanishes_while_finished_cases_are_checked_is_the_problem_of_its_case(tmp_path):
    def describe(source):
        if source == 1:
            raise FileNotFoundError(errno.ENOENT, "No such file", "gone.nii")
        return {"source": source}

    inputs = {"a": 1, "b": 2}
    run(tmp_path, inputs)
    assert list(processed_by(RUN, tmp_path, inputs, None, describe)) == ["b"]
    assert failures(tmp_path)[0]["problem"].startswith("gone.nii: No such file")
    assert not (tmp_path / "a" / "done.json").exists()


def test_failed_cases_are_described_and_follow_those_that_failed_before(tmp_path):
    unread = {"name": "first", "patient": "p1", "problem": "damaged"}

    def describe(source):
        return {"name": f"scan {source}", "patient": "p2"}

    options = {"failed": [unread], "names": describe}
    assert run_with_failures(tmp_path, {"a": 1, "b": 2}, {"scan-1": "no brain"}, **options) == ["scan-2"]
    assert failures(tmp_path) == [unread, {"name": "scan 1", "patient": "p2", "problem": "no brain"}]


def test_a_disk_without_room_for_the_other_cases_is_told_after_the_first(tmp_path, monkeypatch):
    cases = dict.fromkeys("abcd", 1)
    size = len(json.dumps(sealed({"name": "a", "source": 1})))
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(0, 0, 3 * size - 1))
    with pytest.raises(OSError, match=r"no room to write .* are needed and"):
        run(tmp_path, cases)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "settings.json", "table.tsv"}
    # What is finished needs no room.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(0, 0, 3 * size))
    assert run(tmp_path, cases) == ["b", "c", "d"]


def test_lesions_of_cases_are_joined_with_their_names(tmp_path):
    case_run = replace(RUN, lesions="lesions.csv")
    records = {name: {"name": name, "patient": "p", "lesion_columns": ["mL"], "lesions": []} for name in "ab"}
    case_run.write(tmp_path, records, [], figure=False)
    assert (tmp_path / "lesions.csv").read_text() == "name,patient,mL\n"
    records["b"]["lesions"] = [{"mL": 0.1}, {"mL": None}]
    case_run.write(tmp_path, records, [], figure=False)
    assert (tmp_path / "lesions.csv").read_text() == "name,patient,mL\nb,p,0.1\nb,p,\n"


def test_pictures_and_links_are_shown_where_there_are_files(tmp_path):
    folder = tmp_path / "case"
    folder.mkdir()
    run = replace(RUN, files=("b.html",))
    assert run.shown(folder, {"a.png": "A case"}) == []
    (folder / "b.html").write_text("")
    (folder / "a.png").write_bytes(bytes(24))
    picture, link = run.shown(folder, {"a.png": "A case"})
    assert (picture.alt, picture.png) == ("A case", bytes(24))
    assert link.address == "./case/b.html"


def test_a_run_goes_on_only_with_its_own_undamaged_settings(tmp_path):
    begin_run(tmp_path, {"seed": 1, "shape": {"x": 2}}, overwrite=False, results=("table.tsv",))
    (tmp_path / "table.tsv").touch()
    begin_run(tmp_path, {"seed": 1, "shape": {"x": 2}}, overwrite=False, results=("table.tsv",))
    with pytest.raises(ValueError, match=r"other options \(seed was 1, now 2; shape.x was 2, now 3\)"):
        begin_run(tmp_path, {"seed": 2, "shape": {"x": 3}}, overwrite=False, results=("table.tsv",))
    begin_run(tmp_path, {"seed": 2, "shape": {"x": 2}}, overwrite=True, results=("table.tsv",))
    (tmp_path / "table.tsv").touch()
    (tmp_path / "settings.json").unlink()
    with pytest.raises(FileExistsError, match=r"table.tsv already exists and was not created by an earlier run"):
        begin_run(tmp_path, {"seed": 2}, overwrite=False, results=("table.tsv",))
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings.json is damaged, .*--overwrite"):
        begin_run(tmp_path, {"seed": 1}, overwrite=False, results=())


def test_the_results_of_another_command_are_neither_replaced_nor_mixed_with_new_ones(tmp_path):
    options = {"results": ("table.tsv", "index.html"), "records": "*/done.json"}
    begin_run(tmp_path, {"command": "segment"}, False, **options)
    begin_run(tmp_path, {"command": "prepare"}, False, **options)  # the first one left nothing
    (tmp_path / "index.html").touch()
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds the results of prepare; choose another folder"):
            begin_run(tmp_path, {"command": "segment"}, overwrite, **options)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "done.json").touch()
    # Commands with the same files, as segment and ensemble, replace each other's runs.
    begin_run(tmp_path, {"command": "ensemble"}, True, **options)


def test_what_was_finished_with_other_settings_is_no_part_of_the_run_that_replaces_it(tmp_path):
    def begin(seed, overwrite):
        begin_run(tmp_path, {"seed": seed}, overwrite, results=("table.tsv",), records="*/done.json")

    begin(1, overwrite=False)
    (tmp_path / "a").mkdir()
    files = [tmp_path / "table.tsv", tmp_path / "a" / "done.json", tmp_path / "a" / "map.nii", tmp_path / "other.txt"]
    for file in files:
        file.touch()
    begin(1, overwrite=False)
    begin(1, overwrite=True)
    assert all(file.exists() for file in files)
    begin(2, overwrite=True)
    assert [file.exists() for file in files] == [False, False, True, True]


def test_a_run_removes_what_another_run_finished(tmp_path, capsys):
    def process(source, folder):
        folder.mkdir(exist_ok=True)
        record = {"name": folder.name, "flags": ["thick"] * (source == 3)}
        (folder / "done.json").write_text(json.dumps(sealed(record)))
        return record

    def begin(seed, cases=(1, 3), **options):
        replace(RUN, flag="flags").run(
            cases,
            {"seed": seed},
            RunOptions(tmp_path, figure=False, **options),
            names=lambda source: {"name": f"scan {source}", "patient": "p"},
            work=process,
            inputs=lambda source: {},
            say=lambda records: [f"{len(records)} scans"],
        )

    begin(1)
    assert capsys.readouterr().out == "2 scans\nflagged: 1 of 2\n"
    table = (tmp_path / "table.tsv").read_text()
    assert table == "name\nscan-1\nscan-3\n"
    with pytest.raises(ValueError, match=r"other options \(seed was 1, now 2\)"):
        begin(2)
    with pytest.raises(typer.Exit):
        begin(2, overwrite=True, fail_on_flag=True)
    with pytest.raises(ValueError, match="several cases would have the same files"):
        begin(2, cases=(1, 1))
    # Workers get the cases one by one.
    (tmp_path / "scan-1" / "done.json").unlink()
    begin(2, jobs=2)
    assert (tmp_path / "table.tsv").read_text() == table


@pytest.mark.parametrize("left", [None, "table.tsv", "a/done.json"])
def test_a_run_that_finished_nothing_keeps_no_other_options_out(tmp_path, monkeypatch, left):
    def begin(labels):
        begin_run(tmp_path, {"labels": labels}, False, results=("table.tsv",), records="*/done.json")

    begin(None)
    if left is not None:
        (tmp_path / left).parent.mkdir(exist_ok=True)
        (tmp_path / left).touch()
        with pytest.raises(ValueError, match=r"\(labels was not given, now brats2013\) or another version; repeat"):
            begin("brats2013")
        return
    begin("brats2013")
    assert json.loads((tmp_path / "settings.json").read_text()) == {"labels": "brats2013"}
    monkeypatch.setenv("DMRIFIT_USE_FORM", "sform")
    begin("brats2013")
    assert json.loads((tmp_path / "settings.json").read_text())["use"] == "sform"


def test_synthetic_cases_are_written_once_and_listed_from_the_folder_above(tmp_path, capsys):
    written = []

    def write(number, folder):
        written.append((number, folder.name))
        folder.mkdir(exist_ok=True)
        (folder / "cases.tsv").write_text("name\timage\tbval\tage\none\tdwi.nii.gz\tdwi.bval\t007\n")

    groups = {"synthetic": (1, {"healthy.tsv": "cases.tsv"}, write), "synthetic-ill": (0, {"ill.tsv": "cases.tsv"}, write)}
    interrupt = SystemError("a compiled function returned a result with an exception set")
    interrupt.__cause__, interrupt.__cause__.__cause__ = SystemError(), KeyboardInterrupt()
    stopped = tmp_path / "stopped"
    for told in ("", f"cases are kept in {stopped}; the same command (without --overwrite) resumes"):
        with pytest.raises(KeyboardInterrupt):
            SimulationRun(stopped, skip=4).write({}, {"synthetic": (1, {}, Mock(side_effect=interrupt))})
        said = capsys.readouterr().err
        assert told in said
        assert bool(told) == bool(said)
        # The next time, one case was finished before.
        write(1, stopped / "synthetic-001")
    shutil.rmtree(stopped)
    written.clear()
    for overwrite in (False, False, True):
        SimulationRun(tmp_path, skip=4, overwrite=overwrite).write({}, groups)
        row = "name\timage\tbval\tage\none\tsynthetic-005/dwi.nii.gz\tsynthetic-005/dwi.bval\t007\n"
        assert (tmp_path / "healthy.tsv").read_text() == row
    assert written == 2 * [(4, "synthetic-005")]
    assert not (tmp_path / "ill.tsv").exists()


def test_the_page_shows_the_pictures_of_cases_and_counts_synthetic_ones(tmp_path):
    pytest.importorskip("jinja2")
    parts = RunPage("Runs", ["the overview"], [("one", ["a picture"]), ("two", [])], "End.", "Research.")
    case_run = replace(RUN, page=lambda *_: parts)
    case_run.write(tmp_path, {"one": {"synthetic": True}, "two": {"synthetic": False}}, [], figure=True)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for text in ("Research. Synthetic data: 1 of 2 cases were simulated", "All cases", "a picture", "End."):
        assert text in page
    assert "two" not in page


def test_a_folder_of_images_is_as_good_as_a_table_where_columns_are_known(tmp_path, capsys):
    for name in ("a.nii", "a_brain.nii", "b.nii.gz"):
        (tmp_path / name).touch()
    options = {"--prior": None, "--mask": None}
    case_run, columns = replace(RUN, bids="anat/*_T1w.nii*"), ("image", "brain")
    assert case_run.named_cases([tmp_path], columns, options) == (tmp_path, True)
    assert capsys.readouterr().err == f"2 cases in {tmp_path}: a, b; with brain 1\n"
    with pytest.raises(ValueError, match=r"several images lie beside them.*; leave out --prior and --mask"):
        case_run.named_cases([tmp_path], columns, {"--prior": "y.nii", "--mask": "x.nii"})
    images = [tmp_path / "a.nii", tmp_path / "b.nii.gz"]
    assert case_run.named_cases(images[:1], columns, {"--mask": "x.nii"}) == (images[0], False)
    for paths in (images, [tmp_path / "?.nii*"]):
        assert case_run.named_cases(paths, columns, options) == (images, True)
        assert capsys.readouterr().err == f"2 cases in {', '.join(map(str, paths))}: a, b; with brain 1\n"
        with pytest.raises(ValueError, match=r"several images .*; leave out --mask"):
            case_run.named_cases(paths, columns, {"--mask": "x.nii"})
    with pytest.raises(FileNotFoundError, match="no file matches"):
        case_run.named_cases([tmp_path / "c*"], columns, options)
    scan = tmp_path / "bids" / "sub-1" / "anat" / "sub-1_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.touch()
    assert case_run.named_cases([tmp_path / "bids"], columns, options) == ([scan], True)
    assert capsys.readouterr().err == f"1 case in {tmp_path / 'bids'}: sub-1_T1w\n"
    (tmp_path / "cases.tsv").touch()
    with pytest.raises(ValueError, match=r"cases\.tsv is a table; name one table alone, or images"):
        case_run.named_cases([images[0], tmp_path / "cases.tsv"], columns)
    for path in (tmp_path, tmp_path / "cases.tsv"):
        assert case_run.named_cases([path], columns) == (path, True)
    assert capsys.readouterr().err == f"using {tmp_path / 'cases.tsv'}\n"
