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

__all__ = ["MUTATIONS", "PLACES", "apply", "mutation"]

#: Functions of the good bytes and a parameter (text; empty where there is none) that give the faulty bytes.
MUTATIONS: dict[str, Callable[[bytes, str], bytes]] = {}


def mutation(function: Callable[[bytes, str], bytes]) -> Callable[[bytes, str], bytes]:
    """Make a function of bytes a mutation that tables name by its name."""
    MUTATIONS[function.__name__] = function
    return function


def apply(path: Path, name: str, parameter: str = "") -> None:
    """Replace a file by a faulty one, or by something that is no file at all."""
    if name in PLACES:
        PLACES[name](path, parameter)
        return
    good = path.read_bytes()
    path.unlink()
    path.write_bytes(MUTATIONS[name](good, parameter))


# Something else in the place of a file. Permissions would say nothing where tests run as root.


def _absent(path: Path, _: str) -> None:
    path.unlink()


def _folder(path: Path, _: str) -> None:
    path.unlink()
    path.mkdir()


def _broken_link(path: Path, _: str) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _circular_link(path: Path, _: str) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _device(path: Path, _: str) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


def _pipe(path: Path, _: str) -> None:
    path.unlink()
    os.mkfifo(path)


def _replaced_by(path: Path, parameter: str) -> None:
    content = (path.parent / parameter).read_bytes()
    path.unlink()
    path.write_bytes(content)


PLACES: dict[str, Callable[[Path, str], None]] = {
    "absent": _absent,
    "folder": _folder,
    "broken_link": _broken_link,
    "circular_link": _circular_link,
    "device": _device,
    "pipe": _pipe,
    "replaced_by": _replaced_by,
}

# Bytes


def _place(parameter: str, size: int) -> int:
    """Read a position: a number of bytes, from the end if negative, or a share of the size such as 50%."""
    if parameter.endswith("%"):
        return int(size * float(parameter[:-1]) / 100)
    return int(parameter) % (size + 1) if int(parameter) >= 0 else size + int(parameter)


@mutation
def truncated(good: bytes, parameter: str) -> bytes:
    return good[: _place(parameter, len(good))]


@mutation
def flipped(good: bytes, parameter: str) -> bytes:
    raw = bytearray(good)
    raw[min(_place(parameter, len(good)), len(good) - 1)] ^= 0x55
    return bytes(raw)


@mutation
def emptied(good: bytes, parameter: str) -> bytes:
    return b""


@mutation
def zeroed(good: bytes, parameter: str) -> bytes:
    return bytes(len(good))


@mutation
def noise(good: bytes, parameter: str) -> bytes:
    return random.Random(int(parameter)).randbytes(len(good))


@mutation
def garbage_after(good: bytes, parameter: str) -> bytes:
    return good + random.Random(0).randbytes(int(parameter))


@mutation
def garbled(good: bytes, parameter: str) -> bytes:
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


# Packing


@mutation
def unpacked(good: bytes, parameter: str) -> bytes:
    return gzip.decompress(good)


@mutation
def packed(good: bytes, parameter: str) -> bytes:
    return gzip.compress(good, mtime=0)


@mutation
def packed_in_two(good: bytes, parameter: str) -> bytes:
    """Two members of gzip, one after the other, as `cat a.gz b.gz` makes them: a valid file."""
    raw = gzip.decompress(good)
    return gzip.compress(raw[:500], mtime=0) + gzip.compress(raw[500:], mtime=0)


# Images


def _image(good: bytes) -> tuple[nib.Nifti1Image, bool]:
    zipped = good[:2] == b"\x1f\x8b"
    return nib.Nifti1Image.from_bytes(gzip.decompress(good) if zipped else good), zipped


def _bytes(image: Any, zipped: bool) -> bytes:
    raw = image.to_bytes()
    return gzip.compress(raw, mtime=0) if zipped else raw


def _with_values(good: bytes, change: Callable[[np.ndarray], np.ndarray], kind: Any = None) -> bytes:
    """Change the values of an image; the header keeps all but shape, type and scale."""
    image, zipped = _image(good)
    values = change(np.asarray(image.dataobj).copy())
    header = image.header.copy()
    header.set_data_dtype(kind or values.dtype)
    return _bytes(nib.Nifti1Image(values, image.affine, header), zipped)


def _raw(good: bytes, change: Callable[[bytearray], None]) -> bytes:
    """Change the bytes of an image below its packing."""
    zipped = good[:2] == b"\x1f\x8b"
    raw = bytearray(gzip.decompress(good) if zipped else good)
    change(raw)
    return gzip.compress(bytes(raw), mtime=0) if zipped else bytes(raw)


