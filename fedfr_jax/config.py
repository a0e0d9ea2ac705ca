"""Every setting of the simulator, in frozen dataclasses, and the checks on them.

The dataclasses are the only place where a setting, its type and its default
stand. :func:`default_config` turns them into the ``ConfigDict`` that files in
``configs/`` change and that ``--config.fed.rounds=3`` overrides;
:func:`resolve` turns the outcome back into a checked :class:`Config`.
"""
from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import runpy
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fedfr_jax.errors import InputError
from fedfr_jax.methods import METHODS, Recipe


class ConfigError(InputError):
    """A setting is unknown, of the wrong type, or contradicts another one."""


def method_config() -> Any:
    """Which method is simulated, and a group of settings for each that has its own.

    ``method.fedprox.weight`` is used if ``method.name`` is "fedprox". A method that is registered
    later has its group from then on.
    """
    return _method_config_type(tuple(
        (name, recipe.options) for name, recipe in METHODS.items()
        if dataclasses.fields(recipe.options)))()


@functools.cache  # equal settings are of one type
def _method_config_type(groups: tuple[tuple[str, type], ...]) -> type:
    return dataclasses.make_dataclass(
        "MethodConfig", [("name", str, "fedfr"), *((name, options, options())
                                                   for name, options in groups)], frozen=True)


@dataclasses.dataclass(frozen=True)
class GeneratedConfig:
    """Procedural faces, used when ``data.source == "generated"``."""

    identities: int = 600  # people in the whole data set
    images_per_identity: tuple[int, ...] = (20, 20)  # (fewest, most), drawn per identity
    difficulty: float = 1.0  # strength of pose, light, occlusion, blur and noise; 0 = none


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """FedFR's split into client, public and held-out identities (FEDFR.md section 6)."""

    client_fraction: float = 0.5  # share of the shuffled identities that clients draw from
    identities_per_client: tuple[int, ...] = (10, 10)  # (fewest, most), drawn per client
    client_images: tuple[int, ...] = (1, 1_000_000)  # an identity qualifies with so many images
    verification_images: int = 8  # first images of each client identity, held out for tests
    public_identities: int = 0  # use at most so many; 0 = all that qualify
    public_images: tuple[int, ...] = (1, 1_000_000)  # an identity qualifies with so many images
    unused_public: bool = False  # identities for clients that no client took become public
    max_training_images: int = 0  # per client identity; 0 = all that are left
    held_out_identities: int = 0  # set aside for generic verification pairs, seen by nobody
    held_out_pairs: int = 0  # genuine and as many impostor pairs made from them (x2 in all)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images come from. ``seed`` fixes both generated faces and the split."""

    source: str = "generated"  # generated | recordio | folder | tfds
    root: str = ""  # folder of train.rec / of identity folders / tfds data_dir
    name: str = "lfw"  # tfds only: data set in the catalog
    label: str = ""  # tfds only: the identity feature; "" = found from the features
    image_size: int = 112  # images are square; others are resized
    seed: int = 0
    workers: int = 0  # decoding threads; 0 = one per core
    max_megapixels: float = 50.0  # larger images are refused before decoding (Pillow: above 178)
    verification_sets: tuple[str, ...] = ()  # insightface .bin files, relative to root
    verification_labels: tuple[str, ...] = ()  # per set: .npy (pairs, 2) identities, or ""
    # Where the clients' training images are during training: resident (all clients' on every
    # device), stream (the cohort's, read ahead), render (the cohort's, generated on the device);
    # auto: resident if they take up at most resident_gib, else render if possible, else stream.
    # Public images are always resident.
    images: str = "auto"
    resident_gib: float = 2.0  # per device
    generated: GeneratedConfig = GeneratedConfig()
    split: SplitConfig = SplitConfig()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The backbone: image -> R^embedding."""

    name: str = "spherenet"  # spherenet | mobilefacenet | iresnet
    depth: int = 20  # spherenet: 4, 10, 20, 36, 64; iresnet: 18, 34, 50, 100
    widths: tuple[int, ...] = (64, 128, 256, 512)  # spherenet, iresnet: channels per stage
    embedding: int = 512
    # Compute type (float32 | bfloat16 | auto: the faster one here); parameters stay float32.
    dtype: str = "float32"
    weights: str = ""  # pretrained weights (.npz or a checkpoint folder); "" = pretrain here


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Identification in every method; in FedFR
    L = L_cos + contrastive_weight L_con + binary_weight L_bin (FEDFR.md section 4)."""

    identification: str = "cosface"  # cosface | arcface
    scale: float = 30.0
    margin: float = 0.4  # a cosine for cosface, radians for arcface
    balanced: bool = False  # every class weighs the same in it, however many images it has
    contrastive_weight: float = 5.0  # mu; 0 switches the term off
    temperature: float = 0.5  # tau
    binary_weight: float = 10.0  # beta; 0 switches the DFC branch off
    binary_scale: float = 30.0  # r
    binary_margin: float = 0.4  # m
    binary_balance: float = 0.7  # lambda
    binary_power: float = 3.0  # t
    binary_detached: bool = False  # True: L_bin does not reach the backbone


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """CosFace training on the public identities, before the first round."""

    epochs: int = 20  # 0: start from random weights or from model.weights
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0  # linear warm-up, then cosine to zero
    scale: float = 30.0
    margin: float = 0.4


