"""The training loop, one step of it, and the evaluation of one checkpoint."""

import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from datasets.loaders import set_epoch
from engine.config import TrainConfig
from engine.data import TrainingData
from engine.ensemble import choose_decoding, choose_ensemble, epochs_chosen, warn_of_leakage
from engine.metrics import AnyMetrics, details, summary
from engine.panels import panel
from engine.predict import open_masks
from engine.predictor import evaluate
from engine.run import Run, run_prefix
from engine.runtime import (
    build_predictor,
    choose_precision,
    conditions,
    describe,
    in_words,
    set_backend_options,
)
from engine.state import TrainState
from utils import dist
from utils.dist import any_rank, gather, print0, sole_writer
from utils.errors import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    CheckpointError,
    DataError,
    InterruptionError,
)
from utils.files import require_writable
from utils.locks import LOCK
from utils.signals import StopRequest
from utils.text import progress

TARGETS = ("label1", "label2", "change_mask")


def main(config: TrainConfig, device: torch.device) -> AnyMetrics | None:
    """Train, or evaluate ``load_from``, as one of a run's processes; return the best scores.

    A dry run ends before the first step or batch, and returns None.
    """
    set_backend_options()
    if config.dry_run:
        require_writable(config.outdir)
        config = replace(config, cache="off")
    data = TrainingData.open(config, device)
    if config.dry_run:
        if not data.checkpoint:
            _open_run(config, data, device)
        print0("dry run: options and data are sound; nothing was written")
        return None
    if data.checkpoint:
        return evaluate_checkpoint(config, data, device)
    with sole_writer(config.outdir / "models" / f".{run_prefix(config)}{LOCK}", "this model's run"):
        run, state = _open_run(config, data, device)
        path, best = train(config, data, run, state)
    scored = "epoch chosen on these pairs"
    if state.scored_with:
        scored = f"{in_words(state.scored_with)}; {scored}"
    print0(f"best: {path}  ({scored})\n{details(best, data.task.classes.names)}")
    if config.save_mask:
        data.checkpoint = choose_ensemble([path], path.parent, data.task)[0]
        evaluate_checkpoint(config, data, device)
    return best


def _open_run(
    config: TrainConfig, data: TrainingData, device: torch.device
) -> tuple[Run, TrainState]:
    run = Run(config, data.task, data.split.to_dict(), (data.masks, data.mask_set))
    state = TrainState.build(config, data, run, device)
    state.announce(config, data)
    return run, state


def train(
    config: TrainConfig, data: TrainingData, run: Run, state: TrainState
) -> tuple[Path, AnyMetrics]:
    """Train up to the last epoch; return the best checkpoint and its scores.

    Raises:
        CheckpointError: the run to resume is finished, and its best checkpoint is gone.
        InterruptionError: a signal or Ctrl-C asked the run to end; its state is saved.
        NumericalError: a loss or a weight is no finite number.
    """
    run.start_log(config)
    run_started, first = time.perf_counter(), state.epoch + state.validated
    with StopRequest() as stop:
        while state.epoch < config.epochs or not state.validated:
            started = time.perf_counter()
            set_epoch(data.train_loader, *state.begin_epoch())
            place = f"{state.epoch}/{config.epochs}"
            for batch in progress(data.train_loader, f"train {place}"):
                if training_step(state, batch):
                    ended = any_rank(stop.signal is not None)
                    if ended or state.step % (config.checkpoint_every or sys.maxsize) == 0:
                        run.save_latest(state.to_dict())
                    if ended:
                        raise _interruption(stop, state, run)
            losses = state.end_training()
            train_s = time.perf_counter() - started
            scores = _validate(config, data, state, stop)
            if any_rank(stop.signal is not None):
                # These are scores of a part of the pairs; a resumed run validates the epoch anew.
                run.save_latest(state.to_dict())
                raise _interruption(stop, state, run)
            now = time.perf_counter()
            total_s = now - started
            seconds = {"train_s": round(train_s, 3), "val_s": round(total_s - train_s, 3)}
            if run.lost_best():
                state.best = None
            is_best = state.end_epoch(scores, losses, data.task.classes.names, seconds)
            run.log_epochs(state.rows)
            if is_best:
                run.save_best(state.weights_and_scores(), scores.rank)
            run.save_latest(state.to_dict())
            if run.tensorboard and scores:
                maps = state.predictor(config.tta).maps
                picture = panel(maps, data.val_loader.dataset, data.task)
                run.log_image(picture, state.epoch)
            left_s = (now - run_started) / (state.epoch - first + 1) * (config.epochs - state.epoch)
            left = f", {tqdm.format_interval(left_s)} left" if left_s else ""
            shown = f"  {summary(scores)}" if scores else ""
            print0(f"epoch {place}  loss {losses['total']:.4f}{shown}  ({total_s:.1f} s{left})")
            if any_rank(stop.signal is not None) and state.epoch < config.epochs:
                raise _interruption(stop, state, run)
    run.close()
    if state.best is None:
        raise CheckpointError(
            f"the run to resume is finished and its best checkpoint is not in {run.folder}; put it "
            "there, or evaluate the latest with --load-from"
        )
    return run.best, state.best


