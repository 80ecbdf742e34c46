"""Covariates of subjects, such as age, sex and site, as columns of a regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted
from dmrifit.io.parameter_json import RefusedError, refuse_keys


class Design:
    """
    Turns covariates into the columns of a linear model, the first of them ones.

    Numbers become one column, centered and divided by their standard deviation; words become a
    column for each level but the first.
    """

    def __init__(self, columns: list[dict[str, Any]]) -> None:
        self.columns = columns

    @classmethod
    def learn(cls, covariates: Any, n_scans: int) -> Design:
        """Find the columns of covariates."""
        columns: list[dict[str, Any]] = []
        for name, values in _listed(covariates, n_scans).items():
            if values.dtype.kind in "fiu":
                # A constant covariate has sd 0, and no column in the matrix.
                mean, sd = float(values.mean()), float(values.std())
                columns.append({"name": name, "mean": mean, "sd": sd})
            else:
                columns.append({"name": name, "levels": sorted(set(values.tolist()))})
        return cls(columns)

    @property
    def n_columns(self) -> int:
        """Number of columns, including the one of ones."""
        n = 1
        for column in self.columns:
            if "levels" in column:
                n += len(column["levels"]) - 1
            elif column["sd"] > 0:
                n += 1
        return n

    def matrix(self, covariates: Any, n_scans: int) -> NDArray[np.float64]:
        """Build the columns for scans, shape (n_scans, n_columns)."""
        covariate_values = _listed(covariates, n_scans)
        names = [column["name"] for column in self.columns]
        if set(covariate_values) != set(names):
            raise ValueError(
                f"the covariates are {sorted(covariate_values)}, and the model was fitted with "
                f"{sorted(names)}; give those"
            )
        vectors = [np.ones(n_scans)]
        for column in self.columns:
            values = covariate_values[column["name"]]
            if "levels" not in column:
                if values.dtype.kind not in "fiu":
                    raise ValueError(
                        f"covariate {column['name']} was a number, and is now {values[0]!r}"
                    )
                # A number that was the same in all is in the column of ones already.
                if column["sd"] > 0:
                    vectors.append((values.astype(np.float64) - column["mean"]) / column["sd"])
                continue
            words = np.array([str(value) for value in values.tolist()])
            unknown = sorted(set(words.tolist()) - set(column["levels"]))
            if unknown:
                raise ValueError(
                    f"covariate {column['name']} is {', '.join(unknown)}, and the healthy "
                    f"subjects have {', '.join(column['levels'])}; add healthy scans of it, or "
                    f"fit without {column['name']}"
                )
            # The first level is in the column of ones.
            vectors += [(words == level).astype(np.float64) for level in column["levels"][1:]]
        return np.stack(vectors, axis=1)

    @classmethod
    def from_json(cls, columns: Any) -> Design:
        """Read a design from a model file."""
        if not isinstance(columns, list):
            raise RefusedError(f"its covariates are {columns!r}")
        for column in columns:
            if isinstance(column, dict) and "levels" in column:
                refuse_keys(column, {"name", "levels"}, "key of a covariate", complete=True)
                is_valid = all(isinstance(level, str) for level in column["levels"])
            else:
                refuse_keys(column, {"name", "mean", "sd"}, "key of a covariate", complete=True)
                is_valid = all(isinstance(column[key], float | int) for key in ("mean", "sd"))
            if not is_valid or not isinstance(column["name"], str):
                raise RefusedError(f"one of its covariates is {column!r}")
        return cls(columns)


def _listed(covariates: Any, n_scans: int) -> dict[str, NDArray[Any]]:
    """Return covariates as arrays of numbers or of words, none of them missing."""
    if covariates is None:
        return {}
    if not isinstance(covariates, Mapping) and not hasattr(covariates, "columns"):
        raise ValueError(
            "covariates must be a table with a column for each, such as age, not "
            f"{type(covariates).__name__}"
        )
    arrays = {}
    for name in covariates:
        values = np.asarray(covariates[name])
        if values.shape != (n_scans,):
            raise ValueError(
                f"covariate {name} has {counted(values.size, 'value')} for "
                f"{counted(n_scans, 'scan')}; give one for each"
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
            import pandas as pd

            # As objects, because numpy turns NaN among words into the word "nan".
            words = np.asarray(covariates[name], dtype=object)
            values = np.array([str(word) for word in words])
            missing = pd.isna(words) | (values == "")
        if missing.any():
            raise ValueError(
                f"covariate {name} is missing for {int(missing.sum())} of {n_scans} scans; give "
                f"all, or leave {name} out"
            )
        arrays[str(name)] = values
    return arrays
