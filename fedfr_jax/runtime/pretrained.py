"""Pretrained backbones that several runs begin with."""
from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil

from fedfr_jax.config import Config, to_dict
from fedfr_jax.runtime import workdir

_DEPENDS_ON = ("seed", "data", "model", "pretrain")


def pretrained_key(config: Config) -> str:
    """The same for runs whose pretrained backbones are the same."""
    settings = to_dict(config)
    parts = {name: settings[name] for name in _DEPENDS_ON}
    parts |= {"clients": config.fed.num_clients, "mirror": config.fed.mirror}
    digest = hashlib.sha256(json.dumps(workdir.plain(parts), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def copy_pretrained(source: pathlib.Path, target: pathlib.Path) -> bool:
    """Copies a ``pretrained`` folder; it appears under its name when it is complete.

    Returns:
      Whether it was copied: not if it is not complete, or the target is there already.
    """
    if not (source / "backbone").is_dir() or target.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    os.replace(temporary, target)
    return True
