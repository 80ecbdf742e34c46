"""Model files taken apart and put together again, as someone would who knows their layout; and a pickle that acts."""

import hashlib
import io
import json
import zipfile
from pathlib import Path


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return __import__("os").mkdir, (str(self.folder),)


def parts_of(archive):
    """Give the parts of a model file, or of the bytes of an archive in it, by name."""
    with zipfile.ZipFile(archive if isinstance(archive, str | Path) else io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def write(path, parts, compression=zipfile.ZIP_DEFLATED):
    """Write an archive of parts, and give where it lies."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items() if isinstance(parts, dict) else parts:
            archive.writestr(name, content)
    return path


def packed(parts):
    """Give an archive of parts that is not compressed, as skops writes them."""
    buffer = io.BytesIO()
    write(buffer, parts, zipfile.ZIP_STORED)
    return buffer.getvalue()


def sealed(parts, change=None):
    """Give the parts with metadata that were changed and digests that fit."""
    metadata = json.loads(parts["model.json"])
    if change is not None:
        change(metadata)
    if isinstance(metadata.get("sha256"), dict):
        names = set(parts) - {"model.json"}
        metadata["sha256"] |= {name: hashlib.sha256(parts[name]).hexdigest() for name in names}
    return {**parts, "model.json": json.dumps(metadata).encode()}