@dataclasses.dataclass(frozen=True)
class FedConfig:
    """Rounds, local training and averaging (FEDFR.md section 3)."""

    num_clients: int = 40
    rounds: int = 20
    batch_size: int = 256
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    local_epochs: tuple[int, ...] = (10, 8, 6, 4)  # per round; the last one repeats
    lr_decay_epochs: tuple[int, ...] = (8,)  # per round; then max(1, int(0.75 E))
    lr_decay: float = 0.1
    mirror: bool = True  # random horizontal flip
    # hard: hard negatives | all | off (local classes only) | auto: what the method says
    public_data: str = "auto"
    hard_threshold: float = 0.4  # cosine above which a public image is a hard negative
    class_embedding_init: str = "mean_feature"  # or random (normal, std 0.01)
    transform: str = "linear"  # linear | bottleneck | none
    aggregation: str = "images"  # weights of the average: images | uniform
    # What the server does with the average: takes it (average), or takes its difference to
    # the old model as a gradient for SGD with momentum or for Adam (Reddi et al., ICLR 2021).
    server_optimizer: str = "average"  # average | momentum | adam
    server_lr: float = 0.0  # for momentum and adam; 0 = 1 for momentum, 1e-3 for adam
    server_momentum: float = 0.9  # for momentum; adam's beta_1
    server_beta2: float = 0.99
    server_epsilon: float = 1e-3


@dataclasses.dataclass(frozen=True)
class PopulationConfig:
    """Who of ``fed.num_clients`` clients takes part in a round, and how their state rests."""

    cohort: int = 0  # clients per round; 0 = all
    sampling: str = "uniform"  # uniform | weighted (by training images) | schedule
    schedule: str = ""  # file with the clients of every round, for sampling = schedule
    availability: str = ""  # .npy, bool (period, clients): who can take part in which round
    previous: str = "float32"  # type of the clients' previous backbones: float32 | bfloat16 | off


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Generic and personalized evaluation (FEDFR.md section 7)."""

    fars: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
    clients: int = 0  # evaluate the personalized models of so many clients, drawn; 0 = all
    every: int = 0  # generic and personalized evaluation each so many rounds; 0 = at the end
    batch_size: int = 256
    block: int = 4096  # rows of a similarity block; bounds memory
    examples: int = 8  # hard negatives and mistakes shown in the report


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How a round is laid out on the hardware; none of it changes results.

    What is left on automatic is measured, see :mod:`fedfr_jax.runtime.autotune`.
    """

    lanes: int = 0  # clients side by side under vmap on a device; 0 = measured
    cpu_devices: int = 0  # one XLA device per so many cores' worth; 0 = one per core
    conv: str = "auto"  # auto (measured) | grouped | patches | custom
    feature_batch: int = 256  # images per forward pass of a frozen backbone
    gradient_batch: int = 0  # images per gradient pass, a divisor of fed.batch_size; 0 = all
    cache_features: bool = True  # contrastive features once per round, not in every step


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 1  # rounds between checkpoints
    keep: int = 2


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    seed: int = 0  # pretraining, initialization, batches
    method: Any = dataclasses.field(default_factory=method_config)  # see method_config()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    fed: FedConfig = FedConfig()
    loss: LossConfig = LossConfig()
    population: PopulationConfig = PopulationConfig()
    eval: EvalConfig = EvalConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def recipe(self) -> Recipe:
        """What the method does differently from the others."""
        return METHODS[self.method.name]

    @property
    def options(self) -> Any:
        """The method's own settings; None where it has none."""
        return getattr(self.method, self.method.name, None)


