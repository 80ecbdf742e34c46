"""Unwilling machines, large input, spoiled model files, and the judges of what comes of them; `make faults` tries it all."""

import json
import sys
from collections import Counter
from pathlib import Path

import driver
import fuzz_models
import pytest
import run_machine
from commands import LONG
from counts import COLUMNS, RESULTS, kind_of_complaint, store
from driver import Bench, Case, Entry
from kill_trials import Trials
from run_machine import interrupt_complaints, limit_complaints, stream_complaints
from run_scale import complaints, grows, many_cases


def kinds(found):
    """Give the kinds of complaints, or None where there is none."""
    return {kind_of_complaint(complaint) for complaint in found} or {None}


def test_parts_are_stored_beside_each_other_with_their_commit(tmp_path):
    path = tmp_path / "faults.json"
    store("corpus", {"files": {"tried": 3, "silent": 1}}, path)
    store("kills", {"kills": {"tried": 2}}, path)
    store("corpus", {"files": {"tried": 4}}, path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert set(content) == {"corpus", "kills"}
    assert content["corpus"]["kinds"]["files"] == dict.fromkeys(COLUMNS, 0) | {"tried": 4}
    assert "commit" in content["corpus"]


def test_so_many_faults_of_all_kinds_were_tried_and_went_right():
    parts = json.loads(RESULTS.read_text(encoding="utf-8"))
    wanted = {"corpus", "extras", "interrupts", "kills", "model files", "names", "scale", "streams"}
    assert set(parts) == wanted
    kinds = {kind: row for part in parts.values() for kind, row in part["kinds"].items()}
    assert sum(row["tried"] for row in kinds.values()) >= 5000
    assert kinds["killed commands"]["tried"] >= 27 * 50
    assert {kind: sum(row.values()) - row["tried"] for kind, row in kinds.items()} == dict.fromkeys(kinds, 0)


def test_outputs_and_inputs_of_impossible_names_are_refused_by_every_command():
    trials = dict(run_machine.names())
    assert {name: found for name, found in trials.items() if found} == {}
    writing = {name.removesuffix(" full disk") for name in trials if name.endswith(" full disk")}
    assert len(writing) >= 20
    assert sum(name.endswith(" input") for name in trials) >= 20
    assert {name for _, name, _ in run_machine.commands()} - writing == {"info", "cite", "table"}


def test_kinds_are_counted_by_what_was_wrong(monkeypatch, capsys):
    def trials():
        yield "one", []
        yield "other", ["a traceback: …", "left behind: x"]
        raise KeyboardInterrupt

    stored = {}
    monkeypatch.setattr(run_machine, "KINDS", {"kind": ("kind of fault", trials)})
    monkeypatch.setattr(run_machine, "store", lambda part, rows: stored.update({part: rows}))
    assert run_machine.main(["--store"]) == 1
    expected = Counter(tried=2, traceback=1, half_written=1)
    assert stored == {"kind": {"kind of fault": expected}}
    assert "WRONG other: a traceback" in capsys.readouterr().out


#: What a program may do when it is interrupted, and the complaint of it.
INTERRUPTED = {
    "pass": "traceback",
    "os._exit(1)": "traceback",
    "os._exit(130)": "misleading",
    "open('out/half.json', 'w').write('{'), os.write(2, b'interrupted'), os._exit(130)": "half_written",
    "os.write(2, b'interrupted'), os._exit(130)": None,
}


@pytest.mark.parametrize(("code", "kind"), INTERRUPTED.items())
def test_each_kind_of_defect_planted_in_interrupts_is_a_complaint(code, kind, tmp_path):
    (tmp_path / "out").mkdir()
    handler = "signal.default_int_handler" if code == "pass" else f"lambda *_: ({code})"
    start = f"signal.signal(signal.SIGINT, {handler}); os.write(1, b'+'); time.sleep(60)"
    words = [sys.executable, "-c", f"import os, signal, time; {start}"]
    assert kinds(interrupt_complaints(words, tmp_path, 0)) == {kind}


#: What a program may do when it cannot write, the streams, and the complaint.
WRITING = {
    ("print('x', flush=True)", ">/dev/full"): "traceback",
    ("sys.stderr.write('x'); sys.stderr.flush()", "2>&-"): "traceback",
    ("print('x' * 10**6, flush=True)", "| true"): "traceback",
    ("pass", "2>&-"): None,
    ("sys.exit(2)", ">/dev/full"): None,
    ("sys.exit(2)", "2>/dev/full"): "traceback",
}


@pytest.mark.parametrize(("line", "kind"), WRITING.items())
def test_each_kind_of_defect_planted_in_streams_is_a_complaint(line, kind, tmp_path):
    code, shell = line
    words = [sys.executable, "-c", f"import sys; {code}"]
    assert kinds(stream_complaints(words, tmp_path, shell)) == {kind}


#: What a program may do under a limit of the shell that it has to refuse or not, and the complaint.
LIMITED = {
    ("pass", ""): None,
    ("raise ValueError", ""): "traceback",
    ("sys.exit(2)", ""): "traceback",
    ("os.makedirs('out/new', 0o700)", ""): None,
    ("os.makedirs('out/new', 0)", ""): "half_written",
    ("os.makedirs('out/.dmrifit-x')", ""): "half_written",
    ("sys.exit('few files')", "few files"): "traceback",
    ("print('few files', file=sys.stderr), sys.exit(2)", "few files"): None,
    ("sys.exit(2)", "few files"): "misleading",
    ("os.makedirs('out/new'), print('few files', file=sys.stderr), sys.exit(2)", "few files"): "half_written",
}


@pytest.mark.parametrize(("line", "kind"), LIMITED.items())
def test_each_kind_of_defect_planted_under_limits_is_a_complaint(line, kind, tmp_path):
    code, says = line
    (tmp_path / "out").mkdir()
    words = [sys.executable, "-c", f"import os, sys; {code}"]
    assert kinds(limit_complaints(words, tmp_path, "true", says)) == {kind}


@pytest.mark.slow
def test_a_library_is_missing_for_a_command_that_is_run_without_it(tmp_path):
    view = next(command for command in LONG if command.name == "view")
    ended, out = Trials(tmp_path / "trials").once(view, without=("matplotlib", "jinja2"))
    assert ended.code == 2
    assert 'pip install "dmrifit[report]"' in ended.said
    assert list(out.iterdir()) == []


@pytest.mark.slow
def test_scans_of_one_run_are_fitted_and_measured(tmp_path):
    runs = many_cases(tmp_path, 0)
    assert [run["complaints"] for run in runs.values()] == [[], []]
    first, again = runs.values()
    assert first["seconds"] > again["seconds"] > 0
    assert 20 < first["memory_mb"] < 2000


@pytest.mark.parametrize(
    ("code", "said", "kind"),
    [(0, "", None), (2, "x.nii is cut off", "traceback"), (-9, "", "traceback"), (1, "Traceback", "traceback")],
)
def test_each_kind_of_defect_planted_in_large_input_is_a_complaint(code, said, kind, tmp_path):
    assert kinds(complaints({"code": code, "said": said}, tmp_path)) == {kind}


def test_memory_that_grows_with_the_image_is_a_complaint():
    eighth = {"memory_mb": 400}
    assert grows({"memory_mb": 720}, eighth) == []
    (complaint,) = grows({"memory_mb": 2000}, eighth)
    assert kinds([complaint]) == {"silent"}
    assert "2000 MB, 400 MB" in complaint


def ends(code, said=""):
    """Say something and end, as a program does."""
    print(said, file=sys.stderr)
    sys.exit(code)


REFUSAL = "toy: error: table.tsv holds 3, not 2; mend it"
#: What a program may do with a faulty table that has to be refused, and the complaint.
REFUSING = {
    "crash": (lambda: {}["patient"], "traceback"),
    "accept": (lambda: ends(0), "silent"),
    "stay nameless": (lambda: ends(2, "toy: error: something is wrong; mend it"), "misleading"),
    "leave half a file": (lambda: Path("half.json").write_text("{") and ends(2, REFUSAL), "half_written"),
    "refuse": (lambda: ends(2, REFUSAL), None),
}


def toy_complaints(monkeypatch, folder, main, *expected):
    def results(place):
        return {"value": (place / "table.tsv").read_text()}

    entry = Entry("toy", lambda place: (place / "table.tsv").write_text("2\n"), main=main, results=results)
    monkeypatch.setitem(driver.ENTRIES, "toy", entry)
    return Bench(folder).complaints(Case("toy", "table.tsv", "taken", "", *expected))


@pytest.mark.parametrize("name", REFUSING)
def test_each_kind_of_defect_planted_in_a_program_is_a_complaint(name, tmp_path, monkeypatch):
    main, kind = REFUSING[name]
    assert kinds(toy_complaints(monkeypatch, tmp_path, main, "refused", "not 2", "mend it")) == {kind}


def test_another_result_of_an_accepted_input_is_silent(tmp_path, monkeypatch):
    assert kinds(toy_complaints(monkeypatch, tmp_path, lambda: ends(0), "accepted", "same", "")) == {"silent"}


@pytest.mark.parametrize(("kind", "step"), [("RFR", 29), ("LR", 5), ("slNN", 40)])
def test_a_spoiled_model_file_is_refused_or_changes_nothing(kind, step):
    outcomes = fuzz_models.tried(kind, step=step)
    assert len(outcomes) >= 8
    assert [one for one in outcomes if one[1] not in fuzz_models.FINE] == []
    assert "refused" in {outcome for _, outcome in outcomes}


@pytest.mark.parametrize(("fault", "outcome"), [("os.abort()", "crash -6"), ("time.sleep(60)", "hang")])
def test_a_crash_or_hang_of_the_child_is_an_outcome(fault, outcome, monkeypatch, tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(
        "import os, sys, time\n"
        "first = int(sys.argv[3])\n"
        "for number in range(first, 3):\n"
        "    print('fuzzed:', f'[{number}, \"array {number}\"]', flush=True)\n"
        "    if number == 1:\n"
        f"        {fault}\n"
        "    print('fuzzed:', '\"refused\"', flush=True)\n"
    )
    monkeypatch.setattr(fuzz_models, "__file__", str(script))
    assert fuzz_models.tried("LR", longest_s=5) == [
        ("array 0", "refused"),
        ("array 1", outcome),
        ("array 2", "refused"),
    ]
