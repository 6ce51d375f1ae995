"""The training loop.

A step: the rank's micro-batches go forward and backward, their sums are divided by the denominator of
the whole step, gradients are clipped, the optimizer steps unless the guard says no. Steps are fixed by
the recipe; the clock is read for the log only.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from loom.errors import LoomError
from loom.tokens.digest import digest_file
from loom.train.callbacks import Callback, Evaluate, MetricsFile, Record, RunInfo, logged
from loom.train.checkpoint import (
    MANIFEST,
    TrainState,
    check,
    checkpoints,
    step_folder,
    step_of,
    training_state,
    write_manifest,
)
from loom.train.config import RunConfig
from loom.train.devices import device_name, peak_flops
from loom.train.documents import DocumentTable
from loom.train.loader import StepBatches, steps
from loom.train.optimizer import clip_gradients
from loom.train.parallel import accumulate, bare, start_world
from loom.train.rehearsal import rehearse
from loom.train.roll import Roll
from loom.train.saving import Saver
from loom.train.schedule import clip_limit, learning_rate
from loom.train.start import Run, recipe_of, start
from loom.train.termination import Agreement, termination
from loom.train.watch import Profile, SpikeScore, gradient_norms, output_norms, state_norms


def train(
    config: RunConfig,
    out: Path,
    *,
    documents: DocumentTable | None = None,
    callbacks: Sequence[Callback] = (),
    evaluate: Evaluate | None = None,
) -> Path:
    """Train in the folder `out`, going on from its newest good checkpoint; give the last checkpoint.

    `documents` is the table of the SFT or DPO folder. A finished run returns at once. Raises `LoomError`
    for what a user can mend; the last good checkpoint is never touched by a failure.
    """
    out = Path(out)
    world = start_world()
    try:
        if world.once(lambda: _finished(out, config.train.steps)):
            return step_folder(out, config.train.steps)
        out.mkdir(parents=True, exist_ok=True)
        roll = Roll(out / ".ranks", world.rank, world.size)
        world.barrier()
        try:
            with termination() as told:
                last = _train(start(config, out, world, documents), out, callbacks, evaluate, told)
        except Exception as error:
            if world.size == 1:
                raise
            whole = checkpoints(out)
            newest = f"{whole[-1]} is whole." if whole else "There is no checkpoint yet."
            raise roll.blame(error, newest) from error
        finally:
            if world.size == 1:
                roll.close()
        roll.close()
        return last
    finally:
        world.close()


def _finished(out: Path, steps: int) -> bool:
    """Whether the run has ended and its last checkpoint is whole.

    Where it is damaged the run goes on from the newest that is not, which names it. Raises `LoomError` where
    it is whole but not that of the run's manifest.
    """
    last = step_folder(out, steps)
    if last not in checkpoints(out) or not (out / MANIFEST).is_file():
        return False
    try:
        check(last)
        outputs = json.loads((out / MANIFEST).read_bytes())["outputs"]
        listed = {item["path"]: item["digest"] for item in outputs}
    except LoomError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoomError(
            f"{out / MANIFEST} cannot be read ({error}): remove it, and the run writes it anew."
        ) from None
    expected = listed.get((last / MANIFEST).relative_to(out).as_posix(), "")
    if digest_file(last / MANIFEST, expected) not in (None, expected):
        raise LoomError(
            f"{last} is not the checkpoint that this run ended with ({out / MANIFEST} lists another): restore it, "
            f"or remove it and the run goes on from the one before."
        )
    return True


def _train(
    run: Run,
    out: Path,
    callbacks: Sequence[Callback],
    evaluate: Evaluate | None,
    told: threading.Event,
) -> Path:
    config, world = run.config, run.world
    callbacks = [MetricsFile(out / "metrics.jsonl"), *callbacks] if world.first else []
    saver = Saver(
        out,
        world,
        run.card,
        run.data.folders[0].tokenizer,
        run.inputs,
        recipe_of(config),
        asynchronous=config.train.asynchronous,
        keep=config.train.keep,
        keep_every=config.train.keep_every,
        keep_steps=config.train.keep_steps,
    )
    info = RunInfo(
        out, config, run.card.model, run.step + 1, config.train.steps, run.data.instances,
        run.stages[-1].batch * run.sequence_length, world.size, device_name(world.device), run.notes,
        utilisation(run)[1],
    )  # fmt: skip
    for callback in callbacks:
        callback.on_start(info)
    if run.step > config.train.steps:
        raise LoomError(
            f"{out} is at step {run.step}, past train.steps {config.train.steps}: raise train.steps."
        )
    if world.first:
        (out / MANIFEST).unlink(missing_ok=True)  # of a run that has not ended yet, or no longer
    micro = config.train.micro_batch_pairs if config.train.objective == "dpo" else config.train.micro_batch
    if run.step == 0 and config.train.rehearse:
        rehearse(run, out, micro)
    batches = steps(
        run.data, run.stages, run.step + 1, config.train.steps,
        rank=run.context.reader, ranks=run.context.readers, micro_batch=micro,
    )  # fmt: skip
    log, agreement = _Log(run, out), Agreement(told, world)
    profiler = Profile(config.train.profile, out, world)
    every = config.train.norms_every
    if run.step == 0 and evaluate is not None and config.eval.on_start:
        _evaluate(run, 0, evaluate, callbacks)
        log.restart()
    try:
        for batch in batches:
            step = batch.step
            logged = step % config.train.log_every == 0 or step in (1, config.train.steps)
            profiler.before(step)
            if every is not None and step % every == 0:
                logged = True
                with output_norms(run.model, world) as norms:
                    sums = take_step(run, batch, norms=True)
                sums |= norms | state_norms(run.model, run.optimizer)
            else:
                sums = take_step(run, batch)
            profiler.after(step)
            log.add(batch)
            if logged:
                record = log.record(sums, step)
                for callback in callbacks:
                    callback.on_step(record)
            last_too = config.eval.on_finish and step == config.train.steps
            if evaluate is not None and (step % config.train.eval_every == 0 or last_too):
                _evaluate(run, step, evaluate, callbacks)
                log.restart()
            stop = agreement.stop() and step < config.train.steps
            if stop or _saves_at(config, step):
                log.check_finite(step)
                for callback in callbacks:
                    callback.on_pause()
                saver.save(_state(run, step), training_state(run.model, run.optimizer, run.guard))
            if stop:
                saver.wait()
            for folder in saver.collect():
                for callback in callbacks:
                    callback.on_checkpoint(step_of(folder), folder)
            if stop:
                raise LoomError(
                    f"Stopped by a signal after step {step}, saved; run the same command again to go on."
                )
    finally:
        # Also when something fails: what is being written becomes whole.
        saver.join()
        for callback in callbacks:
            callback.on_pause()
    saver.wait()
    last = step_folder(out, config.train.steps)
    for folder in saver.collect():
        for callback in callbacks:
            callback.on_checkpoint(step_of(folder), folder)
    for callback in callbacks:
        callback.on_finish(last)
    if world.first:
        _finish_run(run, out, last)
    world.barrier()
    return last


def take_step(run: Run, batch: StepBatches, norms: bool = False) -> dict[str, Tensor]:
    """One optimizer step. The sums of this step, over all ranks, divided by its denominator.

    Every value is a scalar on the device; `grad_norm` is that before clipping; `norms` asks for every
    gradient's too.
    """
    config, world = run.config, run.world
    schedule = config.schedule
    counted = sum(b.denominator for b in batch.batches) / run.context.ranks
    local = torch.tensor([counted], dtype=torch.float64)
    denominator = world.sum(local.to(world.device)).squeeze()
    if world.device.type == "cpu" and float(denominator) == 0:
        raise LoomError(
            f"The batch of step {batch.step} has no token that the loss counts: check the data's weights."
        )
    # DDP and FSDP average over ranks; a sum is wanted.
    scale = (world.size / denominator).float()
    totals: dict[str, Tensor] = {}
    for number, micro in enumerate(batch.batches):
        with accumulate(run.model, last=number == len(batch.batches) - 1):
            total, sums = run.objective(run.model, run.context.part(micro.to(world.device)))
            (total * scale).backward()  # type: ignore[no-untyped-call]
        for name, value in sums.items():
            totals[name] = totals[name] + value if name in totals else value
    means = world.sum(torch.stack(list(totals.values())).double()) / denominator
    result = dict(zip(totals, means.unbind(), strict=True))
    tokens = schedule.unit == "tokens"
    now = run.tokens_before(batch.step + 1) if tokens else batch.step
    end = run.tokens_before(config.train.steps + 1) if tokens else config.train.steps
    rate = learning_rate(now, end, config.optimizer.learning_rate, schedule)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    if norms:
        result |= gradient_norms(run.model)
    limit = clip_limit(batch.step, run.tokens_before(batch.step), config.optimizer)
    result["grad_norm"] = clip_gradients(parameters, limit)
    # Fused AdamW takes no step where this flag is 1, and the host need not know.
    run.optimizer.found_inf = run.guard.check(result["loss"], result["grad_norm"])  # type: ignore[attr-defined]
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return result


def utilisation(run: Run) -> tuple[float | None, str]:
    """(model FLOPs utilisation for one token a second, its formula); None where the device's peak is not known."""
    shape, length, name = run.card.model, run.sequence_length, device_name(run.world.device)
    flops, peak = shape.flops_per_token(length), peak_flops(name)
    formula = (
        f"MFU = tokens/s x (6 N + 12 L d T) / peak; N = {shape.matmul_parameters:,} with the output matrix, L d T = "
        f"{shape.n_layers} x {shape.d_model} x {length}, attention in full: {flops:.4g} FLOPs a token; "
    )
    if peak is None:
        return None, formula + f"the peak of {name!r} is not known: MFU n/a"
    ranks = run.world.size
    return flops / (
        peak * ranks
    ), formula + f"peak {peak / 1e12:g} TFLOP/s of dense bf16 ({name}) x {ranks} ranks"


