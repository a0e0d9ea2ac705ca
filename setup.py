"""Package metadata of fedfr_jax; build and tool settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"', (HERE / "fedfr_jax" / "__init__.py").read_text(), re.MULTILINE
)[1]

setup(
    name="fedfr_jax",
    version=VERSION,
    description="Vectorized simulation of federated, personalized face recognition (FedFR) in JAX",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The configurations stay at the top level and are found by name when installed.
    packages=[*find_packages(include=["fedfr_jax", "fedfr_jax.*"]), "fedfr_jax.configs"],
    package_dir={"fedfr_jax": "fedfr_jax", "fedfr_jax.configs": "configs"},
    package_data={"fedfr_jax": ["py.typed", "reporting/templates/*"]},
    entry_points={
        "console_scripts": [
            *(f"fedfr-{name}=fedfr_jax.{name}:command" for name in ("train", "evaluate", "ablate")),
            *(
                f"fedfr-{name}=fedfr_jax.{name}.__main__:command"
                for name in ("audit", "convert", "export", "identify", "prepare", "protocols")
            ),
        ]
    },
    install_requires=[
        "jax>=0.7.2,<0.13",
        "flax>=0.11.2,<0.14",
        "optax>=0.2.5,<0.3",
        "numpy>=2.0,<3",
        "scipy>=1.13,<2",
        "chex>=0.1.90,<0.2",
        "absl-py>=2.1,<3",
        "jaxtyping>=0.2.34,<0.4",
        "ml_collections>=1.0,<2",
        "orbax-checkpoint>=0.11.25,<0.13",
        "tensorflow-datasets>=4.9.9,<5",
        "importlib_resources>=6",  # tensorflow-datasets imports it without declaring it
        "array_record>=0.7,<0.9",
        "safetensors>=0.5,<0.9",
        "tensorboardX>=2.6.2,<3",
        "matplotlib>=3.10,<4",
        "Pillow>=11,<14",
        # Where it has wheels; elsewhere Pillow decodes all images, at half the speed.
        "simplejpeg>=1.8,<2; platform_machine in 'x86_64 AMD64 aarch64 arm64'",
        "filelock>=3.12,<4",  # bounds JAX's compilation cache
        "rich>=13.9,<16",
        "jinja2>=3.1,<4",
        "markupsafe>=2.1,<4",
    ],
    extras_require={
        "notebooks": ["ipykernel>=6,<8", "jupytext>=1.16,<2", "pandas>=2.2,<4"],
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "hypothesis>=6.100,<7",
            "chex>=0.1.90,<1",
            "ruff>=0.17,<0.18",
            "mypy>=1.14,<3",
            "nbmake>=1.5,<2",
            "flatbuffers>=24.3.25,<27",
            "setuptools>=77",  # builds the wheel that a test installs
            "ipykernel>=6,<8",
            "jupytext>=1.16,<2",
            "pandas>=2.2,<4",
        ],
        "privacy": ["dp-accounting>=0.6,<0.7"],  # epsilon of sampled clients
        "bench": ["torch>=2.5"],
        "torch": ["torch>=2.6,<3"],  # .pth files; weights_only is safe from 2.6 on
        "export": ["flatbuffers>=24.3.25,<27"],  # files of jax.export
        # The converter needs jax 0.8.1 and orbax-checkpoint below 0.11.37.
        "onnx": ["jax2onnx>=0.17.1,<0.18", "onnx>=1.20.1,<2", "onnxruntime>=1.24.1,<2"],
    },
)
