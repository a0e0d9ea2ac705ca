"""The groups of settings, in frozen dataclasses.

They are the only place where a setting, its type and its default stand. This module imports
nothing of the package, so that every other may use it; the whole, with the method's own
settings, is :class:`fedfr_jax.config.Config`.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class GeneratedConfig:
    """Procedural faces, used when ``data.source == "generated"``."""

    identities: int = 600  # people in the whole data set
    images_per_identity: tuple[int, ...] = (20, 20)  # (fewest, most), drawn per identity
    difficulty: float = 1.0  # strength of pose, light, occlusion, blur and noise; 0 = none


# The strengths of DegradeConfig, in the order in which an image suffers them.
DEGRADATIONS = ("occlusion", "blur", "low_resolution", "low_light", "colour", "jpeg")


@dataclasses.dataclass(frozen=True)
class DegradeConfig:
    """What makes images harder; strengths from 0 (nothing) to 1."""

    low_light: float = 0.0  # share of the light that is lost: sensor noise, brightness restored
    low_resolution: float = 0.0  # share of the pixels on a side that is lost
    blur: float = 0.0  # 1: Gaussian, sigma of 4 % of the side
    jpeg: float = 0.0  # 1: quality 5
    occlusion: float = 0.0  # side of a gray square, as a share of the image's
    colour: float = 0.0  # 1: gains of the channels and gamma off by some 40 %
    per_client: bool = False  # strengths drawn for each client, from 0 to twice what is set
    public: bool = True  # public and held-out people, too, with the strengths as set

    @property
    def is_active(self) -> bool:
        """Whether anything is degraded."""
        return any(getattr(self, name) > 0 for name in DEGRADATIONS)


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """FedFR's split into client, public and held-out identities (FEDFR.md section 6)."""

    # Share of the identities, the same whatever the seed, that is kept apart to choose settings on;
    # tuning = True takes only these, False only the others.
    tuning_fraction: float = 0.0
    tuning: bool = False
    client_fraction: float = 0.5  # share of the shuffled identities that clients draw from
    identities_per_client: tuple[int, ...] = (10, 10)  # (fewest, most), drawn per client
    client_images: tuple[int, ...] = (1, 1_000_000)  # an identity qualifies with so many images
    verification_images: int = 8  # first images of each client identity, held out for tests
    # Last images of each client identity, not trained on either: each client chooses the best of
    # its models on them (at least 2); 0 = no choice.
    validation_images: int = 0
    public_identities: int = 0  # use at most so many; 0 = all that qualify
    public_images: tuple[int, ...] = (1, 1_000_000)  # an identity qualifies with so many images
    unused_public: bool = False  # identities for clients that no client took become public
    max_training_images: int = 0  # per client identity; 0 = all that are left
    # Clients differ in how many of their images they have: log-normal with this sigma, of which the
    # largest client has all, and none has fewer than a batch. 0 = every client has all.
    quantity_skew: float = 0.0
    # People at several clients, each with a part of their images (docs/heterogeneity.md): the share
    # of a client's people who are at so many clients in all.
    shared_identities: float = 0.0
    sites_per_shared_identity: int = 2
    # "" | cluster | brightness | sharpness: clients whose people are alike in this. People are
    # grouped by it, and a client's shares of the groups are Dirichlet: the smaller alpha, the fewer
    # groups it has.
    skew_by: str = ""
    skew_alpha: float = 1.0
    skew_groups: int = 10
    skew_features: str = ""  # cluster: .npy (people, d) to cluster; "" = thumbnails of the images
    held_out_identities: int = 0  # set aside for generic verification pairs, seen by nobody
    held_out_pairs: int = 0  # genuine and as many impostor pairs made from them (x2 in all)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images come from. ``seed`` fixes both generated faces and the split."""

    source: str = "generated"  # generated | recordio | folder | tfds | prepared
    root: str = ""  # folder of train.rec, identity folders, shards; tfds data_dir
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
    # Public images are resident, too, unless rounds run in parts (engine.part).
    images: str = "auto"
    resident_gib: float = 2.0  # per device
    generated: GeneratedConfig = GeneratedConfig()
    split: SplitConfig = SplitConfig()
    degrade: DegradeConfig = DegradeConfig()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The backbone: image -> R^embedding."""

    # spherenet | iresnet | iresnet_adaface | mobilefacenet | mobilefacenet_arcface |
    # mobilefacenet_arcface_large
    name: str = "spherenet"
    depth: int = 20  # spherenet: 4, 10, 20, 36, 64; iresnet: 18, 34, 50, 100, (not adaface:) 200
    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels per stage; not for mobilefacenet
    embedding: int = 512
    # Compute type: float32 | bfloat16 | auto (the faster of the two here), with parameters of
    # float32; or float64 for everything, which needs JAX_ENABLE_X64=1.
    dtype: str = "float32"
    # Batch norm in local training: with the statistics of the mini-batch, which also move the
    # running ones, or with the running ones as the server sends them. Pretraining has the former.
    batch_norm: str = "batch"  # batch | frozen
    weights: str = ""  # .safetensors, .npz or a checkpoint folder; "" = pretrain here
    projection: bool = False  # two linear layers after the embedding, as in MOON


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The identification loss, which every method has; its other terms are the method's."""

    identification: str = "cosface"  # cosface | arcface
    scale: float = 30.0
    margin: float = 0.4  # a cosine for cosface, radians for arcface
    balanced: bool = False  # every class weighs the same in it, however many images it has
    # The re-weighting of CosFace in FedFR's code: a client's own classes count so many times more
    # as negatives, without a gradient. The authors: fed.num_clients - 1.
    repeated_negatives: int = 0


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
    rounds: int = 20  # averaged; a method may add others, such as one of fine-tuning
    batch_size: int = 256
    partial_batch: bool = False  # train on the images left over at the end of an epoch, too
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    local_epochs: tuple[int, ...] = (10, 8, 6, 4)  # per round; the last one repeats
    lr_decay_epochs: tuple[int, ...] = (8,)  # per round; then max(1, int(0.75 E))
    lr_decay: float = 0.1
    mirror: bool = True  # random horizontal flip
    # What trains in the rounds: all | last_stage | embedding (the layers after the last map), or a
    # regular expression: the first layer whose name matches, and all after it. What lies below
    # stays as pretrained, and its activations are computed once per image and mirror.
    trainable: str = "all"
    # hard: hard negatives | all | off (local classes only) | auto: what the method says
    public_data: str = "auto"
    hard_threshold: float = 0.4  # cosine above which a public image is a hard negative
    class_embedding_init: str = "mean_feature"  # or random (normal, std 0.01)
    aggregation: str = "images"  # weights of the average: images | uniform
    # What the server does with the average: takes it (average), or takes its difference to the
    # old model as a gradient: for SGD with momentum, or for FedAdagrad, FedYogi or FedAdam
    # (Reddi et al., ICLR 2021).
    server_optimizer: str = "average"  # average | momentum | adagrad | yogi | adam
    server_lr: float = 0.0  # 0 = 1 for momentum, 1e-3 for the others
    server_momentum: float = 0.9  # of momentum; beta_1 of the others
    server_beta2: float = 0.99
    server_epsilon: float = 1e-3  # tau: the least scale of a step, and the start of v
    # How the clients' differences become one; all but the first three need every client's
    # difference in memory at once, and count every client alike. See docs/robustness.md.
    # mean | norm_clip | centered_clip | median | trimmed_mean | krum | multi_krum |
    # geometric_median
    aggregator: str = "mean"
    clip_radius: float = 0.0  # of norm_clip and centered_clip, an L2 norm
    assumed_hostile: float = 0.2  # share that trimmed_mean, krum and multi_krum withstand
    bucketing: int = 0  # average random groups of so many clients first; 0, 1 = no
    # A difference is bad if it is not finite or, where quarantine_norm is set, longer than that.
    # stop: the run ends with an error; quarantine: the round goes on without that client.
    on_bad_update: str = "stop"
    quarantine_norm: float = 0.0  # L2; 0 = any length

    @property
    def least_images(self) -> int:
        """Training images that a client needs to make a step."""
        return 1 if self.partial_batch else self.batch_size


