"""
Segment brain metastases with losses that weigh sensitivity against specificity.

Public names load their module on first use, so that importing the package stays quick.
"""

from importlib import import_module

# Public name -> module of this package that defines it.
_MODULES = {
    "Case": "cases",
    "DeepMedicSegmenter": "segmenter",
    "JVSSLoss": "losses",
    "SSELoss": "losses",
    "segment_image": "images",
    "VSSLoss": "losses",
    "jvss_loss": "losses",
    "sse_loss": "losses",
    "vss_loss": "losses",
    "read_case": "cases",
    "read_cases": "cases",
    "write_cases": "cases",
    "simulate_metastases": "phantoms",
    "evaluate_segmentations": "evaluation",
    "segment_scores": "evaluation",
    "lesion_table": "evaluation",
    "lesion_scores": "evaluation",
    "operating_point": "curves",
    "SensitivitySpecificityEnsemble": "ensemble",
    "reader_table": "followup",
    "follow_up": "followup",
    "write_evaluation": "report",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *_MODULES})
