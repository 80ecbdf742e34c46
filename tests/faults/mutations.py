"""Faults by name: functions that turn the bytes of a good file into those of a faulty one."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

Mutation = Callable[[bytes, str], bytes]


def apply(path: Path, name: str, parameter: str = "") -> None:
    """Replace a file by a faulty one, or by something that is no file at all."""
    good = path.read_bytes()
    replacement = (path.parent / parameter).read_bytes() if name == "replaced_by" else b""
    path.unlink()
    if name in PLACES:
        PLACES[name](path)
    else:
        path.write_bytes(replacement if name == "replaced_by" else MUTATIONS[name](good, parameter))


#: Something else in the place of a file. Permissions would say nothing where tests run as root.
PLACES: dict[str, Callable[[Path], None]] = {
    "absent": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "broken_link": lambda path: path.symlink_to("nowhere"),
    "circular_link": lambda path: path.symlink_to(path.name),
    "device": lambda path: path.symlink_to("/dev/null"),
    "pipe": lambda path: os.mkfifo(path),
}

# Bytes


def _place(parameter: str, size: int) -> int:
    """Read a position: a number of bytes, from the end if negative, or a share of the size such as 50%."""
    if parameter.endswith("%"):
        return int(size * float(parameter[:-1]) / 100)
    return int(parameter) % (size + 1) if int(parameter) >= 0 else size + int(parameter)


def _flipped(good: bytes, parameter: str) -> bytes:
    raw = bytearray(good)
    raw[min(_place(parameter, len(good)), len(good) - 1)] ^= 0x55
    return bytes(raw)


def _garbled(good: bytes, parameter: str) -> bytes:
    """Change some bytes anywhere; the parameter is a seed."""
    draw = random.Random(int(parameter))
    raw = bytearray(good)
    for _ in range(draw.choice((1, 1, 2, 8))):
        kind, at = draw.randrange(4), draw.randrange(len(raw))
        if kind == 0:
            raw[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            raw[at] = draw.randrange(256)
        elif kind == 2:
            del raw[at : at + draw.randint(1, 16)]
        else:
            raw[at:at] = draw.randbytes(draw.randint(1, 16))
        raw = raw or bytearray(1)
    return bytes(raw)


def _with_bytes(good: bytes, parameter: str, added: bytes) -> bytes:
    at = _place(parameter, len(good))
    return good[:at] + added + good[at:]


def _packed_in_two(good: bytes, parameter: str) -> bytes:
    """Two members of gzip, one after the other, as `cat a.gz b.gz` makes them: a valid file."""
    raw = gzip.decompress(good)
    return gzip.compress(raw[:500], mtime=0) + gzip.compress(raw[500:], mtime=0)


#: Functions of the good bytes and a parameter (text; empty where there is none) that give the faulty bytes.
MUTATIONS: dict[str, Mutation] = {
    "truncated": lambda good, parameter: good[: _place(parameter, len(good))],
    "flipped": _flipped,
    "emptied": lambda good, _: b"",
    "zeroed": lambda good, _: bytes(len(good)),
    "noise": lambda good, seed: random.Random(int(seed)).randbytes(len(good)),
    "garbage_after": lambda good, n: good + random.Random(0).randbytes(int(n)),
    "garbled": _garbled,
    "unpacked": lambda good, _: gzip.decompress(good),
    "packed": lambda good, _: gzip.compress(good, mtime=0),
    "packed_in_two": _packed_in_two,
    # A byte that is no UTF-8, and one that no text has, at a position.
    "wrong_letter": lambda good, place: _with_bytes(good, place, b"\xff"),
    "nul_byte": lambda good, place: _with_bytes(good, place, b"\x00"),
    "with_line": lambda good, line: f"{line}\n".encode() + good,
    "with_last_line": lambda good, line: good.rstrip(b"\n") + f"\n{line}\n".encode(),
    "only_first_line": lambda good, _: good.partition(b"\n")[0] + b"\n",
}


def _of(change: Callable[[Callable[[Any], Any], bytes], bytes], **functions: Callable[[Any, str], Any]) -> None:
    """Make functions of what files hold, and of a parameter, mutations of their bytes."""

    def made(function: Callable[[Any, str], Any]) -> Mutation:
        return lambda good, parameter: change(lambda content: function(content, parameter), good)

    MUTATIONS.update({name: made(function) for name, function in functions.items()})


# Images: their bytes below the packing, the image, its values


def _raw(change: Callable[[bytes], bytes], good: bytes) -> bytes:
    if good[:2] != b"\x1f\x8b":
        return change(good)
    return gzip.compress(change(gzip.decompress(good)), mtime=0)


def _image(change: Callable[[Any], Any], good: bytes) -> bytes:
    return _raw(lambda raw: change(nib.Nifti1Image.from_bytes(raw)).to_bytes(), good)


def _values(change: Callable[[np.ndarray], np.ndarray], good: bytes) -> bytes:
    """Change the values of an image; the header keeps all but shape, type and scale."""

    def changed(image: Any) -> Any:
        values = change(np.asarray(image.dataobj).copy())
        header = image.header.copy()
        header.set_data_dtype(values.dtype)
        return nib.Nifti1Image(values, image.affine, header)

    return _image(changed, good)


def _with_fields(raw: bytes, **fields: Any) -> bytes:
    """Set fields of the header and nothing else."""
    header = nib.Nifti1Header(raw[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + raw[348:]


def _header(raw: bytes, parameter: str) -> bytes:
    """Set fields: field=value, or field.index=value, with blanks between them."""
    for one in parameter.split():
        name, _, value = one.partition("=")
        name, _, index = name.partition(".")
        field = nib.Nifti1Header(raw[:348], check=False)[name].copy()
        if index:
            field[int(index)] = float(value)
        else:
            field = value.encode() if field.dtype.kind == "S" else float(value)
        raw = _with_fields(raw, **{name: field})
    return raw


def _affine(raw: bytes, parameter: str) -> bytes:
    """Set entries of the affine, with blanks between them: row,column=value; row,column+=value moves it."""
    moved = nib.Nifti1Image.from_bytes(raw).affine.copy()
    for one in parameter.split():
        where, _, value = one.partition("=")
        row, column = (int(word) for word in where.rstrip("+").split(","))
        moved[row, column] = (moved[row, column] if where.endswith("+") else 0) + float(value)
    rows = dict(zip(("srow_x", "srow_y", "srow_z"), moved[:3], strict=True))
    return _with_fields(raw, **rows, sform_code=1, qform_code=0)


def _scaled(raw: bytes, parameter: str) -> bytes:
    """Multiply values and store a scale factor that undoes it: a valid file with rounding."""
    image, factor = nib.Nifti1Image.from_bytes(raw), float(parameter)
    header = image.header.copy()
    header.set_data_dtype(np.float32)
    values = (np.asarray(image.dataobj) * factor).astype(np.float32)
    return _with_fields(nib.Nifti1Image(values, image.affine, header).to_bytes(), scl_slope=1 / factor, scl_inter=0)


_of(
    _raw,
    header=_header,
    affine=_affine,
    scaled=_scaled,
    # The last bytes of the image are lost below a packing that is whole.
    cut_off_inside=lambda raw, parameter: raw[: _place(parameter, len(raw))],
)


def _extended(image: Any, _: str) -> Any:
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"<b>a note</b>"))
    return nib.Nifti1Image(np.asarray(image.dataobj).copy(), image.affine, image.header)


def _turned(image: Any, parameter: str) -> Any:
    """Store axes in another order of voxels, with the affine that belongs to it."""
    codes = nib.orientations.axcodes2ornt(tuple(parameter))
    here = nib.orientations.io_orientation(image.affine)
    return image.as_reoriented(nib.orientations.ornt_transform(here, codes))


# Valid files: in the other order of bytes, with an extension of the header, and others.
_of(
    _image,
    swapped_bytes=lambda image, _: nib.Nifti1Image(
        np.asarray(image.dataobj).copy(), image.affine, image.header.as_byteswapped()
    ),
    nifti2=lambda image, _: nib.Nifti2Image(np.asarray(image.dataobj).copy(), image.affine),
    extended=_extended,
    turned=_turned,
)


def _stored_as_colors(values: np.ndarray, _: str) -> np.ndarray:
    colored = np.zeros(values.shape, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    colored["R"] = np.clip(values, 0, 255)
    return colored


def _resized(values: np.ndarray, parameter: str) -> np.ndarray:
    """Cut or repeat values until they have a shape, such as 4,4,3; nothing stands for no axis."""
    shape = tuple(int(word) for word in parameter.split(",") if word)
    return np.resize(values, shape) if np.prod(shape) else np.zeros(shape, values.dtype)


def _with_voxel(values: np.ndarray, place: tuple[int, ...], parameter: str) -> np.ndarray:
    """Give a voxel a value (in every volume)."""
    values = values.astype(np.float32)
    values[place] = float(parameter)
    return values


def _replaced(values: np.ndarray, parameter: str) -> np.ndarray:
    """Give voxels of one value another: old=new."""
    old, _, new = parameter.partition("=")
    return np.where(values == float(old), float(new), values).astype(np.float32)


_of(
    _values,
    # Another type of number, without scale factors.
    stored_as=lambda values, kind: values.astype(kind),
    stored_as_colors=_stored_as_colors,
    shaped=_resized,
    axis_added=lambda values, n: np.repeat(values[..., None], int(n), axis=-1),
    filled=lambda values, value: np.full(values.shape, complex(value).real, np.float32),
    one_voxel=lambda values, value: _with_voxel(values, (0, 0, 0), value),
    inner_voxel=lambda values, value: _with_voxel(values, tuple(n // 2 for n in values.shape[:3]), value),
    multiplied=lambda values, factor: values.astype(np.float64) * float(factor),
    # As scanners and converters do.
    clipped=lambda values, most: np.minimum(values, float(most)).astype(np.float32),
    replaced=_replaced,
)

# Texts, rows of numbers, tables of cells


def _text(change: Callable[[str], str], good: bytes) -> bytes:
    return change(good.decode("utf-8")).encode()


def _rows(change: Callable[[list[list[str]]], list[list[str]]], good: bytes) -> bytes:
    rows = change([line.split() for line in good.decode("utf-8").splitlines() if line.strip()])
    return "".join(" ".join(row) + "\n" for row in rows).encode()


def _cells(change: Callable[[list[list[str]]], list[list[str]]], good: bytes) -> bytes:
    rows = change([line.split("\t") for line in good.decode("utf-8").splitlines()])
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def _substituted(text: str, parameter: str) -> str:
    r"""Replace all of one text by another: old=new; \t, \n and \0 stand for what they do elsewhere."""
    for short, meant in ((r"\t", "\t"), (r"\n", "\n"), (r"\0", "\0"), (r"\s", " ")):
        parameter = parameter.replace(short, meant)
    old, _, new = parameter.partition("=")
    assert old in text, f"{old!r} is not in the file"
    return text.replace(old, new)


def _number(rows: list[list[str]], parameter: str) -> list[list[str]]:
    """Replace one number: index=word, counted over all lines."""
    index, _, word = parameter.partition("=")
    i, j = [(i, j) for i, row in enumerate(rows) for j in range(len(row))][int(index)]
    rows[i][j] = word
    return rows


def _cell(rows: list[list[str]], parameter: str) -> list[list[str]]:
    """Set cells: row,column=value with | between them; the header is row 0."""
    for one in parameter.split("|"):
        where, _, value = one.partition("=")
        row, _, column = where.partition(",")
        rows[int(row)][rows[0].index(column)] = value
    return rows


def _without_column(rows: list[list[str]], name: str) -> list[list[str]]:
    at = rows[0].index(name)
    return [row[:at] + row[at + 1 :] for row in rows]


_of(
    _text,
    windows_lines=lambda text, _: text.replace("\n", "\r\n"),
    old_mac_lines=lambda text, _: text.replace("\n", "\r"),
    substituted=_substituted,
)
_of(
    _rows,
    # All numbers, as a mistake in the unit does.
    times=lambda rows, factor: [[f"{float(word) * float(factor):.10g}" for word in row] for row in rows],
    number=_number,
    transposed=lambda rows, _: [list(row) for row in zip(*rows, strict=True)],
    shortened=lambda rows, n: [row[: -int(n)] for row in rows],
    lengthened=lambda rows, n: [row + row[-1:] * int(n) for row in rows],
    # Something else than blanks between numbers; \t is a tab.
    separated_by=lambda rows, text: [[text.replace(r"\t", "\t").join(row)] for row in rows],
)
_of(
    _cells,
    cell=_cell,
    column_removed=_without_column,
    column_doubled=lambda rows, name: [[*row, row[rows[0].index(name)]] for row in rows],
    row_doubled=lambda rows, n: [*rows, rows[int(n)]],
    row_removed=lambda rows, n: [row for i, row in enumerate(rows) if i != int(n)],
)
# utf-16, utf-16-le, utf-8-sig, …
MUTATIONS["encoded"] = lambda good, encoding: good.decode("utf-8").encode(encoding, "replace")

# JSON, archives, and arrays in .npy files, which stand for the arguments of functions


def _json(change: Callable[[Any], Any], good: bytes) -> bytes:
    return json.dumps(change(json.loads(good))).encode()


def _entry(content: Any, path: str) -> tuple[Any, Any]:
    """Find an entry by path.of.keys: what holds it, and its key."""
    *keys, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in keys:
        content = content[key]
    return content, last


def _set(content: Any, parameter: str) -> Any:
    """Set an entry: path.of.keys=value in JSON."""
    path, _, text = parameter.partition("=")
    holder, key = _entry(content, path)
    holder[key] = json.loads(text)
    return content


def _removed(content: Any, path: str) -> Any:
    holder, key = _entry(content, path)
    del holder[key]
    return content


def _archive(change: Callable[[dict[str, bytes]], Any], good: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return made.getvalue()


def _member(parts: dict[str, bytes], parameter: str) -> None:
    """Mutate a member of an archive: name mutation parameter."""
    name, kind, *rest = parameter.split(" ", 2)
    parts[name] = MUTATIONS[kind](parts[name], rest[0] if rest else "")


def _array(change: Callable[[np.ndarray], Any], good: bytes) -> bytes:
    made = io.BytesIO()
    np.save(made, np.asarray(change(np.load(io.BytesIO(good)))), allow_pickle=True)
    return made.getvalue()


def _with_first(values: np.ndarray, parameter: str) -> np.ndarray:
    values = values.astype(float)
    values.flat[0] = float(parameter)
    return values


_of(_json, json_removed=_removed)
# An empty path replaces the whole.
MUTATIONS["json_set"] = lambda good, text: text[1:].encode() if text[:1] == "=" else _json(lambda one: _set(one, text), good)
_of(
    _archive,
    # A member by its number in the order of names.
    member_removed=lambda parts, n: parts.pop(sorted(parts)[int(n)]),
    member_added=lambda parts, name: parts.update({name: b"something"}),
    member=_member,
)
_of(
    _array,
    array_shaped=_resized,
    array_as=lambda values, kind: values.astype(kind),
    array_filled=lambda values, value: np.full(values.shape, float(value)),
    array_with=_with_first,
)