@mutation
def header(good: bytes, parameter: str) -> bytes:
    """Set fields of the header and nothing else: field=value, or field.index=value, with blanks between them."""

    def change(raw: bytearray) -> None:
        found = nib.Nifti1Header(bytes(raw[:348]), check=False)
        for one in parameter.split():
            name, _, value = one.partition("=")
            name, _, index = name.partition(".")
            if index:
                values = found[name].copy()
                values[int(index)] = float(value)
                found[name] = values
            else:
                found[name] = value.encode() if found[name].dtype.kind == "S" else float(value)
        raw[:348] = found.binaryblock

    return _raw(good, change)


@mutation
def cut_off_inside(good: bytes, parameter: str) -> bytes:
    """Lose the last bytes of the image below a packing that is whole."""

    def change(raw: bytearray) -> None:
        del raw[_place(parameter, len(raw)) :]

    return _raw(good, change)


@mutation
def swapped_bytes(good: bytes, parameter: str) -> bytes:
    """Store in the other order of bytes: a valid file."""
    image, zipped = _image(good)
    header = image.header.as_byteswapped()
    return _bytes(nib.Nifti1Image(np.asarray(image.dataobj).copy(), image.affine, header), zipped)


@mutation
def nifti2(good: bytes, parameter: str) -> bytes:
    """Store as NIfTI-2: a valid file."""
    image, zipped = _image(good)
    return _bytes(nib.Nifti2Image(np.asarray(image.dataobj).copy(), image.affine), zipped)


@mutation
def extended(good: bytes, parameter: str) -> bytes:
    """Add an extension to the header: a valid file."""
    image, zipped = _image(good)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"<b>a note</b>"))
    return _bytes(nib.Nifti1Image(np.asarray(image.dataobj).copy(), image.affine, image.header), zipped)


@mutation
def stored_as(good: bytes, parameter: str) -> bytes:
    """Store values as another type of number, without scale factors."""
    return _with_values(good, lambda values: values.astype(parameter), np.dtype(parameter))


@mutation
def stored_as_colors(good: bytes, parameter: str) -> bytes:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])

    def change(values: np.ndarray) -> np.ndarray:
        colored = np.zeros(values.shape, kind)
        colored["R"] = np.clip(values, 0, 255)
        return colored

    return _with_values(good, change, kind)


@mutation
def shaped(good: bytes, parameter: str) -> bytes:
    """Cut or repeat values until they have a shape, such as 4,4,3."""
    shape = tuple(int(word) for word in parameter.split(","))

    def change(values: np.ndarray) -> np.ndarray:
        n = int(np.prod(shape))
        return np.resize(values, shape) if n else np.zeros(shape, values.dtype)

    return _with_values(good, change)


@mutation
def axis_added(good: bytes, parameter: str) -> bytes:
    """Give a last axis of a length."""
    return _with_values(good, lambda values: np.repeat(values[..., None], int(parameter), axis=-1))


@mutation
def turned(good: bytes, parameter: str) -> bytes:
    """Store axes in another order of voxels, with the affine that belongs to it: a valid file."""
    image, zipped = _image(good)
    codes = nib.orientations.axcodes2ornt(tuple(parameter))
    here = nib.orientations.io_orientation(image.affine)
    return _bytes(image.as_reoriented(nib.orientations.ornt_transform(here, codes)), zipped)


@mutation
def filled(good: bytes, parameter: str) -> bytes:
    """Give all voxels one value."""
    value = complex(parameter).real if parameter not in ("nan", "inf", "-inf") else float(parameter)

    def change(values: np.ndarray) -> np.ndarray:
        return np.full(values.shape, value, np.float32)

    return _with_values(good, change)


@mutation
def one_voxel(good: bytes, parameter: str) -> bytes:
    """Give the first voxel a value (in every volume)."""

    def change(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float32)
        values[0, 0, 0] = float(parameter)
        return values

    return _with_values(good, change)


