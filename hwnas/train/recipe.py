"""`Recipe`: every number of training and searching that is not in the space, read from TOML.

Four ship: ``default`` (small images on a CPU), ``quickstart`` (minutes), ``paper`` (SPOS on ImageNet) and ``atomnas``.
"""

from __future__ import annotations

import difflib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hwnas.errors import HwnasError, UsageError


class Phase(BaseModel):
    """How weights are trained: the supernet's, or a found net's when it is fine-tuned.

    Attributes:
        steps: optimizer steps; 0 trains nothing.
        batch_size: images of a step.
        optimizer: ``sgd`` (Nesterov-free momentum), ``adamw``, ``adam`` (weight decay in the gradient) or ``rmsprop``
            (`hwnas.train.rmsprop`).
        eps: of Adam and AdamW. FiGS trains with 1.0: a step is then in proportion to the gradient.
        tf_epsilon: epsilon as TensorFlow 1 has it, behind the bias correction: with 1.0 the first steps are shorter,
            by ``sqrt(1 - 0.999^t)`` (0.03 at the first, 0.31 at the 100th), a warm-up that torch's Adam lacks.
        lr: peak learning rate.
        momentum: of SGD and RMSProp.
        weight_decay: on weights of two or more dimensions only, never on biases and BatchNorm. SGD adds it to the
            gradient, AdamW decays the weight itself.
        warmup_steps: steps in which the learning rate rises linearly from 0.
        schedule: ``linear`` or ``cosine`` decay to 0, or a ``staircase`` of `decay` every `decay_steps` steps, or
            ``exponential``: the same, smooth.
        label_smoothing: of the cross entropy.
        crop_padding: pixels of zeros around the image before a random crop back to its size.
        crop_scale: least share of the image that a random crop, scaled back to its size, keeps; 1 keeps all of it.
        jitter: brightness, contrast and saturation are each changed by up to this factor; 0 leaves colours alone.
        flip: mirrors half of the images.
        widening: share of the steps of a supernet in which a channel search warms up: at first only the widest
            choices are taken, then narrower ones too, at its end all. Supernets of others need it to converge; these
            do without (`benchmarks/channel_training.py`). Without widths to search it does nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=0)
    batch_size: int = Field(ge=2)
    optimizer: Literal["sgd", "adamw", "adam", "rmsprop"]
    eps: float = Field(default=1e-8, gt=0)
    tf_epsilon: bool = False
    lr: float = Field(gt=0, le=1e38)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["linear", "cosine", "staircase", "exponential"] = "cosine"
    decay: float = Field(default=0.97, gt=0, le=1)
    decay_steps: int = Field(default=1, ge=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    crop_padding: int = Field(default=0, ge=0)
    crop_scale: float = Field(default=1.0, gt=0, le=1)
    jitter: float = Field(default=0.0, ge=0, lt=1)
    flip: bool = True
    widening: float = Field(default=0.0, ge=0, lt=1)

    def identity(self) -> dict[str, Any]:
        """What the weights depend on; keys that recipes of earlier versions did not have are there when they matter."""
        unused = set() if self.schedule in ("staircase", "exponential") else {"decay", "decay_steps"}
        changed = self.model_dump(exclude_defaults=True)
        unused |= {"crop_scale", "jitter", "widening", "eps", "tf_epsilon"} - changed.keys()
        return self.model_dump(exclude=unused)


class Sampling(BaseModel):
    """Which paths a supernet is trained on, where that is not all alike (SPOS, 3.2: uniform constraint sampling).

    Attributes:
        cost: what is limited: ``macs``, ``params``, or another cost that the search has prices of.
        low, high: as budgets are typed, ``290M`` or ``70%`` of the most expensive architecture.
        bins: 1 samples uniformly from all architectures between `low` and `high`. More cut the range into so many
            equal bins, one of which is drawn first: every cost is then as frequent as every other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cost: str = "macs"
    low: str
    high: str
    bins: int = Field(default=1, ge=1, le=1000)


