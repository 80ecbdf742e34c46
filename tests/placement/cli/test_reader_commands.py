"""The command reader: a page of cases, with boxes to correct."""

import json

import numpy as np
import pandas as pd


def data_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text.partition('type="application/json">')[2].partition("</script>")[0])


def test_reader_writes_one_page_with_the_proposed_boxes(run, tmp_path, cases):
    experts = pd.read_csv(cases / "experts.tsv", sep="\t")
    proposals = tmp_path / "proposals.tsv"
    first = experts[experts["expert"] == 1]
    first.drop(columns="expert").to_csv(proposals, sep="\t", index=False)
    page = tmp_path / "reader.html"
    code, text, error = run("reader", cases / "cases.tsv", "--out", page, "--proposals", proposals, "--n", 3)
    assert code == 0, error
    assert text.startswith("3 cases:")
    shown = data_of(page)["cases"]
    assert len(shown) == 3
    for case in shown:
        row = first[first["name"] == case["name"]].iloc[0]
        np.testing.assert_allclose(case["box"]["center"], row[["x", "y", "z"]].astype(float))
        assert {layer["kind"] for layer in case["layers"]} == {"image", "mask"}
    code, _, error = run("reader", cases / "cases.tsv", "--out", page)
    assert code == 2
    assert "reader.html" in error
    code, _, error = run("reader", cases / "cases.tsv", "--out", tmp_path / "page.txt")
    assert code == 2
    assert "give a name that ends in .html" in error
