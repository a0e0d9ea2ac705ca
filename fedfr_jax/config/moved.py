"""Settings that had another name, so that an old file or command is told the new one."""

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
