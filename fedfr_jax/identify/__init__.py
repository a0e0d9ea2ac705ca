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

from fedfr_jax.identify.gallery import Claims, Gallery, Matches, enrol, verify
from fedfr_jax.identify.images import FaceImages, embed_images, list_images
from fedfr_jax.identify.thresholds import (
    Threshold,
    Thresholds,
    calibrate,
    calibrate_on_gallery,
    fixed,
)

__all__ = [
    "Claims",
    "FaceImages",
    "Gallery",
    "Matches",
    "Threshold",
    "Thresholds",
    "calibrate",
    "calibrate_on_gallery",
    "embed_images",
    "enrol",
    "fixed",
    "list_images",
    "verify",
]