class _Log:
    """Turns device scalars into records, and keeps the times between them."""

    def __init__(self, run: Run, out: Path) -> None:
        self.run = run
        self.began = time.perf_counter()
        self.flops_share = utilisation(run)[0]
        self.spikes = SpikeScore()
        for record in logged(out / "metrics.jsonl") if run.world.first else ():
            if "loss" in record:  # of steps before the run was stopped
                self.spikes.add(float(record["loss"]))
        self.restart()

    def restart(self) -> None:
        """Evaluation is no part of the window's speed."""
        self.since, self.tokens, self.waited = time.perf_counter(), 0, 0.0

    def add(self, batch: StepBatches) -> None:
        self.tokens += batch.instances * self.run.sequence_length
        self.waited += batch.waited

    def record(self, sums: dict[str, Tensor], step: int) -> Record:
        run = self.run
        values = {name: float(value) for name, value in sums.items()}
        self.check_finite(step)
        seconds = time.perf_counter() - self.since
        record: Record = {
            "step": step,
            "tokens": run.tokens_before(step + 1),
            "loss": values.pop("loss"),
            "lr": run.optimizer.param_groups[0]["lr"],
            "grad_norm": values.pop("grad_norm"),
            **values,
            "skipped_steps": int(run.guard.skipped),
            "spike_score": self.spikes.add(float(sums["loss"])),
            "tokens_per_second": self.tokens / seconds,
            "data_wait": self.waited / seconds,
            "seconds": time.perf_counter() - self.began,
        }
        if self.flops_share is not None:
            record["mfu"] = self.tokens / seconds * self.flops_share
        self.restart()
        return record

    def check_finite(self, step: int) -> None:
        if int(self.run.guard.not_finite):
            raise LoomError(
                f"The loss or the gradient became NaN or infinite at or before step {step}. Weights were not updated by "
                f"it, and what was saved before is sound: lower optimizer.learning_rate, or look at the data of these "
                f"steps (`loom inspect --step N`)."
            )


