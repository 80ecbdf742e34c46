"""What the study prints about its networks, so that ours can stand beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BEST", "RULE_NAMES", "published_rows", "published_table"]

#: The study's rules in the order of its tables, by our names.
RULE_NAMES = ("fixed", "Otsu", "mean pool", "Youden", "best Dice")
#: Networks of which the paper prints, under each rule, the configuration that is best on the test
#: data, so that no row of ours is the same thing.
BEST = ("DAE", "RecDiscNet")

#: By method, AUC and its standard deviation over patients, then Dice and Dice after opening under
#: each of RULE_NAMES. Source: the result files of the published code (commit 13106f46c4), which
#: have every configuration; the two last rows are those of the paper.
_TABLE = Path(__file__).with_name("published.csv")
_FILES = "published result files (means over 32 patients)"
_PAPER = "Weninger et al., Sci Rep, 2023 (configuration chosen on the test data)"


def published_rows() -> pd.DataFrame:
    """Read the study's figures by method, one column a figure."""
    import pandas as pd

    return pd.read_csv(_TABLE, index_col="method")


def published_table() -> pd.DataFrame:
    """
    List the study's figures.

    A row has ``method`` (as `method_name` names it, or "DAE" and "RecDiscNet" for what the paper
    prints of the best), ``rule`` ("" for the AUC), ``measure`` ("auc", "dice", "dice_opened"),
    ``value``, ``sd`` (over patients; NaN where it is not listed here) and ``source``.
    """
    import pandas as pd

    rows = []
    for method, figures in published_rows().iterrows():
        source = _PAPER if method in BEST else _FILES
        for name, value in figures.drop("auc sd").dropna().items():
            measure, _, rule = str(name).partition(", ")
            sd = figures["auc sd"] if measure == "auc" else float("nan")
            rows.append((method, rule, measure, value, sd, source))
    return pd.DataFrame(rows, columns=["method", "rule", "measure", "value", "sd", "source"])
