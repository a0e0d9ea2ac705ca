"""The command on tiny runs: what it writes, what the report shows, what it says of wrong input."""

import copy
import json

import pytest
from overfitting import SETTINGS

from fedfr_jax.audit.__main__ import command
from fedfr_jax.audit.opened import open_trained
from fedfr_jax.audit.plan import Plan
from fedfr_jax.audit.reconstruction import audit_inversion
from fedfr_jax.experiment import Experiment, settings_of
from fedfr_jax.reporting.audit_section import load_audit
from fedfr_jax.reporting.reevaluation import evaluate

FAST = ["--shadows=4", "--targets=3", "--steps=60", "--restarts=1", "--canaries=100"]


def trained(folder, evaluated=False, **changes):
    with Experiment(settings_of(SETTINGS, **changes), folder) as run:
        run.run()
        if evaluated:
            run.evaluate()
    return folder


@pytest.mark.slow
def test_the_command_audits_a_private_run(tmp_path, blank_figures, capsys):
    changes = {
        "fed": {"rounds": 2, "local_epochs": (2,), "aggregation": "uniform"},
        "privacy": {"clip_norm": 0.5, "noise_multiplier": 2.0, "top_k": 0.5},
    }
    folder = trained(tmp_path / "run", evaluated=True, **changes)
    command([f"--workdir={folder}", *FAST])
    shown = capsys.readouterr().out
    for text in ("at least", "in the released sum", "does not send class embeddings", "audit.md"):
        assert text in shown, text
    facts = json.loads((folder / "audit.json").read_text())
    assert facts["round"] == 2
    canary = facts["canary"]
    assert canary["rounds"] == 2 and 0 < canary["gaussian"] < 1.3 * canary["epsilon"]
    seen = {row["observer"]: row for row in facts["inversion"]["rows"]}
    assert seen["nothing done to it"]["psnr"] > seen["in the released sum"]["psnr"] + 2
    for text in (
        "Privacy audit",
        "Epsilon, from above and from below",
        "Membership inference, AUC",
    ):
        assert text in (folder / "report.html").read_text(), text
    assert (folder / "audit.md").read_text().count("| ") > 30
    assert list((folder / "plots").glob("audit-membership-*.png"))
    assert (folder / "plots" / "audit-reconstructions.png").exists()
    # Another part alone keeps the others; a later evaluation shows them, too.
    command([f"--workdir={folder}", "--what=leakage"])
    assert load_audit(folder).facts["canary"] == canary
    (folder / "report.html").unlink()
    evaluate(folder)
    assert "Epsilon, from above and from below" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_fedface_gives_identities_away(tmp_path, capsys):
    gentle = {"local_epochs": (1,), "lr": 0.01, "rounds": 1}
    folder = trained(tmp_path / "run", method={"name": "fedface"}, fed=gentle)
    command([f"--workdir={folder}", "--what=leakage,inversion", *FAST])
    facts = json.loads((folder / "audit.json").read_text())
    leakage = facts["leakage"]
    assert leakage["sends"] and leakage["people"] == 12 and leakage["strangers"] == 12
    # The network is random, and the server pushes rows apart.
    assert leakage["global"]["rank1"] > leakage["chance"] and leakage["global"]["cosine"] > 0.2
    inversion = facts["inversion"]
    assert inversion["head"] == "known" and inversion["rows"][1]["labels_found"] == 1
    assert not (folder / "report.html").exists()  # the run was not evaluated
    assert "class embeddings" in capsys.readouterr().out


@pytest.mark.slow
def test_methods_without_messages_say_so(tmp_path, capsys):
    folder = trained(tmp_path / "run", method={"name": "local"}, fed={"local_epochs": (1,)})
    command([f"--workdir={folder}", "--what=leakage,inversion,canary"])
    shown = capsys.readouterr().out
    assert "nothing leaves a client" in shown and "has no messages" in shown
    with open_trained(folder) as run:
        assert "nothing" in audit_inversion(run, Plan())[0]


def test_wrong_arguments_end_with_one_sentence(tmp_path, capsys):
    for arguments, text in (
        ([f"--workdir={tmp_path}"], "config.json"),
        ([f"--workdir={tmp_path}", "--what=everything"], "--what: everything"),
        ([f"--workdir={tmp_path}", "--shadows=3"], "--shadows is 3"),
    ):
        with pytest.raises(SystemExit):
            command(arguments)
        assert text in capsys.readouterr().err


def test_settings_are_whole():
    assert settings_of(copy.deepcopy(SETTINGS)).fed.num_clients == 3