class Scoring(BaseModel):
    """How a candidate is scored with the supernet's weights.

    Attributes:
        recalibrate_images: training images that its BatchNorm statistics are recomputed on.
        val_images: class-balanced validation images that its accuracy is measured on.
        batch_size: images of one forward pass.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recalibrate_images: int = Field(ge=2)
    val_images: int = Field(ge=1)
    batch_size: int = Field(default=250, ge=2)


class Evolution(BaseModel):
    """Algorithm 1 of SPOS.

    Attributes:
        population: candidates of a generation, half of them by crossover and half by mutation.
        generations: how often the population is renewed after the first, random one.
        topk: parents that are kept.
        mutation: probability that a mutation redraws a slot.
        budget_use: least share of the first binding budget that a candidate's upper end uses. The best nets use their
            budget, and evaluations are few; 0 searches everything below it, as the paper does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    population: int = Field(default=50, ge=2)
    generations: int = Field(default=20, ge=1)
    topk: int = Field(default=10, ge=1)
    mutation: float = Field(default=0.1, gt=0, le=1)
    budget_use: float = Field(default=0.92, ge=0, lt=1)


class Atoms(BaseModel):
    """AtomNAS (Mei et al. 2020): how a supernet of atoms shrinks while it trains.

    Attributes:
        penalty: lambda of equation 5: with a budget where the controller begins, without one for the whole training.
        normaliser: what costs are divided by in equation 6: their ``mean`` over the atoms (the published code's, to
            which its lambdas belong) or their ``sum`` (the paper's text). They differ by the number of atoms.
        ramp: share of the training in which lambda rises linearly from 0.
        threshold: an atom is dead where its importance and the moving average of it are no larger.
        ema_decay: of the moving averages of all parameters.
        delta: dead atoms are removed when together they cost this share of the supernet (1e6 of 1521e6 MACs).
        check_steps: steps between two looks at what is dead; the published code looks once an epoch.
        control_steps: steps between two changes of lambda under a budget.
        land: share of the training by which the net has met its budget; from there on lambda is 0.
        stairs: nets under a budget of MACs, parameters or bytes have numbers of atoms that devices compute in whole
            blocks (`hwnas.spaces.widths.STAIRS`), as those under one of latency always have; false allows any number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    penalty: float = Field(default=1e-4, ge=0)
    normaliser: Literal["mean", "sum"] = "mean"
    ramp: float = Field(default=0.0714, ge=0, lt=1)
    threshold: float = Field(default=1e-3, gt=0)
    ema_decay: float = Field(default=0.9999, gt=0, lt=1)
    delta: float = Field(default=1e6 / 1521e6, ge=0, lt=1)
    check_steps: int = Field(default=100, ge=1)
    control_steps: int = Field(default=10, ge=1)
    land: float = Field(default=0.6, gt=0, le=1)
    stairs: bool = True


class Gates(BaseModel):
    """FiGS (Chaudhuri et al. 2020): how gates on channels are learned, and MorphNet beside it.

    Attributes:
        tau: temperature of the masks; `backward_tau`: of the gradient's path through them, None is `tau`, as in the
            paper. At 0.001 a mask has a gradient in one step of a thousand: enough for the paper's 250,000 steps.
        start: logits in the beginning.
        lr: of the logits, the same in every step; None is that of the weights. Their Adam has an epsilon of 1.0, so
            that a step is `lr` times the gradient: without it lambda would hardly matter. The paper's 1.6 is for
            250,000 steps; fewer need more.
        cost: what lambda is of where there is no budget; with one it is what the first budget limits.
        penalty: lambda, of that cost as a share of the whole net's: with a budget where the controller begins, without
            one for the whole search. A paper's lambda, of the plain cost in its unit (equation 6, in which every
            convolution between two gated ones counts twice), is this one divided by twice the whole net's cost.
        form: the penalty is of the ``expected`` cost (equation 6) or of the ``sampled`` one (equation 5).
        latency: by the table's ``curves`` or ``bilinear``, see `hwnas.gate_latency`.
        export: ``expected`` keeps floor(sum of pi) channels of each group, those of the largest pi; ``alive`` those
            that are more likely there than not. Under a budget both are then brought onto it.
        ramp: share of the search in which lambda rises linearly from 0.
        ema_decay: of the moving averages of all parameters, in both phases.
        control_steps: steps between two changes of lambda under a budget.
        inherit: retraining begins with the search's weights; the paper's begins anew.
        threshold: of MorphNet: a channel is dead where its BatchNorms' scales are no larger.
        random_nets: nets that the random baseline trains, the best of which (by validation) it answers with.
        stairs: as of `Atoms`, of channels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tau: float = Field(default=1e-3, gt=0)
    backward_tau: float | None = Field(default=None, gt=0)
    start: float = Field(default=2.5, ge=-10, le=10, allow_inf_nan=False)
    cost: Literal["macs", "params", "bytes", "latency"] = "macs"
    lr: float | None = Field(default=None, gt=0)
    penalty: float = Field(default=1.0, ge=0)
    form: Literal["expected", "sampled"] = "expected"
    latency: Literal["curves", "bilinear"] = "curves"
    export: Literal["expected", "alive"] = "expected"
    ramp: float = Field(default=0.0, ge=0, lt=1)
    ema_decay: float = Field(default=0.9997, gt=0, lt=1)
    control_steps: int = Field(default=10, ge=1)
    inherit: bool = True
    threshold: float = Field(default=0.01, gt=0)
    random_nets: int = Field(default=3, ge=1)
    stairs: bool = True


