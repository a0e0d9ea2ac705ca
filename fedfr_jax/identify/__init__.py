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

from fedfr_jax import on_first_use

_HOMES = {  # name -> module that defines it; imported on first use, so that --help is fast
    "Claims": "fedfr_jax.identify.gallery",
    "FaceImages": "fedfr_jax.identify.images",
    "Gallery": "fedfr_jax.identify.gallery",
    "Matches": "fedfr_jax.identify.gallery",
    "Threshold": "fedfr_jax.identify.thresholds",
    "Thresholds": "fedfr_jax.identify.thresholds",
    "calibrate": "fedfr_jax.identify.thresholds",
    "calibrate_on_gallery": "fedfr_jax.identify.thresholds",
    "embed_images": "fedfr_jax.identify.images",
    "enrol": "fedfr_jax.identify.gallery",
    "fixed": "fedfr_jax.identify.thresholds",
    "list_images": "fedfr_jax.identify.images",
    "verify": "fedfr_jax.identify.gallery",
}
__all__ = list(_HOMES)


__getattr__, __dir__ = on_first_use(__name__, _HOMES)
