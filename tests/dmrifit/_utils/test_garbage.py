"""The pause of the garbage collector ends as it began, also after an error."""

import gc

import pytest

from dmrifit._utils.garbage import collection_paused


def test_collection_is_paused_inside_and_resumes_after_an_error_too_unless_a_user_switched_it_off():
    assert gc.isenabled()
    with collection_paused():
        assert not gc.isenabled()
        with collection_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="stop"), collection_paused():
        raise ValueError("stop")
    assert gc.isenabled()
    gc.disable()
    try:
        with collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_objects_made_inside_are_not_visited_next_and_those_that_a_user_has_frozen_stay_frozen():
    with collection_paused():
        made = [[] for _ in range(1000)]
    oldest = {id(thing) for thing in gc.get_objects(generation=2)}
    assert oldest.issuperset(map(id, made))
    gc.freeze()
    try:
        n_frozen = gc.get_freeze_count()
        with collection_paused():
            pass
        assert 0 < gc.get_freeze_count() <= n_frozen
    finally:
        gc.unfreeze()