class Recipe(BaseModel):
    """A whole search: what trains the supernet, scores candidates, evolves them and fine-tunes what was found.

    A search among atoms uses `supernet` (its one training), `scoring.recalibrate_images`, and `atoms`. One by gates
    uses `supernet` (the search), `finetune` (the retraining), `scoring.recalibrate_images`, and `gates`.

    Attributes:
        sampling: of the supernet's paths; None samples uniformly from all.
        train: of ``hwnas train``, from scratch or on; None where the recipe does not say.
        zero_init_residual: every residual block of the supernet starts as the identity.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    supernet: Phase
    sampling: Sampling | None = None
    scoring: Scoring
    evolution: Evolution = Evolution()
    finetune: Phase
    train: Phase | None = None
    zero_init_residual: bool = True
    atoms: Atoms = Atoms()
    gates: Gates = Gates()


def recipe_names() -> list[str]:
    """The recipes that ship."""
    folder = resources.files("hwnas.train") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str | Path) -> Recipe:
    """The recipe `name`: one that ships, or the path of a TOML file.

    Raises:
        UsageError: there is no such recipe.
        HwnasError: the file is not a recipe; the message names the field.
    """
    text = str(name)
    if text in recipe_names():
        source = (resources.files("hwnas.train") / "recipes" / f"{text}.toml").read_bytes()
    elif Path(text).is_file():
        source = Path(text).read_bytes()
    else:
        raise UsageError(f"no recipe is called {text!r}: {', '.join(recipe_names())}, or a path to a TOML file")
    try:
        return recipe_from(tomllib.loads(source.decode()), text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HwnasError(f"recipe {text}: not TOML: {error}") from error


def phase_from(data: Any, where: str) -> Phase:
    """The part [train] of a recipe alone.

    Raises:
        HwnasError: a field is missing, unknown or out of range.
    """
    try:
        return Phase.model_validate(data)
    except ValidationError as error:
        raise HwnasError(f"{where}: train: {_problem(error, Phase)}") from error


def recipe_from(data: dict[str, Any], where: str) -> Recipe:
    """The recipe in `data`; `where` names its origin in errors.

    Raises:
        HwnasError: a field is missing, unknown or out of range.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise HwnasError(f"recipe {where}: {_problem(error, Recipe)}") from error


def _problem(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong, in words."""
    first = error.errors()[0]
    *parts, last = map(str, first["loc"])
    field = ".".join((*parts, last))
    if first["type"] == "missing":
        return f"{field} is missing"
    if first["type"] != "extra_forbidden":
        return f"{field}: {first['msg']}, not {first['input']!r:.40}"
    known = _PARTS[parts[0]].model_fields if parts else model.model_fields
    near = difflib.get_close_matches(last, known, n=1)
    return f"unknown key {field}" + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}")


_PARTS: dict[str, type[BaseModel]] = {
    "supernet": Phase, "finetune": Phase, "train": Phase, "scoring": Scoring, "evolution": Evolution,
    "sampling": Sampling, "atoms": Atoms, "gates": Gates,
}  # fmt: skip
