"""Configs: frozen dataclasses, one a section.

Every default lives in a file under `experiments/`: no field here has one, every key must be given and every key is
read. An `ml_collections.ConfigDict` ends in `parsing.parse`; behind it there are these types, and `build` makes
modules of them. Runs store their configs by `stored`: whoever adds, renames or removes a key here raises the version
there.
"""

import dataclasses

from vqgan_jax.conditions import Frozen


@dataclasses.dataclass(frozen=True)
class Data:
    """Where images come from and how they are cropped; sizes in pixels."""

    source: str  # photos | scenes | folder:PATH | paired:PATH | coco:PATH | tfds:NAME; in stage 2 also tokens:PATH
    data_dir: str  # of prepared TFDS datasets; "" for TFDS's own
    train_split: str
    eval_split: str
    image_size: int  # side of the square crop
    resize: tuple[int, int]  # range of the short side before the crop, drawn for every image
    crop: str  # random | center
    flip: bool
    small: str  # upscale | refuse images below `resize`
    field: str  # of an example that a tokenizer learns: image, or another of `data.views.FIELDS`
    low_resolution_factor: int
    edge_sigma: float  # of the blur before Canny's edges, in pixels
    shift_labels: bool  # adds 1 to segmentations, 255 becoming 0, as COCO-Stuff's files ask for
    num_threads: int
    timeout_seconds: int  # that a batch may take to come; 0 waits for ever


@dataclasses.dataclass(frozen=True)
class Model:
    """The autoencoder; see `nn.autoencoder.Encoder`, and `nn.maskgit` for the kind of that name."""

    kind: str  # paper | maskgit
    channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    image_channels: int
    latent_channels: int
    norm_groups: int
    dropout: float
    dtype: str


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """The codebook; see `nn.quantizer`."""

    kind: str  # vq | gumbel | fsq
    codebook_size: int
    embed_dim: int
    unit_length: bool
    ema: bool
    decay: float
    revive_below: float
    kmeans_batches: int  # batches for the k-means start; 0 is none
    noisy_eval: bool
    temperature: tuple[float, float, int]  # Gumbel: cosine from, to, over steps
    levels: tuple[int, ...]  # FSQ: of each channel


@dataclasses.dataclass(frozen=True)
class Discriminator:
    """The patch discriminator; see `nn.discriminator.PatchDiscriminator`."""

    channels: int
    num_layers: int
    norm: str


@dataclasses.dataclass(frozen=True)
class Loss:
    """Weights and times (in steps) of the stage-1 losses."""

    pixel: str  # l1 | l2; of segmentations cross_entropy | binary_cross_entropy
    pixel_weight: float
    perceptual_weight: float
    lpips_dropout: bool
    codebook_weight: float
    commitment_weight: float
    kl_weight: float  # Gumbel only
    adversarial: str  # hinge | vanilla | non_saturating
    disc_weight: float  # 0 is: no discriminator at all
    adaptive: bool  # times the adaptive weight
    disc_start: int  # from here the generator sees the discriminator
    disc_ramp: int  # linearly within so many steps
    disc_train_start: int  # from here the discriminator learns
    shared_forward: bool  # both updates on one reconstruction; false: the published order


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Adam, and how its learning rate goes."""

    learning_rate: float
    b1: float
    b2: float
    weight_decay: float
    clip_norm: float  # 0 is off
    schedule: str  # constant | cosine
    warmup_steps: int
    final_fraction: float  # of the learning rate, at the end of the cosine
    ema_decay: float  # of the parameters; 0 is off
    nonfinite: str  # stop | skip such a step


@dataclasses.dataclass(frozen=True)
class TwoOptimizers(Optimizer):
    """Adam for the generator and, at a rate of its own, for the discriminator."""

    disc_learning_rate: float


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; one of them may be -1, which is all that are left."""

    data: int
    fsdp: int
    tensor: int
    zero1: bool  # optimisers' moments and the running average are cut along `data` too


@dataclasses.dataclass(frozen=True)
class Log:
    """How often, in steps."""

    metrics_every: int
    eval_every: int
    eval_examples: int
    eval_metrics: tuple[str, ...]  # of `vqgan evaluate`, of as many examples, or of samples against them
    checkpoint_every: int
    keep: int  # newest checkpoints kept beside the best


@dataclasses.dataclass(frozen=True)
class Stage1:
    """A whole stage-1 run."""

    stage: int
    seed: int
    steps: int
    batch_size: int  # over all devices
    accumulate: int  # equal parts of a batch, one after the other, whose gradients are summed before one update
    data: Data
    model: Model
    quantizer: Quantizer
    discriminator: Discriminator
    loss: Loss
    optimizer: TwoOptimizers
    mesh: Mesh
    log: Log


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenTokenizer(Frozen):
    """The stage-1 run whose codes a prior learns."""

    crops: int  # of each training image, in a token cache


@dataclasses.dataclass(frozen=True)
class Condition:
    """The prefix; see `conditions`."""

    kind: str  # class | none | coordinates | boxes | centers | text, or a map
    num_classes: int  # of labels, of segmentations, of objects
    num_tokens: int  # levels of coordinates; of boxes and centers, whose points are on a square grid of so many
    max_objects: int
    max_tokens: int  # of a caption
    num_ids: int  # of a caption's tokenizer; 0 is UTF-8 bytes
    crop_points: bool  # boxes stay those of the whole image, and two more tokens say which part is seen
    paper: bool  # upstream's quirks of boxes and centers
    size: int  # pixels to which a map is brought first, by the nearest one; 0 leaves it
    tokenizer: Frozen  # of a map; without a workdir it is the images' own
    shared_vocab: bool  # prefix tokens share the codes' rows of the embedding, as upstream's do
    drop: float  # probability of the null token instead, for guidance


@dataclasses.dataclass(frozen=True)
class Transformer:
    """The prior; see `nn.transformer.Transformer`."""

    depth: int
    width: int
    num_heads: int
    max_len: int  # 0 is as long as needed
    bidirectional_prefix: int
    order: str  # of the codes; see `ordering`
    norm: str
    mlp: str
    positions: str
    qk_norm: bool
    bias: bool
    dropout: float
    remat: str
    dtype: str


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """Of stage 2."""

    keep: float  # probability that an input code stays; else it is a random one
    label_smoothing: float


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the prior draws; see `sampling.Settings`. A flag of `vqgan sample` for each."""

    temperature: float
    top_k: int  # 0 is off
    top_p: float  # 1 is off
    guidance: float  # 1 is off
    schedule: str
    power: float
    greedy: bool
    previews: int  # images of each kind on a sheet while training


@dataclasses.dataclass(frozen=True)
class Stage2:
    """A whole stage-2 run."""

    stage: int
    seed: int
    steps: int
    batch_size: int  # over all devices
    accumulate: int  # equal parts of a batch, one after the other, whose gradients are summed before one update
    data: Data
    tokenizer: FrozenTokenizer
    condition: Condition
    transformer: Transformer
    loss: TokenLoss
    sampling: Sampling
    optimizer: Optimizer
    mesh: Mesh
    log: Log


STAGES = {1: Stage1, 2: Stage2}
