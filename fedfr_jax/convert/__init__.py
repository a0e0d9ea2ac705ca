"""Checkpoints in and out: PyTorch's files, safetensors, ``.npz`` and runs.

    python -m fedfr_jax.convert backbone.pth backbone.safetensors

From Python, :func:`fedfr_jax.convert.files.read_weights` and
:func:`fedfr_jax.convert.files.write_weights` do the same.
"""

from __future__ import annotations

from fedfr_jax.convert.command_line import command

__all__ = ["command"]
