"""The model card for people, ``README.md``, from ``card.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedfr_jax.export.card import ONNX, PROGRAM, WEIGHTS

_USES = {
    WEIGHTS: """With fedfr_jax:

```python
import fedfr_jax

model = fedfr_jax.load_model("this folder")
features = model.embed(images)  # (n, {size}, {size}, 3) uint8 RGB -> (n, {d}) of length one
```
""",
    PROGRAM: """With JAX and flatbuffers alone (`{file}`):

```python
from jax import export

program = export.deserialize(bytearray(open("{file}", "rb").read()))
features = program.call(images)["features"]  # (n, {size}, {size}, 3) {dtype} -> (n, {d})
```
""",
    ONNX: """With onnxruntime (`{file}`):

```python
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
[features] = session.run(["features"], {{"images": images}})  # (n, {size}, {size}, 3) {dtype}
```
""",
}


def readme(card: Mapping[str, Any]) -> str:
    """Markdown with what the model is, how to use it, and how it was trained."""
    title = "Training" if _is_trained(card) else "Origin"
    return "\n".join([*_head(card), *_usage(card), *_table(title, _plain(card["training"]))])


def _is_trained(card: Mapping[str, Any]) -> bool:
    """Whether the model is of a run, and not of a file of published weights."""
    return "method" in card["training"]


def name_of(card: Mapping[str, Any]) -> str:
    """The model in words."""
    client, variant = card["model"]["client"], card["model"]["variant"]
    return f"{variant} model" + ("" if client is None else f" of client {client}")


def _head(card: Mapping[str, Any]) -> Iterator[str]:
    network, name = card["architecture"], name_of(card)
    yield f"# Face model: {name}\n"
    trained = "trained with fedfr_jax by federated learning"
    how = trained if _is_trained(card) else "from published weights"
    depth = f"-{network['depth']}" if network["name"] in ("spherenet", "iresnet") else ""
    yield (
        f"A {network['name']}{depth} that maps an aligned face to {network['embedding']} numbers, "
        f"{how}. Two faces are compared by the cosine of their features.\n"
    )
    yield f"License: {card['license'] or 'not stated'}\n"


def _usage(card: Mapping[str, Any]) -> Iterator[str]:
    size, network = card["preprocessing"]["size"], card["architecture"]
    yield "## Use\n"
    for name, entry in card["files"].items():
        yield _USES[name].format(
            file=name, size=size, d=network["embedding"], dtype=entry.get("images", "uint8")
        )
    points = ", ".join(f"({x:g}, {y:g})" for x, y in card["preprocessing"]["template"])
    yield (
        f"Images are RGB, {size} x {size} pixels, grey levels from 0 to 255; the network itself "
        "scales them to (x - 127.5) / 127.5. Align faces as those it was trained on; for sets in "
        "insightface's formats these points (x, y) are the eyes, the nose and the corners of the "
        f"mouth: {points}.\n"
    )


def _plain(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _table(title: str, values: Mapping[str, str]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| | |\n|---|---|"
    for name, value in values.items():
        yield f"| {name} | {value.replace('|', ' ').replace(chr(10), ' ')} |"
    yield "\nMetrics and all settings of the network are in `card.json`.\n"
