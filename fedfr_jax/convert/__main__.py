"""``python -m fedfr_jax.convert``."""

from fedfr_jax.convert.command_line import command

if __name__ == "__main__":
    command()
