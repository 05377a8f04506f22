"""Every key of a config, once: its name, type, default and meaning.

A page returns nested values; `read` makes a `Stage1` or `Stage2` of them, frozen and checked. The sections `model`,
`quantizer`, `discriminator` and `transformer` are modules of `nn`, and `condition` is a class of `conditions`: their
fields are the keys. `make_vqgan` and its like give a module what it needs from other sections. Runs store their configs
by `train.stored`: whoever adds, renames or removes a key raises the version there.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
from ml_collections import ConfigDict

from vqgan_jax import ordering, sampling
from vqgan_jax.conditions import CONDITIONS, Condition, Frozen
from vqgan_jax.data import views
from vqgan_jax.losses import ADVERSARIAL, PIXEL
from vqgan_jax.nn import fields
from vqgan_jax.nn.augment import AUGMENTATIONS
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.discriminator import DISCRIMINATORS, Discriminator, PatchDiscriminator
from vqgan_jax.nn.fields import check_known, kind_of, section
from vqgan_jax.nn.maskgit import AUTOENCODERS
from vqgan_jax.nn.network import PriorNetwork
from vqgan_jax.nn.pixelsnail import PixelSNAIL
from vqgan_jax.nn.quantizer import QUANTIZERS, Quantizer, VectorQuantizer
from vqgan_jax.nn.transformer import Transformer

NETWORKS = {"transformer": Transformer, "pixelsnail": PixelSNAIL}  # kinds of the section `transformer`


@dataclasses.dataclass(frozen=True)
class Data:
    """Where images come from and how they are cropped; sizes in pixels."""

    source: str = "photos"  # photos | scenes | {folder,paired,coco}:PATH | tfds:NAME; stage 2 also tokens:PATH
    data_dir: str = ""  # of prepared TFDS datasets; "" is TFDS's own
    train_split: str = "train"
    eval_split: str = "validation"
    image_size: int = 256  # side of the square crop
    resize: tuple[int, int] = (256, 256)  # range of the short side before the crop, drawn for every image
    crop: str = "random"  # random | center
    flip: bool = True
    small: str = "upscale"  # upscale | refuse images below `resize`
    field: str = "image"  # what stage 1 learns: image, or another of `data.views.FIELDS`
    low_resolution_factor: int = 4
    edge_sigma: float = 2.0  # of the blur before Canny's edges, in pixels
    shift_labels: bool = False  # adds 1 to segmentations, 255 becoming 0, as COCO-Stuff's files ask for
    num_threads: int = 16
    timeout_seconds: int = 600  # that a training batch may take to come; 0 waits for ever

    @property
    def augmentation(self) -> views.Augmentation:
        """How squares are cut from training images."""
        return views.Augmentation(
            image_size=self.image_size, resize=self.resize, crop=self.crop, flip=self.flip, small=self.small
        )

    def check(self) -> None:
        """Raises ValueError for an unknown choice, or a crop that is larger than the resized image."""
        check_known("data.crop", self.crop, ("random", "center"))
        check_known("data.small", self.small, ("upscale", "refuse"))
        if not self.image_size <= self.resize[0] <= self.resize[1]:
            raise ValueError(
                f"`config.data.resize` must be a range from image_size {self.image_size} up; got {self.resize}."
            )


@dataclasses.dataclass(frozen=True)
class Loss:
    """Weights and times (in steps) of the stage-1 losses; those of the codes belong to the quantizer."""

    pixel: str = "l1"  # l1 | l2; of segmentations cross_entropy | binary_cross_entropy
    pixel_weight: float = 1.0
    perceptual_weight: float = 1.0
    lpips_dropout: bool = False
    adversarial: str = "hinge"  # hinge | vanilla | non_saturating
    disc_weight: float = 0.8  # 0 is: no discriminator at all
    adaptive: bool = True  # times the adaptive weight (equation 7)
    disc_start: float = 20_000.0  # from here the generator sees the discriminator; below 1: a share of the run
    disc_ramp: float = 5_000.0  # linearly within so many steps, or within a share of the run
    disc_train_start: float = 0.0  # from here, a step or a share of the run, the discriminator learns
    disc_augment: tuple[str, ...] = ()  # what it sees is changed at random: color, translation, cutout
    lecam_weight: float = 0.0  # of the discriminator's way from its own past (Tseng et al. 2021)
    lecam_decay: float = 0.999  # of the averages that remember this past
    shared_forward: bool = True  # both updates on one reconstruction; false: the published order

    def check(self) -> None:
        """Raises ValueError for an unknown loss."""
        check_known("loss.pixel", self.pixel, PIXEL)
        check_known("loss.adversarial", self.adversarial, ADVERSARIAL)
        for name in self.disc_augment:
            check_known("loss.disc_augment", name, AUGMENTATIONS)

    def in_steps(self, steps: int) -> "Loss":
        """Returns the same losses of a run of so many steps, with times that are shares of it as steps."""
        times = {name: getattr(self, name) for name in ("disc_start", "disc_ramp", "disc_train_start")}
        return dataclasses.replace(self, **{n: float(round(t * steps if 0 < t < 1 else t)) for n, t in times.items()})


@dataclasses.dataclass(frozen=True)
class Perturb:
    """Replaces codes by near ones in front of the decoder, in training (Qiu et al. 2025).

    A prior samples codes that no encoder would have chosen. This trains the decoder on such codes.
    """

    share: float = 0.0  # of the images; 0 is off
    neighbours: int = 10  # a code becomes a random one of so many nearest to it
    anneal: tuple[int, int] = (0, 0)  # the probability of a code falls from 1 to 0 between these steps; equal: never

    def check(self) -> None:
        """Raises ValueError for what is no share, no neighbour or no span of steps."""
        if not 0.0 <= self.share <= 1.0 or self.neighbours < 1 or not 0 <= self.anneal[0] <= self.anneal[1]:
            raise ValueError(
                "`config.perturb` must have a share in 0 .. 1, at least one of neighbours, and anneal as two steps in "
                f"order; got {self.share}, {self.neighbours} and {self.anneal}. Change them."
            )


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """The loss of stage 2."""

    keep: float = 1.0  # probability that an input code stays; else it is a random one
    label_smoothing: float = 0.0

    def check(self) -> None:
        """Raises ValueError for what is no probability."""
        if not 0.0 <= self.keep <= 1.0:
            raise ValueError(f"`config.loss.keep` must be a probability, 0 to 1; got {self.keep}.")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Adam or Muon, and how the learning rate goes; the defaults are those of stage 2."""

    learning_rate: float = 4e-4
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.05
    clip_norm: float = 1.0  # 0 is off
    schedule: str = "cosine"  # constant | cosine
    warmup_steps: int = 10_000
    final_fraction: float = 0.05  # of the learning rate, at the end of the cosine
    ema_decay: float = 0.9999  # of the parameters; 0 is off
    matrices: str = "adam"  # adam | muon: what moves the kernels of a transformer's layers; all else moves by Adam
    nonfinite: str = "stop"  # stop | skip a step whose losses or gradients are not finite

    def check(self) -> None:
        """Raises ValueError for an unknown choice."""
        check_known("optimizer.schedule", self.schedule, ("constant", "cosine"))
        check_known("optimizer.matrices", self.matrices, ("adam", "muon"))
        check_known("optimizer.nonfinite", self.nonfinite, ("stop", "skip"))


