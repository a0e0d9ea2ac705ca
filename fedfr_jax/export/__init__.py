"""Models out of a run: folders of weights, JAX programs, ONNX files; and their way back in.

    python -m fedfr_jax.export --workdir=runs/x --client=3 --out=models/client-3

:func:`fedfr_jax.load_model` opens what the command writes, and a run's work directory.
"""
