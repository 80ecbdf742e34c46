"""Train/test splits of a comparison: who is left out, nested sizes, keys of kept results."""

import shutil
from pathlib import Path

import pytest

from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.study import splits
from dmrifit.study.contestants import Entrant, View
from dmrifit.study.splits import plan, views_by_cohort
from dmrifit.study.study_folder import Settings

FULL = Protocol([0, 100, 300, 500, 900, 1500])
VIEW = View(FULL.take([0, 1]), FULL, None, MODELS["adc"])
PATIENTS = {"A": ["a1", "a2", "a3", "a4"], "B": ["b1", "b2", "b3"]}


class Voxels:
    """Stands for the voxels of a comparison: which patients there are, and what their data are."""

    def __init__(self, trainable=PATIENTS, testable=PATIENTS, content="data"):
        self.trainable = trainable
        self.testable = testable
        self.content = content

    def digest(self, view, repeat, train, test):
        return [[self.content, repeat, *train], list(test)]


def make_entrant(name="LR s2s", **changes):
    values = {"strategy": "s2s", "algorithm": "LR", "estimator": None, "model": MODELS["adc"], "description": name}
    return Entrant(name, **values | changes)


def cells_of(
    regimes=("same",), sizes=None, *, entrants=None, bank=None, n_repeats=1, seed=0, keep=True, view=VIEW
):  # fmt: skip
    entrants = entrants or [make_entrant()]
    views = {(entrant.name, cohort): view for entrant in entrants for cohort in PATIENTS}
    settings = Settings(cohorts=PATIENTS, train_on=regimes, n_train=sizes, n_repeats=n_repeats, seed=seed)
    return plan(entrants, settings, views, bank or Voxels(), keep=keep)


def test_models_of_others_are_trained_once_and_smaller_trainings_are_among_larger_ones():
    a, b = (tuple(PATIENTS[name]) for name in "AB")
    assert [(cell.cohort, cell.test, cell.train) for cell in cells_of(("other",))] == [("A", a, b), ("B", b, a)]
    pooled = cells_of(("pooled",))
    assert len(pooled) == 7
    for cell in pooled:
        assert set(cell.train) == {*a, *b} - set(cell.test)
    bank = Voxels(testable={"A": ["a1"], "B": ["b1"]})
    cells = cells_of(("pooled",), (1, 2, 3), n_repeats=6, bank=bank)
    draws = set()
    for repeat in range(6):
        first, second, third = (cell for cell in cells if cell.repeat == repeat and cell.test == ("a1",))
        assert (len(first.train), len(second.train), len(third.train)) == (1, 2, 3)
        assert set(first.train) < set(second.train) < set(third.train)
        assert "a1" not in third.train
        draws.add(third.train)
    # Repeats draw on their own.
    assert len(draws) > 1


def test_only_those_with_usable_voxels_are_trained_on_and_only_those_with_a_score_are_tested():
    bank = Voxels({"A": ["a1", "a2"], "B": ["b1", "b2"]}, {"A": ["a2", "a4"], "B": ["b3"]})
    trainings = [(cell.test, cell.train) for cell in cells_of(bank=bank)]
    assert trainings == [(("a2",), ("a1",)), (("a4",), ("a1", "a2")), (("b3",), ("b1", "b2"))]
    with pytest.raises(ValueError, match=r"cohort 'B' has no voxel to score: .*with score_mask='body' give masks of the body"):
        cells_of(bank=Voxels(testable={"A": ["a1"], "B": []}))
    with pytest.raises(ValueError, match=r"training for a1 of cohort 'A' .*needs at least 4 other patients; there are 3 with voxels to train on; give the others masks"):
        cells_of(sizes=(4,))


