"""The command ``python -m fedfr_jax.audit`` (``fedfr-audit``)."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from fedfr_jax.audit.plan import PARTS, Plan
from fedfr_jax.runtime.command_line import run_parsed

_ABOUT = """Privacy audits of a trained run: membership inference, images from an update, identities
from class embeddings, and a lower bound of epsilon by canaries."""
_HELP = {
    "seed": "of everything that is drawn",
    "people": "people of clients that are attacked, at most, and as many others",
    "images": "trained images of a person, at most, and as many held-out ones",
    "clients": "personalized models that are attacked, at most",
    "shadows": "shadow models of the likelihood-ratio attack; 0 = without it",
    "shadow_epochs": "passes of a shadow model; 0 = as many as a client of the run had",
    "targets": "messages that are inverted",
    "batch": "images behind a message",
    "steps": "of an inversion",
    "restarts": "of an inversion",
    "smoothness": "weight of the total variation in an inversion",
    "canaries": "clients with a random direction; 0 = what takes about a minute",
    "confidence": "of the lower bound of epsilon",
}


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="fedfr-audit", description=_ABOUT, epilog="See docs/audit.md."
    )
    add = parser.add_argument
    add("--workdir", required=True, help="work directory of the run")
    add("--what", default=",".join(PARTS), help=f"some of {','.join(PARTS)} (all)")
    add("--verifier", default="", help="model that recognizes people in reconstructions")
    add("--head", choices=("auto", "private", "known"), default="auto", help="see the docs")
    add("--data_root", "--data-root", default="", help="where the data are now, if moved")
    defaults = Plan()
    for name, text in _HELP.items():
        default = getattr(defaults, name)
        flag = f"--{name.replace('_', '-')}"
        add(flag, type=type(default), default=default, help=f"{text} ({default})")
    return parser


def plan_of(given: argparse.Namespace) -> Plan:
    """The plan that the arguments describe, checked.

    Raises:
      InputError: an argument is out of range.
    """
    names = {field.name for field in dataclasses.fields(Plan)} - {"what"}
    what = tuple(dict.fromkeys(part.strip() for part in given.what.split(",") if part.strip()))
    return Plan(what=what, **{name: getattr(given, name) for name in names}).check()


def main(given: argparse.Namespace) -> None:
    """Audits and prints the table."""
    plan = plan_of(given)
    # Imported here: --help and wrong arguments do not wait for JAX.
    from fedfr_jax.audit.command import MARKDOWN, audit  # noqa: PLC0415
    from fedfr_jax.reporting.audit_section import AUDIT, AuditData, summary_table  # noqa: PLC0415
    from fedfr_jax.reporting.result_table import render  # noqa: PLC0415

    moved: Any = {"data": {"root": given.data_root}} if given.data_root else {}
    facts = audit(given.workdir, plan, **moved)
    render([summary_table(AuditData(facts))])
    print(f"written: {given.workdir}/{AUDIT}, {MARKDOWN}")


def command(arguments: Sequence[str] | None = None) -> None:
    """The command; arguments are those of the process by default."""
    run_parsed(make_parser(), main, arguments)


if __name__ == "__main__":
    command()
