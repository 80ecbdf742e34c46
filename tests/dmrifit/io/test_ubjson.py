"""Universal Binary JSON."""

import json

import numpy as np
import pytest

from dmrifit.io.ubjson import read_ubjson

# Written by hand after the specification: type, length with a type of its own, content; big-endian.
WRITTEN = {
    b"Z": None,
    b"T": True,
    b"i\xff": -1,
    b"U\xff": 255,
    b"I\x01\x00": 256,
    b"l\x00\x01\x00\x00": 65536,
    b"L\x00\x00\x00\x01\x00\x00\x00\x00": 2**32,
    b"d\x3f\x80\x00\x00": 1.0,
    b"D\xbf\xf0\x00\x00\x00\x00\x00\x00": -1.0,
    b"Si\x03K\xc2\xb2": "K²",
    b"[]": [],
    b"[i\x01T]": [1, True],
    b"[#i\x02i\x01Z": [1, None],
    b"[$S#i\x02i\x01ai\x01b": ["a", "b"],
    b"{}": {},
    b"{i\x01ai\x07i\x01b[]}": {"a": 7, "b": []},
    b"{#i\x01i\x01ai\x07": {"a": 7},
}


@pytest.mark.parametrize("content", WRITTEN, ids=[repr(value) for value in WRITTEN.values()])
def test_documents_of_the_specification_are_read(content):
    assert read_ubjson(content) == WRITTEN[content]


def test_arrays_of_one_type_are_arrays():
    found = read_ubjson(b"[$I#i\x02\x00\x01\xff\xff")
    np.testing.assert_array_equal(found, [1, -1])
    assert found.dtype == np.int16


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "1 bytes are announced at byte 0"),
        (b"l\x00", "4 bytes are announced"),
        (b"Si\xff", "a length is -1"),
        (b"SZ", "a length has the type 'Z'"),
        (b"Sl\x7f\xff\xff\xff", "a length is 2147483647"),
        # Values without content take no bytes: seven of them in six bytes, and a thousand would be as short.
        (b"[$Z#U\x07", "a length is 7"),
        (b"[$d#L\x00\x00\x00\x00\x00\x00\x00\x09", "36 bytes are announced"),
        (b"[$di\x02", "has no count"),
        (b"[" * 100, "nested more than"),
        (b"{i\x01a", "are announced"),
        (b"?", r"unknown type '\?'"),
        (b"Zi", "1 bytes follow"),
        (b"\x80\x04", "unknown type"),
    ],
)
def test_what_is_no_document_is_refused(content, match):
    with pytest.raises(ValueError, match=match):
        read_ubjson(content)


@pytest.mark.parametrize("strategy", ["one_output_per_tree", "multi_output_tree"])
def test_models_of_xgboost_say_the_same_in_both_of_its_formats(strategy):
    xgboost = pytest.importorskip("xgboost")
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(80, 4)), rng.normal(size=(80, 3))
    regressor = xgboost.XGBRegressor(n_estimators=3, max_depth=3, multi_strategy=strategy, n_jobs=1)
    booster = regressor.fit(X, Y).get_booster()
    found = read_ubjson(bytes(booster.save_raw("ubj")))["learner"]
    expected = json.loads(bytes(booster.save_raw("json")))["learner"]
    assert found["learner_model_param"] == expected["learner_model_param"]
    trees = [one["gradient_booster"]["model"]["trees"] for one in (found, expected)]
    assert len(trees[0]) == (9 if strategy == "one_output_per_tree" else 3)
    for mine, theirs in zip(*trees, strict=True):
        assert mine.keys() == theirs.keys()
        for field in ("left_children", "right_children", "split_indices", "split_conditions", "base_weights"):
            np.testing.assert_array_equal(mine[field], np.asarray(theirs[field], dtype=mine[field].dtype))
