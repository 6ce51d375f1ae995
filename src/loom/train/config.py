"""What a run is: the recipe's values as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from loom.errors import LoomError
from loom.model.presets import ModelRecipe
from loom.tokens.order import OrderKind, Stage


@dataclass(frozen=True)
class TokenSource:
    """A token folder and its share of the instances read; shares are relative to each other."""

    path: str
    weight: float = 1.0


@dataclass(frozen=True)
class DataConfig:
    tokens: str | tuple[TokenSource, ...] | None = None
    """Token folders to pretrain on: one path, or several with weights."""
    sft: str | None = None
    """Folder of `loom prepare sft`."""
    pairs: str | None = None
    """Folder of `loom prepare dpo`."""
    sequence_length: int | None = None
    """Tokens an instance; None is the model's context length."""
    order: OrderKind = "olmo"
    """`olmo` shuffles as OLMo does, in memory; `constant-memory` computes each place, for very large sets."""
    document_mask: bool = False
    """Pretraining: a token sees its own document only (OLMo 1: false)."""
    skip_repetitions: bool = False
    """Pretraining: leave instances out of the loss that repeat a period of up to 13 tokens 32 times (OLMo 2)."""
    verify: bool = False
    """Read all shards and compare their digests before training."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as OLMo sets it. Matrices decay; embeddings and gains do not, unless `decay_embeddings`."""

    learning_rate: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    weight_decay: float = 0.1
    decay_embeddings: bool = False
    clip: float | None = 1.0
    """Largest L2 norm of all gradients together; None clips nothing."""
    clip_warmup_steps: int = 0
    clip_warmup_tokens: int = 0
    """The same in tokens (OLMo 65B); give one of the two."""
    clip_warmup_factor: float = 1.0
    """The first steps clip at `clip` times this (OLMo 7B: 1,000 steps, factor 10)."""
    skip_spikes: float | None = None
    """Skip a step whose loss or gradient norm is this many standard deviations over the last 128; None never."""


@dataclass(frozen=True)
class ScheduleConfig:
    kind: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    warmup: int = 0
    """Length of the warm-up from `floor_start` of the peak, in `unit`."""
    unit: Literal["steps", "tokens"] = "steps"
    warmup_from: float = 0.1
    """The first learning rate, as a share of the peak."""
    floor: float = 0.1
    """The last learning rate, as a share of the peak."""
    decay: int = 0
    """wsd: length of the final linear decay, in `unit`."""
    length: int | None = None
    """Where the floor is reached, in `unit`; None is the end of the run."""


@dataclass(frozen=True)
class BatchStage:
    """From `step` on, a batch has `batch_tokens` tokens."""

    step: int
    batch_tokens: int


@dataclass(frozen=True)
class LoraConfig:
    """Train low-rank additions to frozen matrices instead of the matrices (Hu et al. 2021)."""

    rank: int = 16
    alpha: float = 32.0
    """The addition is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("q", "k", "v", "out", "gate", "up", "down")
    """Matrices of every block."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise LoomError(f"train.lora has rank {self.rank} and alpha {self.alpha}; both are positive.")


