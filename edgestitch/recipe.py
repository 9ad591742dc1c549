"""Recipes: a family, and how its weights are made. Read from TOML (`calibrate/*.toml`)."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from .artifact import Value, read
from .errors import ArtifactError
from .family import Family, NotNegative, Positive, PositiveFloat
from .shipped import shipped

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NotNegativeFloat = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Training(Value, frozen=True, kw_only=True, omit_defaults=True):
    """How networks are trained: a warm-up, then a cosine to zero."""

    epochs: Positive
    batch_size: Positive = 256
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """`sgd` is with Nesterov momentum of 0.9."""
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NotNegativeFloat = 0.05
    warmup_epochs: NotNegativeFloat = 1.0
    clip: NotNegativeFloat = 0.0
    """Largest norm of the gradient; 0 leaves it as it is."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward pass; weights and optimiser stay in fp32 (automatic mixed precision)."""
    ema: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Decay of an average of the weights, which takes their place at the end; 0 keeps none."""
    frozen_statistics: bool = False
    """Whether BatchNorm keeps its running statistics and normalises by them: for few images, small
    batches."""
    label_smoothing: Share = 0.0
    crop: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Smallest share of an image's area that a random crop keeps; 1 takes it whole."""
    shift: NotNegative = 0
    """Largest random shift of an image, in pixels, each way."""
    flip: bool = False
    """Whether images are mirrored at random."""
    erase: Share = 0.0
    """Probability that a random rectangle of an image is blanked."""
    mixup: NotNegativeFloat = 0.0
    """Alpha of mixup (Zhang et al. 2018)."""
    cutmix: NotNegativeFloat = 0.0
    """Alpha of CutMix (Yun et al. 2019); with mixup as well, a coin is tossed each step."""


class Initialization(Value, frozen=True, kw_only=True, omit_defaults=True):
    """Least squares for the stitching layers."""

    images: Positive = 10_000
    mode: Literal["joint", "reference"] = "joint"
    """`joint`: one solve over all stitches that share a layer; `reference`: mean of their solutions."""


class Finetuning(Training, frozen=True, kw_only=True, omit_defaults=True):
    """Random topologies at each step, with distillation from a teacher."""

    teacher: str = ""
    """A timm model with its pretrained weights; none given: the largest anchor as it was alone."""
    distillation: Share = 0.5
    """Weight of the teacher's part of the loss; unlabelled images have no other part."""
    hard: bool = False
    """Whether the teacher's most probable class is learned (DeiT), not its probabilities."""
    temperature: PositiveFloat = 1.0
    """Of the teacher's probabilities."""
    sampling: Literal["uniform", "grouped"] = "uniform"
    """`grouped`: first a group of like cost, then a topology of it (SN-Netv2), so that the few at
    the ends, the anchors among them, come up as often as the many between."""
    group_gap_gmacs: PositiveFloat = 1.0
    """Under `grouped`: a group ends where multiply-adds exceed its cheapest member's by more."""
    topologies_per_step: Positive = 1
    """Each on its share of the batch. Processes of a distributed run divide them."""
    stitch_rate: PositiveFloat = 1.0
    """Learning rate of the stitching layers over that of everything else."""
    rank: NotNegative = 0
    """Trains stitching layers as the least-squares solution plus a product of this rank (SN-Netv2),
    folded into it at the end; 0 trains all of them."""


class Recipe(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A family, and how its weights are made."""

    family: Family
    dataset: Literal["fashion-mnist", "toy", "none"] = "none"
    seed: int = 0
    anchors: dict[str, Training] = msgspec.field(default_factory=dict)
    """Training of anchors that have no pretrained weights, by anchor."""
    initialize: Initialization = Initialization()
    finetune: Finetuning | None = None

    def __post_init__(self) -> None:
        for name in self.anchors:
            self.family.anchor(name)


def load_recipe(recipe: str | Path) -> Recipe:
    """The shipped recipe of that name, or the one in a TOML file.

    Raises:
        ArtifactError: no such recipe; or an unknown key, a wrong type or an impossible value in it.
    """
    path = Path(recipe)
    if path.suffix != ".toml":
        path = shipped("calibrate") / f"{recipe}.toml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in path.parent.glob("*.toml")))
            raise ArtifactError(
                f"no family {str(recipe)!r}; shipped are {known}; a recipe of your own is given as "
                "a path that ends in .toml"
            )
    try:
        return msgspec.convert(tomllib.loads(read(path).decode()), Recipe)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is no TOML file: {error}") from error
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{path} is no valid recipe: {error}") from error


def load_family(family: str | Path) -> Family:
    """The family of a shipped recipe, by name, or of a recipe in a TOML file."""
    return load_recipe(family).family
