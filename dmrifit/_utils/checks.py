"""Checks of parameters: numbers, counts and words that estimators and functions take."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard, Union, get_args, get_origin

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.counts import counted

_SMALLEST_TRAINED = 1e-100  # squares of it, and of its reciprocal, are numbers still


class Within(NamedTuple):
    """Limits of a number in a type hint, such as ``Annotated[float, Within(most=1)]``."""

    least: float = 0.0
    most: float = np.inf
    above: float = -np.inf
    below: float = np.inf


Count = Annotated[int, Within(1)]
NotNegative = Annotated[float, Within()]


def check_fields(instance: Any) -> None:
    """Refuse a parameter that the type hint of its field in a dataclass excludes."""
    cls: Any = type(instance)
    hints = _field_hints(cls)
    parameters = vars(instance)
    # A fitted estimator has more attributes than parameters.
    if hasattr(instance, "get_params"):
        parameters = instance.get_params(deep=False)
    for name, value in parameters.items():
        hint = hints.get(name)
        options = [hint]
        if get_origin(hint) in (Union, UnionType):
            options = [option for option in get_args(hint) if option is not NoneType]
        is_optional = NoneType in get_args(hint)
        # Where several kinds of values are possible, the class checks them itself.
        if len(options) > 1 or (value is None and is_optional):
            continue
        (hint,) = options
        if hint is bool:
            check_word(name, value, (False, True))
        elif get_origin(hint) is Literal:
            check_word(name, value, (*get_args(hint), *((None,) * is_optional)))
        elif get_origin(hint) is Annotated:
            _check_limits(name, value, hint)
        elif get_origin(hint) is Sequence and get_origin(get_args(hint)[0]) is Annotated:
            if not isinstance(value, tuple | list) or not value:
                raise ValueError(f"{name} must be a list of numbers, such as [1,2], not {value!r}")
            for number in value:
                _check_limits(f"each of {name}", number, get_args(hint)[0])


def _check_limits(name: str, value: Any, hint: Any) -> None:
    kind, limits = get_args(hint)
    check_number(name, value, whole=kind is int, **limits._asdict())


@cache
def _field_hints(cls: Any) -> dict[str, Any]:
    """Read the type hints of a class and its bases, as far as they are dataclasses."""
    hints = {}
    for base in reversed(cls.__mro__):
        if "__dataclass_fields__" in vars(base):
            hints.update(inspect.get_annotations(base, eval_str=True))
    return hints


def check_number(
    name: str,
    value: Any,
    *,
    least: float = 0.0,
    most: float = np.inf,
    above: float = -np.inf,
    below: float = np.inf,
    whole: bool = False,
) -> None:
    """Refuse a parameter that is not a number, too small or too large."""
    if not is_number(value, whole=whole) or not (least <= value <= most and above < value < below):
        limits = f"above {above:g}" if above > -np.inf else f"of at least {least:g}"
        if most < np.inf:
            is_open = above > -np.inf
            limits = f"{limits} and at most {most:g}" if is_open else f"from {least:g} to {most:g}"
        if below < np.inf:
            limits += f" and below {below:g}"
        noun = "whole number" if whole else "number"
        raise ValueError(f"{name} must be a {noun} {limits}, not {value!r}")


def is_number(value: Any, *, whole: bool = False) -> TypeGuard[float]:
    """Whether a value is one real number, of Python or NumPy."""
    # For Python a bool is an int.
    if isinstance(value, bool):
        return False
    if whole:
        return isinstance(value, int | np.integer)
    return isinstance(value, int | float | np.integer | np.floating)


def check_finite(
    values: NDArray[Any], name: str, remedy: str = "set voxels without a value to 0"
) -> None:
    """Refuse an array of voxels that are not all finite numbers."""
    n_bad = values.size
    if values.dtype.kind in "fiub":
        n_bad = int(np.count_nonzero(~np.isfinite(values)))
    if n_bad or values.dtype.kind not in "fiub":
        raise ValueError(
            f"{name} has {counted(n_bad, 'non-finite value')} ({values.dtype}); {remedy}"
        )


def check_magnitude(values: NDArray[Any], name: str) -> None:
    """Refuse training data so large or small that their variances overflow or vanish."""
    finite = np.isfinite(values)
    highest = np.max(values, where=finite, initial=0)
    largest = max(float(highest), -float(np.min(values, where=finite, initial=0)))
    if largest and not _SMALLEST_TRAINED <= largest <= 1 / _SMALLEST_TRAINED:
        raise ValueError(
            f"{name} has values up to {largest:.3g}, of which no variance can be computed; "
            f"divide {name} by {largest:.0e}"
        )


def check_word(name: str, value: Any, known: Iterable[Any]) -> None:
    """Refuse a parameter that is not among the known words."""
    words = tuple(known)
    # True equals 1, but must not pass for it.
    is_bool = isinstance(value, bool | np.bool_)
    comparable = [word for word in words if isinstance(word, bool) == is_bool]
    if not isinstance(value, Hashable) or value not in comparable:
        raise ValueError(f"{name} must be one of {', '.join(map(str, words))}, not {value!r}")


def check_words(
    name: str, values: Collection[Any], known: Collection[Any], *, least: int = 0
) -> None:
    """Refuse a list of words with one that is not among the known ones, or with too few."""
    unknown = [value for value in values if value not in known]
    if unknown or len(values) < least:
        words = ", ".join(map(str, unknown)) or "nothing"
        raise ValueError(f"{name} must be some of {', '.join(map(str, known))}, not {words}")


def check_own_names(what: str, names: Iterable[str], reserved: Collection[str] = ()) -> None:
    """Refuse no name at all, a name that stands twice, and names of other rows of a table."""
    counts = Counter(list(names))
    conflicts = [name for name, count in counts.items() if count > 1 or name in reserved]
    if not counts:
        raise ValueError(f"{what} have no names; give at least one")
    if conflicts:
        listed = ", ".join(map(str, conflicts))
        raise ValueError(f"{what} need unique names; rename those repeated or reserved: {listed}")


@contextmanager
def errors_about(subject: str, remedy: str = "") -> Iterator[None]:
    """Say in errors of the block what they are about, and what to do."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{told_of(subject, error)}{remedy}") from None


