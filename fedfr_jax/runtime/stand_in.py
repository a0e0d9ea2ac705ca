"""Labels made up to fit a split, in place of a data set that is not there yet."""

from __future__ import annotations

import dataclasses
import math

from fedfr_jax.config import Config
from fedfr_jax.data import open_source
from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import ConfigError

_OPEN = 1_000_000  # the default upper limit of images per identity: no limit at all
_SPARE = 1.1  # identities beyond those expected to suffice, because counts are drawn


def stand_in_source(config: Config) -> ImageSource:
    """A source whose identities have as many images as the split asks for.

    The number of images of each identity is drawn evenly between the limits that
    ``data.split.client_images`` and ``data.split.public_images`` give, so totals agree with those
    of the real data set only about. There are no images: reading one is an error.

    Raises:
      ConfigError: the split does not say how many images people have, or how many are public.
    """
    split = config.data.split
    fewest, most = _limits(config)
    width = most - fewest + 1
    needed = [config.fed.num_clients * split.identities_per_client[1] / split.client_fraction]
    shares = [_share(split.client_images, width)]
    if split.public_identities:
        needed.append(split.public_identities / (1 - split.client_fraction))
        shares.append(_share(split.public_images, width))
    used = split.tuning_fraction if split.tuning else 1 - split.tuning_fraction
    wanted = max(n / share for n, share in zip(needed, shares, strict=True)) / used
    identities = math.ceil(_SPARE * wanted) + 100 + split.held_out_identities
    made = dataclasses.replace(
        config.data.generated, identities=identities, images_per_identity=(fewest, most)
    )
    data = dataclasses.replace(config.data, source="generated", generated=made)
    source = open_source(data)

    def read(numbers):
        raise ConfigError("these labels stand in for a data set: there are no images")

    return dataclasses.replace(
        source,
        name=f"labels made up for {config.data.source} data",
        read=read,
        describe=None,
        render=None,
    )


def _limits(config: Config) -> tuple[int, int]:
    """(fewest, most) images of an identity."""
    split = config.data.split
    ranges = {"client_images": split.client_images}
    if split.client_fraction < 1:
        ranges["public_images"] = split.public_images
        if not split.public_identities:
            raise ConfigError(
                "data.split.public_identities is 0, all that there are, which only the data set "
                "can tell; set it, or run --dry_run without --stand_in"
            )
    for name, limits in ranges.items():
        if limits[1] >= _OPEN:
            raise ConfigError(
                f"data.split.{name} is {limits}, which does not say how many images people "
                "have; give (fewest, most), or run --dry_run without --stand_in"
            )
    if not split.client_fraction:
        raise ConfigError("data.split.client_fraction is 0: there is nobody for the clients")
    return min(r[0] for r in ranges.values()), max(r[1] for r in ranges.values())


def _share(limits: tuple[int, ...], width: int) -> float:
    """Share of the identities whose number of images is within the limits."""
    return (limits[1] - limits[0] + 1) / width
