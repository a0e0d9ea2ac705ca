"""Who is in a picture: people are enrolled from folders, others are searched or verified.

    import fedfr_jax
    from fedfr_jax import identify

    model = fedfr_jax.load_model("models/global")
    gallery = identify.enrol(model, "enrolled")  # one folder per person
    features = identify.embed_images(model, identify.list_images("visitors"))
    thresholds = identify.calibrate_on_gallery(gallery, far=1e-3)
    matches = gallery.search(features, k=3)
    identify.verify(gallery, features[:1], ["alice"], thresholds.pair.value).accepted

The same as a command: ``python -m fedfr_jax.identify --help``. Images are aligned crops, or come
with five landmarks each; faces are not detected here.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {  # name -> module that defines it; imported on first use, so that --help is fast
    "Claims": "gallery",
    "FaceImages": "images",
    "Gallery": "gallery",
    "Matches": "gallery",
    "Threshold": "thresholds",
    "Thresholds": "thresholds",
    "calibrate": "thresholds",
    "calibrate_on_gallery": "thresholds",
    "embed_images": "images",
    "enrol": "gallery",
    "fixed": "thresholds",
    "list_images": "images",
    "verify": "gallery",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