def told_of(subject: str, error: Exception) -> str:
    """Begin the text of an error with what it is about, unless it does so itself."""
    # "row 3 (patient p1): patient p1: …" would name the patient twice.
    text = str(error).removeprefix(f"{subject.rpartition(' (')[2].removesuffix(')')}: ")
    # A patient's name may be a number, which the text can begin with for other reasons.
    begins = f"{subject}: ", *(() if subject.isdigit() else (f"{subject} ",))
    return text if text.startswith(begins) else f"{subject}: {text}"


# A word with the value that is given to it and the flags that are named after it, if any.
_ARGUMENT = re.compile(
    r"(?<![\w./'-])([a-z]\w*)(?:=([\w.'…-]*))?(?: \((--[^)]+)\))?(?![\w/=(\[]|\.\w)"
    r"( (?:must|cannot|was) )?"
)
#: Options of commands that are arguments of another name in Python.
_OTHER_NAMES = {
    "mean": "average_directions", "n_train": "sizes", "n_repeats": "repeats",
    "size_range": "sides", "random_state": "seed", "algorithm": "algorithms",
    "strategy": "strategies",
}  # fmt: skip


def with_flags(text: str, options: Collection[str], words: Iterable[tuple[str, str]] = ()) -> str:
    """
    Name the options of a command in a message that names the arguments of a function.

    Before, replace the first of each pair of `words` by the second.
    """
    for words_of_python, words_of_commands in words:
        text = text.replace(words_of_python, words_of_commands)

    def flag_of(match: re.Match[str]) -> str:
        name, value, flags, verb = match.groups()
        is_subject = verb and (match.start() == 0 or text[: match.start()].endswith(": "))
        # Other words, such as a mask or a mean, may be meant as such.
        if not (value is not None or is_subject or "_" in name):
            return match[0]
        name = name if name in options else _OTHER_NAMES.get(name, name)
        flag = f"--{name.replace('_', '-')}"
        if flags and (value is not None or flags.startswith(flag)):
            return flags + (verb or "")
        if name not in options:
            return match[0]
        word = (value or "").strip("'…")
        return flag + ("" if word in ("", "True") else f" {word}") + (verb or "")

    # "mask=…, --mask" names its flag itself.
    return re.sub(r"(--[\w-]+), \1\b", r"\1", _ARGUMENT.sub(flag_of, text))


def real_numbers(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Turn an argument into an array of real numbers."""
    if np.iscomplexobj(values):
        raise ValueError(
            f"{name} must be real numbers, not {np.asarray(values).dtype}; take the magnitude of "
            "complex ones"
        )
    try:
        return np.asarray(filled(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers: {error}") from None


def finite_numbers(values: Any, name: str) -> NDArray[np.float64]:
    """Read lists of numbers, of any depth; refuse texts, booleans, NaN and infinities."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{name}: the lists differ in length") from None
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise ValueError(f"{name}: there is something other than finite numbers in {values!r:.80}")
    return array.astype(np.float64)


def filled(values: Any) -> Any:
    """Fill a masked array of numpy with NaN; return anything else as it is."""
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind in "fiub":
        # A type that holds NaN; the values under the mask may be any numbers.
        dtype = np.result_type(values.dtype, np.float32)
        return np.ma.filled(np.ma.asarray(values, dtype=dtype), np.nan)
    return values
