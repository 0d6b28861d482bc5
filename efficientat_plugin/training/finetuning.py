"""Fine-tuning of trained weights: which of them learn, how fast, and for how long."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from efficientat_plugin.contracts import ClipBatch
from efficientat_plugin.evaluation.metrics import Scores
from efficientat_plugin.students.student import Student
from efficientat_plugin.training.brain import DistillationBrain
from efficientat_plugin.training.probe import Probe

TRAINABLE = ("all", "head")
CLASS_LAYERS = ("new", "probe")  # to start training from
# With fewer clips per class than this, a probe may be enough, if it gets at least this
# share of held-out clips right.
FEWEST_CLIPS_PER_CLASS = 5
SHARE_RIGHT = 0.5
# Share of the clips that the epoch is chosen on: with many and with few clips
VALID_SHARE, FEW_VALID_SHARE, FEW_CLIPS_PER_CLASS = 0.15, 0.25, 30
FEW_GROUPS = 7  # with fewer, a single group is more than VALID_SHARE
# See `epochs_for`
NUM_STEPS = 1500
FEWEST_EPOCHS, MOST_EPOCHS = 5, 80


def epochs_for(num_clips: int, batch_size: int) -> int:
    """Returns the number of epochs of fine-tuning for the setting "auto".

    It gives about 1500 steps, but at least 5 and at most 80 epochs.

    Arguments
    ---------
    num_clips : int
        Number of training clips.
    batch_size : int
        Clips per step.

    Returns
    -------
    int

    Example
    -------
    >>> epochs_for(200, 32), epochs_for(1500, 32), epochs_for(100_000, 32)
    (80, 32, 5)
    """
    steps_per_epoch = math.ceil(num_clips / batch_size)
    epochs = round(NUM_STEPS / steps_per_epoch)
    return min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS)


class Plan(NamedTuple):
    """Epochs of a run, and the share of its clips to choose one of them on."""

    epochs: int
    valid_share: float
    why: str


def plan_epochs(
    num_clips: int,
    num_classes: int,
    batch_size: int,
    num_groups: int | None = None,
    fit: Callable[[], Probe] | None = None,
) -> Plan:
    """Plans the epochs and the validation clips of fine-tuning from the data.

    With few clips per class, a probe that classifies held-out clips correctly is hard
    to beat. Where it does not, the network has to learn new features and needs every
    clip for that, so no clips are held out for validation.

    Arguments
    ---------
    num_clips : int
        Training clips, of which none is held out yet.
    num_classes : int
        K.
    batch_size : int
        Clips per step.
    num_groups : int or None
        Groups of clips that are not divided; None: each clip is one.
    fit : Callable or None
        Fits a probe to the clips; called if there are few. None: there is no probe.

    Returns
    -------
    Plan

    Example
    -------
    >>> plan_epochs(8, 2, 32, fit=lambda: Probe(10.0, share_right=0.9))[:2]
    (0, 0.0)
    >>> plan_epochs(8, 2, 32, fit=lambda: Probe(10.0, share_right=0.4))[:2]
    (80, 0.0)
    >>> plan_epochs(2000, 10, 32)
    Plan(epochs=24, valid_share=0.15, why='for 2000 clips of 10 classes')
    """
    why = f"for {num_clips} clips of {num_classes} classes"
    epochs = epochs_for(num_clips, batch_size)
    few = num_clips < FEW_CLIPS_PER_CLASS * num_classes
    few = few or (num_groups is not None and num_groups < FEW_GROUPS)
    share = FEW_VALID_SHARE if few else VALID_SHARE
    if not few or fit is None:
        return Plan(epochs, share, why)
    share_right = fit().share_right
    if share_right is not None:
        why += f"; a probe classifies {share_right:.0%} of held-out clips correctly"
        if share_right < SHARE_RIGHT:
            return Plan(epochs, 0.0, f"{why}, so every clip is used for training")
    if num_clips < FEWEST_CLIPS_PER_CLASS * num_classes:
        return Plan(0, 0.0, f"{why}: only a probe is fitted")
    return Plan(epochs, share, why)


def standard_error(score: float, num_clips: int) -> float:
    """Returns the standard error of a share of clips, such as an accuracy.

    Two hits and two misses are added, so that even a share of 1 has an error.

    Source: Agresti and Coull, "Approximate Is Better than 'Exact' for Interval
    Estimation of Binomial Proportions", The American Statistician 52, 1998.

    Arguments
    ---------
    score : float
        From 0 to 1.
    num_clips : int
        Clips that the share is computed on.

    Returns
    -------
    float

    Example
    -------
    >>> round(standard_error(0.5, 96), 3), round(standard_error(1.0, 96), 3)
    (0.05, 0.014)
    """
    total = num_clips + 4
    share = (score * num_clips + 2) / total
    return math.sqrt(share * (1 - share) / total)


def weights_to_keep(start: float, best: float, newest: float, num_clips: int) -> str:
    """Chooses between the weights before training, the best and the newest epoch.

    Validation clips are often easier than later use. If epochs differ by chance alone,
    the newest has been trained the longest and at the lowest rate: it is kept if it is
    within a standard error of the best. The model from before training is kept unless
    an epoch beats it by more than a standard error.

    Arguments
    ---------
    start, best, newest : float
        Their shares of validation clips that are right, from 0 to 1.
    num_clips : int
        Number of validation clips.

    Returns
    -------
    str
        "start", "best" or "newest".

    Example
    -------
    >>> weights_to_keep(0.5, 1.0, 0.995, 200), weights_to_keep(0.95, 0.955, 0.955, 200)
    ('newest', 'start')
    """
    if best <= start + standard_error(start, num_clips):
        return "start"
    as_good = newest >= best - standard_error(best, num_clips)
    return "newest" if as_good else "best"


def seconds_per_step(
    log_mel: nn.Module,
    student: Student,
    batch_size: int,
    num_samples: int,
    device: str | torch.device = "cpu",
) -> float:
    """Measures the time of a training step on this machine, on a copy of the student.

    Arguments
    ---------
    log_mel : LogMel
    student : Student
    batch_size : int
        Clips per step.
    num_samples : int
        N, samples per clip.
    device : str or torch.device

    Returns
    -------
    float
        Seconds, without the time for reading the clips.

    Example
    -------
    >>> from efficientat_plugin.features import LogMel
    >>> from efficientat_plugin.students.mn import MN
    >>> seconds_per_step(LogMel(), MN(2, width=0.1), 2, 16000) > 0
    True
    """
    front_end = copy.deepcopy(log_mel).to(device)
    trained = copy.deepcopy(student).to(device).train().requires_grad_(True)
    waveform = torch.zeros(batch_size, num_samples, device=device)
    start = 0.0
    with torch.random.fork_rng():  # dropout must not change the run's random numbers
        for _ in range(2):  # half of the first step is spent on preparation
            start = time.monotonic()
            trained(front_end(waveform).unsqueeze(1)).logits.sum().backward()
            trained.zero_grad()
            if waveform.is_cuda:
                torch.cuda.synchronize(device)
    return time.monotonic() - start


def layerwise_groups(
    student: Student, layer_decay: float = 1.0, trainable: str = "all"
) -> list[dict[str, Any]]:
    """Groups parameters for an optimizer, so that earlier stages learn more slowly.

    Arguments
    ---------
    student : Student
    layer_decay : float
        Learning rate of a stage as a share of the next one's, above 0 and at most 1.
        Stem, blocks and last convolution are 17 stages; the head learns at the full
        rate.
    trainable : str
        "all", or "head" to freeze the rest.

    Returns
    -------
    list of dict
        With ``params`` and ``lr_scale``, which ``DistillationBrain`` applies.

    Raises
    ------
    ValueError
        For options out of range.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> groups = layerwise_groups(MN(2, width=0.1), layer_decay=0.5)
    >>> [group["lr_scale"] for group in groups][-3:]
    [0.25, 0.5, 1.0]
    """
    if trainable not in TRAINABLE:
        raise ValueError(f"trainable={trainable!r} must be one of {TRAINABLE}")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} must be above 0 and at most 1")
    body = student.stages()
    for stage in body:
        stage.requires_grad_(trainable == "all")
    groups = [{"params": [*student.classifier.parameters()], "lr_scale": 1.0}]
    if trainable == "all":
        for depth, stage in enumerate(reversed(body), start=1):
            scale = layer_decay**depth
            groups.append({"params": [*stage.parameters()], "lr_scale": scale})
    return groups[::-1]


def batch_norms(student: Student) -> Iterator[nn.Module]:
    """Yields the batch norms of a student."""
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            yield module


class FineTuningBrain(DistillationBrain):
    """A ``DistillationBrain`` that starts from trained weights.

    Its ``hparams`` also have:

    - ``layer_decay`` and ``trainable``: see ``layerwise_groups``;
    - ``freeze_batch_norm``: whether batch norms keep the statistics of the weights;
    - ``class_layer_start``: the state of the class layer to start training from, or
      None to keep the student's;
    - ``epoch_counter``: an ``EpochCounterWithStopper``, which is updated with the
      validation score.

    Arguments
    ---------
    *args, **kwargs
        Arguments of ``speechbrain.Brain``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.start_scores: Scores | None = None  # of the validation clips, if known
        # Here, since parameters must be frozen before DDP wraps the student.
        self._groups = layerwise_groups(
            self.hparams.student, self.hparams.layer_decay, self.hparams.trainable
        )

    def score_start(self, valid_set: Any, loader_options: dict[str, Any]) -> None:
        """Scores the student before training; it is kept if no epoch is better."""
        self.evaluates = "valid"
        self.evaluate(valid_set, test_loader_kwargs=loader_options)
        self.evaluates = "test"
        self.start_scores = self.scores

    def on_fit_start(self) -> None:
        """Like ``Brain``, but also saves the student before training as a checkpoint.

        This student may have a probe as its class layer, even if training starts with
        another one.
        """
        super().on_fit_start()
        if self.checkpointer is not None and self.start_scores is not None:
            main = self.start_scores.main
            meta = {"epoch": 0, main: self.start_scores.averages()[main]}
            self.checkpointer.save_checkpoint(meta=meta)
        begins = self.hparams.epoch_counter.current == 0
        if begins and self.hparams.class_layer_start is not None:
            layer = self.hparams.student.class_layer()
            layer.load_state_dict(self.hparams.class_layer_start)

    def on_fit_batch_start(self, batch: ClipBatch, should_step: bool) -> None:
        """Like ``DistillationBrain``; also keeps frozen parts in evaluation mode."""
        super().on_fit_batch_start(batch, should_step)
        # Here, since SpeechBrain sets all modules to training after on_stage_start.
        student = self.hparams.student
        if self.hparams.trainable == "head":
            student.eval()
            student.classifier.train()
        if self.hparams.freeze_batch_norm:
            for norm in batch_norms(student):
                norm.eval()

    def _finish_epoch(
        self, epoch: int | None, valid_losses: dict[str, float], scores: Scores | None
    ) -> None:
        # Before the checkpoint, which saves the number of epochs without improvement.
        if scores is not None:
            self.hparams.epoch_counter.update_metric(scores.averages()[scores.main])
        super()._finish_epoch(epoch, valid_losses, scores)
