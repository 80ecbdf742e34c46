"""Kernels compiled for a signal model and kept on disk: written, imported, never stale."""

from __future__ import annotations

import functools
import hashlib
import linecache
import logging
import os
import platform
import stat
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from dmrifit._utils.compiled import check_environment
from dmrifit._utils.garbage import collection_paused
from dmrifit.engine.kernels import formula

if TYPE_CHECKING:
    from dmrifit._utils.code_store import CodeStore
    from dmrifit.engine.formulas.model_formula import ModelFormula


_loaded: dict[str, ModuleType] = {}
_stores: dict[str, CodeStore] = {}
_lock = threading.RLock()
_logger = logging.getLogger("dmrifit")


def load(model: ModelFormula | None) -> ModuleType:
    """Import the kernel of a model, or for None the shared code; write it if not on disk."""
    with _lock:
        check_environment()
        # Importing numba makes nearly as many objects that stay as compiling does.
        with collection_paused():
            _import_numba()
        name = _module_name(model)
        if name not in _loaded:
            with collection_paused():
                kernel = _import(name, model)
            if model is not None and model.source:
                _check_function(kernel, model)
            _loaded[name] = kernel
        return _loaded[name]


def is_compiled(kernel: ModuleType) -> bool:
    """Tell whether a kernel is ready: compiled in this process or kept on disk."""
    entry_point = kernel.advance
    if entry_point.signatures:
        return True
    store = _stores.get(kernel.__name__)
    return store is not None and store.has(entry_point)


@functools.cache
def _module_name(model: ModelFormula | None) -> str:
    import llvmlite.binding
    import numba

    # Workers of joblib have a number of threads, which kernels do not depend on.
    settings = {key: value for key, value in os.environ.items() if key.startswith("NUMBA_")}
    settings.pop("NUMBA_NUM_THREADS", None)
    facts = [
        *(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))),
        b""
        if model is None
        else repr((model.expression, model.source, model.parameters, model.cumulant)).encode(),
        repr((sys.version, numba.__version__, llvmlite.__version__, platform.machine())).encode(),
        llvmlite.binding.get_host_cpu_name().encode(),
        llvmlite.binding.get_host_cpu_features().flatten().encode(),
        repr(sorted(settings.items())).encode(),
    ]
    digest = hashlib.sha256(b"\0".join(facts)).hexdigest()[:20]
    safe = "".join(c if c.isalnum() else "_" for c in _title(model))
    return f"dmrifit_{'shared' if model is None else 'kernel'}_{safe}_{digest}"


def _title(model: ModelFormula | None) -> str:
    return "all" if model is None else model.name


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
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folders = [home, Path(tempfile.gettempdir()) / f"dmrifit-{user}"]
    if setting:
        folders = [Path(setting).expanduser()]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        status = folder.stat()
        # A folder that another user can write to would let them put code into this process.
        is_private = not hasattr(os, "getuid") or (
            status.st_uid == os.getuid() and not status.st_mode & stat.S_IWOTH
        )
        if is_private and os.access(folder, os.W_OK):
            return folder
    raise OSError(
        f"the cache folder {folders[0]} cannot be used (it must be a folder of yours that you can "
        "write to)"
    )


# Said once, not for every model.
@functools.cache
def _say_no_folder(reason: str) -> None:
    _logger.warning(
        "%s: compiled fits are kept until this process ends; set DMRIFIT_CACHE to another folder",
        reason,
    )


def _import(name: str, model: ModelFormula | None) -> ModuleType:
    from dmrifit._utils.code_store import CodeStore

    path = None
    store = None
    try:
        path = _cache_folder() / f"{name}.py"
        store = CodeStore(path, f"fit of model {_title(model)}", "DMRIFIT_CACHE")
        kernel = _executed(name, store.module_text(lambda: _source(model)), path)
    # numba raises a RuntimeError where it finds no folder for its files.
    except (OSError, RuntimeError) as error:
        if store is None:
            _say_no_folder(str(error))
        else:
            store.say_not_kept(error)
        return _executed(name, _source(model).replace(", cache=True", ""), path)
    _stores[name] = store
    for value in vars(kernel).values():
        if hasattr(value, "py_func"):
            store.adopt(value)
    return kernel


def _source(model: ModelFormula | None) -> str:
    if model is None:
        return Path(__file__).with_name("shared.py").read_text(encoding="utf-8")
    return formula.source(model)


def _executed(name: str, text: str, path: Path | None) -> ModuleType:
    """Make a module of its source; Python's own file of bytecode could be damaged unnoticed."""
    kernel = ModuleType(name)
    kernel.__file__ = str(path or f"<{name}>")
    # numba looks the module up by name when it reads its cache.
    sys.modules[name] = kernel
    linecache.cache[kernel.__file__] = len(text), None, text.splitlines(keepends=True), name
    exec(compile(text, kernel.__file__, "exec"), vars(kernel))
    return kernel


def _check_function(kernel: ModuleType, model: ModelFormula) -> None:
    """Compile a user's function alone, to name the statement at which that fails."""
    import numba

    n_arguments = len(model.names) + (2 if model.needs_te else 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kernel.compiled.compile((numba.float64,) * n_arguments)
    # numba raises errors of many kinds, also ones that are no errors of its own.
    except Exception as error:
        line = getattr(getattr(error, "loc", None), "line", 0)
        statement = linecache.getline(kernel.__file__ or "", line).strip()
        where = f"the statement {statement!r}" if statement else "the function"
        raise ValueError(
            f"model {model.name}: {where} cannot be compiled; use numbers, if, loops, and "
            "functions of math and numpy that give a number"
        ) from None
    result = kernel.compiled.nopython_signatures[-1].return_type
    if not isinstance(result, numba.types.Float | numba.types.Integer | numba.types.Boolean):
        raise ValueError(
            f"model {model.name}: the function returns {result} and not always a number; end "
            "every path with a return of the signal"
        )
