"""Checks the values of settings, alone and in combination."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from fedfr_jax.config.message_checks import check_messages
from fedfr_jax.config.part_checks import check_parts
from fedfr_jax.config.whole import Config
from fedfr_jax.errors import ConfigError
from fedfr_jax.methods import METHODS, Terms
from fedfr_jax.settings import AGGREGATORS, ATTACKS, DEGRADATIONS, STACKED_AGGREGATORS

TRANSFORM_NAMES = ("linear", "bottleneck", "none")  # keys of algorithm.transforms.TRANSFORMS
_CHOICES = {
    "loss.identification": ("cosface", "arcface"),
    "data.source": ("generated", "recordio", "folder", "tfds", "prepared"),
    "model.dtype": ("float32", "bfloat16", "float64", "auto"),
    "model.batch_norm": ("batch", "frozen"),
    "fed.public_data": ("auto", "hard", "all", "off"),
    "fed.class_embedding_init": ("mean_feature", "random"),
    "fed.aggregation": ("images", "uniform"),
    "fed.server_optimizer": ("average", "momentum", "adagrad", "yogi", "adam"),
    "fed.aggregator": AGGREGATORS + STACKED_AGGREGATORS,
    "fed.on_bad_update": ("stop", "quarantine"),
    "hostile.attack": ATTACKS,
    "privacy.accountant": ("pld", "rdp"),
    "privacy.mechanism": ("gaussian", "tree"),
    "privacy.sampling": ("without_replacement", "poisson"),
    "data.images": ("auto", "resident", "stream", "render"),
    "population.sampling": ("uniform", "poisson", "weighted", "cyclic", "schedule"),
    "population.previous": ("full", "bfloat16", "off"),
    "engine.conv": ("auto", "grouped", "patches", "layered", "custom"),
}
_POSITIVE = (
    "data.image_size",
    "data.max_megapixels",
    "model.embedding",
    "loss.scale",
    "pretrain.batch_size",
    "pretrain.lr",
    "pretrain.scale",
    "fed.num_clients",
    "fed.batch_size",
    "fed.lr",
    "fed.server_epsilon",
    "eval.batch_size",
    "eval.block",
    "engine.feature_batch",
    "checkpoint.every",
    "checkpoint.keep",
)
_NOT_NEGATIVE = (
    "fed.rounds",
    "fed.server_momentum",
    "fed.server_beta2",
    "data.workers",
    "loss.margin",
    "loss.repeated_negatives",
    "pretrain.epochs",
    "pretrain.momentum",
    "pretrain.weight_decay",
    "pretrain.warmup_epochs",
    "pretrain.margin",
    "fed.momentum",
    "fed.weight_decay",
    "fed.lr_decay",
    "fed.server_lr",
    "data.resident_gib",
    "population.cohort",
    "fed.clip_radius",
    "fed.quarantine_norm",
    "hostile.strength",
    "simulated_time.speed",
    "simulated_time.speed_sigma",
    "simulated_time.bandwidth",
    "simulated_time.bandwidth_sigma",
    "simulated_time.deadline",
    "privacy.clip_norm",
    "privacy.clip_lr",
    "privacy.clip_count_noise",
    "privacy.noise_multiplier",
    "privacy.target_epsilon",
    "privacy.local_noise",
    "eval.clients",
    "eval.examples",
    "engine.lanes",
    "engine.plan_seconds",
    "engine.cpu_devices",
    "engine.gradient_batch",
    "engine.part",
)


def _get(config: Config, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _numbers(group: Any, prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """(name, value) of all numbers, also within tuples."""
    for field in dataclasses.fields(group):
        value, name = getattr(group, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, name + ".")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                yield name, number


def check(config: Config) -> None:
    """Raises for values that are out of range or contradict each other."""
    for name, number in _numbers(config):
        lowest = -1 if name == "eval.every" else 0
        if isinstance(number, int) and not lowest <= number < 2**31:
            raise ConfigError(
                f"{name} is {number}; give a whole number from {lowest} to {2**31 - 1}"
            )
        if not math.isfinite(number):
            raise ConfigError(f"{name} is {number}; give a finite number")
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
    check_messages(config)
    check_parts(config)


def _check_ranges(config: Config) -> None:
    fed = config.fed
    if not fed.local_epochs or min(fed.local_epochs) < 1:
        raise ConfigError(
            f"fed.local_epochs is {fed.local_epochs}; give at least one epoch "
            "for each round, such as (10, 8, 6, 4)"
        )
    for name in ("fed.momentum", "pretrain.momentum", "fed.server_momentum", "fed.server_beta2"):
        if not _get(config, name) < 1:  # at 1 nothing is forgotten: the sums grow without bound
            raise ConfigError(f"{name} is {_get(config, name)}; it must be below 1")
    if not -1 <= fed.hard_threshold <= 1:
        raise ConfigError(f"fed.hard_threshold is {fed.hard_threshold}; it is a cosine, -1 to 1")
    if not config.eval.fars or not all(0 < f < 1 for f in config.eval.fars):
        raise ConfigError(f"eval.fars is {config.eval.fars}; give rates between 0 and 1")
    if list(config.eval.fars) != sorted(set(config.eval.fars)):
        raise ConfigError(f"eval.fars is {config.eval.fars}; give each rate once, lowest first")


def _check_contradictions(config: Config) -> None:
    data = config.data
    for name in DEGRADATIONS:
        if not 0 <= getattr(data.degrade, name) <= 1:
            raise ConfigError(
                f"data.degrade.{name} is {getattr(data.degrade, name)}; it is a strength, 0 to 1"
            )
    if data.images == "render" and data.degrade.is_active:
        raise ConfigError(
            "data.images is 'render', but images are degraded on the host "
            "(data.degrade); use 'resident' or 'stream'"
        )
    if data.source != "generated" and not data.root and data.source != "tfds":
        raise ConfigError(
            f"data.root is empty; data.source={data.source!r} needs the folder the images are in"
        )
    if data.verification_labels and (len(data.verification_labels) != len(data.verification_sets)):
        raise ConfigError(
            f"data.verification_labels has {len(data.verification_labels)} entries "
            f"for {len(data.verification_sets)} data.verification_sets; give one "
            "each ('' for none)"
        )
    if config.data.split.validation_images == 1:
        raise ConfigError(
            "data.split.validation_images is 1; a client chooses its model on pairs of them, give "
            "at least 2, or 0"
        )
    if data.split.shared_identities and config.recipe.server_embeddings is not None:
        raise ConfigError(
            f"data.split.shared_identities is {data.split.shared_identities}, but with "
            f"method.name={config.method.name!r} the server pushes all class embeddings apart, "
            "also those of one person at two clients: it cannot know who is the same person "
            "without being told who is where; set it to 0"
        )
    _check_population(config)


def _check_method(config: Config) -> None:
    """Requirements of a method on its own settings (none negative) and on others."""
    name, recipe = config.method.name, config.recipe
    options = config.options
    for field in dataclasses.fields(options) if options is not None else ():
        value = getattr(options, field.name)
        if isinstance(value, (int, float)) and value < 0:
            raise ConfigError(f"method.{name}.{field.name} is {value}; it must not be negative")
        choices = field.metadata.get("choices")
        if choices and value not in choices:
            raise ConfigError(
                f"method.{name}.{field.name} is {value!r}; use one of {', '.join(choices)}"
            )
    population = config.population
    terms = recipe.terms(options)
    _check_terms(f"method.{name}.", terms)
    if recipe.isolated and config.fed.public_data not in ("auto", "off"):
        raise ConfigError(
            f"fed.public_data is {config.fed.public_data!r}, but with method.name="
            f"{name!r} nothing is shared, but public identities need shared "
            "class embeddings; set it to 'off'"
        )
    if recipe.private is not None and config.fed.public_data == "hard":
        raise ConfigError(
            f"fed.public_data is 'hard', but with method.name={name!r} no client has "
            "the server's network, under which hard negatives are found; set it to "
            "'all' or 'off'"
        )
    own = recipe.private is not None or recipe.copy_penalty is not None
    if population.previous == "off" and (terms.contrastive_weight > 0 or own):
        need = (
            "keeps part of the backbone with the clients"
            if own
            else "has a contrastive term, which needs the clients' previous backbones"
        )
        raise ConfigError(
            f"population.previous is 'off', but method.name={name!r} {need}; set "
            "population.previous='full' or 'bfloat16'"
            + ("" if own else ", or the term's weight to 0")
        )
    if recipe.union and population.cohort > 1:
        raise ConfigError(
            f"population.cohort is {population.cohort}, but method.name={name!r} "
            "trains one client that holds all images; set it to 0"
        )
    if recipe.union and population.sampling == "schedule":
        raise ConfigError(
            f"population.sampling is 'schedule', but method.name={name!r} trains "
            "one client that holds all images; set it to 'uniform'"
        )


def _check_terms(prefix: str, terms: Terms) -> None:
    """The contrastive and the binary term of a method's loss."""
    for name in ("temperature", "binary_scale", "binary_power"):
        if not getattr(terms, name) > 0:
            raise ConfigError(f"{prefix}{name} is {getattr(terms, name)}; it must be above 0")
    if not 0 <= terms.binary_balance <= 1:
        raise ConfigError(
            f"{prefix}binary_balance is {terms.binary_balance}; it is a share, 0 to 1"
        )
    if terms.transform not in TRANSFORM_NAMES:
        raise ConfigError(
            f"{prefix}transform is {terms.transform!r}; use one of {', '.join(TRANSFORM_NAMES)}"
        )
    if terms.binary_detached and terms.binary_weight == 0:
        raise ConfigError(
            f"{prefix}binary_detached is set, but {prefix}binary_weight=0 leaves "
            "the binary term out"
        )


def _check_population(config: Config) -> None:
    fed, population = config.fed, config.population
    if population.cohort > fed.num_clients:
        raise ConfigError(
            f"population.cohort is {population.cohort}, but there are only "
            f"fed.num_clients={fed.num_clients} clients"
        )
    if (population.sampling == "schedule") != bool(population.schedule):
        raise ConfigError(
            f"population.schedule is {population.schedule!r}; give a schedule file with "
            "population.sampling='schedule', and only then"
        )
    _check_method(config)
    if config.data.images == "render" and config.data.source != "generated":
        raise ConfigError(
            "data.images is 'render', but only generated faces can be rendered; "
            "use 'resident' or 'stream'"
        )
    part = config.engine.gradient_batch
    if part and fed.batch_size % part:
        raise ConfigError(
            f"engine.gradient_batch is {part}; it must divide fed.batch_size={fed.batch_size}"
        )
