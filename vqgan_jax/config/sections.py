"""Sections of a config that are neither modules of `nn` nor conditions: data, losses, optimizers, devices, logs."""

import dataclasses

from vqgan_jax import sampling
from vqgan_jax.conditions import Frozen
from vqgan_jax.data import views
from vqgan_jax.losses import ADVERSARIAL, PIXEL
from vqgan_jax.nn.augment import AUGMENTATIONS
from vqgan_jax.nn.fields import check_known
from vqgan_jax.nn.perceptual import PERCEPTUAL, SEMANTIC


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
    # Values of a folder's files that become -1 and 1, such as (0, 65535): images of any number of channels, of whole
    # numbers or floats. () is pictures of 8 bits. A prior reads images as its tokenizer does.
    value_range: tuple[float, ...] = ()
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
        if self.value_range and (len(self.value_range) != 2 or not self.value_range[0] < self.value_range[1]):
            raise ValueError(
                "`config.data.value_range` must be the values that become -1 and 1, the smaller one first, or () for "
                f"pictures of 8 bits; got {self.value_range}."
            )
        if not self.image_size <= self.resize[0] <= self.resize[1]:
            raise ValueError(
                f"`config.data.resize` must be a range from image_size {self.image_size} up; got {self.resize}."
            )


def in_steps(time: float, steps: int) -> float:
    """Returns a time in steps; one below 1 is a share of the `steps` of a run."""
    return float(round(time * steps if 0 < time < 1 else time))


@dataclasses.dataclass(frozen=True)
class Loss:
    """Weights and times (in steps) of the stage-1 losses; those of the codes belong to the quantizer."""

    pixel: str = "l1"  # l1 | l2; of segmentations cross_entropy | binary_cross_entropy
    pixel_weight: float = 1.0
    perceptual: str = "lpips"  # lpips | resnet50 (logits; VQGAN+ has weight 0.1 beside l2) | both (weight 1.1)
    perceptual_weight: float = 1.0
    semantic: str = "vgg16"  # vgg16 (its relu3_3) | dinov2_vits14 (its patches of 14 pixels; XQ-GAN has weight 0.1)
    semantic_weight: float = 0.0  # draws codes towards features of that network (`SemanticDistance`)
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
        check_known("loss.perceptual", self.perceptual, PERCEPTUAL)
        check_known("loss.semantic", self.semantic, SEMANTIC)
        check_known("loss.adversarial", self.adversarial, ADVERSARIAL)
        for name in self.disc_augment:
            check_known("loss.disc_augment", name, AUGMENTATIONS)

    def in_steps(self, steps: int) -> "Loss":
        """Returns the same losses of a run of so many steps, with times that are shares of it as steps."""
        names = ("disc_start", "disc_ramp", "disc_train_start")
        return dataclasses.replace(self, **{name: in_steps(getattr(self, name), steps) for name in names})


@dataclasses.dataclass(frozen=True)
class Start:
    """The tokenizer that a run begins with, instead of random parameters. A discriminator begins at random."""

    workdir: str = ""  # of a stage-1 run or of converted weights; "" is: begin at random
    freeze: bool = False  # encoder and codes stay as they are, so that priors and token caches of theirs stay valid
    fingerprint: str = ""  # of that tokenizer; "" takes what is there, and the run writes down what that was

    def check(self) -> None:
        """Raises ValueError where a random encoder would stay as it is."""
        if self.freeze and not self.workdir:
            raise ValueError(
                "`config.start.freeze` needs a tokenizer whose codes are worth keeping; start.workdir is empty. Name "
                "the folder of a run or of converted weights, or set freeze to False."
            )


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
    # Sequences come in random orders (Yu et al. 2024): all of them until the first time, none from the second; below 1
    # a time is a share of the run.
    random_order: tuple[float, float] = (0.0, 0.0)

    def check(self) -> None:
        """Raises ValueError for what is no probability, or no span of time."""
        if not 0.0 <= self.keep <= 1.0:
            raise ValueError(f"`config.loss.keep` must be a probability, 0 to 1; got {self.keep}.")
        if min(self.random_order) < 0.0:
            raise ValueError(f"`config.loss.random_order` must be two times, 0 or later; got {self.random_order}.")

    def in_steps(self, steps: int) -> "TokenLoss":
        """Returns the same loss of a run of so many steps, with times that are shares of it as steps.

        Raises:
          ValueError: the second time comes before the first one.
        """
        first, last = (in_steps(time, steps) for time in self.random_order)
        if first > last:
            raise ValueError(
                f"`config.loss.random_order` must be two times in order; {self.random_order} are steps {first:,.0f} "
                f"and {last:,.0f} of {steps:,}. A number below 1 is a share of the run, 1 is its first step. Write two "
                "shares, or two steps."
            )
        return dataclasses.replace(self, random_order=(first, last))


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

    def check_matrices(self, takes_muon: bool, model: str) -> None:
        """Raises ValueError where Muon would move nothing."""
        if self.matrices == "muon" and not takes_muon:
            raise ValueError(
                f"`config.optimizer.matrices` 'muon' moves the kernels of a transformer's layers; {model} has none. "
                "Set it to 'adam'."
            )


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
    tracker: str = ""  # wandb | trackio beside metrics.jsonl and TensorBoard

    def check(self) -> None:
        """Raises ValueError for an unknown tracker."""
        check_known("log.tracker", self.tracker, ("", "wandb", "trackio"))


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