@dataclass(frozen=True)
class TrainConfig:
    objective: Literal["lm", "sft", "dpo"] = "lm"
    init: str | None = None
    """Start from this checkpoint or Hugging Face folder instead of fresh weights."""
    anneal: str | None = None
    """Go on from this run or checkpoint with its optimizer, on the data given here, while the learning rate it had
    falls linearly to 0 over `steps`; `schedule` and `optimizer.learning_rate` are not read."""
    steps: int = 1000
    batch_tokens: int = 4_194_304
    """Tokens a step, over all ranks and micro-batches."""
    batch_stages: tuple[BatchStage, ...] = ()
    """Other batch sizes from later steps on."""
    batch_pairs: int = 32
    """Pairs a step (dpo)."""
    micro_batch: int = 8
    """Instances a rank takes at a time; smaller needs less memory and gives the same result."""
    micro_batch_pairs: int = 8
    precision: Literal["float32", "bf16"] = "bf16"
    """Of the computation; weights and optimizer are float32 always."""
    compile: bool | None = None
    """torch.compile each block; None does so where a compiler is found and the run is long enough to gain."""
    recompute: Literal["none", "selective", "full", "budget"] = "none"
    """Activation checkpointing: recompute nothing, all but products, whole blocks, or what the budget asks for."""
    activation_budget: float = 0.5
    """budget: the share of the activations of `none` that may be kept."""
    label_weight: Literal["per_token", "per_example", "per_position"] = "per_token"
    """The loss is a sum over labels. It is divided by their number; or (sft) each conversation counts the
    same (and each piece of one that was split); or, as OLMo 1 does, by all positions, so that loss and
    gradient are (T - 1) / T of the first."""
    lora: LoraConfig | None = None
    """Train adapters only, `{}` for their usual sizes; checkpoints are read with them merged."""
    z_loss: float = 0.0
    """Factor of the squared log of the softmax's normaliser (PaLM, section 5: 1e-4)."""
    checkpoint_every: int = 1000
    keep: int = 3
    """Newest checkpoints kept; the last step's is always there. 0 keeps all."""
    keep_every: int | None = None
    """Checkpoints at multiples of this many steps are never removed."""
    keep_steps: tuple[int, ...] = ()
    """Save at these steps too, and never remove them."""
    asynchronous: bool = True
    """Write checkpoints while training goes on."""
    mirror: str | None = None
    """An address, `s3://bucket/prefix`, that checkpoints are uploaded to, and fetched from where none is here."""
    rehearse: bool = True
    """Before step 1 try a micro-batch, and write and read a checkpoint back."""
    eval_every: int = 1000
    log_every: int = 10
    norms_every: int | None = None
    """Log the norms of every weight, gradient, Adam moment and block's output at multiples of this many steps."""
    profile: tuple[int, int] | None = None
    """Record steps first to last, both included, with torch's profiler into the run's folder."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Send what is logged there too; metrics.jsonl is always written."""
    threads: int | None = None
    """CPU threads; None is torch's choice."""


