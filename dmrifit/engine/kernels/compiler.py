"""Kernels compiled for a signal model and kept on disk: written, imported, never stale."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import stat
import sys
import tempfile
import threading
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from dmrifit.engine.kernels.formula import source

if TYPE_CHECKING:
    from dmrifit.engine.models import SignalModel

__all__ = ["is_compiled", "load"]

_loaded: dict[str, ModuleType] = {}
_lock = threading.RLock()


def load(model: SignalModel) -> ModuleType:
    """Import the kernel of a model, which is written and compiled where it is not on disk."""
    with _lock:
        name = _module_name(model)
        if name not in _loaded:
            _loaded[name] = _import(name, model)
        return _loaded[name]


def is_compiled(kernel: ModuleType) -> bool:
    """Tell whether a kernel needs no compilation."""
    path = Path(kernel.__file__ or "")
    return bool(kernel.search.signatures) or any(
        (path.parent / "__pycache__").glob(f"{path.stem}.search-*.nbi")
    )


@functools.cache
def _module_name(model: SignalModel) -> str:
    _import_numba()
    import llvmlite.binding
    import numba

    facts = [
        *(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))),
        repr((model.expression, model.source, model.parameters, model.cumulant)).encode(),
        repr((sys.version, numba.__version__, llvmlite.__version__, platform.machine())).encode(),
        llvmlite.binding.get_host_cpu_name().encode(),
        llvmlite.binding.get_host_cpu_features().flatten().encode(),
        repr(
            [(key, value) for key, value in sorted(os.environ.items()) if key.startswith("NUMBA_")]
        ).encode(),
    ]
    digest = hashlib.sha256(b"\0".join(facts)).hexdigest()[:20]
    safe = "".join(c if c.isalnum() else "_" for c in model.name)
    return f"dmrifit_kernel_{safe}_{digest}"


def _import_numba() -> None:
    """
    Import numba without scipy.

    numba looks for scipy only to compare versions and to find BLAS, which takes longer than the
    rest of the start of a small script; `finally` undoes what hid it.
    """
    if "numba" in sys.modules or "scipy" in sys.modules or threading.active_count() > 1:
        return
    sys.modules["scipy"] = None  # type: ignore[assignment]
    try:
        import numba.np.arraymath
    finally:
        del sys.modules["scipy"]
    # Jitted code of users may need BLAS, and finds scipy by then.
    numba.np.arraymath._HAVE_BLAS = True


def _cache_folder() -> Path:
    """Find the folder of generated modules: $DMRIFIT_CACHE, the user's cache, or temporary."""
    setting = os.environ.get("DMRIFIT_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dmrifit"
    folders = [home, Path(tempfile.gettempdir()) / f"dmrifit-{_user()}"]
    if setting:
        folders = [Path(setting)]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if _is_private(folder) and os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="dmrifit-"))


def _is_private(folder: Path) -> bool:
    # A folder that another user can write to would let them put code into this process.
    if not hasattr(os, "getuid"):
        return True
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & stat.S_IWOTH


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _import(name: str, model: SignalModel) -> ModuleType:
    path = _cache_folder() / f"{name}.py"
    if not path.exists():
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(source(model))
        Path(temporary).replace(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # numba looks the module up by name when it reads its cache.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
