"""Options of commands: parameters of their functions, with the help that docstrings hold."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from dmrifit.cli.options import named_files, numbers, pairs, words

#: Functions of commands that read no header.
_WITHOUT_IMAGES = ("import_", "simulate", "report", "cite")

#: A line of help: name, another flag, what the value is, its range, and the sentence.
_LINE = re.compile(
    r"(\w+)(?: (--\S+))?(?: (\S.*?))??(?: (-?[\d.]+?)?\.\.(-?[\d.]+)?)?: (.+)", re.MULTILINE
)

_Help = dict[str, tuple[str, ...]]


def read_help(docstring: str | None) -> tuple[str, _Help, str]:
    """Split a docstring into what a command does, its options, and the example of its use."""
    text, *blocks = re.split(r"\n\n(?=Options:\n|Example: )", inspect.cleandoc(docstring or ""))
    lines: _Help = {}
    example = ""
    for block in blocks:
        # Indented lines continue the one before.
        title, _, body = re.sub(r"\n +", " ", block).partition("Example: ")
        example = body or example
        lines |= {match[1]: match.groups("")[1:] for match in _LINE.finditer(title)}
    return text, lines, example


def with_options(command: Callable[..., None], shared: _Help) -> Callable[..., None]:
    """
    Give typer the parameters of a command, with help, ranges and flags from its docstring.

    Parameters by position are arguments. One of a dataclass stands for the fields of the class,
    a tuple for values with commas between them, a dictionary for a repeatable NAME=VALUE.
    """
    text, own, _ = read_help(command.__doc__)
    parameters = list(inspect.signature(command, eval_str=True).parameters.values())
    groups: dict[str, Any] = {}
    members: list[inspect.Parameter] = []
    for parameter in parameters:
        if not is_dataclass(parameter.annotation):
            members.append(parameter)
            continue
        group: Any = parameter.annotation
        fields = inspect.signature(group, eval_str=True).parameters
        groups[parameter.name] = (group, list(fields))
        own = read_help(group.__doc__)[1] | own
        members += fields.values()
    if command.__name__ not in _WITHOUT_IMAGES:
        form = inspect.Parameter("use", inspect.Parameter.KEYWORD_ONLY, default=None)
        members.append(form.replace(annotation=str | None))
    lines = shared | own
    names = {member.name for member in members if member.annotation is not typer.Context}
    if unmatched := sorted((own.keys() - names) | (names - lines.keys())):
        raise TypeError(
            f"{command.__qualname__}: {', '.join(unmatched)}: each parameter needs a line under "
            '"Options:", and each line there a parameter'
        )
    readers = {member.name: _reader(member) for member in members if member.name in names}
    positional = [one.name for one in parameters if one.kind is one.POSITIONAL_ONLY]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        form = values.pop("use", None)
        reading: AbstractContextManager[None] = nullcontext()
        if form is not None:
            from dmrifit.io.nifti import use_form

            reading = use_form(form)
        with reading:
            for name, read in readers.items():
                if read is not None and values[name] is not None:
                    values[name] = read(values[name])
            for name, (group, fields) in groups.items():
                values[name] = group(**{field: values.pop(field) for field in fields})
            command(*[values.pop(name) for name in positional], **values)

    declared = []
    for member in members:
        if member.name in names:
            member = _declare(member, lines[member.name])
        declared.append(member.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    run.__doc__ = text
    # Typer also looks for annotations, of which these are not the ones that it shall read.
    run.__annotations__ = {}
    del run.__wrapped__
    run.__signature__ = inspect.Signature(declared)  # type: ignore[attr-defined]
    return run


def _flag(name: str) -> str:
    # A parameter may be named as a word that Python keeps for itself, with a dash at its end.
    return f"--{name.rstrip('_').replace('_', '-')}"


def _declare(parameter: inspect.Parameter, line: tuple[str, ...]) -> inspect.Parameter:
    """Give a parameter the type, flags, range and help that typer shows."""
    other_flag, metavar, low, high, sentence = line
    known: dict[str, Any] = {"help": sentence, "metavar": metavar or None}
    known |= {key: ast.literal_eval(end) for key, end in (("min", low), ("max", high)) if end}
    annotation, default = parameter.annotation, parameter.default
    kind = _kind(annotation)
    if get_origin(kind) is tuple:
        annotation = str | None if default is None else str
        if isinstance(default, tuple):
            default = ",".join(
                f"{value:g}" if isinstance(value, float) else str(value) for value in default
            )
    elif get_origin(kind) is dict:
        annotation = list[str] | None if default is None else list[str]
    if parameter.kind is parameter.POSITIONAL_ONLY:
        option = typer.Argument(**known)
    else:
        flags = [_flag(parameter.name), other_flag] if other_flag else []
        if default is False or parameter.name.endswith("_"):
            flags = [_flag(parameter.name)]
        option = typer.Option(*flags, **known)
    return parameter.replace(annotation=Annotated[annotation, option], default=default)


def _kind(annotation: Any) -> Any:
    """Give a type without the None that it may be."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if type(None) in get_args(annotation) else annotation


def _reader(parameter: inspect.Parameter) -> Callable[[Any], Any] | None:
    """Give the function that reads the text of a value; None where typer reads it."""
    kind, flag = _kind(parameter.annotation), _flag(parameter.name)
    if get_origin(kind) is dict:
        if get_args(kind)[1] is Path:
            return functools.partial(named_files, flag)
        return lambda texts: dict(pairs(flag, texts))
    if get_origin(kind) is not tuple:
        return None
    number, *others = get_args(kind)
    if number is str:
        return lambda text: tuple(words(text))
    n = None if Ellipsis in others else 1 + len(others)
    return lambda text: numbers(flag, text, n, kind=number)
