"""What the documents show is run."""
import re
import subprocess
import sys

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


def test_the_example_method_works_as_shown(tmp_path):
    text = (ROOT / "docs" / "extending.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert len(code.splitlines()) <= 40
    path = tmp_path / "fedperprox.py"
    path.write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", TRY.format(path=str(path), tests=str(ROOT / "tests"))], cwd=ROOT,
        capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "tried" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda p: p.stem)
def test_notebooks_hold_the_code_of_their_sources(path):
    source, notebook = jupytext.read(path), jupytext.read(path.with_suffix(".ipynb"))
    assert [(c.cell_type, c.source) for c in notebook.cells] == [
        (c.cell_type, c.source) for c in source.cells]
    assert all(len(c.source.splitlines()) <= 30 for c in source.cells if c.cell_type == "code")


def test_the_quickstart_has_short_cells():
    for cell in jupytext.read(ROOT / "notebooks" / "quickstart_colab.py").cells:
        assert cell.cell_type != "code" or len([
            line for line in cell.source.splitlines() if line.strip()]) <= 10, cell.source


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{p.name}" for p in sorted(
    (ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
