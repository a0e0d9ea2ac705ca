"""What an installed package holds, and what importing it costs."""

import configparser
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from small import ROOT

import fedfr_jax
from fedfr_jax.config import config_path, default_config, resolve
from fedfr_jax.errors import InputError
from fedfr_jax.methods import METHODS, Recipe, register_method
from fedfr_jax.models import MODELS, register_backbone
from fedfr_jax.runtime.command_line import with_config_files

CONFIGURATIONS = {path.name for path in (ROOT / "configs").glob("*.py")}
INSTALLED = """
import pathlib, fedfr_jax
assert pathlib.Path(fedfr_jax.__file__).is_relative_to({site!r}), fedfr_jax.__file__
assert fedfr_jax.load_config("quickstart").fed.num_clients == 16
assert len(fedfr_jax.load_config("ablation").rows) > 5
from fedfr_jax.reporting.html import template
template("report.html.j2"), template("ablation.html.j2")
print("installed", fedfr_jax.__version__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--quiet",
            "--wheel-dir",
            str(folder),
            str(_copy(tmp_path_factory.mktemp("source"))),
        ],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def _copy(folder):
    """The files that a build reads, so that it leaves nothing in the checkout."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("fedfr_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_a_wheel_works_in_an_empty_folder(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = archive.namelist()
        [points] = [n for n in names if n.endswith("entry_points.txt")]
        commands = archive.read(points).decode()
    assert {pathlib.Path(n).name for n in names if n.startswith("fedfr_jax/configs/")} == (
        CONFIGURATIONS
    )
    assert "fedfr_jax/py.typed" in names
    for c in ("train", "evaluate", "ablate"):
        assert f"fedfr-{c}=fedfr_jax.{c}:command" in commands.replace(" ", "")
    for c in ("audit", "convert", "export", "identify", "prepare", "protocols"):
        assert f"fedfr-{c}=fedfr_jax.{c}.__main__:command" in commands.replace(" ", "")
    done = subprocess.run(
        [sys.executable, "-c", INSTALLED.format(site=str(site))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"installed {fedfr_jax.__version__}\n", done.stderr[-2000:]


def test_a_source_distribution_is_complete(tmp_path):
    parts = ("fedfr_jax", "configs", "tests", "docs", "notebooks", "benchmarks", "examples")
    for name in (
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "Makefile",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "CITATION.cff",
    ):
        shutil.copy(ROOT / name, tmp_path)
    for name in parts:
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "sdist"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    with tarfile.open(next((tmp_path / "dist").glob("*.tar.gz"))) as archive:
        packed = {pathlib.Path(*pathlib.Path(name).parts[1:]) for name in archive.getnames()}
    here = {
        path.relative_to(tmp_path)
        for part in parts
        for path in (tmp_path / part).rglob("*")
        if path.is_file()
    }
    assert len(here) > 200 and not here - packed


COMMANDS = (
    *("train", "evaluate", "ablate", "audit", "convert"),
    *("export", "identify", "prepare", "protocols"),
)
HELP = """
import runpy, sys
sys.modules["jax"] = None  # importing it fails
sys.argv = [{name!r}, "--help"]
runpy.run_module("fedfr_jax." + {name!r}, run_name="__main__", alter_sys=True)
"""


def test_no_command_is_left_out(wheel):
    """Every console script is among those that are asked for help below."""
    with zipfile.ZipFile(wheel) as file:
        text = file.read(next(n for n in file.namelist() if n.endswith("entry_points.txt")))
    scripts = configparser.ConfigParser()
    scripts.read_string(text.decode())
    assert set(scripts["console_scripts"]) == {f"fedfr-{name}" for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_does_not_wait_for_jax(name):
    done = subprocess.run(
        [sys.executable, "-c", HELP.format(name=name)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode and not done.stderr, done.stderr
    assert "python -m fedfr_jax" in done.stdout or "usage: fedfr-" in done.stdout
    expected = {"convert": "OUT", "protocols": "tinyface", "prepare": "--shard_images"}
    assert expected.get(name, "--workdir" if name != "identify" else "--gallery") in done.stdout


def test_importing_the_package_starts_nothing():
    code = "import sys, fedfr_jax; fedfr_jax.__version__; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
    assert all(getattr(fedfr_jax, name) is not None for name in fedfr_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fedfr_jax.nothing


def test_configurations_are_found_by_name():
    assert config_path("quickstart").name == config_path("quickstart.py").name == "quickstart.py"
    assert config_path(ROOT / "configs" / "lfw.py") == ROOT / "configs" / "lfw.py"
    with pytest.raises(InputError, match=r"nowhere is not there.*quickstart"):
        config_path("nowhere")
    found = with_config_files(
        [
            "train",
            "--config=quickstart:fedavg",
            "--config.fed.rounds=1",
            "--workdir=quickstart",
            "--config",
            "quickstart:fedper",
        ]
    )
    assert found == [
        "train",
        f"--config={config_path('quickstart')}:fedavg",
        "--config.fed.rounds=1",
        "--workdir=quickstart",
        "--config",
        f"{config_path('quickstart')}:fedper",
    ]
    with pytest.raises(InputError, match=r"nowhere.py is not there"):
        with_config_files(["train", "--config=nowhere.py:fedavg"])


@dataclasses.dataclass(frozen=True)
class Options:
    weight: float = 2.0


def test_a_method_can_be_registered_at_any_time(monkeypatch):
    earlier = resolve({})
    monkeypatch.setitem(METHODS, "late", METHODS["fedavg"])  # undone after the test
    recipe = Recipe(title="Late", source="a test", options=Options)
    register_method("late", recipe)
    assert default_config().method.late.weight == 2.0
    settings = {"method": {"name": "late", "late": {"weight": 3}}}
    config = resolve(settings)
    assert (config.recipe, config.options) == (recipe, Options(3.0))
    assert config == resolve(settings) and earlier.recipe is METHODS["fedfr"]
    for name in ("name", "Not a setting"):
        with pytest.raises(ValueError, match="cannot name a method"):
            register_method(name, recipe)
    with pytest.raises(ValueError, match="frozen dataclass"):
        register_method("late", dataclasses.replace(recipe, options=dict))


def test_a_backbone_can_be_registered_at_any_time(monkeypatch):
    monkeypatch.setitem(MODELS, "late", None)
    register_backbone("late", MODELS["spherenet"])
    assert MODELS["late"] is MODELS["spherenet"]
    with pytest.raises(ValueError, match="needs a function"):
        register_backbone("late", "spherenet")
