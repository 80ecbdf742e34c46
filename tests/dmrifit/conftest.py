"""What the tests of the commands and of the report share."""

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dmrifit.report.page import Numbers, Picture, Section, render
from dmrifit.study.comparison import Evaluation


class HtmlTables(HTMLParser):
    """The tables of a report or of its sections, and the heading and title that stand above each of them."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.heading, self.title = [], "", ""
        self.faint = []  # first two cells of the rows in gray
        self._is_faint = False
        self._cell = self._tag = None
        self.feed(html if isinstance(html, str) else render(*html))

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append((self.title, []))
        elif tag == "tr":
            self.tables[-1][1].append([])
            self._is_faint = ("class", "control") in attrs
        if tag in ("td", "th", "h2", "h3", "summary"):
            self._tag, self._cell = tag, ""
        elif tag == "br" and self._cell is not None:
            self._cell += " "

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag != self._tag:
            return
        if tag in ("td", "th"):
            row = self.tables[-1][1][-1]
            row.append(" ".join(self._cell.split()))
            if self._is_faint and len(row) == 2:
                self.faint.append(tuple(row))
        elif tag == "h2":
            self.heading = self.title = self._cell
        else:
            self.title = f"{self.heading} {self._cell}"
        self._cell = self._tag = None

    def table(self, *words):
        """Give header and rows of the first table whose heading and title have all the words."""
        for title, rows in self.tables:
            if all(word in title for word in words):
                return rows[0], rows[1:]
        msg = f"no table has the title {words}: {[title for title, _ in self.tables]}"
        raise AssertionError(msg)


@pytest.fixture(scope="session")
def html_tables():
    """Read the tables of a report or of its sections."""
    return HtmlTables


class Reader:
    """Read blocks of a page: their text, and figures and tables by name; no figure becomes a picture."""

    def __init__(self):
        self.figures, self.tables = {}, {}

    def __call__(self, blocks):
        section = Section("", *blocks)
        self.tables |= {numbers.name: numbers.table for numbers in section.all(Numbers)}
        for picture in section.all(Picture):
            self.figures[picture.name] = picture.figure
            picture.figure = bytes(24)
        return render(*section.parts)


@pytest.fixture(scope="session")
def make_reader():
    """Make what reads blocks of a page."""
    return Reader


@pytest.fixture
def read():
    """Read blocks of a page."""
    return Reader()


#: A row of scores and one of signals, whose values rows of tests replace.
SCORE, SIGNAL = (
    json.loads((Path(__file__).parent / "data" / f"{name}.json").read_text(encoding="utf-8")) for name in ("score", "signal")
)


def make_evaluation(scores=(), signals=(), study=None, predictions=None):
    """Make a comparison of rows that say what differs from the rows above."""
    tables = []
    for rows, default in ((scores, SCORE), (signals, SIGNAL)):
        complete = [default | row for row in rows]
        for row in complete:
            row.setdefault("estimator", f"{row['algorithm']} {row['strategy']}")
        tables.append(pd.DataFrame(complete, columns=[*default, "estimator"]))
    return Evaluation(*tables, study or {}, predictions or {})


@pytest.fixture(scope="session", name="make_evaluation")
def evaluation_maker():
    """Make a comparison of rows that say what differs from a common row."""
    return make_evaluation


TISSUE = ["f", "Dv", "T2v", "Dt", "K", "T2t"]
CONTRASTS = (("S_b500_TE70", 500.0, 70.0), ("S_b0_TE90", 0.0, 90.0), ("S_b500_TE90", 500.0, 90.0))
STUDY = {
    "settings": {"train_mask": "body", "score_mask": "lesion", "seed": 0, "n_repeats": 1},
    "cohorts": {"A<1>": {"synthetic": True}, "B": {"synthetic": True}},
}


def random_keys():
    """Keys of every training; controls are trained at the larger size only."""
    algorithms = ("LR", "RFR", "constant", "shuffled", "perfect")
    levels = ("same", "other"), ("A<1>", "B"), range(4), ("s2s", "m2m"), algorithms
    for train_on, cohort, i, strategy, algorithm in itertools.product(*levels):
        for n_train in (1, 3) if algorithm in ("LR", "RFR") else (3,):
            yield {
                "train_on": train_on,
                "cohort": cohort,
                "patient": f"{cohort}{i}",
                "strategy": strategy,
                "algorithm": algorithm,
                "n_train": n_train,
            }


def random_evaluation():
    """Make a comparison with the rows of a whole study and random scores."""
    rng = np.random.default_rng(2024)
    at_bound = {}
    scores, signals = [], []
    for keys in random_keys():
        constant, perfect = keys["algorithm"] == "constant", keys["algorithm"] == "perfect"
        for metric in ("S0", *TISSUE):
            voxels = keys["patient"], metric
            row = keys | {
                "metric": metric,
                "bias": 0.0 if perfect else rng.normal(0, 0.2),
                "dispersion": 0.0 if perfect else rng.uniform(0.02, 0.6),
                "pearson": np.nan if constant else rng.uniform(-1, 1),
                "spearman": np.nan if constant else rng.uniform(-1, 1),
                "median_abs_error": rng.uniform(0.02, 0.6),
                "at_bound": at_bound.setdefault(voxels, rng.uniform(0, 0.5)),
                "bias_truth": rng.normal(0, 0.2),
                "dispersion_truth": rng.uniform(0.02, 0.6),
                "pearson_truth": np.nan if constant else rng.uniform(-1, 1),
            }
            row["skill"] = 1 - row["dispersion"]
            if perfect:
                row["pearson"] = 1.0
            scores.append(row)
        for contrast, b, te in (*CONTRASTS, ("all unseen", np.nan, np.nan)):
            row = keys | {"contrast": contrast, "b": b, "te": te}
            row["relative_error"] = rng.uniform(0.02, 0.6)
            row["median_relative_error"] = rng.uniform(0.02, 0.6)
            row["signed_relative_error"] = rng.normal(0, 0.2)
            row["pearson"] = rng.uniform(-1, 1)
            signals.append(row)
    return make_evaluation(scores, signals, STUDY)


class RandomStudy:
    """A comparison with random scores, and plain means of these to compare a report with."""

    tissue = TISSUE

    def __init__(self):
        self.evaluation = random_evaluation()
        scores = self.evaluation.scores
        keys = ["train_on", "cohort", "strategy", "algorithm"]
        self._rows = dict(iter(scores[scores["n_train"] == 3].groupby(keys)))

    def rows(self, train_on, cohort, strategy, algorithm):
        """Rows of the largest training size, by plain pandas."""
        return self._rows[train_on, cohort, strategy, algorithm]

    @staticmethod
    def means(rows, metrics, suffix=""):
        """Mean over patients of the mean over parameters of |BI|, DI and r."""
        rows = rows[rows["metric"].isin(metrics)].copy()
        rows["abs"] = rows[f"bias{suffix}"].abs()
        rows["r"] = rows[f"pearson{suffix}"].fillna(0)
        columns = ["abs", f"dispersion{suffix}", "r"]
        return rows.groupby("patient")[columns].mean().mean().tolist()

    @staticmethod
    def numbers(cell):
        """Numbers of a cell, with slashes or ± between them."""
        return [float(text.replace("−", "-")) for text in re.split(" *[/±] *", cell)]

    @staticmethod
    def check_percent(number, fraction):
        """Compare as far as a report rounds: one decimal below ten percent, none above."""
        tolerance = 0.051 if abs(fraction) < 0.0995 else 0.51
        assert number == pytest.approx(100 * fraction, abs=tolerance)


@pytest.fixture(scope="session")
def random_study():
    """A comparison with random scores, and plain means of these to compare a report with."""
    return RandomStudy()
