"""Tables of intervals in model files."""

import numpy as np
import pytest

from dmrifit.io.parameter_json import RefusedError
from dmrifit.model_files.interval_tables import TABLES, checked_table
from dmrifit.predict.interval_scores import coverage_table, ranking_table, width_table

RNG = np.random.default_rng(0)
REFERENCE = RNG.normal(size=(60, 2))
INTERVALS = np.stack([-np.exp(REFERENCE), np.exp(REFERENCE)], axis=2)
NAMES = ("f", "K")


def tables():
    calibration = coverage_table(INTERVALS, REFERENCE, np.arange(60) // 10, names=NAMES)
    return {
        "calibration": calibration.assign(constant_width=1.0),
        "widths": width_table(INTERVALS, REFERENCE, names=NAMES),
        "ranking": ranking_table(INTERVALS, 0 * REFERENCE, REFERENCE, names=NAMES),
    }


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_the_scores_come_back(name):
    table = tables()[name]
    assert checked_table(name, table.to_dict("list"), NAMES).equals(table)


def test_ranks_of_equal_widths_are_missing():
    table = ranking_table(0 * INTERVALS, REFERENCE, REFERENCE, names=NAMES)
    assert table["ratio"].isna().all()
    assert checked_table("ranking", table.to_dict("list"), NAMES).equals(table)


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("calibration", "coverage", 1.1, "coverage of its calibration is 1.1"),
        ("calibration", "coverage", "0.9", "coverage of its calibration is '0.9'"),
        ("calibration", "coverage", float("nan"), "coverage of its calibration is nan"),
        ("calibration", "n_voxels", 2.5, "n_voxels of its calibration is 2.5"),
        ("calibration", "n_voxels", True, "n_voxels of its calibration is True"),
        ("calibration", "width", -1.0, "width of its calibration is -1.0"),
        ("calibration", "constant_width", float("inf"), "constant_width of its calibration is inf"),
        ("calibration", "constant_width", None, "constant_width of its calibration is None"),
        ("calibration", "parameter", "Dv", "not of"),
        ("calibration", "parameter", 3, "a parameter that is no name"),
        ("calibration", "patient", ["a"], "who has no name"),
        ("widths", "quintile", 6, "quintile of its widths is 6"),
        ("ranking", "spearman", 1.5, "spearman of its ranking is 1.5"),
        ("ranking", "ratio", float("-inf"), "ratio of its ranking is -inf"),
    ],
)
def test_values_that_scores_never_have_are_refused(name, column, value, message):
    columns = tables()[name].to_dict("list")
    columns[column][0] = value
    with pytest.raises(RefusedError, match=message):
        checked_table(name, columns, NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda columns: columns.pop("ratio"), "unknown or missing column of ranking"),
        (lambda columns: columns.update(extra=[1, 2]), "unknown or missing column of ranking"),
        (lambda columns: columns["ratio"].pop(), "equally long"),
        (lambda columns: columns.update(ratio=1.0), "equally long"),
        (lambda columns: [values.clear() for values in columns.values()], "equally long"),
        (lambda columns: [values.pop() for values in columns.values()], "not of"),
    ],
)
def test_other_columns_are_refused(change, message):
    columns = tables()["ranking"].to_dict("list")
    change(columns)
    with pytest.raises(RefusedError, match=message):
        checked_table("ranking", columns, NAMES)
