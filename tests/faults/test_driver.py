"""The judge of faulty inputs sees each kind of defect that is planted."""

import sys
from pathlib import Path

import driver
import pytest
from counts import kind_of_complaint
from driver import Bench, Case, Entry


def crash():
    raise KeyError("patient")


def accept():
    sys.exit(0)


def stay_nameless():
    print("toy: error: something is wrong; mend it", file=sys.stderr)
    sys.exit(2)


def leave_half_a_file():
    Path("half.json").write_text("{")
    print("toy: error: table.tsv holds 3, not 2; mend it", file=sys.stderr)
    sys.exit(2)


def refuse():
    print("toy: error: table.tsv holds 3, not 2; mend it", file=sys.stderr)
    sys.exit(2)


def prepare(folder):
    (folder / "table.tsv").write_text("2\n")


@pytest.mark.parametrize(
    ("main", "kind"),
    [
        (crash, "traceback"),
        (accept, "silent"),
        (stay_nameless, "misleading"),
        (leave_half_a_file, "half_written"),
        (refuse, None),
    ],
)
def test_each_kind_of_planted_defect_is_a_complaint_of_its_kind(main, kind, tmp_path, monkeypatch):
    entry = Entry("toy", prepare, main=main, results=lambda folder: {})
    monkeypatch.setitem(driver.ENTRIES, "toy", entry)
    case = Case("toy", "table.tsv", "taken", "", "refused", "not 2", "mend it")
    complaints = Bench(tmp_path).complaints(case)
    assert {kind_of_complaint(complaint) for complaint in complaints} == ({kind} - {None})


def test_another_result_of_an_accepted_input_is_silent(tmp_path, monkeypatch):
    entry = Entry(
        "toy",
        prepare,
        main=accept,
        results=lambda folder: {"value": (folder / "table.tsv").read_text()},
    )
    monkeypatch.setitem(driver.ENTRIES, "toy", entry)
    case = Case("toy", "table.tsv", "taken", "", "accepted", "same", "")
    complaints = Bench(tmp_path).complaints(case)
    assert [kind_of_complaint(complaint) for complaint in complaints] == ["silent"]
