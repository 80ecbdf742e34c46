"""What every package shows its users: signatures that stay, and worked lines that its commands understand."""

import inspect
import re
import shlex

import pytest
import typer
from typer.testing import CliRunner


def check_signature(package, line, *, only_keywords=True):
    """
    Compare a public name with the line that defines it: what stands there stays, more options may follow.

    By keyword only, unless told otherwise. What has no default there may have one.
    """
    name, _, rest = line.partition("(")
    scope = {}
    exec(f"def definition({rest}: pass", scope)
    found = package
    for part in name.split("."):
        found = getattr(found, part)
    parameters = inspect.signature(found).parameters
    expected = inspect.signature(scope["definition"]).parameters
    for key, one in expected.items():
        assert parameters[key].kind is one.kind
        assert one.default is one.empty or parameters[key].default == one.default
    new = [one for key, one in parameters.items() if key not in expected]
    assert all(one.default is not one.empty for one in new)
    assert not only_keywords or all(one.kind is one.KEYWORD_ONLY for one in new)
    assert [key for key in parameters if key in expected] == list(expected)


class Chapter:
    """A chapter of the README, and the program that it is about: a class of tests to derive from."""

    #: Heading in the README, name of the program, its typer application.
    heading, program, app = "", "", None

    @pytest.fixture
    def section(self, request):
        text = (request.config.rootpath / "README.md").read_text(encoding="utf-8")
        return text[text.index(f"## {self.heading}\n") :].partition("\n## ")[0]

    def test_worked_lines_are_understood_by_the_commands_they_name(self, section):
        shell = re.compile(rf"^ +{self.program} (.*)$", re.MULTILINE)
        commands = typer.main.get_command(self.app).commands
        wide = {"COLUMNS": "200"}
        pages = {name: CliRunner().invoke(self.app, [name, "--help"], env=wide).output for name in commands}
        helped = [line for page in pages.values() for line in shell.findall(page)]
        assert len(helped) == len(commands)
        in_readme = shell.findall(section)
        assert {line.split()[0] for line in in_readme} == set(commands)
        for line in (*helped, *in_readme):
            name, *arguments = shlex.split(line)
            commands[name].make_context(name, arguments)
            assert all(word in pages[name] for word in arguments if word.startswith("--")), line

    @staticmethod
    def named_columns(section):
        rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
        return set(re.findall(r"`(\w+)`", " ".join(rows)))

    @staticmethod
    def run_lines(section):
        code = re.search(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[1]
        exec(compile(code, "README.md", "exec"), {})
