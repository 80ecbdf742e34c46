"""Tables of intervals in model files, checked by column before anything is computed from them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.io.parameter_json import RefusedError, refuse_keys

if TYPE_CHECKING:
    import pandas as pd

# The least and largest number of each column; None for names.
_COUNTS = {"n_voxels": (1, np.inf), "coverage": (0, 1), "width": (0, np.inf)}
_RANK_CORRELATION = (-1 - 1e-9, 1 + 1e-9)  # with its rounding
#: Tables of `ConformalIntervals`, by the names that they have in a file.
TABLES: dict[str, dict[str, tuple[float, float] | None]] = {
    "calibration": {
        "patient": None,
        "parameter": None,
        **_COUNTS,
        "constant_width": (0, np.inf),
    },
    "widths": {"parameter": None, "quintile": (1, 5), **_COUNTS},
    "ranking": {
        "parameter": None,
        "spearman": _RANK_CORRELATION,
        "expected": _RANK_CORRELATION,
        "ratio": (-np.inf, np.inf),
    },
}
_WHOLE = ("n_voxels", "quintile")


def checked_table(name: str, columns: Any, outputs: Collection[str]) -> pd.DataFrame:
    """Build one of `TABLES` from its decoded columns; every output has a row, and no other one."""
    import pandas as pd

    limits = TABLES[name]
    refuse_keys(columns, set(limits), f"column of {name}", complete=True)
    lengths = {len(values) if isinstance(values, list) else -1 for values in columns.values()}
    if len(lengths) > 1 or lengths & {-1, 0}:
        raise RefusedError(f"the columns of its {name} are not equally long lists")
    if not all(isinstance(output, str) for output in columns["parameter"]):
        raise RefusedError(f"its {name} have a parameter that is no name")
    if set(columns["parameter"]) != set(outputs):
        raise RefusedError(
            f"its {name} are those of {sorted(set(columns['parameter']))}, not of {list(outputs)}"
        )
    for column, span in limits.items():
        if span is not None:
            _check_column(name, column, columns[column], span)
    for patient in columns.get("patient", []):
        if not isinstance(patient, str | int | float):
            raise RefusedError(f"its {name} have a patient {patient!r:.80}, who has no name")
    return pd.DataFrame(columns)


def _check_column(name: str, column: str, values: list[Any], span: tuple[float, float]) -> None:
    """Refuse texts, infinities and numbers out of range."""
    types = (int,) if column in _WHOLE else (int, float)
    for value in values:
        # Not isinstance: true and false are integers, too.
        is_number = type(value) in types and abs(value) != np.inf
        # Equal widths have no ranks.
        is_number = is_number and (name == "ranking" or not np.isnan(value))
        if not is_number or value < span[0] or value > span[1]:
            raise RefusedError(f"{column} of its {name} is {value!r:.80}")
