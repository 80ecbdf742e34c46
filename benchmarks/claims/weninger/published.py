"""What the study prints about its networks, so that ours can stand beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BEST", "CONFIGURATIONS", "MISMATCHES", "RULE_NAMES", "published_table"]

#: The study's rules in the order of its tables, by our names.
RULE_NAMES = ("fixed", "Otsu", "mean pool", "Youden", "best Dice")

_FILES = "published result files (means over 32 patients)"
_PAPER = "Weninger et al., Sci Rep, 2023 (configuration chosen on the test data)"

#: By method: AUC and its standard deviation over patients, then Dice and Dice after opening under
#: each of RULE_NAMES. Source: the result files of the published code (commit 13106f46c4), which
#: have every configuration.
CONFIGURATIONS: dict[str, tuple[float, ...]] = {
    "DAE sigmoid 16": (
        0.804,
        0.122,
        0.159,
        0.338,
        0.140,
        0.263,
        0.226,
        0.445,
        0.283,
        0.635,
        0.372,
        0.486,
    ),
    "DAE sigmoid 32": (
        0.808,
        0.114,
        0.146,
        0.315,
        0.140,
        0.286,
        0.226,
        0.469,
        0.286,
        0.648,
        0.371,
        0.490,
    ),
    "DAE sigmoid 64": (
        0.804,
        0.116,
        0.150,
        0.296,
        0.135,
        0.228,
        0.223,
        0.424,
        0.286,
        0.622,
        0.375,
        0.488,
    ),
    "DAE sigmoid 128": (
        0.803,
        0.121,
        0.142,
        0.237,
        0.131,
        0.203,
        0.221,
        0.411,
        0.289,
        0.620,
        0.379,
        0.505,
    ),
    "DAE sigmoid 256": (
        0.818,
        0.108,
        0.149,
        0.327,
        0.145,
        0.303,
        0.230,
        0.483,
        0.284,
        0.657,
        0.364,
        0.517,
    ),
    "DAE sigmoid 512": (
        0.820,
        0.108,
        0.140,
        0.240,
        0.131,
        0.205,
        0.231,
        0.446,
        0.291,
        0.650,
        0.375,
        0.519,
    ),
    "DAE linear 16": (
        0.779,
        0.110,
        0.163,
        0.390,
        0.191,
        0.471,
        0.215,
        0.471,
        0.238,
        0.576,
        0.306,
        0.470,
    ),
    "DAE linear 32": (
        0.771,
        0.113,
        0.168,
        0.431,
        0.195,
        0.501,
        0.211,
        0.478,
        0.231,
        0.574,
        0.296,
        0.467,
    ),
    "DAE linear 64": (
        0.765,
        0.108,
        0.166,
        0.409,
        0.187,
        0.458,
        0.205,
        0.458,
        0.223,
        0.540,
        0.284,
        0.428,
    ),
    "DAE linear 128": (
        0.765,
        0.110,
        0.160,
        0.378,
        0.179,
        0.426,
        0.200,
        0.442,
        0.224,
        0.529,
        0.290,
        0.436,
    ),
    "DAE linear 256": (
        0.739,
        0.120,
        0.144,
        0.325,
        0.156,
        0.360,
        0.189,
        0.428,
        0.215,
        0.522,
        0.267,
        0.408,
    ),
    "DAE linear 512": (
        0.793,
        0.109,
        0.133,
        0.257,
        0.150,
        0.336,
        0.213,
        0.463,
        0.259,
        0.627,
        0.329,
        0.480,
    ),
    "RecDiscNet normal random half": (
        *(0.693, 0.148, 0.501, 0.492, 0.503, 0.494, 0.537, 0.538, 0.509, 0.580, 0.577, 0.571),
    ),
    "RecDiscNet normal random full": (
        *(0.594, 0.197, 0.275, 0.270, 0.284, 0.279, 0.311, 0.320, 0.322, 0.363, 0.375, 0.372),
    ),
    "RecDiscNet normal directional half": (
        *(0.763, 0.135, 0.523, 0.512, 0.529, 0.518, 0.564, 0.569, 0.531, 0.630, 0.613, 0.618),
    ),
    "RecDiscNet normal directional full": (
        *(0.550, 0.178, 0.233, 0.229, 0.243, 0.238, 0.267, 0.273, 0.276, 0.307, 0.321, 0.327),
    ),
    "RecDiscNet uniform random half": (
        *(0.673, 0.167, 0.472, 0.462, 0.475, 0.465, 0.503, 0.512, 0.472, 0.554, 0.550, 0.541),
    ),
    "RecDiscNet uniform random full": (
        *(0.568, 0.182, 0.247, 0.241, 0.257, 0.244, 0.296, 0.292, 0.298, 0.330, 0.339, 0.337),
    ),
    "RecDiscNet uniform directional half": (
        *(0.680, 0.162, 0.460, 0.452, 0.465, 0.455, 0.499, 0.499, 0.480, 0.544, 0.543, 0.534),
    ),
    "RecDiscNet uniform directional full": (
        *(0.565, 0.188, 0.217, 0.212, 0.229, 0.218, 0.269, 0.276, 0.274, 0.313, 0.321, 0.328),
    ),
    "RecDiscNet uniform isotropic half": (
        *(0.761, 0.163, 0.603, 0.599, 0.603, 0.598, 0.616, 0.624, 0.592, 0.658, 0.655, 0.654),
    ),
    "RecDiscNet uniform isotropic full": (
        *(0.700, 0.154, 0.361, 0.357, 0.369, 0.363, 0.404, 0.419, 0.388, 0.466, 0.455, 0.464),
    ),
    "RecDiscNet mix half": (
        0.772,
        0.169,
        0.594,
        0.588,
        0.596,
        0.590,
        0.615,
        0.621,
        0.598,
        0.664,
        0.657,
        0.660,
    ),
    "RecDiscNet mix full": (
        0.660,
        0.215,
        0.363,
        0.360,
        0.368,
        0.365,
        0.384,
        0.399,
        0.376,
        0.444,
        0.441,
        0.452,
    ),
}
#: Dice and Dice after opening that the study prints for each network: under each rule those of the
#: configuration that is best on the test data, so that no row of ours is the same thing.
BEST: dict[str, dict[str, tuple[float, float]]] = {
    "DAE": {
        "fixed": (0.168, 0.431), "Otsu": (0.195, 0.501), "mean pool": (0.230, 0.483), "best Dice": (0.375, 0.519),
    },
    "RecDiscNet": {
        "fixed": (0.603, 0.599), "Otsu": (0.603, 0.598), "mean pool": (0.616, 0.624), "best Dice": (0.657, 0.660),
    },
}  # fmt: skip
#: Of the study's patients with a mismatch, by grade (IV: glioblastomas): those where one lies in a
#: later lesion, and all. How many of grade II had a mismatch is not stated; in none it lay there.
MISMATCHES = {"IV": (9, 11), "III": (3, 5)}


def published_table() -> pd.DataFrame:
    """
    List the study's figures.

    A row has ``method`` (as `method_name` names it, or "DAE" and "RecDiscNet" for what the paper
    prints of the best), ``rule`` ("" for the AUC), ``measure`` ("auc", "dice", "dice_opened"),
    ``value``, ``sd`` (over patients; NaN where it is not listed here) and ``source``.
    """
    import pandas as pd

    nothing = float("nan")
    rows: list[tuple[str, str, str, float, float, str]] = []
    for method, (auc, sd, *dice) in CONFIGURATIONS.items():
        rows.append((method, "", "auc", auc, sd, _FILES))
        for i, rule in enumerate(RULE_NAMES):
            rows.append((method, rule, "dice", dice[2 * i], nothing, _FILES))
            rows.append((method, rule, "dice_opened", dice[2 * i + 1], nothing, _FILES))
    for method, by_rule in BEST.items():
        for rule, (raw, opened) in by_rule.items():
            rows.append((method, rule, "dice", raw, nothing, _PAPER))
            rows.append((method, rule, "dice_opened", opened, nothing, _PAPER))
    return pd.DataFrame(rows, columns=["method", "rule", "measure", "value", "sd", "source"])
