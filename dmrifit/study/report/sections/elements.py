"""What several sections share: words, links to tables, titles with their conditions."""

from __future__ import annotations

from dmrifit.report.numerals import wording
from dmrifit.stats.metrics import MapMetric

#: Name of the images that are not among the inputs.
SIGNALS = "unseen signals"
#: Skill is drawn so far: below, a predictor is worse than guessing, by how much is of no use.
SKILL_ENDS = (-1.0, 1.0)
#: Training patients in words, by way of training.
WHOM = {"same": "the same cohort", "other": "other cohorts", "pooled": "all cohorts"}
#: Ways of training in words.
TRAINED = {
    "same": "trained on the other patients of the same cohort",
    "other": "trained on all patients of the other cohorts",
    "pooled": "trained on the other patients of all cohorts",
}


def metric_format(metric: MapMetric) -> str:
    """Give the format of scores in the unit and with the digits of their metric."""
    return f".{metric.digits}{'%' if metric.unit == '%' else 'f'}"


def metric_text(metric: MapMetric, value: float) -> str:
    """Write a score in the unit and with the digits of its metric."""
    return wording(f"{{score:{metric_format(metric)}}}", {"score": value})


def capital(text: str) -> str:
    """Begin with a capital letter; `str.capitalize` would make the others small."""
    return text[:1].upper() + text[1:]
