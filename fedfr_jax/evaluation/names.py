"""Names of the models that are evaluated, and that can be taken out of a run."""

from __future__ import annotations

GLOBAL = "global"
PRETRAINED = "pretrained"
PERSONALIZED = "personalized"
OWN_BACKBONE = "own backbone"  # without transform
GLOBAL_TRANSFORM = "global + transform"
MEAN = "own/global mean"  # of the weights, without transform
SELECTED = "selected"  # per client, on its validation images

SHARED = (GLOBAL, PRETRAINED)  # the same for all clients
OF_CLIENTS = (PERSONALIZED, OWN_BACKBONE, GLOBAL_TRANSFORM, MEAN)