def _saves_at(config: RunConfig, step: int) -> bool:
    train = config.train
    return step % train.checkpoint_every == 0 or step == train.steps or step in train.keep_steps


def _state(run: Run, step: int) -> TrainState:
    seen = run.tokens_before(step + 1)
    return TrainState(
        step,
        seen // run.sequence_length,
        seen,
        run.data.fingerprint,
        run.config.seed,
        run.sequence_length,
        [[s.step, s.instances_before, s.batch] for s in run.stages if s.step <= step],
        run.optimizer.param_groups[0]["lr"],
        [folder.digest for folder in run.data.folders],
    )


def _evaluate(run: Run, step: int, evaluate: Evaluate, callbacks: Sequence[Callback]) -> None:
    model = bare(run.model)
    model.eval()
    with torch.no_grad():
        metrics = dict(evaluate(model, step))
    model.train()
    for name, value in metrics.items():
        if math.isnan(value):
            raise LoomError(f"The evaluation metric {name!r} is NaN at step {step}.")
    for callback in callbacks:
        callback.on_eval(step, metrics)


def _finish_run(run: Run, out: Path, last: Path) -> None:
    """The run's own manifest: what it was made from and the checkpoint it ended with."""
    body = json.loads((last / "manifest.json").read_bytes())
    outputs = [
        {
            "path": (last / "manifest.json").relative_to(out).as_posix(),
            "bytes": (last / "manifest.json").stat().st_size,
            "rows": 0,
            "digest": digest_file(last / "manifest.json"),
        }
    ]
    write_manifest(out, "run", recipe_of(run.config), run.inputs, outputs, body["counters"])
