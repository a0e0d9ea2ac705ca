"""Weights from any file or run, and into any file."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from fedfr_jax.atomic import write_text
from fedfr_jax.convert import torch_file
from fedfr_jax.convert.detect import SUPPORTED, Detected, detect
from fedfr_jax.convert.head import head_to_torch, is_head
from fedfr_jax.convert.run_model import is_run, model_of_run
from fedfr_jax.errors import InputError
from fedfr_jax.models import build
from fedfr_jax.models.preprocessing import Preprocessing
from fedfr_jax.models.weight_file import (
    Structure,
    WeightFile,
    json_texts,
    read_weight_file,
    recorded_beside,
    sidecar,
    write_weight_file,
)
from fedfr_jax.models.weights import structure_of, to_torch, weights_of

_WRITABLE = (".safetensors", ".npz", ".pth", ".pt")


@dataclasses.dataclass(frozen=True)
class Given:
    """What the user says about weights; None: as recorded, or the usual for the network.

    Attributes:
      model: name of the architecture; "" = found from the arrays.
      channels, scale, source: as in :class:`Preprocessing`.
      eps: of batch norm.
    """

    model: str = ""
    channels: str | None = None
    scale: float | None = None
    source: str | None = None
    eps: float | None = None


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of a network, with all that is known and assumed about them.

    Attributes:
      file: arrays, preprocessing and structure, all of them there.
      said: sentences about what was found, for the user.
    """

    file: WeightFile
    said: tuple[str, ...]

    @property
    def structure(self) -> Structure:
        assert self.file.structure is not None
        return self.file.structure

    @property
    def preprocessing(self) -> Preprocessing:
        assert self.file.preprocessing is not None
        return self.file.preprocessing


def read_weights(path: str | os.PathLike[str], given: Given = Given()) -> Weights:
    """Reads weights of a network from ``.pth``, ``.safetensors``, ``.npz`` or a work directory.

    Args:
      path: the file or folder. Of a run it is the newest global model.
      given: what the user says. Of a file it is what the published network expects; of a run, how
        its model shall be written.

    Raises:
      InputError: it cannot be read, or holds no network that is supported, or values that are not
        finite.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        return _of_run(path, given)
    content, ignored = _read(path)
    if is_head(content.arrays):
        raise InputError(
            f"{path} is a client's transform and classifiers (FedFR's bce_module), not a network; "
            "convert it with --head"
        )
    found = _found(path, content, given)
    return _described(path, content, found, ignored, given)


def read_client(path: str | os.PathLike[str], client: int, given: Given = Given()) -> Weights:
    """A client's own backbone, from a work directory; as :func:`read_weights`."""
    return _of_run(pathlib.Path(path).expanduser(), given, client)