def default_config() -> ConfigDict:
    """All settings at their defaults, as a ``ConfigDict`` that refuses unknown names."""
    return ConfigDict(dataclasses.asdict(Config())).lock()


def config_path(name: str | os.PathLike) -> pathlib.Path:
    """The file of a configuration.

    Args:
      name: a path, or the name of one that comes with the package, such as ``quickstart``.

    Raises:
      InputError: there is no such file.
    """
    path = pathlib.Path(name).expanduser()
    if path.is_file():
        return path
    package = pathlib.Path(__file__).parent
    # Installed, the configurations lie in the package; in a checkout, beside it.
    folders = [f for f in (package / "configs", package.parent / "configs") if f.is_dir()]
    if path.parent == pathlib.Path("."):
        for folder in folders:
            found = folder / f"{path.stem if path.suffix == '.py' else path.name}.py"
            if found.is_file():
                return found
    known = sorted({f.stem for folder in folders for f in folder.glob("[!_]*.py")})
    raise InputError(f"{name} is not there; give a file such as configs/quickstart.py, or one of "
                     f"the names {', '.join(known)}")


def load_config(name: str | os.PathLike, *arguments: Any) -> ConfigDict:
    """What ``get_config(*arguments)`` of a configuration file returns.

    Args:
      name: as for :func:`config_path`.

    Raises:
      InputError: there is no such file, or it has no ``get_config``.
    """
    path = config_path(name)
    found = runpy.run_path(os.fspath(path)).get("get_config")
    if found is None:
        raise InputError(f"{path} has no function get_config(), which returns the settings")
    return found(*arguments)


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as nested plain dictionaries, for ``config.json``."""
    return dataclasses.asdict(config)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries with some values changed."""
    result = dict(base)
    for key, value in changes.items():
        inner = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if inner else value
    return result


def resolve(settings: Mapping[str, Any]) -> Config:
    """Checked, frozen settings from a ``ConfigDict`` or nested dictionaries.

    Args:
      settings: may leave settings out; those keep their defaults.

    Raises:
      ConfigError: a setting is unknown, of the wrong type, out of range, or
        contradicts another one; the message begins with its name.
    """
    config = _build(Config, settings, "")
    _check(config)
    return _as_method_says(config)


def _as_method_says(config: Config) -> Config:
    """The settings with what the method decides."""
    recipe, fed = config.recipe, config.fed
    if fed.public_data == "auto":
        fed = dataclasses.replace(fed, public_data=recipe.public_data)
    if not recipe.trains:
        fed = dataclasses.replace(fed, rounds=0)
    return dataclasses.replace(config, fed=fed)


