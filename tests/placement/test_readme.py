"""Worked lines in the README and in --help are understood by the commands, and the lines in Python run."""

import re
import shlex

import pytest
import typer
from typer.testing import CliRunner

from placement import cli

SHELL = re.compile(r"^ +dmrifit-placement (.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def section(request):
    text = (request.config.rootpath / "README.md").read_text(encoding="utf-8")
    return text[text.index("## Place a spectroscopy voxel") :].partition("\n## ")[0]


def test_worked_lines_are_understood_by_the_commands_they_name(section):
    commands = typer.main.get_command(cli.app).commands
    pages = {name: CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200"}).output for name in commands}
    helped = [line for page in pages.values() for line in SHELL.findall(page)]
    assert len(helped) == len(commands)
    in_readme = SHELL.findall(section)
    assert len(in_readme) >= 8
    for line in (*helped, *in_readme):
        name, *arguments = shlex.split(line)
        commands[name].make_context(name, arguments)
        assert all(word in pages[name] for word in arguments if word.startswith("--")), line


def test_the_lines_in_python_run(section, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("experts", "optimizer", "ranker", "random box"))
    assert (tmp_path / "voxel" / "voxel.json").is_file()
