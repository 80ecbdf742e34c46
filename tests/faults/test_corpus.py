"""Faulty input is refused in one line that says what to do, or gives the right result; `make faults` runs it all."""

import random
from collections import Counter

import pytest
from driver import ENTRIES, RULES, Bench, Case, corpus, load_entries
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mutations import MUTATIONS, PLACES

load_entries()
CASES = corpus()


def drawn(n, cases):
    """Cases drawn by a seed, so many that each entry has its turn before one comes again."""
    draw = random.Random(8)
    shuffled = sorted(cases, key=lambda case: case.id)
    draw.shuffle(shuffled)
    turn, seen = {}, Counter()
    for case in shuffled:
        turn[case.id] = seen[case.entry]
        seen[case.entry] += 1
    return sorted(shuffled, key=lambda case: turn[case.id])[:n]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.mark.slow
@pytest.mark.parametrize("case", drawn(120, CASES), ids=lambda case: case.id)
def test_a_faulty_input_is_refused_with_words_or_gives_the_right_result(bench, case):
    assert bench.complaints(case) == []


HANDY = [case for case in CASES if case.entry in ("dmrifit fit", "Protocol.read", "dmrifit roi")]


@pytest.mark.parametrize("case", drawn(8, HANDY), ids=lambda case: case.id)
def test_a_handful_of_faulty_inputs(bench, case):
    assert bench.complaints(case) == []


#: Rows of options, which are refused in a moment, by their entries.
OPTIONS: dict[str, list[Case]] = {}
for row in CASES:
    if row.file.startswith("options") and row.expected == "refused":
        OPTIONS.setdefault(row.entry, []).append(row)


@pytest.mark.parametrize("entry", OPTIONS)
def test_options_that_cannot_be_are_refused_with_words(bench, entry):
    assert {case.id: found for case in OPTIONS[entry] if (found := bench.complaints(case))} == {}


#: What has a checksum: any change is found, or changes nothing that matters.
SEALED = [
    ("dmrifit fit", "dwi.nii.gz"),
    ("dmrifit fit", "mask.nii.gz"),
    ("read_volume", "dwi.nii.gz"),
    ("Cohort.read", "p1.nii.gz"),
    ("load_model", "model.dmrifit"),
    ("Evaluation.read", "study/scores.csv"),
]
#: What has none: it may say something else afterwards.
OPEN = [
    ("dmrifit fit plain", "plain.nii"),
    ("dmrifit fit", "dwi.bval"),
    ("dmrifit fit parts", "parts.tsv"),
    ("Protocol.read sidecar", "side.json"),
    ("dmrifit roi", "names.tsv"),
    ("dmrifit roi", "maps/x_model-adc_dwimap.json"),
    ("Cohort.read", "participants.tsv"),
]


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.sampled_from(SEALED), seed=st.integers(0, 2**32))
@example(where=("load_model", "model.dmrifit"), seed=82836887)  # a name that cannot be printed
def test_random_bytes_in_a_sealed_file_are_refused_or_change_nothing(bench, where, seed):
    case = Case(*where, "garbled", str(seed), "refused", "", "")
    outcome = bench.run(case)
    if outcome.results is None:
        assert bench.complaints(case, outcome) == []
    else:
        accepted = Case(*where, "garbled", str(seed), "accepted", "same", "")
        assert bench.complaints(accepted, outcome) == []


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.sampled_from(OPEN), seed=st.integers(0, 2**32))
def test_random_bytes_in_an_open_file_never_show_a_traceback(bench, where, seed):
    case = Case(*where, "garbled", str(seed), "refused", "", "")
    outcome = bench.run(case)
    assert not outcome.trace
    if outcome.results is None:
        assert "left behind" not in str(bench.complaints(case, outcome))


def test_the_corpus_names_what_exists_and_each_case_once():
    assert len({case.id for case in CASES}) == len(CASES)
    assert {case.entry for case in CASES} | {name for name, _ in SEALED + OPEN} == set(ENTRIES)
    for case in CASES:
        assert case.entry in ENTRIES, case
        assert case.expected in ("refused", "accepted"), case
        assert case.mutation in {*MUTATIONS, *PLACES, "replaced_by", "vanishing", "full_disk", "taken", "given"}, case
        if case.expected == "refused":
            assert case.says, case
            assert case.remedy, case
        else:
            assert case.says in RULES, case
            assert case.remedy or case.says != "told", case
