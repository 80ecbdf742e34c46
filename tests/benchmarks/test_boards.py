"""Prose about claims asserts nothing that the boards leave open."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import _boards as boards
from benchmarks.claims.claim_board import HOLDS, board_sentence

ROOT = Path(__file__).parents[2]
#: The section of the page of measurements that prose about each board stands in.
SECTIONS = {
    "claims": "The study's claims",
    "placement_claims": "The placement study's claims",
    "metastasis": "Metastases: the study's claims",
    "anomaly": "Anomalies of diffusion: the study's claims, and other detectors",
}
COMPARISON = re.compile(
    r"\b(better|worse|best|more|fewer|less|higher|lower|above|below|worth|hardly|keeps? up|gains?|saves?|falls?|rises?"
    r"|exceeds?|cancels?|teach|teaches|costs?|helps?|secondary|reaches|misses|precise|does not|do not|no)\b",
    re.IGNORECASE,
)
COMMON = "also each from have here more most much much other over than that their them then they this what when which with"


def claims_of(name):
    result = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return result["claims"]


def sentences_of(text):
    """Give the sentences of a section that no program wrote."""
    text = re.sub(r"<!-- ([\w ]+): begin -->.*?<!-- \1: end -->", "", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not re.match(r"    |\||#|\.\. |<<", line)]
    parts = re.split(r"(?<=[.:;!?])\s+|\n\s*\n|\n- ", "\n".join(lines))
    return [" ".join(part.split()) for part in parts if part.strip()]


def terms(text):
    """Give the beginnings of the words that a text is about."""
    return {word[:5] for word in re.findall(r"\w{4,}", text.lower()) if word not in COMMON.split()}


def asserted(text, claims):
    """List sentences with the numbers of the claims that they assert, though their verdict is not that they hold."""
    found = []
    for sentence in sentences_of(text):
        for row in claims:
            shared = terms(row["statement"]) & terms(sentence)
            is_about = len(shared) >= 2 and len(shared) >= 0.4 * len(terms(row["statement"]))
            is_decided = row["verdict"] == HOLDS or row["verdict"] in sentence
            if is_about and COMPARISON.search(sentence) and not is_decided:
                found.append((row["claim"], sentence))
    return found


@pytest.mark.parametrize("name", SECTIONS)
def test_prose_beside_a_board_asserts_no_claim_that_is_left_open(name):
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {SECTIONS[name]}\n")[1].split("\n#")[0]
    assert len(sentences_of(section)) > 5
    assert asserted(section, claims_of(name)) == []
    documentation = (ROOT / "examples" / "docs" / "claims.rst").read_text(encoding="utf-8")
    assert f'<< board("{name}") >>' in documentation
    assert asserted(documentation, claims_of(name)) == []


@pytest.mark.parametrize("name", SECTIONS)
def test_each_table_of_claims_begins_with_its_verdicts(name):
    claims = claims_of(name)
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for has_reasons in (False, True):
        table = boards.claims_table(claims, reasons=has_reasons)
        assert table.startswith(f"{board_sentence(claims)}\n\n| ")
    assert board_sentence(claims) in page


def test_folds_are_even_and_repeatable():
    folds = boards.case_folds(12, n_folds=5, random_state=0)
    assert sorted(np.bincount(folds)[1:]) == [2, 2, 2, 3, 3]
    np.testing.assert_array_equal(folds, boards.case_folds(12, n_folds=5, random_state=0))