@dataclasses.dataclass(frozen=True)
class TwoOptimizers(Optimizer):
    """Adam for the generator and, at a rate of its own, for the discriminator: stage 1."""

    learning_rate: float = 1e-4
    b1: float = 0.5
    b2: float = 0.9
    weight_decay: float = 0.0
    warmup_steps: int = 5_000
    final_fraction: float = 0.1
    ema_decay: float = 0.999
    disc_learning_rate: float = 1e-4


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; one of them may be -1, which is all that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    zero1: bool = False  # optimisers' moments and the running average are cut along `data` too


@dataclasses.dataclass(frozen=True)
class Log:
    """How often, in steps."""

    metrics_every: int = 100
    eval_every: int = 5_000
    eval_examples: int = 2_048
    eval_metrics: tuple[str, ...] = ()  # of `vqgan evaluate`: fd_vgg, ssim, own_class, ...
    checkpoint_every: int = 2_500
    keep: int = 2  # newest checkpoints kept beside the best


@dataclasses.dataclass(frozen=True)
class FrozenTokenizer(Frozen):
    """The stage-1 run whose codes a prior learns."""

    crops: int = 10  # of each training image, in a token cache


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the prior draws; see `sampling.Settings`. A flag of `vqgan sample` for each."""

    temperature: float = 1.0
    top_k: int = 0  # 0 is off
    top_p: float = 1.0  # 1 is off
    guidance: float = 1.0  # 1 is off
    schedule: str = "constant"  # constant | linear | cosine
    power: float = 1.0  # of the cosine
    greedy: bool = False
    previews: int = 8  # images of each kind on a sheet while training

    @property
    def settings(self) -> sampling.Settings:
        """As the sampler takes them."""
        return sampling.Settings(
            temperature=self.temperature,
            top_p=self.top_p if self.top_p != 1.0 else None,
            guidance=self.guidance if self.guidance != 1.0 else None,
            power=self.power,
            top_k=self.top_k or None,
            schedule=self.schedule,
            greedy=self.greedy,
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """The keys of both stages."""

    stage: int = 0
    seed: int = 0
    steps: int = 300_000
    batch_size: int = 256  # over all devices
    accumulate: int = 1  # equal parts of a batch, one after the other, whose gradients are summed before one update
    data: Data = Data()
    mesh: Mesh = Mesh()
    log: Log = Log()

    def check_crop(self, factor: int) -> None:
        """Raises ValueError where a batch has no parts, or codes of `factor` pixels do not fill the crop."""
        if self.accumulate < 1:
            raise ValueError(f"`config.accumulate` must be at least 1, a batch in one part; got {self.accumulate}.")
        size = self.data.image_size
        if size % factor:
            raise ValueError(
                f"`config.data.image_size` must be a multiple of the downsample factor {factor}; got {size}. Set it to "
                f"{-(-size // factor) * factor}."
            )


@dataclasses.dataclass(frozen=True)
class Stage1(Run):
    """A whole stage-1 run; by default the paper's tokenizer (f16, 1024 codes) with our training."""

    stage: int = 1
    model: VQGAN = section(VQGAN(), AUTOENCODERS)
    quantizer: Quantizer = section(VectorQuantizer(), QUANTIZERS)
    discriminator: Discriminator = section(PatchDiscriminator(), DISCRIMINATORS)
    perturb: Perturb = Perturb()
    loss: Loss = Loss()
    optimizer: TwoOptimizers = TwoOptimizers()

    @property
    def summary(self) -> str:
        """What the model is, in a line."""
        m, q = self.model, self.quantizer
        return (
            f"a tokenizer: f{m.downsample_factor}, {q.codebook_size} codes of {q.embed_dim}, {kind_of(q, QUANTIZERS)}, "
            f"{m.image_channels} channels, widths {[m.channels * n for n in m.channel_multipliers]}"
        )

    def make_vqgan(self) -> VQGAN:
        """Returns the tokenizer's module with its quantizer."""
        return self.model.clone(quantizer=self.quantizer)

    def make_discriminator(self) -> Discriminator | None:
        """Returns the discriminator's module; none where its loss has no weight."""
        if self.loss.disc_weight == 0:
            return None
        return self.discriminator.clone(dtype=jnp.dtype(self.model.dtype))

    def views(self) -> Mapping[str, views.View]:
        """Returns what the loader must show of each example, by name."""
        image = views.FIELDS[self.data.field].view(self.data, self.model.image_channels)
        return {**views.PLAIN, "image": image}

    def check(self) -> None:
        """Raises ValueError where sections contradict each other."""
        self.check_crop(self.model.downsample_factor)
        check_known("data.field", self.data.field, views.FIELDS)
        name, channels, loss = self.data.field, self.model.image_channels, self.loss
        labels, expected = views.FIELDS[name].is_categories, views.FIELDS[name].channels or channels
        if channels != expected:
            raise ValueError(
                f"`config.model.image_channels` must be {expected} of data.field {name!r}; got {channels}."
            )
        if labels != (loss.pixel in ("cross_entropy", "binary_cross_entropy")):
            raise ValueError(
                "`config.loss.pixel` must be cross_entropy or binary_cross_entropy of segmentations, and neither of "
                f"all else; got {loss.pixel!r} of {name!r}."
            )
        if labels and (loss.perceptual_weight or loss.disc_weight):
            raise ValueError(
                "categories have no perceptual loss and no discriminator: set `config.loss.perceptual_weight` and "
                f"disc_weight to 0; got {loss.perceptual_weight} and {loss.disc_weight}."
            )


