"""The SpeechBrain Brain that distils a teacher into a student."""

import csv
import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

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

from efficientat_plugin.contracts import (
    ClipBatch,
    Mix,
    Shift,
    SoftTarget,
    StudentOutput,
    TeacherInput,
)
from efficientat_plugin.data.clips import ClipStream, collate
from efficientat_plugin.data.sampling import Draws, PlaceInEpoch
from efficientat_plugin.data.skipped import SkippedClips
from efficientat_plugin.evaluation.metrics import Scores, caution
from efficientat_plugin.students.student import Student
from efficientat_plugin.support.checkpoints import AtomicCheckpointer
from efficientat_plugin.support.files import atomic_file
from efficientat_plugin.training.losses import RunningLoss

logger = logging.getLogger(__name__)

TRAIN, VALID = sb.Stage.TRAIN, sb.Stage.VALID


@register_checkpoint_hooks
class History:
    """Keeps the numbers of every epoch, and is saved in the checkpoints.

    Example
    -------
    >>> history = History()
    >>> history.epochs.append({"epoch": 1, "mAP": 0.5})
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def write_csv(self, path: str | Path) -> None:
        """Writes a table with a row for each epoch; missing numbers are empty."""
        columns = list(dict.fromkeys(name for row in self.epochs for name in row))
        with atomic_file(path) as file:
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            table.writerows(self.epochs)

    @mark_as_saver
    def save(self, path: str) -> None:
        """Writes the epochs as JSON."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.epochs, file)

    @mark_as_loader
    def load(self, path: str, end_of_epoch: bool) -> None:
        """Reads the file that ``save`` wrote."""
        del end_of_epoch
        with open(path, encoding="utf-8") as file:
            self.epochs = json.load(file)


class Trained(NamedTuple):
    """A model that a run has trained, with its results."""

    name: str  # the student and its teacher, for a table
    student: Student
    scores: Scores  # of the last evaluation
    epochs: list[dict[str, float]]  # of a ``History``
    folder: str = "."  # where its files go, inside the run folder