def read_head_arrays(
    path: str | os.PathLike[str], client: int | None = None
) -> dict[str, np.ndarray]:
    """A client's transform and classifiers under the names of FedFR's ``bce_module``.

    Args:
      path: a file of that kind, or (with ``client``) a work directory.

    Raises:
      InputError: it cannot be read, or there is none.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        if client is None:
            raise InputError(f"{path} is a work directory: say whose head with --client=N")
        head = model_of_run(path, client).head
        if head is None:
            raise InputError(f"{path}: its method has no transform and binary classifiers")
        return head_to_torch(head)
    return dict(_read(path)[0].arrays)


def write_weights(path: str | os.PathLike[str], content: WeightFile) -> None:
    """Writes arrays as ``.safetensors``, ``.npz`` or ``.pth``, as the name ends.

    What is recorded beside them is in the file itself, or, for ``.pth``, in ``<path>.json``.

    Raises:
      InputError: the name ends in something else, the folder is missing, or PyTorch is.
    """
    path = check_target(path)
    if path.suffix.lower() not in torch_file.SUFFIXES:
        write_weight_file(path, content)
        return
    texts = json_texts(content)
    torch_file.save_torch(path, content.arrays)
    if texts:
        inner = ",\n ".join(f'"{key}": {text}' for key, text in texts.items())
        write_text(sidecar(path), f"{{{inner}}}\n")


def check_target(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path of a file to write, before long work.

    Raises:
      InputError: its name ends in something unknown, or its folder is missing.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix.lower() not in _WRITABLE:
        raise InputError(f"{path}: weights are written as {', '.join(_WRITABLE)}")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder; make it first")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    return path


def _read(path: pathlib.Path) -> tuple[WeightFile, tuple[str, ...]]:
    """(content, names of what was left out) of a file."""
    if path.suffix.lower() in torch_file.SUFFIXES:
        arrays, ignored = torch_file.load_torch(path)
        return WeightFile(arrays, *recorded_beside(path)), ignored
    return read_weight_file(path), ()


def _found(path: pathlib.Path, content: WeightFile, given: Given) -> Detected:
    """The network: from the arrays, or as recorded if it is one that only its user knows."""
    recorded = content.structure
    if recorded is None or recorded.name in SUPPORTED or given.model:
        return detect(content.arrays, os.fspath(path), given.model)
    size = (content.preprocessing or Preprocessing()).image_size
    return Detected(recorded, size, "", dict(content.arrays), ())


def _described(
    path: pathlib.Path,
    content: WeightFile,
    found: Detected,
    ignored: tuple[str, ...],
    given: Given,
) -> Weights:
    """A file's weights, with what the user, the file and the network say about them."""
    structure, said = found.structure, []
    network = build(structure.config(), found.image_size, "grouped")
    if network.published is None:
        raise InputError(f"{path}: {structure.name} names no published weights")
    recorded = content.preprocessing
    usual = dataclasses.replace(network.published.preprocessing, image_size=found.image_size)
    if structure.name == "iresnet_adaface" and found.prefix.endswith("net."):
        usual = dataclasses.replace(usual, channels="RGB", source="iresnet of CVLFace")
    preprocessing = _changed(recorded or usual, given)
    eps = given.eps
    if eps is None and content.structure is not None:
        eps = content.structure.eps
    if eps is None:
        eps = network.published.eps
    structure = dataclasses.replace(structure, eps=eps)
    file = WeightFile(found.arrays, preprocessing, structure)
    weights_of(file, network, os.fspath(path))  # every array is checked
    said.append(
        f"found: {structure.name}, depth {structure.depth}, widths {structure.widths}, "
        f"embedding {structure.embedding}"
        + (f", names after {found.prefix!r}" * bool(found.prefix))
    )
    said.append(_input_line(preprocessing, given, recorded is not None))
    if eps is not None:
        known = (
            "given" if given.eps is not None else "usual" if not content.structure else "recorded"
        )
        said.append(f"batch norm adds {eps:g} to variances ({known})")
    if left := (*found.ignored, *ignored):
        more = f" and {len(left) - 6} more" if len(left) > 6 else ""
        said.append(f"ignored: {', '.join(left[:6])}{more}")
    return Weights(file, tuple(said))


def _input_line(preprocessing: Preprocessing, given: Given, recorded: bool) -> str:
    own = [name for name in ("channels", "scale") if getattr(given, name) is not None]
    rest = "recorded in the file" if recorded else "assumed, as is usual for this network"
    known = f"{' and '.join(own)} as given, the rest {rest}" if own else rest
    check = "" if recorded or own else "; fedfr_jax.convert --check=lfw.bin compares RGB with BGR"
    return f"input: {preprocessing.formula()} ({known}{check})"


def _changed(preprocessing: Preprocessing, given: Given) -> Preprocessing:
    changes: Mapping[str, object] = {
        name: value
        for name in ("channels", "scale", "source")
        if (value := getattr(given, name)) is not None
    }
    return dataclasses.replace(preprocessing, **changes)  # type: ignore[arg-type]


def _of_run(path: pathlib.Path, given: Given, client: int | None = None) -> Weights:
    """The newest model of a run, as arrays with published names."""
    if not is_run(path):
        raise InputError(f"{path} is neither a file of weights nor a run's work directory")
    model = model_of_run(path, client)
    network, settings = model.backbone, model.config.model
    if network.published is None:
        raise InputError(
            f"{path}: {settings.name} names no published weights, so there are no names to write; "
            "its build function has to return them, see fedfr_jax/models/__init__.py"
        )
    if given.model and given.model != settings.name:
        raise InputError(f"{path} is a run of {settings.name}, not of {given.model}")
    if given.eps is not None:
        raise InputError("--eps says what a file's network has; a run's has that of the program")
    who = "global model" if client is None else f"model of client {client}"
    usual = Preprocessing(
        scale=network.published.preprocessing.scale,
        image_size=network.image_size,
        source=f"{who} after {model.rounds} rounds of {model.config.method.name}"
        if model.rounds
        else "the pretrained model of a run",
    )
    preprocessing = _changed(usual, given)
    arrays = to_torch(model.variables, network, preprocessing=preprocessing)
    structure = structure_of(network, settings)
    said = (
        f"found: {usual.source} in {path}: {settings.name}, depth {structure.depth}, "
        f"widths {structure.widths}, embedding {structure.embedding}",
        f"written for input: {preprocessing.formula()}",
    )
    return Weights(WeightFile(arrays, preprocessing, structure), said)
