"""Model files of detectors that learn arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from sklearn.utils.validation import check_is_fitted

from anomaly.detectors.base import AnomalyDetector
from anomaly.detectors.threshold_files import decoded_rule, encoded_rule
from dmrifit.io.parameter_json import RefusedError, decoded, encoded, refuse_keys

__all__ = ["ArrayDetector"]

_ARRAYS = "arrays.safetensors"
#: Parameters that do not belong to a model, or are stored separately.
_NOT_STORED = frozenset({"threshold", "n_jobs", "n_threads"})
_SHARED = frozenset({"shape", "n_channels", "rule", "threshold"})


class ArrayDetector(AnomalyDetector):
    """
    Base of detectors whose model files hold arrays; the derived class names them.

    A derived class lists the names of its fitted arrays in ``_array_names``, those of fitted
    numbers, names and lists of them in ``_fact_names``, and rejects inconsistent ones in
    ``_check_restored``.
    """

    _array_names: ClassVar[tuple[str, ...]] = ()
    #: Arrays that older model files lack, with values by which those models score as before.
    _later_arrays: ClassVar[Mapping[str, np.ndarray]] = {}
    _fact_names: ClassVar[tuple[str, ...]] = ()

    def stored(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]:
        """
        Return the content of a model file.

        Returns
        -------
        parameters : dict
            Of the constructor, without the threshold rule and settings of one machine.
        fitted : dict
            The size of scans, the unfitted and the fitted threshold rule, numbers and names.
        files : dict of bytes
            The arrays in the format of safetensors.

        Raises
        ------
        TypeError
            If a parameter cannot be stored.
        """
        check_is_fitted(self)
        from safetensors.numpy import save

        parameters = {}
        for name, value in self.get_params(deep=False).items():
            # The state of a generator is no parameter that a file could keep.
            if isinstance(value, np.random.RandomState) and name == "random_state":
                value = None
            if name not in _NOT_STORED:
                parameters[name] = encoded(value, name)
        fitted: dict[str, Any] = {
            "shape": list(self.shape_),
            "n_channels": self.n_channels_,
            "rule": encoded_rule(self.threshold),
            "threshold": encoded_rule(self.threshold_),
        }
        fitted |= {name: encoded(getattr(self, name), name) for name in self._fact_names}
        files = {}
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in self._array_names}
        if arrays:
            files[_ARRAYS] = save(arrays)
        return parameters, fitted, files | self._other_files()

    def restore(self, fitted: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """
        Restore the content of a model file.

        Parameters
        ----------
        fitted, files : mapping
            As returned by `stored`.

        Raises
        ------
        RefusedError
            If an entry is missing or unknown, or entries are inconsistent.
        """
        refuse_keys(fitted, {*_SHARED, *self._fact_names}, "fitted attribute", complete=True)
        shape, n_channels = fitted["shape"], fitted["n_channels"]
        has_three_axes = isinstance(shape, list) and len(shape) == 3
        if not has_three_axes or not all(type(n) is int and n > 0 for n in (*shape, n_channels)):
            raise RefusedError(f"its scans have {shape} voxels and {n_channels} directions")
        self.shape_ = (shape[0], shape[1], shape[2])
        self.n_channels_ = n_channels
        self.threshold = decoded_rule(fitted["rule"])
        self.threshold_ = decoded_rule(fitted["threshold"])
        for name in self._fact_names:
            setattr(self, name, decoded(fitted[name]))
        if (_ARRAYS in files) != bool(self._array_names):
            raise RefusedError(f"it holds the files {sorted(files)}")
        if self._array_names:
            self._restore_arrays(files[_ARRAYS])
        try:
            self._check_shared()
            self._check_parameters()
        except ValueError as error:
            raise RefusedError(str(error)) from None
        # After the checks: what else is restored depends on the parameters.
        self._restore_others({name: data for name, data in files.items() if name != _ARRAYS})
        self._check_restored()

    def _restore_arrays(self, content: bytes) -> None:
        from safetensors.numpy import load

        arrays = {**self._later_arrays, **load(content)}
        refuse_keys(arrays, set(self._array_names), "array", complete=True)
        for name, values in arrays.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise RefusedError(f"its array {name} has values that are not finite")
            setattr(self, name, values)

    def _check_restored(self) -> None:
        """Reject inconsistent arrays and facts."""

    def _check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Reject restored arrays of another shape than expected."""
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise RefusedError(
                    f"its array {name} has the shape {getattr(self, name).shape} instead of "
                    f"{shape}"
                )

    def _other_files(self) -> dict[str, bytes]:
        """Return the files of the model other than its arrays."""
        return {}

    def _restore_others(self, files: Mapping[str, bytes]) -> None:
        """Restore the files of the model other than its arrays."""
        refuse_keys(dict(files), set(), "file")
