"""Makes the peers' virtual environments, one each, so that none decides another's versions.

    python -m benchmarks.peers.environments            # all of them
    python -m benchmarks.peers.environments pfl flower

They are made in ``.venv-peers`` (or in the folder that FEDFR_PEER_ENVS names), with the Python that
runs this script. PyTorch comes first, so that no peer chooses another one.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
TORCH = "torch==2.13.0"

# What pip is given, one call after another.
PACKAGES: dict[str, list[list[str]]] = {
    "pytorch": [[TORCH, "numpy"]],
    "pfl": [[TORCH, "numpy"], ["pfl==0.6.0"]],
    "flower": [[TORCH, "numpy"], ["flwr[simulation]==1.42.0"]],
    "fedjax": [["fedjax==0.0.17", "jax==0.10.2"]],
    # 2.0.3 asks for Python 3.12, but its code runs on 3.11; 3.0.0 needs Python 3.14.
    "blazefl": [
        [TORCH, "numpy", "tqdm"],
        ["--no-deps", "--ignore-requires-python", "blazefl==2.0.3"],
    ],
}


def folder() -> pathlib.Path:
    """Where the environments are."""
    return pathlib.Path(os.environ.get("FEDFR_PEER_ENVS", ROOT / ".venv-peers"))


def python_of(name: str) -> pathlib.Path | None:
    """The Python of an environment, None if it was not made to the end."""
    place = folder() / name
    return place / "bin" / "python" if (place / "installed").exists() else None


def make(name: str) -> None:
    """Makes one environment.

    Raises:
      subprocess.CalledProcessError: pip could not install the packages.
    """
    place = folder() / name
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
    for packages in PACKAGES[name]:
        command = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(command, check=True)
    (place / "installed").touch()


def main(argv: Sequence[str]) -> int:
    """The exit status: 1 if one of them could not be made."""
    unknown = sorted(set(argv) - set(PACKAGES))
    if unknown:
        print(f"Unknown: {', '.join(unknown)}; there are {', '.join(PACKAGES)}", file=sys.stderr)
        return 2
    failed = []
    for name in argv or PACKAGES:
        if python_of(name):
            print(f"{name}: is there")
            continue
        try:
            make(name)
            print(f"{name}: made", flush=True)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name}: pip failed with exit code {error.returncode}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
