"""``python -m fedfr_jax.prepare``."""

from fedfr_jax.prepare import command

if __name__ == "__main__":
    command()
