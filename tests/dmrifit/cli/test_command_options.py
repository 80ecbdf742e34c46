"""Options of commands: what docstrings and parameters say is what the command line shows and reads."""

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import cleandoc
from pathlib import Path

import pytest

from dmrifit.cli.console import __doc__ as COMMON
from dmrifit.cli.console import make_program, read_help, with_options

CALLS = []


@dataclass(frozen=True)
class Field:
    """
    A field.

    Options:
    tesla 1.5..: Its strength.
    """

    tesla: float = 3.0


def scan(
    image: Path,
    /,
    *,
    out: Path,
    field: Field,
    edges: tuple[float, float] = (1.0, 2.5),
    counts: tuple[int, ...] | None = None,
    names: tuple[str, ...] = ("a", "b"),
    map_: dict[str, Path] | None = None,
    unit: dict[str, str] | None = None,
    sizes: int = 1,
    quick: bool = False,
    picture: bool = True,
) -> None:
    """
    Scan somebody.

    Slowly.

    Options:
    image IMAGE: A file,
        of an image.
    edges LOW,HIGH: Edges.
    counts N,…: Counts.
    names NAME,…: Names.
    map_ NAME=FILE: Maps: several.
    unit NAME=UNIT: Units.
    sizes --n-train N 1..3: Size.
    quick: Be quick.
    picture: Draw.

    Example: scanner scan a.nii --out b
    """
    CALLS.append(locals())


def leave() -> None:
    """Say goodbye."""


@pytest.fixture
def run(run_main):
    CALLS.clear()
    _, main = make_program("scanner", "Scans.", [scan, leave], first="scanner --help")
    return partial(run_main, main, "scanner")


def test_values_have_the_types_of_the_parameters(run):
    assert run("scan", "a.nii", "--out", "b")[0] == 0
    assert run(
        "scan", "a.nii", "--out", "b", "--tesla", "7", "--edges", "2,3.5", "--counts", "1,2,3", "--names", "x, y",
        "--map", "f=m.nii", "--map", "D=n.nii", "--unit", "D=mm", "--n-train", "2", "--quick", "--no-picture",
    )[0] == 0  # fmt: skip
    default, named = CALLS
    assert default == {
        "image": Path("a.nii"), "out": Path("b"), "field": Field(), "edges": (1.0, 2.5), "counts": None,
        "names": ("a", "b"), "map_": None, "unit": None, "sizes": 1, "quick": False, "picture": True,
    }  # fmt: skip
    assert named == {
        "image": Path("a.nii"), "out": Path("b"), "field": Field(7.0), "edges": (2.0, 3.5), "counts": (1, 2, 3),
        "names": ("x", "y"), "map_": {"f": Path("m.nii"), "D": Path("n.nii")}, "unit": {"D": "mm"}, "sizes": 2,
        "quick": True, "picture": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--tesla", "1"), "--tesla"), (("--n-train", "4"), "--n-train"), (("--edges", "1"), "--edges 1: 2 numbers"),
        (("--counts", "1.5"), "--counts 1.5: whole numbers"), (("--map", "f"), "--map f: write NAME=FILE"),
        (("--map", "f=a", "--map", "f=b"), "--map names f twice"), (("--no-quick",), "--no-quick"),
    ],
)
def test_values_that_do_not_fit_a_parameter_are_refused(run, words, named):
    code, _, error = run("scan", "a.nii", "--out", "b", *words)
    assert code == 2
    assert named in error
    assert not CALLS


def test_help_comes_from_the_docstring_and_from_what_commands_share(run):
    shown = " ".join(run("scan", "--help")[1].split())
    for line in (
        "Scan somebody.",
        "Slowly.",
        "IMAGE <path> A file, of an image. [required]",
        "--out <path> Folder for the results; created if missing. [required]",
        "--tesla <float range> Its strength. [default: 3.0; x>=1.5]",
        "--edges LOW,HIGH Edges. [default: 1,2.5]",
        "--counts N,… Counts.",
        "--map NAME=FILE Maps: several.",
        "--sizes, --n-train N Size. [default: 1; 1<=x<=3]",
        "--quick Be quick.",
        "--picture / --no-picture Draw. [default: picture]",
        "scanner scan a.nii --out b",
    ):
        assert line in shown
    assert "Options: image" not in shown


def test_parameters_and_lines_of_help_belong_together():
    def lacking(width: int) -> None:
        """Lack help."""

    def idle() -> None:
        """
        Have too much.

        Options:
        width: A width.
        """

    for command in (lacking, idle):
        with pytest.raises(TypeError, match=f"{command.__name__}: .*width"):
            with_options(command, read_help(COMMON)[1])


@pytest.mark.parametrize("package", ["dmrifit", "placement", "metastasis", "anomaly"])
def test_options_shared_are_those_of_two_commands_or_more_and_no_line_of_a_docstring_is_lost(package):
    program = import_module(f"{package}.cli.program")
    shared = read_help(program.__doc__)[1]
    commands = [command.callback for command in program.app.registered_commands]
    for name in shared:
        users = [command for command in commands if name in command.__signature__.parameters]
        assert len(users) > 1, name
    for docstring in (program.__doc__, COMMON):
        block = cleandoc(docstring).partition("\n\nOptions:\n")[2]
        assert len(read_help(docstring)[1]) == sum(line[:1] != " " for line in block.splitlines())