def training_step(state: TrainState, batch: dict[str, Any]) -> bool:
    """Train on one batch, without waiting for the device; tell whether the weights have changed.

    The batch has uint8 or uint16 ``image1/image2`` (N, bands, H, W), integer ``change_mask`` and,
    for each date with labels, ``label1/label2`` (N, H, W), and ``name``. A `NumericalError` where a
    loss of this or one of the last batches is not finite.
    """
    state.part = state.part % state.accumulate + 1
    last_part = state.part == state.accumulate
    image1, image2, *targets = (
        batch[key].to(state.device, non_blocking=True) if key in batch else None
        for key in ("image1", "image2", *TARGETS)
    )
    with nullcontext() if last_part or dist.size() == 1 else state.parallel.no_sync():
        with state.precision.autocast():
            output = state.parallel(image1, image2)
        terms = state.criterion(output, *targets)
        state.precision.scaler.scale(terms["total"] / state.accumulate).backward()
    state.losses.add(terms, batch["name"])
    if last_part:
        state.precision.scaler.step(state.optimizer)
        state.precision.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.scheduler.step()
        state.step += 1
    return last_part


def _validate(
    config: TrainConfig, data: TrainingData, state: TrainState, stop: StopRequest
) -> AnyMetrics | None:
    """Return the scores of an epoch that is to be validated; of a part, where a signal came."""
    if state.epoch % config.val_every and state.epoch < config.epochs:
        return None
    batches = progress(data.val_loader, f"val {state.epoch}/{config.epochs}")
    batches = takewhile(lambda _: stop.signal is None, batches)
    scores = evaluate(state.predictor(config.tta), batches, data.task)
    if not any_rank(stop.signal is not None):
        _require_scores(scores)
    return scores


def _interruption(stop: StopRequest, state: TrainState, run: Run) -> InterruptionError:
    # The signal may have reached one process alone; all end with the same status.
    by_user = signal.SIGINT in gather(stop.signal)
    return InterruptionError(
        f"asked to end in epoch {state.epoch}, after step {state.step}; the state is in "
        f"{run.latest}, --resume goes on",
        EXIT_INTERRUPTED if by_user else EXIT_PREEMPTED,
    )


def _require_scores(scores: AnyMetrics | None) -> None:
    if scores is None:
        raise DataError(
            "no validation pair has a pixel with data at both dates; correct their masks"
        )


def evaluate_checkpoint(
    config: TrainConfig, data: TrainingData, device: torch.device
) -> AnyMetrics:
    """Score one checkpoint on the validation pairs, write masks if asked to, return the scores."""
    checkpoint, loader = data.checkpoint, data.val_loader
    ids = [pair.id for pair in loader.dataset.pairs]
    warn_of_leakage([checkpoint], ids)
    precision = choose_precision(config.amp, device)
    predictor = build_predictor([checkpoint], device, precision, config.tta)
    predictor.decoding = choose_decoding(config.decode, [checkpoint])
    print0(describe(predictor.models, precision, loader.num_workers))
    folder, masks = config.outdir / "masks" / "val", nullcontext()
    if config.save_mask:  # the key: else test.py --split val would take these masks for its own
        key = {"checkpoint": str(checkpoint.path)}
        masks = open_masks(folder, data.task, key, loader.dataset.pairs, overwrite=True)
    with masks as writer:
        batches = progress(loader, "evaluate")
        metrics = evaluate(predictor, batches, data.task, writer and writer.write)
    _require_scores(metrics)
    scored = f"{in_words(conditions(predictor, precision))}; {epochs_chosen([checkpoint], ids)}"
    print0(f"{checkpoint.path}  ({scored})\n{details(metrics, data.task.classes.names)}")
    if config.save_mask:
        print0(f"masks: {folder}")
    return metrics