@mutation
def inner_voxel(good: bytes, parameter: str) -> bytes:
    """Give the voxel in the middle a value (in every volume)."""

    def change(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float32)
        values[tuple(n // 2 for n in values.shape[:3])] = float(parameter)
        return values

    return _with_values(good, change)


@mutation
def multiplied(good: bytes, parameter: str) -> bytes:
    """Multiply all values."""
    return _with_values(good, lambda values: values.astype(np.float64) * float(parameter))


@mutation
def clipped(good: bytes, parameter: str) -> bytes:
    """Cut values off at a number, as scanners and converters do."""
    return _with_values(good, lambda values: np.minimum(values, float(parameter)).astype(np.float32))


@mutation
def replaced(good: bytes, parameter: str) -> bytes:
    """Give voxels of one value another: old=new."""
    old, _, new = parameter.partition("=")

    def change(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float64)
        values[values == float(old)] = float(new)
        return values.astype(np.float32)

    return _with_values(good, change)


@mutation
def scaled(good: bytes, parameter: str) -> bytes:
    """Multiply values and store a scale factor that undoes it: a valid file with rounding."""
    image, zipped = _image(good)
    values, factor = np.asarray(image.dataobj).copy(), float(parameter)
    header = image.header.copy()
    header.set_data_dtype(np.float32)
    raw = bytearray(nib.Nifti1Image((values * factor).astype(np.float32), image.affine, header).to_bytes())
    found = nib.Nifti1Header(bytes(raw[:348]), check=False)
    found["scl_slope"], found["scl_inter"] = 1 / factor, 0
    raw[:348] = found.binaryblock
    return gzip.compress(bytes(raw), mtime=0) if zipped else bytes(raw)


@mutation
def affine(good: bytes, parameter: str) -> bytes:
    """Set entries of the affine, with blanks between them: row,column=value; row,column+=value moves it."""
    image, _ = _image(good)
    moved = image.affine.copy()
    for one in parameter.split():
        where, _, value = one.partition("=")
        row, column = (int(word) for word in where.rstrip("+").split(","))
        moved[row, column] = (moved[row, column] if where.endswith("+") else 0) + float(value)

    def change(raw: bytearray) -> None:
        found = nib.Nifti1Header(bytes(raw[:348]), check=False)
        for name, row in zip(("srow_x", "srow_y", "srow_z"), moved, strict=False):
            found[name] = row
        found["sform_code"], found["qform_code"] = 1, 0
        raw[:348] = found.binaryblock

    return _raw(good, change)


# Tables of numbers and of words


def _text(good: bytes) -> str:
    return good.decode("utf-8")


@mutation
def windows_lines(good: bytes, parameter: str) -> bytes:
    return _text(good).replace("\n", "\r\n").encode()


@mutation
def old_mac_lines(good: bytes, parameter: str) -> bytes:
    return _text(good).replace("\n", "\r").encode()


@mutation
def encoded(good: bytes, parameter: str) -> bytes:
    """Write in another encoding: utf-16, utf-16-le, utf-8-sig, …"""
    return _text(good).encode(parameter, "replace")


@mutation
def wrong_letter(good: bytes, parameter: str) -> bytes:
    """Put a byte that is no UTF-8 at a position."""
    at = _place(parameter, len(good))
    return good[:at] + b"\xff" + good[at:]


@mutation
def nul_byte(good: bytes, parameter: str) -> bytes:
    at = _place(parameter, len(good))
    return good[:at] + b"\x00" + good[at:]


@mutation
def substituted(good: bytes, parameter: str) -> bytes:
    r"""Replace all of one text by another: old=new; \t, \n and \0 stand for what they do elsewhere."""
    for short, meant in ((r"\t", "\t"), (r"\n", "\n"), (r"\0", "\0"), (r"\s", " ")):
        parameter = parameter.replace(short, meant)
    old, _, new = parameter.partition("=")
    changed = _text(good).replace(old, new)
    assert changed != _text(good), f"{old!r} is not in the file"
    return changed.encode()


@mutation
def with_line(good: bytes, parameter: str) -> bytes:
    """Put a line before the others."""
    return f"{parameter}\n".encode() + good


@mutation
def with_last_line(good: bytes, parameter: str) -> bytes:
    return good.rstrip(b"\n") + f"\n{parameter}\n".encode()


@mutation
def only_first_line(good: bytes, parameter: str) -> bytes:
    return good.partition(b"\n")[0] + b"\n"


def _rows(good: bytes) -> list[list[str]]:
    return [line.split() for line in _text(good).splitlines() if line.strip()]


def _joined(rows: list[list[str]]) -> bytes:
    return "".join(" ".join(row) + "\n" for row in rows).encode()


@mutation
def times(good: bytes, parameter: str) -> bytes:
    """Multiply all numbers, as a mistake in the unit does."""
    return _joined([[f"{float(word) * float(parameter):.10g}" for word in row] for row in _rows(good)])


@mutation
def number(good: bytes, parameter: str) -> bytes:
    """Replace one number: index=word, counted over all lines."""
    index, _, word = parameter.partition("=")
    rows = _rows(good)
    places = [(i, j) for i, row in enumerate(rows) for j in range(len(row))]
    i, j = places[int(index)]
    rows[i][j] = word
    return _joined(rows)


@mutation
def transposed(good: bytes, parameter: str) -> bytes:
    return _joined([list(row) for row in zip(*_rows(good), strict=True)])


@mutation
def shortened(good: bytes, parameter: str) -> bytes:
    """Lose the last numbers of each line."""
    return _joined([row[: -int(parameter)] for row in _rows(good)])


@mutation
def lengthened(good: bytes, parameter: str) -> bytes:
    """Repeat the last number of each line."""
    return _joined([row + row[-1:] * int(parameter) for row in _rows(good)])


@mutation
def separated_by(good: bytes, parameter: str) -> bytes:
    r"""Put something else than blanks between numbers; \t is a tab."""
    return _joined(_rows(good)).replace(b" ", parameter.replace(r"\t", "\t").encode())


def _cells(good: bytes) -> list[list[str]]:
    return [line.split("\t") for line in _text(good).splitlines()]


def _table(rows: list[list[str]]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in rows).encode()


@mutation
def cell(good: bytes, parameter: str) -> bytes:
    """Set cells of a tab-separated table: row,column=value with | between them; the header is row 0."""
    rows = _cells(good)
    for one in parameter.split("|"):
        where, _, value = one.partition("=")
        row, _, column = where.partition(",")
        rows[int(row)][rows[0].index(column)] = value
    return _table(rows)


@mutation
def column_removed(good: bytes, parameter: str) -> bytes:
    rows = _cells(good)
    at = rows[0].index(parameter)
    return _table([row[:at] + row[at + 1 :] for row in rows])


@mutation
def column_doubled(good: bytes, parameter: str) -> bytes:
    rows = _cells(good)
    at = rows[0].index(parameter)
    return _table([[*row, row[at]] for row in rows])


@mutation
def row_doubled(good: bytes, parameter: str) -> bytes:
    rows = _cells(good)
    return _table([*rows, rows[int(parameter)]])


@mutation
def row_removed(good: bytes, parameter: str) -> bytes:
    rows = _cells(good)
    del rows[int(parameter)]
    return _table(rows)


# JSON and archives


@mutation
def json_set(good: bytes, parameter: str) -> bytes:
    """Set an entry: path.of.keys=value in JSON; an empty path replaces the whole."""
    path, _, text = parameter.partition("=")
    content = json.loads(good)
    if not path:
        return text.encode()
    *keys, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    inner = content
    for key in keys:
        inner = inner[key]
    inner[last] = json.loads(text)
    return json.dumps(content).encode()


@mutation
def json_removed(good: bytes, parameter: str) -> bytes:
    """Remove an entry: path.of.keys."""
    content = json.loads(good)
    *keys, last = [int(key) if key.isdigit() else key for key in parameter.split(".")]
    inner = content
    for key in keys:
        inner = inner[key]
    del inner[last]
    return json.dumps(content).encode()


def _rezipped(good: bytes, change: Callable[[dict[str, bytes]], None], method: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return made.getvalue()


@mutation
def member_removed(good: bytes, parameter: str) -> bytes:
    """Remove a member of an archive: its number in the order of names."""
    return _rezipped(good, lambda parts: parts.pop(sorted(parts)[int(parameter)]) and None)


@mutation
def member_added(good: bytes, parameter: str) -> bytes:
    return _rezipped(good, lambda parts: parts.update({parameter: b"something"}))


@mutation
def member(good: bytes, parameter: str) -> bytes:
    """Mutate a member of an archive: name mutation parameter."""
    name, kind, *rest = parameter.split(" ", 2)

    def change(parts: dict[str, bytes]) -> None:
        parts[name] = MUTATIONS[kind](parts[name], rest[0] if rest else "")

    return _rezipped(good, change)


# Arrays in .npy files, which stand for the arguments of functions


def _changed_array(good: bytes, change: Callable[[np.ndarray], Any]) -> bytes:
    made = io.BytesIO()
    np.save(made, np.asarray(change(np.load(io.BytesIO(good)))), allow_pickle=True)
    return made.getvalue()


@mutation
def array_shaped(good: bytes, parameter: str) -> bytes:
    """Cut or repeat values until they have a shape; nothing stands for no axis."""
    shape = tuple(int(word) for word in parameter.split(",") if word)
    return _changed_array(good, lambda values: np.resize(values, shape) if np.prod(shape) else np.zeros(shape))


@mutation
def array_as(good: bytes, parameter: str) -> bytes:
    return _changed_array(good, lambda values: values.astype(parameter))


@mutation
def array_filled(good: bytes, parameter: str) -> bytes:
    return _changed_array(good, lambda values: np.full(values.shape, float(parameter)))


@mutation
def array_with(good: bytes, parameter: str) -> bytes:
    """Set the first value."""

    def change(values: np.ndarray) -> np.ndarray:
        values = values.astype(float)
        values.flat[0] = float(parameter)
        return values

    return _changed_array(good, change)
