"""Worked lines in the README and in --help are understood by the commands, and the lines in Python run."""

import re
import shlex

import pytest
import typer
from typer.testing import CliRunner

from metastasis import cli

SHELL = re.compile(r"^ +dmrifit-metastasis (.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def section(request):
    text = (request.config.rootpath / "README.md").read_text(encoding="utf-8")
    return text[text.index("## Find small metastases") :].partition("\n## ")[0]


def test_worked_lines_are_understood_by_the_commands_they_name(section):
    commands = typer.main.get_command(cli.app).commands
    pages = {name: CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200"}).output for name in commands}
    helped = [line for page in pages.values() for line in SHELL.findall(page)]
    assert len(helped) == len(commands)
    in_readme = SHELL.findall(section)
    assert {line.split()[0] for line in in_readme} == set(commands)
    for line in (*helped, *in_readme):
        name, *arguments = shlex.split(line)
        commands[name].make_context(name, arguments)
        assert all(word in pages[name] for word in arguments if word.startswith("--")), line


def test_columns_that_the_readme_names_are_read(section):
    from metastasis.cases import _OPTIONAL, _REQUIRED

    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert set(_REQUIRED) < named <= {*_REQUIRED, *_OPTIONAL}


@pytest.mark.deep
def test_the_lines_in_python_run(section, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    import metastasis

    small, segmenter = metastasis.simulate_metastases, metastasis.DeepMedicSegmenter
    tiny = {"widths": (2, 2), "epochs": 1, "segments_per_epoch": 4, "batch_size": 2}
    monkeypatch.setattr(metastasis, "simulate_metastases", lambda n, **given: small(
        n, shape=(36, 36, 36), spacing=2.5, **given
    ))  # fmt: skip
    monkeypatch.setattr(metastasis, "DeepMedicSegmenter", lambda **given: segmenter(**{**given, **tiny}))
    monkeypatch.chdir(tmp_path)
    code = re.search(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("sensitive", "both", "all positive", "strict_precision"))
    assert (tmp_path / "compared" / "report.html").is_file()
