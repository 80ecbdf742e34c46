"""What is known of subjects, such as age, sex and site, as columns of a regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.io.parameter_json import RefusedError, refuse_keys

__all__ = ["Design"]


class Design:
    """
    Turns covariates into the columns of a linear model, the first of them ones.

    Numbers become one column, centered and divided by their standard deviation; words become a column for each level
    but the first.

    Parameters
    ----------
    columns : list of dict
        What `learn` has found, for each covariate.
    """

    def __init__(self, columns: list[dict[str, Any]]) -> None:
        self.columns = columns

    @classmethod
    def learn(cls, covariates: Any, n_scans: int) -> Design:
        """Find the columns of covariates."""
        columns: list[dict[str, Any]] = []
        for name, values in _listed(covariates, n_scans).items():
            if values.dtype.kind in "fiu":
                mean, sd = float(values.mean()), float(values.std())
                if sd > 0:
                    columns.append({"name": name, "mean": mean, "sd": sd})
                else:
                    columns.append({"name": name, "mean": mean, "sd": 0.0})
            else:
                columns.append({"name": name, "levels": sorted(set(values.tolist()))})
        return cls(columns)

    @property
    def n_columns(self) -> int:
        """Number of columns, with that of ones."""
        return 1 + sum(
            len(c["levels"]) - 1 if "levels" in c else int(c["sd"] > 0) for c in self.columns
        )

    def matrix(self, covariates: Any, n_scans: int) -> NDArray[np.float64]:
        """
        Give the columns for scans.

        Shapes: returns (n_scans, n_columns).
        """
        given = _listed(covariates, n_scans)
        names = [column["name"] for column in self.columns]
        if set(given) != set(names):
            raise ValueError(
                f"the covariates are {sorted(given)}, and the model was fitted with {sorted(names)}; give those"
            )
        found = [np.ones(n_scans)]
        for column in self.columns:
            values = given[column["name"]]
            if "levels" not in column:
                if values.dtype.kind not in "fiu":
                    raise ValueError(
                        f"covariate {column['name']} was a number, and is now {values[0]!r}"
                    )
                if column["sd"] > 0:
                    found.append((values.astype(np.float64) - column["mean"]) / column["sd"])
                continue
            words = np.array([str(value) for value in values.tolist()])
            unknown = sorted(set(words.tolist()) - set(column["levels"]))
            if unknown:
                raise ValueError(
                    f"covariate {column['name']} is {', '.join(unknown)}, and the healthy subjects have "
                    f"{', '.join(column['levels'])}; add healthy scans of it, or fit without {column['name']}"
                )
            found += [(words == level).astype(np.float64) for level in column["levels"][1:]]
        return np.stack(found, axis=1)

    @classmethod
    def from_json(cls, columns: Any) -> Design:
        """Make a design from what a model file holds."""
        if not isinstance(columns, list):
            raise RefusedError(f"its covariates are {columns!r}")
        for column in columns:
            words = isinstance(column, dict) and "levels" in column
            refuse_keys(column, {"name", "levels"} if words else {"name", "mean", "sd"}, "key of a covariate",
                        complete=True)  # fmt: skip
            good = (
                all(isinstance(level, str) for level in column["levels"])
                if words
                else all(isinstance(column[key], float | int) for key in ("mean", "sd"))
            )
            if not good or not isinstance(column["name"], str):
                raise RefusedError(f"one of its covariates is {column!r}")
        return cls(columns)


def _listed(covariates: Any, n_scans: int) -> dict[str, NDArray[Any]]:
    """Give covariates as arrays of numbers or of words, none of them missing."""
    if covariates is None:
        return {}
    if not isinstance(covariates, Mapping) and not hasattr(covariates, "columns"):
        raise ValueError(
            f"covariates must be a table with a column for each, such as age, not {type(covariates).__name__}"
        )
    found = {}
    for name in covariates:
        values = np.asarray(covariates[name])
        if values.shape != (n_scans,):
            raise ValueError(
                f"covariate {name} has {values.size} values for {n_scans} scans; give one for each"
            )
        if values.dtype.kind == "O" and all(
            isinstance(value, int | float | np.number) for value in values
        ):
            values = values.astype(np.float64)
        if values.dtype.kind == "b":
            values = values.astype(int)
        if values.dtype.kind in "fiu":
            missing = ~np.isfinite(values)
        else:
            missing = np.array([_is_missing(value) for value in values.tolist()])
            values = np.array([str(value) for value in values.tolist()])
        if missing.any():
            raise ValueError(
                f"covariate {name} is missing for {int(missing.sum())} of {n_scans} scans; give all, or leave "
                f"{name} out"
            )
        found[str(name)] = values
    return found


def _is_missing(value: Any) -> bool:
    import pandas as pd

    return bool(pd.isna(value)) or not str(value)
