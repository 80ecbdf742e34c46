"""A sample of spoiled model files; `make faults` tries all of them."""

import fuzz_models
import pytest


@pytest.mark.parametrize(("kind", "step"), [("RFR", 29), ("LR", 5), ("slNN", 40)])
def test_a_spoiled_model_file_is_refused_or_changes_nothing(kind, step):
    outcomes = fuzz_models.tried(kind, step=step)
    assert len(outcomes) >= 8
    assert [one for one in outcomes if one[1] not in fuzz_models.FINE] == []
    assert "refused" in {outcome for _, outcome in outcomes}


@pytest.mark.parametrize(
    ("fault", "outcome"), [("os.abort()", "crash -6"), ("time.sleep(60)", "hang")]
)
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