@register_checkpoint_hooks
class DistillationBrain(sb.Brain):
    """Trains a student on labels and on a teacher's logits.

    All random numbers of a step come from torch's global generator, which is seeded
    with (seed, epoch, step, rank). A run that is killed and resumed therefore ends like
    an uninterrupted one, without a saved generator state.

    Its ``modules`` are ``log_mel``, ``spec_mask`` and ``student``; its ``hparams``:

    - ``student`` and ``loss`` (a ``DistillationLoss``);
    - ``teacher``: a ``StoredTeacher`` or an ``OnlineTeacher``, or None for the plain
      label loss. It is not one of the ``modules``, since these are trained and saved
      in checkpoints;
    - ``mixup``: a ``Mixup`` or None;
    - ``make_stats``: returns a new ``TaggingStats``, which sums up an evaluation;
    - ``lr_schedule``, a function of the epoch, or None for the optimizer's own rate;
    - ``temperature_schedule``, a function of the epoch, or None;
    - ``history``, ``train_logger``, ``seed`` and ``max_unreadable_share``. Any of
      SpeechBrain's loggers can be used, since it is given only numbers;
    - ``output_folder``: if there are checkpoints, ``history.csv`` is written there
      with the numbers of every epoch.

    Batches are ``ClipBatch``. See ``hparams/quickstart.yaml`` for a complete example.

    Arguments
    ---------
    *args, **kwargs
        Arguments of ``speechbrain.Brain``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skipped = SkippedClips(self.hparams.max_unreadable_share)
        self.train_stream: ClipStream | None = None
        self.place = PlaceInEpoch()
        self.scores: Scores | None = None
        self.cautions: set[str | None] = {None}
        self.evaluates = "test"  # or "valid": the clips that ``evaluate`` is given
        self.loaded_epoch = 0  # the epoch whose weights ``evaluate`` scores
        self.train_losses = RunningLoss()  # of the epoch so far, in this process
        self.stage_losses = self.train_losses
        # Groups of parameters with rates of their own, set by subclasses
        self._groups: list[dict[str, Any]] | None = None
        # (sum, clips) of each process, set while a checkpoint within an epoch is saved
        self.saved_losses: list[list[float]] = []

    def trained(self) -> list[Trained]:
        """Returns the trained models; call it after an evaluation."""
        assert self.scores is not None  # an evaluation sets them
        taught = "without teacher" if self.hparams.teacher is None else "with teacher"
        epochs = self.hparams.history.epochs
        return [Trained(f"student {taught}", self.hparams.student, self.scores, epochs)]

    # --- Batches ----------------------------------------------------------------

    def compute_forward(
        self, batch: ClipBatch, stage: sb.Stage
    ) -> tuple[StudentOutput, TeacherInput]:
        """Computes the student's output, and returns it with the log-mels."""
        log_mel = self.modules.log_mel(batch.waveform.to(self.device))  # [B, F, T]
        mix = shift = None
        if stage == TRAIN:
            log_mel, batch, shift = self._moved(log_mel, batch)
            log_mel = self.modules.spec_mask(log_mel)
            log_mel, mix = self._mixed(log_mel, batch)
        output = self._on_device(self.modules.student, stage)(log_mel.unsqueeze(1))
        return output, TeacherInput(batch, log_mel, mix, shift)

    def _moved(
        self, log_mel: Tensor, batch: ClipBatch
    ) -> tuple[Tensor, ClipBatch, Shift | None]:
        """Moves log-mels in time, with what belongs to their frames; here, it does not.

        A shift of whole clips can stand in the place of ``spec_mask``.
        """
        return log_mel, batch, None

    def _mixed(self, log_mel: Tensor, batch: ClipBatch) -> tuple[Tensor, Mix | None]:
        """Mixes the log-mels of a batch, if there is a ``mixup``."""
        del batch
        mixup = self.hparams.mixup
        return (log_mel, None) if mixup is None else mixup(log_mel)

    def compute_objectives(
        self,
        predictions: tuple[StudentOutput, TeacherInput],
        batch: ClipBatch,
        stage: sb.Stage,
    ) -> Tensor:
        """Computes the distillation loss in training, the label loss in evaluation."""
        output, inputs = predictions
        labels = self._labels(inputs)
        if stage != TRAIN:
            self.some_labelled |= bool((batch.labelled > 0).any())
            self.stats.append(
                batch.clip_id, output.logits, batch.labels, batch.labelled
            )
            return self.hparams.loss(output.logits, labels)
        teacher = None
        if self.hparams.teacher is not None:
            answer = self.hparams.teacher(inputs)
            teacher = self.hparams.loss.teacher_target(answer, inputs)
        return self.hparams.loss(output.logits, labels, teacher)

    def _on_device(self, module: torch.nn.Module, stage: sb.Stage) -> torch.nn.Module:
        if stage != TRAIN and isinstance(module, DistributedDataParallel):
            # Processes evaluate unequal numbers of batches, and the forward of DDP
            # would wait for the other processes.
            return module.module
        return module

    def _labels(self, inputs: TeacherInput) -> SoftTarget:
        labels, labelled = inputs.batch.labels, inputs.batch.labelled
        target = SoftTarget(labels.to(self.device), labelled.to(self.device))
        return target.followed(inputs.mix)

    def on_fit_batch_start(self, batch: ClipBatch, should_step: bool) -> None:
        """Seeds the random numbers of this step."""
        rank = int(os.environ.get("RANK", 0))
        entropy = [self.hparams.seed, self.epoch, self.step, rank]
        seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(seed))

    def fit_batch(self, batch: ClipBatch) -> Tensor:
        """Runs one training step; skips a batch without a readable clip."""
        self.skipped.add(batch.skipped, batch.clip_id)
        if not batch.clip_id:
            return torch.tensor(float("nan"))
        loss = super().fit_batch(batch)
        self.stage_losses.add(float(loss), len(batch.clip_id))
        return loss

    def evaluate_batch(self, batch: ClipBatch, stage: sb.Stage) -> Tensor:
        """Runs one evaluation step; skips a batch without a readable clip."""
        self.skipped.add(batch.skipped, batch.clip_id)
        if not batch.clip_id:
            return torch.tensor(float("nan"))
        loss = super().evaluate_batch(batch, stage)
        self.stage_losses.add(float(loss), len(batch.clip_id))
        return loss

    def update_average(self, loss: Tensor, avg_loss: float) -> float:
        """Returns the mean over the clips so far; SpeechBrain averages batch means."""
        del loss, avg_loss
        return self.stage_losses.mean

    def init_optimizers(self) -> None:
        """Makes an optimizer, whose groups may have learning rates of their own."""
        if self._groups is None:
            super().init_optimizers()
            return
        self.optimizer = self.opt_class(self._groups)
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    # --- Epochs -----------------------------------------------------------------

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Sets what depends only on the epoch, so that a resume needs no state."""
        self.stats = self.hparams.make_stats()
        self.stats.logits = True
        self.some_labelled = False
        if stage != TRAIN:
            self.stage_losses = RunningLoss()
            self._agree_on_buffers()
            return
        self.stage_losses = self.train_losses  # not empty if an epoch is resumed
        assert epoch is not None  # SpeechBrain counts training epochs from 1
        self.epoch = epoch
        if self.place.draws is not None:
            self.place.draws.start = self.place.clips_before
        rate = self.optimizer.defaults["lr"]
        if self.hparams.lr_schedule is not None:
            rate = self.hparams.lr_schedule(epoch - 1)
        self._set_rate(rate)
        if self.hparams.temperature_schedule is not None:
            temperature = self.hparams.temperature_schedule(epoch - 1)
            self.hparams.student.set_temperature(temperature)
        if self.train_stream is not None:
            self.train_stream.set_epoch(epoch)

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def on_stage_end(
        self, stage: sb.Stage, stage_loss: float, epoch: int | None = None
    ) -> None:
        """Computes the scores of an evaluation; logs and saves a finished epoch."""
        self.skipped.finish_pass()
        stage_loss = _sum_of(self._losses_of_processes()).mean
        if stage == TRAIN:
            self.train_loss = stage_loss
            self.train_losses = RunningLoss()
            self.place.begin()
            return
        self.stats.gather()
        self.scores = self.stats.summarize()
        # The label loss of clips without labels is 0, which would look perfect.
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
        """Logs scores of test clips that ``evaluate`` did not compute."""
        self.evaluates = "test"
        self._log_evaluation(self._numbers(scores))

    def _log_evaluation(self, numbers: dict[str, float]) -> None:
        # Every process calls this; the logger itself logs only in the first one.
        self.hparams.train_logger.log_stats(
            stats_meta={"epoch loaded": self.loaded_epoch},
            verbose=False,
            **{f"{self.evaluates}_stats": numbers},
        )

    def _fit_valid(self, valid_set: Any, epoch: int, enable: bool) -> None:
        """Like ``Brain``, but also finishes an epoch without validation clips."""
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
        """Averages to save for an epoch; the main one selects the best checkpoint."""
        return scores.averages()

    def _numbers(self, scores: Scores) -> dict[str, float]:
        """Returns the numbers of scores that the logger and the history get."""
        counts = {"num_clips": scores.num_clips, "num_classes": scores.num_classes}
        return self._averages(scores) | counts

    def _log_line(self, what: str, losses: dict[str, float]) -> None:
        """Logs a line for people, whichever logger the numbers go to."""
        if not if_main_process():
            return
        listed = "".join(f", {name} {loss:.4g}" for name, loss in losses.items())
        if self.scores is None:
            logger.info("%s%s", what, listed)
        else:
            logger.info("%s%s: %s", what, listed, self.scores.line())
            if (sentence := caution(self.scores)) not in self.cautions:
                self.cautions.add(sentence)  # logged once, not in each epoch
                logger.info("Caution: %s", sentence)

    def _write_history(self) -> None:
        if self.checkpointer is not None and if_main_process():
            folder = Path(self.hparams.output_folder)
            self.hparams.history.write_csv(folder / "history.csv")

    def on_fit_start(self) -> None:
        """Like ``Brain``; also cleans up the run folder of a resumed run.

        This rewrites ``history.csv`` to match the loaded epochs, deletes superseded
        checkpoints that a kill left behind, and reports a changed number of clips per
        step.
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
        """Like ``Brain``, but the history keeps the epochs after the loaded one."""
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
        """Makes SpeechBrain's loader for clips; processes share an evaluation."""
        loader_kwargs.setdefault("collate_fn", collate)
        streaming = isinstance(dataset, ClipStream)
        if stage == TRAIN:
            if streaming:
                self.train_stream = dataset
                self._keep_to_whole_epochs()
            elif isinstance(loader_kwargs.get("sampler"), Draws):
                ckpt_prefix = None  # ``place`` saves the position, counted in clips
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
        self.train_sampler = draws  # SpeechBrain sets its epoch
        return loader_kwargs

    def _keep_to_whole_epochs(self) -> None:
        self.ckpt_interval_minutes = self.ckpt_interval_steps = 0
        logger.warning(
            "The training data is a stream, whose position is not saved: an "
            "interrupted run resumes at the start of the interrupted epoch"
        )

    def _should_save_intra_epoch_ckpt(self, *args: Any) -> bool:
        # Checkpoints do not hold accumulated gradients.
        if self.step % self.grad_accumulation_factor:
            return False
        return super()._should_save_intra_epoch_ckpt(*args)

    def _wrap_distributed(self) -> None:
        if not self.distributed_launch or self.device != "cpu":
            super()._wrap_distributed()
            return
        # SpeechBrain's would synchronise the batch norms, which works only on GPUs.
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
        super()._save(path)  # writes YAML, in the first process only
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
        else:  # saved with another number of processes
            self.train_losses = _sum_of(saved) if rank == 0 else RunningLoss()
        self.avg_train_loss = self.train_losses.mean

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.rank, _num_processes()) if self.distributed_launch else (0, 1)

    def _losses_of_processes(self) -> list[list[float]]:
        losses = self.stage_losses
        return self._of_processes([losses.total, losses.num_clips])

    def _of_processes(self, values: list[float]) -> list[list[float]]:
        """Gathers the values of each process in every process."""
        if not self.distributed_launch:
            return [values]
        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        gathered = [torch.empty_like(own) for _ in range(_num_processes())]
        torch.distributed.all_gather(gathered, own)
        return [part.tolist() for part in gathered]

    def _agree_on_buffers(self) -> None:
        """Copies the batch-norm statistics of the first process to the others."""
        if self.distributed_launch:
            for buffer in self.modules.buffers():
                torch.distributed.broadcast(buffer, src=0)


def _sum_of(losses: list[list[float]]) -> RunningLoss:
    """Adds up (sum, clips) of all processes."""
    totals, counts = zip(*losses, strict=True) if losses else ((), ())
    return RunningLoss(sum(totals), int(sum(counts)))


def _num_processes() -> int:
    return torch.distributed.get_world_size()
