"""Runs over many cases."""

import json

import pandas as pd

from dmrifit.cli.case_runs import join_tables, picture_parts, run_parts, table_text


def run(tmp_path, inputs, *, overwrite=False):
    """Run over named inputs; give what was made anew and all contents."""
    made = []

    def make(name):
        made.append(name)
        content = {"name": name, "source": inputs[name]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return content

    contents = run_parts(
        iter(inputs),
        lambda name: tmp_path / f"{name}.json",
        make,
        fields={"name": str, "source": int},
        same=lambda name, old: old["source"] == inputs[name],
        overwrite=overwrite,
    )
    assert contents == [{"name": name, "source": source} for name, source in inputs.items()]
    return made


def test_only_what_is_new_changed_or_damaged_is_done_again(tmp_path):
    assert run(tmp_path, {"a": 1, "b": 2}) == ["a", "b"]
    assert run(tmp_path, {"a": 1, "b": 3, "c": 4}) == ["b", "c"]
    (tmp_path / "a.json").write_text('{"name": "a"}')
    assert run(tmp_path, {"a": 1, "b": 3}) == ["a"]
    assert run(tmp_path, {"a": 1, "b": 3}, overwrite=True) == ["a", "b"]


def test_tables_of_cases_are_joined_with_their_names():
    cases = [{"name": "one", "patient": "p"}, {"name": "two", "patient": "p"}]
    empty, full = pd.DataFrame({"mL": []}, dtype=float), pd.DataFrame({"mL": [0.1, None]})
    found = join_tables(cases, [empty, full])
    assert table_text(found) == "name\tpatient\tmL\ntwo\tp\t0.1\ntwo\tp\tn/a\n"
    assert list(join_tables(cases, [empty, empty]).columns) == ["name", "patient", "mL"]
    assert "name" not in full


def test_pictures_and_links_are_shown_where_there_are_files(tmp_path):
    folder = tmp_path / "case"
    folder.mkdir()
    assert picture_parts(folder, "a.png", "b.html", "A case") == []
    (folder / "b.html").write_text("")
    (folder / "a.png").write_bytes(bytes(24))
    picture, link = picture_parts(folder, "a.png", "b.html", "A case")
    assert 'alt="A case"' in picture
    assert 'href="./case/b.html"' in link