def _build(kind: type, settings: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    if kind is Config:
        hints["method"] = type(method_config())
    unknown = set(settings) - set(hints)
    if unknown:
        name = sorted(unknown)[0]
        raise ConfigError(f"{prefix}{name} is not a setting; {prefix or 'the top level '}has "
                          f"{', '.join(hints)}")
    values = {}
    for name, value in settings.items():
        hint, where = hints[name], prefix + name
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping | ConfigDict):
                raise ConfigError(f"{where} is a group of settings, not {value!r}")
            values[name] = _build(hint, value, where + ".")
        else:
            values[name] = _convert(value, hint, where)
    return kind(**values)


def _convert(value: Any, hint: Any, where: str) -> Any:
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple | list):
            raise ConfigError(f"{where} takes several values, such as (1, 2), not {value!r}")
        element = typing.get_args(hint)[0]
        return tuple(_convert(v, element, where) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} is {value!r}, but takes a value of type {hint.__name__}")
    return value


_CHOICES = {
    "loss.identification": ("cosface", "arcface"),
    "data.source": ("generated", "recordio", "folder", "tfds"),
    "model.dtype": ("float32", "bfloat16", "auto"),
    "fed.public_data": ("auto", "hard", "all", "off"),
    "fed.class_embedding_init": ("mean_feature", "random"),
    "fed.transform": ("linear", "bottleneck", "none"),
    "fed.aggregation": ("images", "uniform"),
    "fed.server_optimizer": ("average", "momentum", "adam"),
    "data.images": ("auto", "resident", "stream", "render"),
    "population.sampling": ("uniform", "weighted", "schedule"),
    "population.previous": ("float32", "bfloat16", "off"),
    "engine.conv": ("auto", "grouped", "patches", "custom"),
}
_POSITIVE = (
    "data.image_size", "data.max_megapixels", "model.embedding", "loss.scale",
    "loss.temperature", "loss.binary_scale",
    "loss.binary_power", "pretrain.batch_size", "pretrain.lr", "pretrain.scale",
    "fed.num_clients", "fed.batch_size", "fed.lr",
    "fed.server_epsilon", "eval.batch_size", "eval.block", "engine.feature_batch",
    "checkpoint.every", "checkpoint.keep")
_NOT_NEGATIVE = (
    "fed.rounds", "fed.server_momentum", "fed.server_beta2", "data.workers", "loss.margin",
    "loss.contrastive_weight", "loss.binary_weight",
    "loss.binary_margin", "pretrain.epochs", "pretrain.momentum", "pretrain.weight_decay",
    "pretrain.warmup_epochs", "pretrain.margin", "fed.momentum", "fed.weight_decay",
    "fed.lr_decay", "fed.server_lr", "data.resident_gib", "population.cohort", "eval.clients",
    "eval.every", "eval.examples", "engine.lanes", "engine.cpu_devices",
    "engine.gradient_batch")


