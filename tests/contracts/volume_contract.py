"""What every estimator of volumes keeps: a class of tests to derive from."""

import pickle

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict
from sklearn.utils import estimator_checks

# Checks of scikit-learn that look at the estimator itself, not at rows of numbers.
APPLY = [
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
]


def bits(predictions):
    """Give predictions, be they volumes or numbers, as something that can be compared."""
    return [np.asarray(one).tobytes() for one in predictions]


class VolumeContract:
    """
    Derive from it, and give the fixtures ``make`` (makes an unfitted estimator that trains in a second, with what is
    given by keyword, fields of its `Training` too) and ``world`` (at least six cases, their targets, and a group for each), and say what `grid`
    holds: a parameter and two values of it.
    """

    grid = ("training__learning_rate", [0.001, 0.01])

    @pytest.fixture(scope="class")
    @classmethod
    def fitted(cls, make, world):
        cases, targets, _ = world
        return make(random_state=0).fit(cases, targets)

    @pytest.mark.parametrize("name", APPLY)
    def test_rules_of_scikit_learn_that_apply(self, make, name):
        check = getattr(estimator_checks, name)
        estimator = make()
        if name == "check_do_not_raise_errors_in_init_or_set_params":
            # It gives every parameter values such as -1 and None: only fit may refuse them.
            for key in estimator.get_params():
                for value in (-1, None, "x", {}, [1, 2]):
                    clone(estimator).set_params(**{key: value})
            return
        check(type(estimator).__name__, estimator)

    def test_fit_changes_no_parameter_and_a_clone_has_to_be_fitted(self, fitted, make, world):
        copy = clone(fitted)
        assert fitted.get_params() == copy.get_params() == make(random_state=0).get_params()
        with pytest.raises(NotFittedError):
            copy.predict(world[0])
        copy.set_params(training__epochs=1)
        assert copy.fit(*world[:2]) is copy

    def test_a_seed_gives_the_same_bits_again(self, fitted, make, world):
        cases, targets, _ = world
        again = make(random_state=0).fit(cases, targets)
        assert bits(again.predict(cases)) == bits(fitted.predict(cases))
        other = make(random_state=1).fit(cases, targets)
        assert bits(other.predict(cases)) != bits(fitted.predict(cases))

    def test_random_states_of_numpy_give_their_next_numbers(self, make, world):
        cases, targets, _ = world
        found = [
            bits(make(epochs=1, random_state=state).fit(cases, targets).predict(cases))
            for state in (np.random.RandomState(3), np.random.RandomState(3))
        ]
        assert found[0] == found[1]

    def test_a_pickle_predicts_the_same(self, fitted, world):
        copy = pickle.loads(pickle.dumps(fitted))
        assert bits(copy.predict(world[0])) == bits(fitted.predict(world[0]))

    def test_a_case_is_predicted_for_itself(self, fitted, world):
        cases = world[0]
        before = dict(vars(fitted))
        alone = [fitted.predict([case])[0] for case in cases[::-1]]
        assert bits(alone[::-1]) == bits(fitted.predict(cases))
        assert vars(fitted) == before

    def test_cases_of_another_shape_are_predicted(self, fitted, world):
        assert len({np.shape(case)[:3] for case in world[0]}) > 1
        assert len(fitted.predict(world[0])) == len(world[0])

    def test_cross_validation_by_patients(self, make, world):
        cases, targets, groups = world
        found = cross_val_predict(make(epochs=1, random_state=0), cases, targets, groups=groups, cv=GroupKFold(2))
        assert len(found) == len(cases)

    def test_a_search_tries_its_grid(self, make, world):
        cases, targets, groups = world
        name, values = self.grid
        search = GridSearchCV(
            make(epochs=1, random_state=0), {name: values}, cv=GroupKFold(2), error_score="raise", refit=True
        ).fit(cases, targets, groups=groups)
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()
        assert search.best_estimator_.get_params()[name] in values

    def test_groups_are_passed_through_a_search_to_fit(self, make, world):
        cases, targets, groups = world
        with config_context(enable_metadata_routing=True):
            estimator = make(epochs=1, random_state=0).set_fit_request(groups=True)
            name, values = self.grid
            search = GridSearchCV(estimator, {name: values[:1]}, cv=GroupKFold(2), error_score="raise")
            search.fit(cases, targets, groups=groups)

    def test_bad_cases_are_refused(self, make, fitted, world):
        cases, targets, _ = world
        with pytest.raises(ValueError, match="no cases"):
            make().fit([], [])
        with pytest.raises(ValueError, match=f"{len(cases) - 1} targets for {len(cases)} cases"):
            make().fit(cases, targets[:-1])
        with pytest.raises(ValueError, match="give y"):
            make().fit(cases)
        with pytest.raises(ValueError, match="case 1: "):
            make().fit([cases[0], np.zeros((3, 3)), *cases[2:]], targets)
        with pytest.raises(ValueError, match="case 0: "):
            fitted.predict([np.zeros(5)])