@dataclasses.dataclass(frozen=True)
class PopulationConfig:
    """Who of ``fed.num_clients`` clients takes part in a round, and how their state rests."""

    cohort: int = 0  # clients per round; 0 = all
    # uniform: exactly so many | poisson: so many on average, each client independently of the
    # others | weighted (by training images) | cyclic: one after the other, in an order drawn once,
    # so that a client comes again after clients / cohort rounds | schedule
    sampling: str = "uniform"
    schedule: str = ""  # file with the clients of every round, for sampling = schedule
    availability: str = ""  # .npy, bool (period, clients): who can take part in which round
    # The clients' previous backbones are stored in full precision, as bfloat16, or not at all.
    previous: str = "full"  # full | bfloat16 | off
    # Shares of a round's clients that are lost: before they train, and after it, before their
    # difference has arrived. Drawn anew in every round.
    dropout: float = 0.0
    late_dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class SimulatedTimeConfig:
    """How long a round takes on clients that are not equally fast; docs/robustness.md.

    A client needs the images that it trains on (every epoch counted) / its speed, and the bytes
    of its message / its bandwidth. Off without ``speed`` and ``speeds``.
    """

    speed: float = 0.0  # images per second: the median of a log-normal distribution
    speed_sigma: float = 0.5  # std of the logarithm; 0 = all clients alike
    speeds: str = ""  # instead: .npy or text (.csv), one number per client
    bandwidth: float = 0.0  # upload in megabits per second, the median; 0 = sending takes no time
    bandwidth_sigma: float = 0.5
    bandwidths: str = ""  # instead: a file as of speeds
    seed: int = 0  # of the draws; a client is equally fast in every round
    # Seconds after which the server averages what has arrived; 0 = it waits for the slowest.
    deadline: float = 0.0
    first: int = 0  # the server takes the first so many messages of a round; 0 = all
    # "Time to accuracy" for metrics to reach these shares, beside 95 % of their last value.
    levels: tuple[float, ...] = ()

    @property
    def is_active(self) -> bool:
        """Whether rounds have a simulated duration."""
        return self.speed > 0 or bool(self.speeds)


