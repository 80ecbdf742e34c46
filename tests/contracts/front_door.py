"""What every package shows its users: signatures that stay, and worked lines that its commands understand."""

import inspect
import re
import shlex

import pytest
import typer
from typer.testing import CliRunner
from worked_pages import blocks, commands


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
    # By name, parameters may be given in any order.
    assert [key for key, one in parameters.items() if key in expected and one.kind is not one.KEYWORD_ONLY] == [
        key for key, one in expected.items() if one.kind is not one.KEYWORD_ONLY
    ]


class Chapter:
    """The page of a program in the documentation, and the program that it is about: tests to derive from."""

    #: Package, name of the program, its typer application.
    package, program, app = "", "", None

    @pytest.fixture
    def page(self, request):
        folder = request.config.rootpath / "examples" / "docs" / "programs"
        return (folder / f"{self.package}.rst").read_text(encoding="utf-8")

    def test_worked_lines_are_understood_by_the_commands_they_name(self, page):
        shell = re.compile(rf"^ *{self.program} (.*)$", re.MULTILINE)
        known = typer.main.get_command(self.app).commands
        wide = {"COLUMNS": "200"}
        pages = {name: CliRunner().invoke(self.app, [name, "--help"], env=wide).output for name in known}
        helped = [line for text in pages.values() for line in shell.findall(text)]
        assert len(helped) == len(known)
        on_page = [
            line.removeprefix(f"{self.program} ")
            for language, code in blocks(page)
            if language == "sh"
            for line in commands(code)
        ]
        assert {line.split()[0] for line in on_page} == set(known)
        for line in (*helped, *on_page):
            name, *arguments = shlex.split(line)
            known[name].make_context(name, arguments)
            assert all(word in pages[name] for word in arguments if word.startswith("--")), line

    @staticmethod
    def named_columns(page):
        rows = re.findall(r"^   \* - ((?:``\w+``(?:, )?)+)$", page, re.MULTILINE)
        return set(re.findall(r"``(\w+)``", " ".join(rows)))
