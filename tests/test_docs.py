"""What the documents show is run."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import types

import jupytext
import pytest
from small import ROOT

TRY = """
import runpy, sys
sys.path.insert(0, {tests!r})
from matplotlib.figure import Figure
from small import SETTINGS, save_blank
from fedfr_jax import register_method, run
Figure.savefig = save_blank
register_method("fedperprox", runpy.run_path({path!r})["RECIPE"])  # after everything is imported
plain = run("fedper", SETTINGS, fed={{"rounds": 2}}).summary["models"]["global"]
zero = run("fedperprox", {{**SETTINGS, "method": {{"fedperprox": {{"weight": 0.0}}}}}},
           fed={{"rounds": 2}}).summary
assert zero["run"]["method"] == "FedPer + FedProx"
assert zero["models"]["global"] == plain
far = run("fedperprox", {{**SETTINGS, "method": {{"fedperprox": {{"weight": 5.0}}}}}},
          fed={{"rounds": 2}}).summary
assert far["models"]["global"] != plain
print("tried")
"""


@pytest.mark.slow
def test_the_example_method_works_as_shown(tmp_path):
    text = (ROOT / "docs" / "extending.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert len(code.splitlines()) <= 40
    path = tmp_path / "fedperprox.py"
    path.write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", TRY.format(path=str(path), tests=str(ROOT / "tests"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "tried" in done.stdout, done.stderr[-2000:]


EXAMPLE = """
import pathlib, runpy, sys
sys.path.insert(0, {tests!r})
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
import fedfr_jax
from small import SETTINGS, save_blank
Figure.savefig = save_blank
folder, rng = pathlib.Path(sys.argv[1]), np.random.default_rng(0)
for person in range(40):
    (folder / str(person)).mkdir(parents=True)
    face = rng.integers(0, 256, (16, 16, 3))
    for k in range(8):
        image = np.clip(face + rng.integers(-30, 30, face.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / str(person) / f"{{k}}.png")
config = fedfr_jax.load_config("folder")
for group in ("model", "pretrain", "fed", "eval", "engine"):
    config[group].update(SETTINGS[group])
config.data.image_size, config.fed.num_clients = 16, 5
config.data.split.update(dict(SETTINGS["data"]["split"], client_images=(8, 8)))
fedfr_jax.load_config = lambda name: config  # the same on small images
runpy.run_path({path!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_the_example_of_the_interface_runs(tmp_path):
    path = ROOT / "docs" / "example.py"
    assert len(path.read_text().splitlines()) <= 25
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            EXAMPLE.format(path=str(path), tests=str(ROOT / "tests")),
            str(tmp_path / "faces"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for shown in ("FedAvg", "FedFR", "±", "features under client 3's model:", "round"):
        assert shown in done.stdout, shown


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def code_cells(path):
    return [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_hold_the_code_of_their_sources(path):
    source, notebook = jupytext.read(path), jupytext.read(path.with_suffix(".ipynb"))
    assert [(c.cell_type, c.source) for c in notebook.cells] == [
        (c.cell_type, c.source) for c in source.cells
    ]
    assert all(len(c.source.splitlines()) <= 30 for c in source.cells if c.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_of_notebooks_are_small_and_without_errors(path):
    assert path.with_suffix(".ipynb").stat().st_size < 1.5e6
    cells = code_cells(path.with_suffix(".ipynb"))
    assert all(cell.execution_count for cell in cells), "run it: the outputs are missing"
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr", output


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_grid_in_a_notebook_ends_it_if_a_run_failed(path):
    for cell in code_cells(path):
        if re.search("run_grid|compare_methods", cell.source):
            assert re.search(r"\nassert not (\w+)\.failures, \1\.failures$", cell.source)


def test_notebooks_install_the_package_only_where_it_is_missing(monkeypatch):
    [cell] = {code_cells(path)[0].source for path in NOTEBOOKS}  # the same in all
    called, find = [], importlib.util.find_spec
    monkeypatch.setattr(subprocess, "run", lambda command, check: called.append(command))
    exec(cell, {})
    assert not called
    folder = types.SimpleNamespace(origin=None)  # a clone in the working folder is no package
    for missing in (None, folder):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, spec=missing: spec if name == "fedfr_jax" else find(name),
        )
        exec(cell, {})
    for command in called:
        assert command[:5] == [sys.executable, "-m", "pip", "install", "-q"]
        assert command[5:] == [
            "/content/fedfr_jax",
            *(
                f"{name}=={importlib.metadata.version(name)}"
                for name in ("jax", "jaxlib", "flax", "numpy")
            ),
        ]
    assert len(called) == 2


def test_the_quickstart_has_short_cells():
    for cell in jupytext.read(ROOT / "notebooks" / "quickstart_colab.py").cells:
        assert (
            cell.cell_type != "code"
            or len([line for line in cell.source.splitlines() if line.strip()]) <= 10
        ), cell.source


@pytest.mark.parametrize(
    "name", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
)
def test_links_lead_somewhere(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