def _get(config: Config, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _check(config: Config) -> None:
    """Raises for values that are out of range or contradict each other."""
    for name, choices in {"method.name": tuple(METHODS), **_CHOICES}.items():
        if _get(config, name) not in choices:
            raise ConfigError(f"{name} is {_get(config, name)!r}; use one of {', '.join(choices)}")
    for name in _POSITIVE:
        if not _get(config, name) > 0:
            raise ConfigError(f"{name} is {_get(config, name)}; it must be above 0")
    for name in _NOT_NEGATIVE:
        if not _get(config, name) >= 0:
            raise ConfigError(f"{name} is {_get(config, name)}; it must not be negative")
    _check_ranges(config)
    _check_contradictions(config)


def _check_ranges(config: Config) -> None:
    fed, loss = config.fed, config.loss
    if not fed.local_epochs or min(fed.local_epochs) < 1:
        raise ConfigError(f"fed.local_epochs is {fed.local_epochs}; give at least one epoch "
                          "for each round, such as (10, 8, 6, 4)")
    if not 0 <= loss.binary_balance <= 1:
        raise ConfigError(f"loss.binary_balance is {loss.binary_balance}; it is a share, 0 to 1")
    if not -1 <= fed.hard_threshold <= 1:
        raise ConfigError(f"fed.hard_threshold is {fed.hard_threshold}; it is a cosine, -1 to 1")
    if not config.eval.fars or not all(0 < f < 1 for f in config.eval.fars):
        raise ConfigError(f"eval.fars is {config.eval.fars}; give rates between 0 and 1")
    if list(config.eval.fars) != sorted(set(config.eval.fars)):
        raise ConfigError(f"eval.fars is {config.eval.fars}; give each rate once, lowest first")


def _check_contradictions(config: Config) -> None:
    data, loss = config.data, config.loss
    if data.source != "generated" and not data.root and data.source != "tfds":
        raise ConfigError(f"data.root is empty; data.source={data.source!r} needs the folder "
                          "the images are in")
    if data.verification_labels and (
            len(data.verification_labels) != len(data.verification_sets)):
        raise ConfigError(f"data.verification_labels has {len(data.verification_labels)} entries "
                          f"for {len(data.verification_sets)} data.verification_sets; give one "
                          "each ('' for none)")
    _check_population(config)
    if loss.binary_detached and loss.binary_weight == 0 and config.method.name == "fedfr":
        raise ConfigError("loss.binary_detached is set, but loss.binary_weight=0 leaves the "
                          "binary term out")


def _check_method(config: Config) -> None:
    """What a method needs of other settings, and of its own, none of which is negative."""
    name, recipe = config.method.name, config.recipe
    options = config.options
    for field in dataclasses.fields(options) if options is not None else ():
        value = getattr(options, field.name)
        if isinstance(value, (int, float)) and value < 0:
            raise ConfigError(f"method.{name}.{field.name} is {value}; it must not be negative")
    population = config.population
    terms = recipe.terms(options, config.loss)
    if terms.contrastive > 0 and not terms.temperature > 0:
        raise ConfigError(f"the temperature of method.name={name!r} is {terms.temperature}; it "
                          "must be above 0")
    if recipe.isolated and config.fed.public_data not in ("auto", "off"):
        raise ConfigError(f"fed.public_data is {config.fed.public_data!r}, but with method.name="
                          f"{name!r} nothing is shared, and the class embeddings of public "
                          "identities would be; set it to 'off'")
    own = recipe.stays is not None or recipe.copy_penalty is not None
    if population.previous == "off" and (terms.contrastive > 0 or own):
        need = ("keeps part of the backbone with the clients" if own else
                "has a contrastive term, which needs the clients' previous backbones")
        raise ConfigError(f"population.previous is 'off', but method.name={name!r} {need}; set "
                          "population.previous='float32' or 'bfloat16'" + (
                              "" if own else ", or the term's weight to 0"))
    if recipe.union and population.cohort > 1:
        raise ConfigError(f"population.cohort is {population.cohort}, but method.name={name!r} "
                          "trains one client that holds everybody's images; set it to 0")
    if recipe.union and population.sampling == "schedule":
        raise ConfigError(f"population.sampling is 'schedule', but method.name={name!r} trains "
                          "one client that holds everybody's images; set it to 'uniform'")


def _check_population(config: Config) -> None:
    fed, population = config.fed, config.population
    if population.cohort > fed.num_clients:
        raise ConfigError(f"population.cohort is {population.cohort}, but there are only "
                          f"fed.num_clients={fed.num_clients} clients")
    if (population.sampling == "schedule") != bool(population.schedule):
        raise ConfigError(f"population.schedule is {population.schedule!r}; give the file of the "
                          "rounds' clients with population.sampling='schedule', and only then")
    _check_method(config)
    if config.data.images == "render" and config.data.source != "generated":
        raise ConfigError("data.images is 'render', but only generated faces can be rendered; "
                          "use 'resident' or 'stream'")
    part = config.engine.gradient_batch
    if part and fed.batch_size % part:
        raise ConfigError(f"engine.gradient_batch is {part}; it must divide "
                          f"fed.batch_size={fed.batch_size}")
