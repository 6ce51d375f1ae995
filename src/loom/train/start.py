"""Everything before the first step: data, model, optimizer, and the checkpoint to go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loom.errors import LoomError
from loom.model.config import ModelConfig
from loom.model.presets import ModelRecipe, resolve
from loom.model.transformer import Transformer
from loom.tokens.order import Stage, places_of_step
from loom.tokens.shards import SpecialToken, TokenFolder
from loom.train.anneal import annealing, origin_of, rate_of
from loom.train.checkpoint import (
    MANIFEST,
    ModelCard,
    checkpoints,
    load_training,
    newest_good,
    read_card,
    read_state,
)
from loom.train.config import RunConfig, batch_stages
from loom.train.context import Context
from loom.train.data import Data, PackedRows, Pairs, Windows, identities, open_folders, verify
from loom.train.documents import DocumentTable
from loom.train.initial import Initial, check_tokenizer, open_initial
from loom.train.lora import attach, start_adapters
from loom.train.objective import Objective, build_objective
from loom.train.optimizer import StepGuard, build_optimizer
from loom.train.parallel import (
    World,
    can_compile,
    initialize_sharded,
    parallelize,
    replicate,
)
from loom.train.reference import kept_logprobs, reference_logprobs, sole_logprobs

LONG_ENOUGH_TO_COMPILE = 1e15
"""Floating-point operations of a run from which compiling pays on a CPU."""


@dataclass
class Run:
    """A run that is ready for its next step."""

    config: RunConfig
    world: World
    context: Context
    model: nn.Module
    card: ModelCard
    optimizer: torch.optim.AdamW
    guard: StepGuard
    objective: Objective
    data: Data
    stages: list[Stage]
    sequence_length: int
    step: int
    """The last step done; 0 before the first."""
    inputs: list[dict[str, str]]
    notes: list[str]

    def tokens_before(self, step: int) -> int:
        """Token positions read by steps before this one (pairs count as instances, without padding)."""
        return places_of_step(self.stages, step)[0] * self.sequence_length


def open_data(
    config: RunConfig, folders: Sequence[TokenFolder], length: int, documents: DocumentTable | None
) -> Data:
    if config.train.objective == "lm":
        return Windows(config.data, folders, length, config.seed, config.train.label_weight)
    if documents is None:
        raise ValueError("sft and dpo need the document table of the folder")
    if config.train.objective == "sft":
        return PackedRows(folders[0], documents, length, config.seed, config.train.label_weight)
    return Pairs(folders[0], documents, length, config.seed)


def model_shape(config: RunConfig, folder: TokenFolder, initial: ModelConfig | None) -> ModelConfig:
    """From the recipe, or from the weights training starts from. Raises `LoomError` if the two disagree."""
    if initial is None:
        return resolve(config.model, folder.vocab_size)
    origin = (
        f"train.anneal {config.train.anneal}" if config.train.anneal else f"train.init {config.train.init}"
    )
    if config.model != ModelRecipe():
        wanted = resolve(config.model, folder.vocab_size)
        for name, value in wanted.to_dict().items():
            if value != getattr(initial, name) and name != "context_length":
                raise LoomError(
                    f"{origin} has {name} {getattr(initial, name)}, the recipe's model has {value}: leave `model` out "
                    f"of the recipe to take the shape that is there."
                )
    if folder.vocab_size > initial.vocab_size:
        raise LoomError(
            f"{folder.path} was tokenized with {folder.vocab_size:,} entries, {origin} has {initial.vocab_size:,} rows: "
            f"tokenize with the tokenizer of that model."
        )
    return initial


def start(config: RunConfig, out: Path, world: World, documents: DocumentTable | None) -> Run:
    """Open the data, build the model on its devices, and restore the newest good checkpoint, if any.

    Raises `LoomError` for data that do not fit the model, a batch that does not divide, or a checkpoint
    of another model, order or batch.
    """
    train = config.train
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    resumed, damaged = world.once(lambda: newest_good(out))
    if resumed is None and checkpoints(out):
        raise LoomError(
            f"No checkpoint of {out} is whole: {damaged[0]} Remove {out / 'checkpoints'} to begin anew."
        )
    folders = open_folders(config.data, train.objective)
    if config.data.verify:
        verify(folders, world)
    inputs = identities(folders)
    initial: Initial | None = None
    known: ModelConfig | None = None
    origin = train.init or train.anneal
    # A run under way needs no more of what it began from: that may be gone by now, or another.
    began = origin_of(resumed, inputs) if resumed is not None else []
    inputs += began
    if origin is not None and resumed is not None:
        known = read_card(resumed).model
    elif origin is not None:
        initial = open_initial(Path(origin), world)
        check_tokenizer(initial.folder, folders[0])
        inputs.append(initial.lineage)
        known = initial.config
    if train.anneal is not None:
        config = annealing(config, rate_of(initial.folder if initial else Path(train.anneal), resumed))
    shape = model_shape(config, folders[0], known)
    length = config.data.sequence_length or shape.context_length
    if length > shape.context_length:
        raise LoomError(
            f"data.sequence_length {length} is over the model's context length {shape.context_length}: shorten it, or "
            f"set model.context_length."
        )
    data = open_data(config, folders, length, documents)
    context = Context(config.parallel.context, world, length, train.objective)
    done = read_state(resumed).step if resumed else 0
    stages = batch_stages(config, length, context.readers, done)
    card = ModelCard(
        shape,
        SpecialToken(folders[0].eos.id, folders[0].eos.token),
        SpecialToken(folders[0].pad.id, folders[0].pad.token),
        folders[0].vocab_size,
    )
    compiled = wants_compiling(config, shape, length, stages, world)
    step = _restore(resumed, config, card, data, stages, length) if resumed is not None else 0
    with torch.device("meta"):
        blank = Transformer(shape, torch.bfloat16 if train.precision == "bf16" else None)
    if train.lora is not None:
        if train.init is None:
            raise LoomError("train.lora adds to a model that is there: set train.init.")
        attach(blank, train.lora)
    context.attach(blank)
    model = parallelize(blank, world, config.parallel, train, compiled)
    if train.anneal is None and (resumed is None or train.objective == "dpo"):
        if initial is not None:
            initial.fill(blank, world)
        elif resumed is None:
            initialize_sharded(blank, config.seed)
        if train.lora is not None:
            start_adapters(blank, train.lora, config.seed)
    reference: Tensor | None = None
    if train.objective == "dpo":
        reference = _reference(config, out, world, model, blank, data, initial, resumed, began)
    model = replicate(model, world)
    optimizer = build_optimizer(model, config.optimizer)
    guard = StepGuard(config.optimizer.skip_spikes, world.device)
    notes = [*damaged, *data.notes]
    if resumed is not None:
        load_training(resumed, model, optimizer, guard, world)
        notes.append(f"resumed from step {step}")
    elif train.anneal is not None and initial is not None:
        load_training(initial.folder, model, optimizer, None, world)
        notes.append(f"anneals {initial.folder} from a learning rate of {config.optimizer.learning_rate:.4g}")
    objective = build_objective(config, reference)
    return Run(
        config,
        world,
        context,
        model,
        card,
        optimizer,
        guard,
        objective,
        data,
        stages,
        length,
        step,
        inputs,
        notes,
    )


def _reference(
    config: RunConfig,
    out: Path,
    world: World,
    model: nn.Module,
    blank: Transformer,
    data: Data,
    initial: Initial | None,
    resumed: Path | None,
    began: Sequence[dict[str, str]],
) -> Tensor:
    """The reference's values; of a run under way those it kept, as the reference may be another by now, or gone."""
    assert isinstance(data, Pairs)

    def named(lineage: dict[str, str]) -> list[str]:
        return [lineage["digest"], data.fingerprint, config.train.precision]

    if config.dpo.reference is not None:
        if resumed is not None and _same_reference(config, resumed):
            kept = sole_logprobs(data, world, out / "reference")
            if kept is not None:
                return kept
        other = open_initial(Path(config.dpo.reference), world)
        lineage = other.lineage
        if other.config != blank.config:
            raise LoomError(
                f"dpo.reference {config.dpo.reference} has another shape than the model to be tuned."
            )
        other.fill(blank, world)
    elif initial is not None:
        lineage = initial.lineage
    elif began:
        lineage = began[0]
        kept = kept_logprobs(data, world, out / "reference", named(lineage))
        if kept is not None:
            return kept
        other = open_initial(Path(lineage["path"]), world)
        if other.lineage["digest"] != lineage["digest"]:
            raise LoomError(
                f"{other.folder} is no longer the model that {out} began from, which its answers are compared with: "
                f"restore it, or train into another --out."
            )
        other.fill(blank, world)
    else:
        raise LoomError(
            "dpo needs a model to start from: set train.init, and dpo.reference where it differs."
        )
    values = reference_logprobs(
        model,
        data,
        config.train.micro_batch_pairs,
        world,
        out / "reference",
        named(lineage),
        config.train.precision,
    )
    if config.dpo.reference is not None and initial is not None:
        initial.fill(blank, world)
    return values


