"""Renamed settings, so that the error for an old name can give the new one."""

MOVED: dict[str, str] = {
    "fed.transform": "method.fedfr.transform",
    **{
        f"loss.{name}": f"method.fedfr.{name}"
        for name in (
            "contrastive_weight",
            "temperature",
            "binary_weight",
            "binary_scale",
            "binary_margin",
            "binary_balance",
            "binary_power",
            "binary_detached",
        )
    },
}