@dataclass(frozen=True)
class DpoConfig:
    """Direct preference optimisation (Rafailov et al. 2023)."""

    reference: str | None = None
    """Checkpoint that answers are compared with; None is `train.init`."""
    beta: float = 0.1
    loss: Literal["sigmoid", "norm", "ipo"] = "sigmoid"
    """`norm` averages log-probabilities over an answer's tokens; `ipo` is Azar et al. 2023."""
    label_smoothing: float = 0.0
    """The share of pairs taken to be labelled the wrong way round (conservative DPO; not for `ipo`)."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise LoomError(f"dpo.beta is {self.beta}; it must be positive.")
        if not 0 <= self.label_smoothing < 0.5:
            raise LoomError(f"dpo.label_smoothing is {self.label_smoothing}; it lies from 0 to below 0.5.")
        if self.loss == "ipo" and self.label_smoothing:
            raise LoomError("dpo.label_smoothing has no meaning for the loss 'ipo': leave it at 0.")


@dataclass(frozen=True)
class ParallelConfig:
    strategy: Literal["auto", "ddp", "fsdp", "hsdp"] = "auto"
    """`auto`: ddp where weights, gradients and optimizer fit a rank twice over, else fsdp."""
    replicas: int | None = None
    """hsdp: how many groups hold a whole copy; None is one a node."""
    context: int = 1
    """Ranks that share the positions of every row (context parallelism), for rows too long for one."""


@dataclass(frozen=True)
class EnergyConfig:
    """Where the power comes from, for the report and the model card; nothing is computed with it here."""

    pue: float | None = None
    """The site's power over its machines' (OLMo's: 1.1); None is not known."""
    carbon_intensity: float | None = None
    """kg CO2eq a kWh of the grid (OLMo 7B on A100, Australia: 0.610); None is not known."""
    source: str = ""
    """Who says so."""

    def __post_init__(self) -> None:
        if self.pue is not None and self.pue < 1:
            raise LoomError(f"energy.pue is {self.pue}; a site draws at least what its machines do (1.0).")
        if self.carbon_intensity is not None and self.carbon_intensity < 0:
            raise LoomError(
                f"energy.carbon_intensity is {self.carbon_intensity}; it is kg CO2eq a kWh, at least 0."
            )


@dataclass(frozen=True)
class EvalConfig:
    """What is measured in the loop, every `train.eval_every` steps, beside the held-out documents of the folders
    that are pretrained on; logged as `eval/<task>/acc` and so on."""

    tasks: tuple[str, ...] = ()
    """Tasks and suites by name (`loom list tasks`)."""
    data: str | None = None
    """Folder with the tasks' rows, `<task>.<split>.jsonl`."""
    text: tuple[str, ...] = ()
    """Files and folders of text, Paloma's layout too, measured in bits per byte by source."""
    sample: int | None = 200
    """Rows of each task, drawn with a fixed seed; null takes all."""
    text_tokens: int | None = 5000
    """Tokens of each source of text, held-out documents included: its first documents; null takes all."""
    on_start: bool = False
    """Also before the first step."""
    on_finish: bool = True
    """Also after the last step, wherever that falls."""
    budget: float | None = None
    """Seconds one evaluation may take; what was not finished then does not count, and `n` says how much was."""

    def __post_init__(self) -> None:
        if self.tasks and self.data is None:
            raise LoomError("eval.tasks needs eval.data, the folder that holds their rows.")
        for name in ("sample", "text_tokens", "budget"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise LoomError(f"eval.{name} is {value}; it must be above 0, or null for no limit.")


@dataclass(frozen=True)
class RunConfig:
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    seed: int = 6198
    """Of the first weights and of the reading order (OLMo's)."""

    def __post_init__(self) -> None:
        train = self.train
        positive = {
            "train.steps": train.steps,
            "train.batch_tokens": train.batch_tokens,
            "train.batch_pairs": train.batch_pairs,
            "train.micro_batch": train.micro_batch,
            "train.micro_batch_pairs": train.micro_batch_pairs,
            "train.checkpoint_every": train.checkpoint_every,
            "train.eval_every": train.eval_every,
            "train.log_every": train.log_every,
        }
        for name, value in positive.items():
            if value < 1:
                raise LoomError(f"{name} is {value}; it must be at least 1.")
        if train.norms_every is not None and train.norms_every < 1:
            raise LoomError(f"train.norms_every is {train.norms_every}; it must be at least 1, or null.")
        if train.profile is not None and not 1 <= train.profile[0] <= train.profile[1]:
            raise LoomError(
                f"train.profile is {list(train.profile)}; give the first and the last step to record."
            )
        if not 0 < train.activation_budget <= 1:
            raise LoomError(
                f"train.activation_budget is {train.activation_budget}; it is a share, over 0 up to 1."
            )
        if train.anneal is not None and (train.init or train.lora or train.objective != "lm"):
            raise LoomError(
                "train.anneal goes on with a pretraining run, optimizer and all: leave out train.init and train.lora, "
                "and train.objective at lm."
            )
        if self.optimizer.clip_warmup_steps and self.optimizer.clip_warmup_tokens:
            raise LoomError("Give optimizer.clip_warmup_steps or clip_warmup_tokens, not both.")
        if self.optimizer.learning_rate <= 0:
            raise LoomError(
                f"optimizer.learning_rate is {self.optimizer.learning_rate}; it must be positive."
            )
        steps = [stage.step for stage in train.batch_stages]
        if steps != sorted(set(steps)) or (steps and steps[0] < 2):
            raise LoomError(f"train.batch_stages must name rising steps from 2 on, not {steps}.")


def batch_stages(config: RunConfig, sequence_length: int, ranks: int, done: int = 0) -> list[Stage]:
    """Instances a step, from which step on. Raises `LoomError` for a batch that does not divide.

    A batch must hold whole instances and be shared by all ranks equally, so that micro-batches can be;
    stages that lie before step `done` + 1 were shared by the ranks of then.
    """
    if config.train.objective == "dpo":
        sizes = [(1, config.train.batch_pairs, "train.batch_pairs", 1)]
    else:
        sizes = [(1, config.train.batch_tokens, "train.batch_tokens", sequence_length)]
        sizes += [
            (stage.step, stage.batch_tokens, f"train.batch_stages at step {stage.step}", sequence_length)
            for stage in config.train.batch_stages
        ]
    stages: list[Stage] = []
    current = max(step for step, *_ in sizes if step <= done + 1)
    for step, size, name, unit in sizes:
        batch, rest = divmod(size, unit)
        if rest or batch < 1:
            near = max(1, round(size / unit)) * unit
            raise LoomError(
                f"{name} is {size:,}, which is no multiple of data.sequence_length {unit:,}: use {near:,}."
            )
        to_come = step >= current
        if to_come and batch < ranks:
            raise LoomError(
                f"{name} is {size:,}, {batch} instances, fewer than the {ranks} ranks that share them: use at "
                f"least {ranks * unit:,}, or fewer ranks until that stage is over."
            )
        if to_come and batch % ranks:
            raise LoomError(
                f"{name} is {size:,}, {batch} instances, which {ranks} ranks cannot share equally: use "
                f"{batch // ranks * ranks * unit:,} or {(batch // ranks + 1) * ranks * unit:,}."
            )
        before = 0
        if stages:
            last = stages[-1]
            before = last.instances_before + (step - last.step) * last.batch
        stages.append(Stage(step, before, batch))
    return stages