def _same_reference(config: RunConfig, resumed: Path) -> bool:
    """Whether the recipe names the reference, and the precision to ask it in, that the checkpoint's did."""
    before = json.loads((resumed / MANIFEST).read_bytes())["recipe"]
    named = before["dpo"]["reference"], before["train"]["precision"]
    return bool(named == (config.dpo.reference, config.train.precision))


def _restore(
    resumed: Path, config: RunConfig, card: ModelCard, data: Data, stages: list[Stage], length: int
) -> int:
    """The checkpoint's step, after checking that this recipe continues it; `stages` take its past over."""
    state, saved = read_state(resumed), read_card(resumed)
    if saved.model != card.model:
        for name, value in saved.model.to_dict().items():
            if value != getattr(card.model, name):
                raise LoomError(
                    f"{resumed} holds another model: {name} is {value} there and {getattr(card.model, name)} in the "
                    f"recipe. Use that recipe, or another --out."
                )
    if saved.eos != card.eos:
        raise LoomError(
            f"{resumed} was trained with EOS {saved.eos.token!r} ({saved.eos.id}), the data have {card.eos.token!r} "
            f"({card.eos.id}): they were tokenized with another tokenizer."
        )
    if (state.fingerprint, state.seed, state.sequence_length) != (data.fingerprint, config.seed, length):
        raise LoomError(
            f"{resumed} read other data or another order (fingerprint {state.fingerprint[:12]}, here "
            f"{data.fingerprint[:12]}): the token folders, their weights, data.sequence_length, data.order or seed "
            f"changed. Restore them, or train into another --out with train.init={resumed}."
        )
    past = [Stage(*values) for values in state.stages]
    now = max((s for s in stages if s.step <= state.step + 1), key=lambda s: s.step)
    later = [s for s in stages if s.step > state.step + 1]
    if past and past[-1].batch != now.batch:
        past.append(Stage(state.step + 1, state.instances_seen, now.batch))
    stages[:] = past or [now]
    for stage in later:
        last = stages[-1]
        if stage.step > last.step:
            before = last.instances_before + (stage.step - last.step) * last.batch
            stages.append(Stage(stage.step, before, stage.batch))
    return state.step


def wants_compiling(
    config: RunConfig, shape: ModelConfig, length: int, stages: Sequence[Stage], world: World
) -> bool:
    if config.train.compile is not None:
        if config.train.compile and not can_compile(world.device):
            raise LoomError(
                "train.compile needs a C++ compiler (g++ or clang++): install one or set it to false."
            )
        return config.train.compile
    if config.train.objective == "dpo":  # every micro-batch has another shape
        return False
    last = places_of_step(stages, config.train.steps)[1]
    operations = shape.flops_per_token(length) * last * length
    return can_compile(world.device) and operations > LONG_ENOUGH_TO_COMPILE


def recipe_of(config: RunConfig) -> Mapping[str, Any]:
    """The resolved recipe as JSON values."""
    values: Mapping[str, Any] = json.loads(json.dumps(asdict(config)))
    return values
