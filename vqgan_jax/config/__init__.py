"""Every key of a config, once: its name, type, default and meaning.

A page returns nested values; `read` makes a `Stage1` or `Stage2` of them, frozen and checked. The sections `model`,
`quantizer`, `discriminator` and `transformer` are modules of `nn`, `condition` is a class of `conditions`, all others
are in `sections`: their fields are the keys. `make_vqgan` and its like give a module what it needs from other sections.
Runs store their configs by `train.stored`: whoever adds, renames or removes a key raises the version there.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from vqgan_jax import ordering, sampling
from vqgan_jax.conditions import CONDITIONS, Condition
from vqgan_jax.config.sections import (
    Data,
    FrozenTokenizer,
    Log,
    Loss,
    Mesh,
    Optimizer,
    Perturb,
    Sampling,
    Start,
    TokenLoss,
    TwoOptimizers,
)
from vqgan_jax.data import views
from vqgan_jax.nn import fields
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.colours import Colours
from vqgan_jax.nn.discriminator import DISCRIMINATORS, Discriminator, PatchDiscriminator
from vqgan_jax.nn.fields import check_known, kind_of, section
from vqgan_jax.nn.maskgit import MaskGIT
from vqgan_jax.nn.network import PriorNetwork
from vqgan_jax.nn.perceptual import LPIPS, PERCEPTUAL, SEEN_CHANNELS, LogitDistance
from vqgan_jax.nn.pixelsnail import PixelSNAIL
from vqgan_jax.nn.quantizer import QUANTIZERS, Quantizer, VectorQuantizer
from vqgan_jax.nn.transformer import Transformer

AUTOENCODERS = {"paper": VQGAN, "maskgit": MaskGIT, "colours": Colours}  # kinds of the section `model`
NETWORKS = {"transformer": Transformer, "pixelsnail": PixelSNAIL}  # kinds of the section `transformer`


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
    start: Start = Start()
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

    @property
    def best(self) -> str:
        """The held-out figure that is lowest at the best checkpoint: of what LPIPS cannot see, another."""
        if views.FIELDS[self.data.field].is_categories:
            return "error"
        return "lpips" if self.model.image_channels in SEEN_CHANNELS else "l1"

    def make_vqgan(self) -> VQGAN:
        """Returns the tokenizer's module with its quantizer."""
        return self.model.clone(quantizer=self.quantizer)

    def make_discriminator(self) -> Discriminator | None:
        """Returns the discriminator's module; none where its loss has no weight."""
        if self.loss.disc_weight == 0:
            return None
        return self.discriminator.clone(dtype=jnp.dtype(self.model.dtype))

    def make_distances(self) -> dict[str, nn.Module]:
        """Returns the modules of the perceptual loss by name; none where it has no weight."""
        dtype, names = jnp.dtype(self.model.dtype), PERCEPTUAL[self.loss.perceptual]
        modules = {"lpips": LPIPS(self.loss.lpips_dropout, dtype), "resnet50": LogitDistance(dtype)}
        return {name: modules[name] for name in names} if self.loss.perceptual_weight else {}

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
        self.optimizer.check_matrices(False, "a tokenizer")
        if self.data.value_range and name != "image":
            raise ValueError(
                f"`config.data.value_range` is for data.field 'image'; got {name!r}. Leave one of them out."
            )
        if channels != expected and not self.data.value_range:
            raise ValueError(
                f"`config.model.image_channels` must be {expected} of data.field {name!r}; got {channels}. Images of "
                "other channels need data.value_range, the values that become -1 and 1."
            )
        if not (labels or channels in SEEN_CHANNELS) and (loss.perceptual_weight or loss.semantic_weight):
            raise ValueError(
                "the networks of the perceptual losses see three channels, or one that is repeated; "
                f"`config.model.image_channels` is {channels}. Set loss.perceptual_weight and semantic_weight to 0."
            )
        if not self.model.has_decoder and (self.start.freeze or (loss.disc_weight and loss.adaptive)):
            raise ValueError(
                "this `config.model.kind` has no decoder, whose last kernel the adaptive weight reads and which alone "
                "learns under start.freeze. Set loss.disc_weight to 0 or loss.adaptive to False, and freeze to False."
            )
        if self.start.freeze and loss.semantic_weight:
            raise ValueError(
                "`config.loss.semantic_weight` draws codes that `config.start.freeze` keeps as they are. Set one of "
                "them to 0 or False."
            )
        if labels != (loss.pixel in ("cross_entropy", "binary_cross_entropy")):
            raise ValueError(
                "`config.loss.pixel` must be cross_entropy or binary_cross_entropy of segmentations, and neither of "
                f"all else; got {loss.pixel!r} of {name!r}."
            )
        if labels and any(weights := (loss.perceptual_weight, loss.semantic_weight, loss.disc_weight)):
            raise ValueError(
                "categories have no perceptual loss and no discriminator: set `config.loss.perceptual_weight`, "
                f"semantic_weight and disc_weight to 0; got {weights}."
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
        prefix, network = self.prefix(), self.make_network()
        self.loss.in_steps(self.steps)
        self.optimizer.check_matrices(network.takes_muon, self.transformer.summary)
        if any(self.loss.random_order) and not network.takes_order:
            raise ValueError(
                "`config.loss.random_order` needs transformer.positions 'learned_target', by which a token knows "
                f"what it predicts; got {self.loss.random_order} without them. Set either."
            )
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