def test_predictions_of_the_first_way_and_draw_at_the_largest_size_are_kept():
    entrants = [make_entrant(), make_entrant("perfect s2s", algorithm="perfect", control="perfect")]
    options = {"regimes": ("pooled", "same"), "sizes": (1, 2), "entrants": entrants, "n_repeats": 2}
    kept = [cell for cell in cells_of(**options) if cell.keep]
    trainings = {(cell.entrant.name, cell.train_on, len(cell.train), cell.repeat) for cell in kept}
    assert trainings == {("LR s2s", "pooled", 2, 0)}
    assert not any(cell.keep for cell in cells_of(**options, keep=False))


def test_seeds_belong_to_the_training_and_not_to_the_algorithm():
    entrants = [make_entrant(), make_entrant("RFR s2s", algorithm="RFR")]
    cells = cells_of(entrants=entrants, n_repeats=2)
    seeds = {}
    for cell in cells:
        seeds.setdefault((cell.test, cell.repeat), set()).add(cell.seed)
    assert all(len(shared) == 1 for shared in seeds.values())
    assert len(set.union(*seeds.values())) == 7 * 2
    assert {cell.seed for cell in cells_of()} <= set.union(*seeds.values())
    assert {cell.seed for cell in cells_of(seed=1)}.isdisjoint(set.union(*seeds.values()))


def keys_of(**options):
    return [cell.key for cell in cells_of(**options)]


def test_the_same_training_has_the_same_key_and_every_change_another_one(monkeypatch):
    keys = keys_of()
    assert len(set(keys)) == 7
    assert keys == keys_of()
    changes = [
        {"seed": 1},
        {"bank": Voxels(content="other data")},
        {"entrants": [make_entrant(description="alpha=2")]},
        {"entrants": [make_entrant(code="other code")]},
        {"view": View(FULL.take([0, 2]), FULL, None, MODELS["adc"])},
        {"view": View(VIEW.source, FULL, (3, 3, 1), MODELS["adc"])},
        {"view": View(VIEW.source, FULL, None, MODELS["kurtosis"])},
        {"regimes": ("pooled",)},
        {"sizes": (1,)},
    ]
    for change in changes:
        assert set(keys).isdisjoint(keys_of(**change)), change
    monkeypatch.setattr(splits, "software", lambda: {"numpy": "0"})
    assert set(keys).isdisjoint(keys_of())


def test_the_order_of_estimators_changes_no_key_and_an_edited_kernel_repeats_trainings(tmp_path, monkeypatch):
    entrants = [make_entrant("RFR s2s", algorithm="RFR"), make_entrant()]
    assert set(keys_of()) < set(keys_of(entrants=entrants))
    assert keys_of() == keys_of(keep=False)
    package = tmp_path / "dmrifit"
    original = Path(splits.__file__).parents[1]
    shutil.copytree(original, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(splits, "__file__", str(package / "study" / "splits.py"))
    digest_sources = splits._sources.__wrapped__
    before = digest_sources()
    assert digest_sources() == before
    kernel = package / "engine" / "kernels" / "shared.py"
    text = kernel.read_text(encoding="utf-8")
    kernel.write_text(text.replace("value * unit", "2.0 * value * unit"), encoding="utf-8")
    assert digest_sources() != before


@pytest.mark.parametrize(
    ("regimes", "of_its_own", "of_the_other"),
    [(("same",), True, False), (("other",), True, True), (("pooled",), True, True), (("same", "other"), True, True)],
)
def test_patients_are_lent_in_the_views_of_those_that_they_train_for(regimes, of_its_own, of_the_other):
    near, far = VIEW, View(FULL.take([0, 2]), FULL, None, MODELS["adc"])
    views = {("x", "A"): near, ("y", "A"): near, ("x", "B"): far, ("y", "B"): far}
    seen, lent = views_by_cohort(views, regimes)
    assert seen == {"A": {near: None}, "B": {far: None}}
    assert (near in lent["A"], far in lent["A"]) == (of_its_own, of_the_other)
    assert (far in lent["B"], near in lent["B"]) == (of_its_own, of_the_other)
