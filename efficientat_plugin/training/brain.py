"""The SpeechBrain hooks of distillation, and nothing else."""

import csv
import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import speechbrain as sb
import torch
from ruamel.yaml import YAML
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from efficientat_plugin.contracts import ClipBatch, Heard, SoftTarget, StudentOutput
from efficientat_plugin.data.clips import ClipStream, collate
from efficientat_plugin.data.sampling import Draws, PlaceInEpoch
from efficientat_plugin.data.skipped import SkippedClips
from efficientat_plugin.evaluation.metrics import Scores, caution
from efficientat_plugin.students.student import Student
from efficientat_plugin.support.checkpoints import AtomicCheckpointer
from efficientat_plugin.support.files import write_aside
from efficientat_plugin.training.losses import RunningLoss

logger = logging.getLogger(__name__)

TRAIN, VALID = sb.Stage.TRAIN, sb.Stage.VALID


@register_checkpoint_hooks
class History:
    """The numbers of every epoch; they travel with the checkpoints.

    Example
    -------
    >>> history = History()
    >>> history.epochs.append({"epoch": 1, "mAP": 0.5})
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def write_csv(self, path: str | Path) -> None:
        """Writes a table with a row for each epoch; what an epoch lacks is empty."""
        columns = list(dict.fromkeys(name for row in self.epochs for name in row))

        def write(file: TextIO) -> None:
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            table.writerows(self.epochs)

        write_aside(path, write)

    @mark_as_saver
    def save(self, path: str) -> None:
        """Writes the epochs as JSON."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.epochs, file)

    @mark_as_loader
    def load(self, path: str, end_of_epoch: bool) -> None:
        """Reads what ``save`` wrote."""
        del end_of_epoch
        with open(path, encoding="utf-8") as file:
            self.epochs = json.load(file)


class Trained(NamedTuple):
    """One of the models that a run trains, and what it came to."""

    name: str  # who it is and who taught it, for a table
    student: Student
    scores: Scores  # of the last evaluation
    epochs: list[dict[str, float]]  # of a ``History``
    folder: str = "."  # where its files go in the folder of the run


