"""Faulty input is refused in one line that says what to do, or gives the right result; `make faults` runs it all."""

import random

import pytest
from driver import ENTRIES, RULES, Bench, corpus, load_entries
from mutations import MUTATIONS, PLACES

SAMPLE = 120
HANDFUL = 8
SEED = 8

load_entries()
CASES = corpus()


def drawn(n, cases):
    """Cases drawn by a seed, so many that each entry has its turn before one comes again."""
    draw = random.Random(SEED)
    shuffled = sorted(cases, key=lambda case: case.id)
    draw.shuffle(shuffled)
    turn = {}
    for case in shuffled:
        turn[case.id] = sum(other.entry == case.entry for other in shuffled[: shuffled.index(case)])
    return sorted(shuffled, key=lambda case: turn[case.id])[:n]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.mark.slow
@pytest.mark.parametrize("case", drawn(SAMPLE, CASES), ids=lambda case: case.id)
def test_a_faulty_input_is_refused_with_words_or_gives_the_right_result(bench, case):
    assert bench.complaints(case) == []


HANDY = [case for case in CASES if case.entry in ("dmrifit fit", "Protocol.read", "dmrifit roi")]


@pytest.mark.parametrize("case", drawn(HANDFUL, HANDY), ids=lambda case: case.id)
def test_a_handful_of_faulty_inputs(bench, case):
    assert bench.complaints(case) == []


def test_the_corpus_names_what_exists_and_each_case_once():
    assert len({case.id for case in CASES}) == len(CASES)
    for case in CASES:
        assert case.entry in ENTRIES, case
        assert case.mutation in {*MUTATIONS, *PLACES, "vanishing", "full_disk", "taken", "given"}, case
        if case.expected == "refused":
            assert case.says, case
            assert case.remedy, case
        else:
            assert case.expected == "accepted"
            assert case.says in RULES, case
