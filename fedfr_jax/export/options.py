"""What the command can be asked for. Importing it does not start JAX."""

from __future__ import annotations

FORMATS = ("folder", "jax", "onnx")
INPUTS = ("uint8", "float32")  # types of the images that programs take
