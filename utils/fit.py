"""The training loop: epochs, validation, checkpoints, logs, and the signal to end."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from utils.engine import evaluate
from utils.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, CheckpointError, InterruptionError
from utils.inference import Predictor
from utils.label_counts import AnyMetrics
from utils.logging import RunLog, epoch_row
from utils.progress import progress, summary
from utils.run_files import RunFiles
from utils.stop import StopRequest
from utils.trainer import Trainer


@dataclass(frozen=True)
class Record:
    """What a run writes down, and where.

    Attributes:
        identity: ``config``, ``classes``, ``split``, ``labelled_dates`` and ``run``, for every
            checkpoint.
        options: those that a resumed run must share.
        files: its checkpoints.
        log: its CSV and TensorBoard files; None where another process writes them.
        checkpoint_every: optimiser steps between two saves within an epoch; None for none.
    """

    identity: dict[str, Any]
    options: dict[str, Any]
    files: RunFiles
    log: RunLog | None
    checkpoint_every: int | None = None

    def save_latest(self, trainer: Trainer) -> None:
        """Save all that a resume needs; every process must call it, the leading one writes."""
        state = {
            **self.identity,
            "model": trainer.model.state_dict(),
            "epoch": trainer.epoch,
            "metrics": trainer.best.to_dict() if trainer.best else {},
            "training": trainer.state_dict(),
            "options": self.options,
        }
        if trainer.world.leads:
            self.files.save_latest(state)

    def forget_lost_best(self, trainer: Trainer) -> None:
        """Let the next epoch be the best where the best file is gone; all processes call it."""
        lost = trainer.world.from_leader(trainer.world.leads and self.files.forget_lost_best())
        if lost and trainer.best is not None:
            trainer.world.say(
                "warning: the best checkpoint so far is gone; the next epoch's takes its place"
            )
            trainer.best = None

    def save_epoch(self, trainer: Trainer, metrics: AnyMetrics, is_best: bool) -> None:
        """Write the log row, the best checkpoint if this epoch's is, and the latest."""
        if trainer.world.leads:
            self.log.write(trainer.rows)
            if is_best:
                state = {
                    **self.identity,
                    "model": trainer.model.state_dict(),
                    "epoch": trainer.epoch,
                    "metrics": metrics.to_dict(),
                }
                self.files.save_best(state, metrics.rank)
        self.save_latest(trainer)


def fit(
    trainer: Trainer,
    predictor: Predictor,
    train_loader: Sized,
    val_loader: Sized,
    start_epoch: Callable[[int, int], None],
    epochs: int,
    class_names: Sequence[str],
    record: Record,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> AnyMetrics:
    """Train up to the last epoch and return the best scores.

    Args:
        trainer: a fresh or resumed one.
        predictor: of the trainer's model, for validation.
        train_loader: this process's training batches.
        val_loader: this process's validation batches.
        start_epoch: told the epoch and the batches of it that are done, before each iteration.
        epochs: the last one's number.
        class_names: unchanged first.
        record: what is written.
        after_epoch: told the number of each epoch whose results are written.

    Raises:
        CheckpointError: the run is finished already, and its best checkpoint is gone.
        InterruptionError: a signal or Ctrl-C asked the run to end; its state is saved.
        NumericalError: a loss is no finite number.
    """
    world = trainer.world
    record.forget_lost_best(trainer)
    with StopRequest() as stop:

        def after_step() -> None:
            ended = world.any(stop.signal is not None)
            due = record.checkpoint_every and trainer.step % record.checkpoint_every == 0
            if ended or due:
                record.save_latest(trainer)
            if ended:
                raise _interruption(stop, trainer, record)

        while trainer.epoch < epochs or not trainer.validated:
            started = time.perf_counter()
            done = trainer.begin_epoch()
            start_epoch(trainer.epoch, done)
            place = f"{trainer.epoch}/{epochs}"
            losses = trainer.train_epoch(
                progress(train_loader, f"train {place}", world.leads), after_step
            )
            train_s = time.perf_counter() - started
            trainer.model.eval()
            metrics = evaluate(
                predictor,
                _until(stop, progress(val_loader, f"val {place}", world.leads)),
                len(class_names) - 1,
                world,
            )
            if world.any(stop.signal is not None):
                # The scores are of a part of the pairs; a resumed run validates this epoch anew.
                record.save_latest(trainer)
                raise _interruption(stop, trainer, record)
            total_s = time.perf_counter() - started
            row = epoch_row(
                trainer.epoch, losses, metrics, class_names, trainer.lr, train_s, total_s - train_s
            )
            record.forget_lost_best(trainer)
            record.save_epoch(trainer, metrics, is_best=trainer.end_epoch(row, metrics))
            after_epoch(trainer.epoch)
            world.say(
                f"epoch {place}  loss {losses['total']:.4f}  {summary(metrics)}  ({total_s:.1f} s)"
            )
            if world.any(stop.signal is not None) and trainer.epoch < epochs:
                raise _interruption(stop, trainer, record)
    if trainer.best is None:
        raise CheckpointError(
            "the run to resume is finished and its best checkpoint is gone; put it back beside the "
            "latest, or evaluate the latest with --load-from"
        )
    return trainer.best


def _until(stop: StopRequest, batches: Iterable[dict]) -> Iterator[dict]:
    """Yield batches until a signal asks the run to end."""
    for batch in batches:
        if stop.signal is not None:
            return
        yield batch


def _interruption(stop: StopRequest, trainer: Trainer, record: Record) -> InterruptionError:
    # The signal may have reached one process alone; all end with the same status.
    by_user = signal.SIGINT in trainer.world.gather(stop.signal)
    status = EXIT_INTERRUPTED if by_user else EXIT_PREEMPTED
    return InterruptionError(
        f"asked to end in epoch {trainer.epoch}, after step {trainer.step}; the state is in "
        f"{record.files.latest}, --resume goes on",
        status,
    )
