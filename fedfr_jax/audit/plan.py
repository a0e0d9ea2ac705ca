"""What an audit does and how much of it."""

from __future__ import annotations

import dataclasses

from fedfr_jax.errors import InputError

PARTS = ("membership", "inversion", "leakage", "canary")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings of an audit.

    Attributes:
      what: which of ``PARTS``.
      seed: of everything that is drawn here.
      people: at most so many people of clients, and as many others, are attacked.
      images: at most so many trained images of a person, and as many held-out ones.
      clients: at most so many personalized models are attacked.
      shadows: shadow models of the likelihood-ratio attack; 0: without it.
      shadow_epochs: passes of a shadow model; 0: as many as a client of the run had.
      targets: messages that are inverted; ``batch``: images behind each.
      steps, restarts: of an inversion.
      smoothness: weight of the total variation in an inversion.
      head: what the attacker knows of a client's head: auto | private | known.
      verifier: an exported model, a run, or a file of weights that recognizes people in
        reconstructions; "": the run's own pretrained model.
      canaries: clients that take part with a random direction, and as many that do not; 0: as
        many as take about a minute.
      confidence: of the lower bound of epsilon.
    """

    what: tuple[str, ...] = PARTS
    seed: int = 0
    people: int = 128
    images: int = 8
    clients: int = 8
    shadows: int = 16
    shadow_epochs: int = 0
    targets: int = 8
    batch: int = 1
    steps: int = 300
    restarts: int = 2
    smoothness: float = 0.05
    head: str = "auto"
    verifier: str = ""
    canaries: int = 0
    confidence: float = 0.95

    def check(self) -> Plan:
        """Returns the plan.

        Raises:
          InputError: a setting is out of range.
        """
        if not self.what or (unknown := [part for part in self.what if part not in PARTS]):
            raise InputError(
                f"--what: {', '.join(unknown) if self.what else 'nothing'}; give some of "
                f"{','.join(PARTS)}"
            )
        least = {"people": 2, "images": 2, "clients": 1, "targets": 1, "batch": 1, "steps": 1}
        least |= {"restarts": 1, "seed": 0, "shadow_epochs": 0, "canaries": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} is {getattr(self, name)}; it must be at least {low}")
        if self.shadows and self.shadows < 4:
            raise InputError(
                f"--shadows is {self.shadows}; a likelihood ratio needs at least 4 models, half of "
                "them trained with each person (0: leave it out)"
            )
        if 0 < self.canaries < 8:
            raise InputError(f"--canaries is {self.canaries}; give at least 8, or 0 for automatic")
        if not 0.5 < self.confidence < 1:
            raise InputError(f"--confidence is {self.confidence}; it must be in (0.5, 1)")
        if not 0 <= self.smoothness <= 100:
            raise InputError(f"--smoothness is {self.smoothness}; it must be in [0, 100]")
        return self
