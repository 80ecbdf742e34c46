"""Worked lines in the README and in --help are understood by the commands, and the lines in Python run."""

import re
import shlex

import pytest
import typer
from typer.testing import CliRunner

from anomaly import cli

SHELL = re.compile(r"^ +dmrifit-anomaly (.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def section(request):
    text = (request.config.rootpath / "README.md").read_text(encoding="utf-8")
    return text[text.index("## Find anomalies in diffusion MRI") :].partition("\n## ")[0]


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
    from anomaly.cases import _OPTIONAL, _REQUIRED

    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert set(_REQUIRED) < named
    assert {*_REQUIRED, *_OPTIONAL} - named == {"synthetic"}


def test_the_lines_in_python_run(section, monkeypatch, capsys):
    import anomaly

    made = anomaly.simulate_dmri
    # Half the persons, and fewer directions: the lines are what is tested.
    monkeypatch.setattr(
        anomaly, "simulate_dmri", lambda n, m, **given: made(n, m // 2, **{**given, "n_directions": 6, "spacing": 6.0,
                                                                          "shape": (28, 32, 22)})
    )  # fmt: skip
    code = re.search(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("z, one-sided", "PCA", "all positive", "1 − mean signal", "opened"))