@register_checkpoint_hooks
class DistillationBrain(sb.Brain):
    """Trains a student on labels and on what a teacher says.

    Everything random in a step comes from torch's global generator, seeded with
    (seed, epoch, step, rank), so a run that is killed and started again ends like one
    left alone, without stored generator state.

    Its ``modules`` are ``log_mel``, ``spec_mask`` and ``student``; its ``hparams``:

    - ``student`` and ``loss`` (a ``DistillationLoss``);
    - ``teacher``: a ``StoredTeacher`` or an ``OnlineTeacher``, or None for the plain
      label loss. It stays out of ``modules``, where it would be trained and
      checkpointed;
    - ``mixup``: a ``Mixup`` or None;
    - ``make_stats``: gives what an evaluation is summed up by, a ``TaggingStats``;
    - ``lr_schedule``, a function of the epoch, or None for the optimizer's own rate;
    - ``temperature_schedule``, a function of the epoch, or None;
    - ``history``, ``train_logger``, ``seed`` and ``max_unreadable_share``. Any of
      SpeechBrain's loggers will do, as it is given numbers alone;
    - ``output_folder``, in which ``history.csv`` has the numbers of every epoch, if
      there are checkpoints.

    Batches are ``ClipBatch``. See ``hparams/quickstart.yaml`` for all of it together.

    Arguments
    ---------
    *args, **kwargs
        Of ``speechbrain.Brain``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skipped = SkippedClips(self.hparams.max_unreadable_share)
        self.train_stream: ClipStream | None = None
        self.place = PlaceInEpoch()
        self.scores: Scores | None = None
        self.cautions: set[str | None] = {None}
        self.evaluates = "test"  # or "valid": which clips ``evaluate`` is given
        self.loaded_epoch = 0  # whose weights ``evaluate`` scores
        self.train_losses = RunningLoss()  # of the epoch so far, on this process
        self.stage_losses = self.train_losses
        # (sum, clips) of each process, while a checkpoint within an epoch is saved
        self.saved_losses: list[list[float]] = []

    def trained(self) -> list[Trained]:
        """The models that have been trained, after an evaluation."""
        assert self.scores is not None  # an evaluation sets them
        taught = "without teacher" if self.hparams.teacher is None else "with teacher"
        epochs = self.hparams.history.epochs
        return [Trained(f"student {taught}", self.hparams.student, self.scores, epochs)]

    # --- What happens to a batch ------------------------------------------------

    def compute_forward(
        self, batch: ClipBatch, stage: sb.Stage
    ) -> tuple[StudentOutput, Heard]:
        """Waveforms to the student's output, and what it heard."""
        log_mel = self.modules.log_mel(batch.waveform.to(self.device))  # [B, F, T]
        mix = None
        if stage == TRAIN:
            log_mel = self.modules.spec_mask(log_mel)
            if self.hparams.mixup is not None:
                log_mel, mix = self.hparams.mixup(log_mel)
        output = self._on_device(self.modules.student, stage)(log_mel.unsqueeze(1))
        return output, Heard(batch, log_mel, mix)

    def compute_objectives(
        self,
        predictions: tuple[StudentOutput, Heard],
        batch: ClipBatch,
        stage: sb.Stage,
    ) -> Tensor:
        """The distillation loss in training, the label loss in evaluation."""
        output, heard = predictions
        labels = self._labels(heard)
        if stage != TRAIN:
            self.some_labelled |= bool((batch.labelled > 0).any())
            self.stats.append(
                batch.clip_id, output.logits, batch.labels, batch.labelled
            )
            return self.hparams.loss(output.logits, labels)
        teacher = None
        if self.hparams.teacher is not None:
            answer = self.hparams.teacher(heard)
            teacher = self.hparams.loss.teacher_target(answer, heard)
        return self.hparams.loss(output.logits, labels, teacher)

    def _on_device(self, module: torch.nn.Module, stage: sb.Stage) -> torch.nn.Module:
        if stage != TRAIN and isinstance(module, DistributedDataParallel):
            # Processes evaluate unequal numbers of batches, and DDP's forward would
            # wait for the others'.
            return module.module
        return module

    def _labels(self, heard: Heard) -> SoftTarget:
        labels, labelled = heard.batch.labels, heard.batch.labelled
        target = SoftTarget(labels.to(self.device), labelled.to(self.device))
        return target.followed(heard.mix)

    def on_fit_batch_start(self, batch: ClipBatch, should_step: bool) -> None:
        """Seeds what this step draws at random."""
        rank = int(os.environ.get("RANK", 0))
        entropy = [self.hparams.seed, self.epoch, self.step, rank]
        seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(seed))

    def fit_batch(self, batch: ClipBatch) -> Tensor:
        """One training step; a batch of unreadable clips is none."""
        self.skipped.add(batch.skipped, batch.clip_id)
        if not batch.clip_id:
            return torch.tensor(float("nan"))
        loss = super().fit_batch(batch)
        self.stage_losses.add(float(loss), len(batch.clip_id))
        return loss

    def evaluate_batch(self, batch: ClipBatch, stage: sb.Stage) -> Tensor:
        """One evaluation step; a batch of unreadable clips is none."""
        self.skipped.add(batch.skipped, batch.clip_id)
        if not batch.clip_id:
            return torch.tensor(float("nan"))
        loss = super().evaluate_batch(batch, stage)
        self.stage_losses.add(float(loss), len(batch.clip_id))
        return loss

    def update_average(self, loss: Tensor, avg_loss: float) -> float:
        """The mean over the clips so far; SpeechBrain's is one of batch means."""
        del loss, avg_loss
        return self.stage_losses.mean

    # --- What happens to an epoch -----------------------------------------------

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Sets what depends on the epoch alone, so that a resume needs no state."""
        self.stats = self.hparams.make_stats()
        self.stats.logits = True
        self.some_labelled = False
        if stage != TRAIN:
            self.stage_losses = RunningLoss()
            self._agree_on_buffers()
            return
        self.stage_losses = self.train_losses  # not empty where an epoch is resumed
        assert epoch is not None  # SpeechBrain counts training epochs from 1
        self.epoch = epoch
        if self.place.draws is not None:
            self.place.draws.start = self.place.clips_before
        rate = self.optimizer.defaults["lr"]
        if self.hparams.lr_schedule is not None:
            rate = self.hparams.lr_schedule(epoch - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        if self.hparams.temperature_schedule is not None:
            temperature = self.hparams.temperature_schedule(epoch - 1)
            self.hparams.student.set_temperature(temperature)
        if self.train_stream is not None:
            self.train_stream.set_epoch(epoch)

    def on_stage_end(
        self, stage: sb.Stage, stage_loss: float, epoch: int | None = None
    ) -> None:
        """Scores an evaluation; logs and saves a finished epoch."""
        self.skipped.finish_pass()
        stage_loss = _sum_of(self._losses_of_processes()).mean
        if stage == TRAIN:
            self.train_loss = stage_loss
            self.train_losses = RunningLoss()
            self.place.begin()
            return
        self.stats.gather()
        self.scores = self.stats.summarize()
        # Of clips without labels the label loss is 0, which looks like a perfect one.
        any_labelled = any(
            flag for [flag] in self._of_processes([float(self.some_labelled)])
        )
        losses = {"loss": stage_loss} if any_labelled else {}
        if stage == VALID:
            self._finish_epoch(epoch, losses, self.scores)
            return
        name = {"test": "Test", "valid": "Validation"}[self.evaluates]
        self._log_line(f"{name}, epoch {self.loaded_epoch} loaded", losses)
        self._log_evaluation(losses | self._numbers(self.scores))

    def log_test(self, scores: Scores) -> None:
        """Gives the logger scores of test clips that ``evaluate`` did not compute."""
        self.evaluates = "test"
        self._log_evaluation(self._numbers(scores))

    def _log_evaluation(self, numbers: dict[str, float]) -> None:
        # Called by every process, since the logger lets the first one log.
        self.hparams.train_logger.log_stats(
            stats_meta={"epoch loaded": self.loaded_epoch},
            verbose=False,
            **{f"{self.evaluates}_stats": numbers},
        )

    def _fit_valid(self, valid_set: Any, epoch: int, enable: bool) -> None:
        """As ``Brain``; an epoch without validation clips ends, too."""
        super()._fit_valid(valid_set, epoch, enable)
        if valid_set is None:
            self.scores = None
            self._finish_epoch(epoch, {}, None)

    def _finish_epoch(
        self, epoch: int | None, valid_losses: dict[str, float], scores: Scores | None
    ) -> None:
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        averages = {} if scores is None else self._averages(scores)
        numbers = {} if scores is None else self._numbers(scores)
        summary = {
            "epoch": epoch,
            "lr": lr,
            "train_loss": self.train_loss,
            **{f"valid_{name}": loss for name, loss in valid_losses.items()},
        }
        history = self.hparams.history
        history.epochs.append(summary | numbers)
        named = {f"validation {name}": loss for name, loss in valid_losses.items()}
        self._log_line(f"Epoch {epoch}", {"training loss": self.train_loss} | named)
        self.hparams.train_logger.log_stats(
            stats_meta={"epoch": epoch, "lr": lr},
            train_stats={"loss": self.train_loss},
            valid_stats=valid_losses | numbers,
            verbose=False,
        )
        self._write_history()
        if self.checkpointer is not None:
            main = "" if scores is None else scores.main
            best = [key for key in averages if key.endswith(main)]
            meta = {"epoch": epoch} | {key: averages[key] for key in best}
            self.checkpointer.save_and_keep_only(meta=meta, max_keys=best)

    def _averages(self, scores: Scores) -> dict[str, float]:
        """What is kept of an epoch; a checkpoint is the best by what is main in it."""
        return scores.averages()

    def _numbers(self, scores: Scores) -> dict[str, float]:
        """All that a logger and the history are told of scores."""
        counts = {"num_clips": scores.num_clips, "num_classes": scores.num_classes}
        return self._averages(scores) | counts

    def _log_line(self, what: str, losses: dict[str, float]) -> None:
        """For people, whichever logger the numbers go to."""
        if not if_main_process():
            return
        listed = "".join(f", {name} {loss:.4g}" for name, loss in losses.items())
        if self.scores is None:
            logger.info("%s%s", what, listed)
        else:
            logger.info("%s%s: %s", what, listed, self.scores.line())
            if (sentence := caution(self.scores)) not in self.cautions:
                self.cautions.add(sentence)  # once, and not of each epoch
                logger.info("Caution: %s", sentence)

    def _write_history(self) -> None:
        if self.checkpointer is not None and if_main_process():  # a run that is kept
            folder = Path(self.hparams.output_folder)
            self.hparams.history.write_csv(folder / "history.csv")

    def on_fit_start(self) -> None:
        """As ``Brain``; where a run is resumed, what it left is put in order.

        ``history.csv`` has the same epochs, checkpoints that a kill kept are deleted,
        and another number of clips a step is told.
        """
        super().on_fit_start()
        if isinstance(self.checkpointer, AtomicCheckpointer):
            self.checkpointer.delete_superseded()
        if if_main_process() and (change := self.place.change()):
            print(change)
        if self.hparams.history.epochs:
            self._write_history()

    def on_evaluate_start(
        self, max_key: str | None = None, min_key: str | None = None
    ) -> None:
        """As ``Brain``; the history keeps the epochs behind the one that is loaded."""
        history = self.hparams.history
        every_epoch = history.epochs
        super().on_evaluate_start(max_key, min_key)
        self.loaded_epoch = history.epochs[-1]["epoch"] if history.epochs else 0
        history.epochs = max(every_epoch, history.epochs, key=len)

    # --- Loaders and processes --------------------------------------------------

    def make_dataloader(
        self,
        dataset: Any,
        stage: sb.Stage,
        ckpt_prefix: str | None = "dataloader-",
        **loader_kwargs: Any,
    ) -> DataLoader:
        """SpeechBrain's loader, for clips; evaluation is shared by the processes."""
        loader_kwargs.setdefault("collate_fn", collate)
        streaming = isinstance(dataset, ClipStream)
        if stage == TRAIN:
            if streaming:
                self.train_stream = dataset
                self._keep_to_whole_epochs()
            elif isinstance(loader_kwargs.get("sampler"), Draws):
                ckpt_prefix = None  # the place within an epoch is kept in clips
        elif self.distributed_launch and not streaming:
            share = range(self.rank, len(dataset), _num_processes())
            dataset = Subset(dataset, share)
        return super().make_dataloader(dataset, stage, ckpt_prefix, **loader_kwargs)

    def _train_loader_specifics(
        self, dataset: Any, loader_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        draws = loader_kwargs.get("sampler")
        if not isinstance(draws, Draws):
            return super()._train_loader_specifics(dataset, loader_kwargs)
        rank, world_size = self._rank_and_world_size()
        draws.deal(rank, world_size, loader_kwargs.get("drop_last", False))
        batch_size = loader_kwargs.get("batch_size", 1)
        self.place = PlaceInEpoch(draws, batch_size * world_size)
        self.train_sampler = draws  # whose epoch SpeechBrain sets
        return loader_kwargs

    def _keep_to_whole_epochs(self) -> None:
        self.ckpt_interval_minutes = self.ckpt_interval_steps = 0
        logger.warning(
            "The training data is a stream, whose position is not saved: a run that "
            "is interrupted resumes at the start of the interrupted epoch"
        )

    def _should_save_intra_epoch_ckpt(self, *args: Any) -> bool:
        # Gradients under accumulation are in no checkpoint.
        if self.step % self.grad_accumulation_factor:
            return False
        return super()._should_save_intra_epoch_ckpt(*args)

    def _wrap_distributed(self) -> None:
        if not self.distributed_launch or self.device != "cpu":
            super()._wrap_distributed()
            return
        # SpeechBrain's would make the batch norms synchronous, which only GPUs can.
        for name, module in self.modules.items():
            if any(parameter.requires_grad for parameter in module.parameters()):
                self.modules[name] = DistributedDataParallel(
                    module, find_unused_parameters=self.find_unused_parameters
                )

    def _save_intra_epoch_ckpt(self) -> None:
        self.saved_losses = self._losses_of_processes()
        super()._save_intra_epoch_ckpt()
        self.saved_losses = []

    @mark_as_saver
    def _save(self, path: str) -> None:
        super()._save(path)  # as YAML, of the first process alone
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"train_losses: {self.saved_losses}\n")
            file.write(f"clips_drawn: {self.place.clips_drawn(self.step)}\n")
            file.write(f"clips_per_step: {self.place.clips_per_step}\n")

    @mark_as_loader
    def _recover(self, path: str, end_of_epoch: bool) -> None:
        super()._recover(path, end_of_epoch)
        with open(path, encoding="utf-8") as file:
            state = YAML(typ="safe").load(file)
        self.place.resume(self.step, state["clips_drawn"], state["clips_per_step"])
        rank, count = self._rank_and_world_size()
        saved = state["train_losses"]
        if len(saved) == count:
            self.train_losses = _sum_of([saved[rank]])
        else:  # of another number of processes
            self.train_losses = _sum_of(saved) if rank == 0 else RunningLoss()
        self.avg_train_loss = self.train_losses.mean

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.rank, _num_processes()) if self.distributed_launch else (0, 1)

    def _losses_of_processes(self) -> list[list[float]]:
        losses = self.stage_losses
        return self._of_processes([losses.total, losses.num_clips])

    def _of_processes(self, values: list[float]) -> list[list[float]]:
        """The values of each process, on every one of them."""
        if not self.distributed_launch:
            return [values]
        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        gathered = [torch.empty_like(own) for _ in range(_num_processes())]
        torch.distributed.all_gather(gathered, own)
        return [part.tolist() for part in gathered]

    def _agree_on_buffers(self) -> None:
        """Gives every process the batch-norm statistics that the first one saves."""
        if self.distributed_launch:
            for buffer in self.modules.buffers():
                torch.distributed.broadcast(buffer, src=0)


def _sum_of(losses: list[list[float]]) -> RunningLoss:
    """Of (sum, clips) of each process."""
    totals, counts = zip(*losses, strict=True) if losses else ((), ())
    return RunningLoss(sum(totals), int(sum(counts)))


def _num_processes() -> int:
    return torch.distributed.get_world_size()
