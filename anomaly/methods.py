"""Methods and rules by the names that the claims know them by, and their figures in tables of evaluations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from anomaly.thresholds import RULES, FixedThreshold, HealthyRateThreshold, ThresholdRule
from dmrifit.boards import MissingEvidence

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CLASSICAL",
    "COHORTS",
    "FIXED",
    "HEALTHY_RATE",
    "IMAGE_SCALE",
    "LATENTS",
    "NOISES",
    "OWN",
    "REFERENCE",
    "STRICT_RATE",
    "Tables",
    "aucs_of",
    "board_rules",
    "chosen_autoencoder",
    "latents_of",
    "method_name",
    "networks_of",
    "rows_of",
    "value_of",
    "value_or_nan",
]

#: Sizes of the latent vector and kinds of noise that the study reports.
LATENTS = (16, 32, 64, 128, 256, 512)
NOISES = (
    *("normal random", "normal directional", "uniform random", "uniform directional", "uniform isotropic"),
    "mix",
)
#: What networks are compared with: deviations from healthy scans, place by place, to the side of fast diffusion.
REFERENCE = "z, one-sided"
#: The project's own detector.
OWN = "implants"
#: Detectors without a network.
CLASSICAL = (REFERENCE, "z, two-sided", "Mahalanobis", "PCA", "isolation forest")
#: Cohorts: registered well, and with what registration left over.
COHORTS = ("registered", "shifted")
#: Form of an autoencoder whose maps are divided by their own largest values, as in the published code.
IMAGE_SCALE = "image scale"

#: Names of rules: fixed thresholds, a share of 1 % false positives on healthy scans, and one of 0.2 %.
FIXED, HEALTHY_RATE, STRICT_RATE = "fixed", "healthy rate", "healthy rate, 0.2 %"

_FIXED_DAE, _FIXED_DISC = 0.3, 0.5

#: What `evaluate_detectors` gives.
Tables = Mapping[str, "pd.DataFrame"]


def method_name(
    network: str,
    *,
    output: str = "sigmoid",
    latent: int = 512,
    noise: str = "mix",
    mean: str = "half",
    form: str = "",
) -> str:
    """
    Name a method as the claims know it.

    Parameters
    ----------
    network : str
        "DAE" or "RecDiscNet"; any other name, such as one of `CLASSICAL` or `OWN`, stays as it is.
    output : str, default="sigmoid"
        Of an autoencoder: "sigmoid" or "linear".
    latent : int, default=512
        Of an autoencoder: size of the latent vector.
    noise : str, default="mix"
        Of a RecDiscNet: what ellipsoids are filled with, one of `NOISES` (a hyphen or an underscore counts as a space).
    mean : str, default="half"
        Of a RecDiscNet: mean of that noise, "half" or "full".
    form : str, default=""
        What else it is: "mean of abs" (residual of an autoencoder), `IMAGE_SCALE` (of its maps), "residual" (of a
        RecDiscNet, whose plain row is the output of the discriminator).

    Returns
    -------
    str
        For example "DAE sigmoid 512", "RecDiscNet mix half, residual".
    """
    name = network
    if network == "DAE":
        name = f"DAE {output} {latent:d}"
    elif network == "RecDiscNet":
        name = f"RecDiscNet {re.sub('[-_]', ' ', noise)} {mean}"
    return f"{name}, {form}" if form else name


def board_rules(methods: Sequence[str]) -> dict[str, ThresholdRule | Mapping[str, ThresholdRule]]:
    """
    List the rules of the board: those of `RULES`, a stricter one of them, and fixed ones where they mean something.

    Parameters
    ----------
    methods : sequence of str
        Names of `method_name`.

    Returns
    -------
    dict of str to rule, or to mapping from methods to rules
        For `evaluate_detectors`. `STRICT_RATE` is what the project's own detector has by default; "fixed" is .5 for the
        discriminator of a RecDiscNet and .3 for maps of autoencoders at `IMAGE_SCALE`.
    """
    fixed: dict[str, ThresholdRule] = {}
    for name in methods:
        if name.startswith("RecDiscNet ") and "," not in name:
            fixed[name] = FixedThreshold(_FIXED_DISC)
        elif name.startswith("DAE ") and name.endswith(f", {IMAGE_SCALE}"):
            fixed[name] = FixedThreshold(_FIXED_DAE)
    return {**RULES, STRICT_RATE: HealthyRateThreshold(0.002), **({FIXED: fixed} if fixed else {})}


def rows_of(tables: Tables, method: str, rule: str | None = None, part: str = "all") -> pd.DataFrame:
    """
    Choose rows of the summary.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        What `evaluate_detectors` gave.
    method : str
        A method.
    rule : str, optional
        A rule; by default all.
    part : str, default="all"
        Which lesions.

    Returns
    -------
    DataFrame
        Perhaps without rows.
    """
    summary = tables["summary"]
    chosen = summary[(summary["part"] == part) & (summary["method"] == method)]
    return chosen if rule is None else chosen[chosen["rule"] == rule]


def value_or_nan(tables: Tables, method: str, measure: str, rule: str | None = None, part: str = "all") -> float:
    """
    Read a figure of the summary.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        What `evaluate_detectors` gave.
    method, measure : str
        Row and column.
    rule : str, optional
        For measures that depend on it.
    part : str, default="all"
        Which lesions.

    Returns
    -------
    float
        NaN where there is none.
    """
    chosen = rows_of(tables, method, rule, part)
    return float(chosen[measure].iloc[0]) if len(chosen) else float("nan")


def value_of(tables: Tables, method: str, measure: str, rule: str | None = None, part: str = "all") -> float:
    """
    Read a figure of the summary that has to be there.

    Parameters
    ----------
    tables, method, measure, rule, part
        As for `value_or_nan`.

    Returns
    -------
    float
        NaN where it is not defined.

    Raises
    ------
    MissingEvidence
        If there is no such row.
    """
    if not len(rows_of(tables, method, rule, part)):
        msg = f"{measure} of {method}" + f" under {rule}" * (rule is not None) + f" ({part})" * (part != "all")
        raise MissingEvidence(msg)
    return value_or_nan(tables, method, measure, rule, part)


def aucs_of(tables: Tables) -> dict[str, float]:
    """
    Give the AUC of every method that is no control.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        What `evaluate_detectors` gave.

    Returns
    -------
    dict of str to float
        In the order of the table.
    """
    summary = tables["summary"]
    own = summary[(summary["part"] == "all") & ~summary["control"].astype(bool)].drop_duplicates("method")
    return dict(zip(own["method"].astype(str), own["auc"].astype(float), strict=True))


def networks_of(tables: Tables) -> list[str]:
    """
    Name the networks with the study's own scores: residuals of autoencoders and outputs of discriminators.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        What `evaluate_detectors` gave.

    Returns
    -------
    list of str
        Names without a form.
    """
    return [name for name in aucs_of(tables) if name.startswith(("DAE ", "RecDiscNet ")) and "," not in name]


def latents_of(tables: Tables, output: str) -> dict[int, float]:
    """
    Give the AUC of autoencoders by the size of their latent vector.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        What `evaluate_detectors` gave.
    output : str
        "sigmoid" or "linear".

    Returns
    -------
    dict of int to float
        By size.
    """
    matches = ((re.fullmatch(rf"DAE {output} (\d+)", name), auc) for name, auc in aucs_of(tables).items())
    return {int(match[1]): auc for match, auc in matches if match}


def chosen_autoencoder(tables: Tables) -> str:
    """
    Name the autoencoder that stands for all: a sigmoid and the largest latent vector there is, as in the study.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        What `evaluate_detectors` gave.

    Returns
    -------
    str
        A method.

    Raises
    ------
    MissingEvidence
        If there is no autoencoder with a sigmoid.
    """
    known = latents_of(tables, "sigmoid")
    if not known:
        msg = "an autoencoder with a sigmoid"
        raise MissingEvidence(msg)
    return method_name("DAE", latent=max(known))
