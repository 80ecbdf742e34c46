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
#: What does not belong to a model, or is stored in another place.
_LEFT_OUT = frozenset({"threshold", "n_jobs", "n_threads"})
_SHARED = frozenset({"shape", "n_channels", "rule", "threshold"})


class ArrayDetector(AnomalyDetector):
    """
    Base of detectors whose model files hold arrays; the derived class names them.

    A derived class gives the names of its fitted arrays in ``_array_names``, those of fitted numbers, names and lists
    of them in ``_fact_names``, and refuses in ``_check_restored`` what does not fit together.
    """

    _array_names: ClassVar[tuple[str, ...]] = ()
    _fact_names: ClassVar[tuple[str, ...]] = ()

    def stored(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]:
        """
        Give what a model file holds.

        Returns
        -------
        parameters : dict
            Of the constructor, but for the threshold rule and for what belongs to one machine.
        fitted : dict
            The size of scans, the rule as it was given and as it was fitted, numbers and names.
        files : dict of bytes
            The arrays in the format of safetensors.

        Raises
        ------
        TypeError
            If a parameter cannot be stored.
        """
        check_is_fitted(self)
        from safetensors.numpy import save

        own = self.get_params(deep=False)
        if isinstance(own.get("random_state"), np.random.RandomState):
            own["random_state"] = None
        parameters = {
            name: encoded(value, name) for name, value in own.items() if name not in _LEFT_OUT
        }
        fitted: dict[str, Any] = {
            "shape": list(self.shape_),
            "n_channels": self.n_channels_,
            "rule": encoded_rule(self.threshold),
            "threshold": encoded_rule(self.threshold_),
        }
        fitted |= {name: encoded(getattr(self, name), name) for name in self._fact_names}
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in self._array_names}
        return (
            parameters,
            fitted,
            ({_ARRAYS: save(arrays)} if arrays else {}) | self._other_files(),
        )

    def restore(self, fitted: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """
        Take what `stored` has given.

        Parameters
        ----------
        fitted : mapping
            As given by `stored`.
        files : mapping of bytes
            As given by `stored`.

        Raises
        ------
        RefusedError
            If something is missing or unknown, or does not fit.
        """
        refuse_keys(fitted, {*_SHARED, *self._fact_names}, "fitted attribute", complete=True)
        shape, n_channels = fitted["shape"], fitted["n_channels"]
        whole = isinstance(shape, list) and len(shape) == 3
        if not whole or not all(type(n) is int and n > 0 for n in (*shape, n_channels)):
            raise RefusedError(f"its scans have {shape} voxels and {n_channels} directions")
        self.shape_, self.n_channels_ = (shape[0], shape[1], shape[2]), n_channels
        self.threshold = decoded_rule(fitted["rule"])
        self.threshold_ = decoded_rule(fitted["threshold"])
        for name in self._fact_names:
            setattr(self, name, decoded(fitted[name]))
        others = {name: content for name, content in files.items() if name != _ARRAYS}
        expected = {_ARRAYS} if self._array_names else set()
        if expected != set(files) - set(others):
            raise RefusedError(f"it holds the files {sorted(files)}")
        if expected:
            self._restore_arrays(files[_ARRAYS])
        try:
            self._check_shared()
            self._check_parameters()
        except ValueError as error:
            raise RefusedError(str(error)) from None
        self._restore_others(others)
        self._check_restored()

    def _restore_arrays(self, content: bytes) -> None:
        from safetensors.numpy import load

        arrays = load(content)
        refuse_keys(arrays, set(self._array_names), "array", complete=True)
        for name, values in arrays.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise RefusedError(f"its array {name} has values that are not finite")
            setattr(self, name, values)

    def _check_restored(self) -> None:
        """Refuse arrays and facts that do not fit together."""

    def _other_files(self) -> dict[str, bytes]:
        """Give files beside the arrays."""
        return {}

    def _restore_others(self, files: Mapping[str, bytes]) -> None:
        """Take files beside the arrays."""
        refuse_keys(dict(files), set(), "file")