@dataclasses.dataclass(frozen=True)
class PrivacyConfig:
    """What a client's difference passes before it is averaged, and what that proves.

    See docs/privacy.md. Everything is off by default.
    """

    clip_norm: float = 0.0  # L2 bound of a client's difference; 0 = none
    # The bound follows this quantile of the differences' norms (Andrew et al., NeurIPS 2021),
    # and clip_norm is where it begins; 0 = it stays.
    clip_quantile: float = 0.0
    clip_lr: float = 0.2  # of its logarithm
    clip_count_noise: float = 0.0  # std of the count of clients within it; 0 = clients / 20
    # Central noise: std of the sum of the differences, in units of the bound.
    noise_multiplier: float = 0.0
    # gaussian: independent in every round | tree: correlated over rounds by tree aggregation
    # (DP-FTRL, Kairouz et al., 2021), noise_multiplier is then that of each node of the tree.
    mechanism: str = "gaussian"
    target_epsilon: float = 0.0  # finds the noise multiplier before the run; 0 = as set
    delta: float = 1e-5
    accountant: str = "pld"  # pld | rdp; where pld has no bound, rdp is used
    # What population.sampling = uniform counts as: without_replacement, which it is; or poisson,
    # an approximation that most papers make, and that gives a smaller epsilon.
    sampling: str = "without_replacement"
    production_cohort: int = 0  # the noise of an average over so many clients; 0 = of this run
    local_noise: float = 0.0  # std that each client adds to its own difference, in bounds
    top_k: float = 0.0  # share of the numbers that are sent, the largest; 0 = all
    quantize_bits: int = 0  # of a number that is sent; 0 = as it is
    secure_aggregation: bool = False  # the server sees only the sum of masked integers


@dataclasses.dataclass(frozen=True)
class HostileConfig:
    """Simulated clients that try to spoil the model; see docs/robustness.md."""

    fraction: float = 0.0  # share of the clients, drawn with ``seed``
    clients: tuple[int, ...] = ()  # or these
    attack: str = "sign_flip"  # one of ATTACKS
    strength: float = 1.0
    seed: int = 0

    @property
    def is_active(self) -> bool:
        """Whether there are any."""
        return self.fraction > 0 or bool(self.clients)


ATTACKS = ("label_flip", "sign_flip", "scale", "random", "nan", "alie", "inner_product")
STACKED_ATTACKS = ("alie", "inner_product")  # they look at all honest differences
AGGREGATORS = ("mean", "norm_clip", "centered_clip")  # these need no more than a running sum
STACKED_AGGREGATORS = ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Generic and personalized evaluation (FEDFR.md section 7)."""

    fars: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
    clients: int = 0  # evaluate the personalized models of so many clients, drawn; 0 = all
    # Generic and personalized evaluation each so many rounds, beside the one at the end; 0 = never;
    # -1: some five times in a run if there are at most 64 clients.
    every: int = -1
    # Beside the method's own definition of a personalized model: a client's backbone without its
    # transform, the global backbone with it, and the mean of both backbones.
    variants: bool = True
    batch_size: int = 256
    block: int = 4096  # rows of a similarity block; bounds memory
    examples: int = 8  # hard negatives and mistakes shown in the report


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How a round is laid out on the hardware; none of it changes results.

    What is left on automatic is measured, see :mod:`fedfr_jax.runtime.autotune`.
    """

    lanes: int = 0  # clients side by side under vmap on a device; 0 = measured
    plan_seconds: float = 20.0  # for measuring layouts; 0 = by rules, without measuring
    cpu_devices: int = 0  # one XLA device per so many cores' worth; 0 = one per core
    conv: str = "auto"  # auto (measured) | grouped | patches | layered | custom
    unroll_lanes: bool = False  # a step as a copy for each lane, instead of vmap; compiles longer
    feature_batch: int = 256  # images per forward pass of a frozen backbone
    gradient_batch: int = 0  # images per gradient pass, a divisor of fed.batch_size; 0 = all
    # Clients of a device at a time: a round then runs in parts, public images stay in the source,
    # and only those that a part's clients keep are on the devices with it. 0 = all clients at once.
    part: int = 0
    cache_features: bool = True  # contrastive features once per round, not in every step
    # Where compiled programs are kept: auto (JAX's setting, or ~/.cache/fedfr_jax) | off | a folder
    compilation_cache: str = "auto"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 1  # rounds between checkpoints
    keep: int = 2