@dataclasses.dataclass(frozen=True)
class Stage2(Run):
    """A whole stage-2 run; by default a class-conditional prior of 24 layers and 1024 channels."""

    stage: int = 2
    tokenizer: FrozenTokenizer = FrozenTokenizer()
    condition: Condition = section(CONDITIONS["class"](), CONDITIONS)
    transformer: PriorNetwork = section(Transformer(), NETWORKS)
    loss: TokenLoss = TokenLoss()
    sampling: Sampling = Sampling()
    optimizer: Optimizer = Optimizer()

    @property
    def summary(self) -> str:
        """What the model is, in a line."""
        t, k = self.transformer, self.tokenizer
        codes = f"order {t.order!r}, over {k.codebook_size} codes of f{k.downsample_factor}"
        return f"a prior: {t.summary}, condition {self.condition.kind!r}, {codes}"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes of one image."""
        side = self.data.image_size // self.tokenizer.downsample_factor
        return side, side

    def prefix(self, module: VQGAN | None = None) -> Condition:
        """Returns the condition that knows the rest of the run; `module` is the tokenizer that encodes its maps."""
        return self.condition.bind(window=self.grid, images=self.tokenizer, module=module)

    def make_network(self) -> PriorNetwork:
        """Returns the prior's module, as long as prefix and codes need unless the config wants it longer."""
        prefix, (height, width) = self.prefix(), self.grid
        return self.transformer.bind(
            vocab_size=self.tokenizer.codebook_size,
            extra_vocab=0 if self.condition.shared_vocab else prefix.vocab_size,
            prefix=prefix.coordinates(),
            codes=[(int(i) // width, int(i) % width) for i in ordering.order(self.transformer.order, height, width)],
        )

    def views(self) -> Mapping[str, views.View]:
        """Returns what the loader must show of each example, by name."""
        return {**views.PLAIN, **self.condition.views(self.data)}

    def check(self) -> None:
        """Raises ValueError where sections contradict each other."""
        self.check_crop(self.tokenizer.downsample_factor)
        check_known("data.field", self.data.field, ("image",))
        check_known("transformer.order", self.transformer.order, ordering.ORDERS)
        prefix = self.prefix()
        self.make_network()
        prefix.check_fit(self.tokenizer.codebook_size)
        sampling.check(self.sampling.settings, self.tokenizer.codebook_size)
        if self.sampling.guidance != 1.0 and not prefix.droppable:
            raise ValueError(
                "`config.sampling.guidance` needs a null condition, which is learned with condition.drop above 0; got "
                f"drop {prefix.drop} of kind {prefix.kind!r}. Set guidance to 1 or drop to 0.1."
            )


STAGES = {1: Stage1, 2: Stage2}


def read(mapping: Mapping[str, Any]) -> Any:
    """Returns the `Stage1` or `Stage2` of nested values, of which a missing key has its default.

    Raises:
      ValueError: no known `stage`, an unknown key (the nearest known one is named), a value of another type, or values
        that contradict each other.
    """
    check_known("stage", mapping.get("stage"), STAGES)
    return fields.read(mapping, STAGES[mapping["stage"]])


# For pages: every key with its default, and some of them changed

Nested: TypeAlias = ConfigDict | Mapping[str, Any]


def stage1() -> ConfigDict:
    """Returns the defaults of stage 1, every key of them."""
    return ConfigDict(fields.write(Stage1()))


def stage2() -> ConfigDict:
    """Returns the defaults of stage 2, every key of them."""
    return ConfigDict(fields.write(Stage2()))


def vary(config: Nested, changes: Mapping[str, Any]) -> ConfigDict:
    """Returns a config with some keys changed. Another `kind` starts its section anew, with that kind's defaults.

    Args:
      config: nested values with every key.
      changes: values by "section.key"; `read` refuses a key that does not exist.

    Raises:
      ValueError: a kind that does not exist, or a key inside of what is no section.
    """
    nested = config.to_dict() if isinstance(config, ConfigDict) else copy.deepcopy(dict(config))
    tables = fields.kinds(STAGES[nested["stage"]]) if nested.get("stage") in STAGES else {}
    for path, value in sorted(changes.items(), key=lambda change: not change[0].endswith(".kind")):
        *sections, key = path.split(".")
        table = tables.get(".".join(sections), {}) if key == "kind" else {}
        if table and fields.section_of(nested, sections[0]).get("kind") != value:
            check_known(path, value, table)
            nested[sections[0]] = {"kind": value} | fields.write(table[value]())
        put(nested, path, value)
    return ConfigDict(nested)


def put(nested: dict[str, Any], path: str, value: Any) -> None:
    """Sets the value of one key; ValueError where a part of the path is no section."""
    *sections, key = path.split(".")
    for name in sections:
        nested = nested.setdefault(name, {})
        if not isinstance(nested, dict):
            raise ValueError(f"`config.{name}` is a value, not a section; `config.{path}` cannot be set.")
    nested[key] = value


def choose(config: Nested, variants: Mapping[str, Mapping[str, Any]], names: str) -> ConfigDict:
    """Returns a config with one variant or several, `a,b`, applied from left to right; none for the empty string.

    Raises:
      ValueError: a variant that does not exist.
    """
    chosen = vary(config, {})
    for name in filter(None, names.split(",")):
        if name not in variants:
            raise ValueError(f"the variant must be one of {', '.join(variants)}; got {name!r}.")
        chosen = vary(chosen, variants[name])
    return chosen
