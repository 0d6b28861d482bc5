"""Training that goes on from weights: which of them move, how fast, and until when."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from efficientat_plugin.brain import DistillationBrain
from efficientat_plugin.contracts import ClipBatch
from efficientat_plugin.embeddings import stages
from efficientat_plugin.metrics import Scores
from efficientat_plugin.students.student import Student

TRAINABLE = ("all", "head")


def layerwise_groups(
    student: Student, layer_decay: float = 1.0, trainable: str = "all"
) -> list[dict[str, Any]]:
    """Groups of parameters for an optimizer, the earlier the slower.

    Arguments
    ---------
    student : Student
    layer_decay : float
        Learning rate of a stage as a share of the next one's, above 0 and at most 1:
        stem, blocks and last convolution are 17 stages, and the head learns at full
        rate.
    trainable : str
        "all", or "head": the rest is frozen.

    Returns
    -------
    list of dict
        With ``params`` and ``lr_scale``, which ``DistillationBrain`` heeds.

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
        raise ValueError(f"trainable={trainable!r}; it is one of {TRAINABLE}")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} must be above 0 and at most 1")
    body = stages(student)
    for stage in body:
        stage.requires_grad_(trainable == "all")
    groups = [{"params": [*student.classifier.parameters()], "lr_scale": 1.0}]
    if trainable == "all":
        for depth, stage in enumerate(reversed(body), start=1):
            scale = layer_decay**depth
            groups.append({"params": [*stage.parameters()], "lr_scale": scale})
    return groups[::-1]


def batch_norms(student: Student) -> Iterator[nn.Module]:
    """The batch norms of a student."""
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            yield module


class FineTuningBrain(DistillationBrain):
    """``DistillationBrain`` from weights; its ``hparams`` have, besides:

    - ``layer_decay`` and ``trainable``: of ``layerwise_groups``;
    - ``freeze_batch_norm``: whether batch norms keep the statistics they came with;
    - ``epoch_counter``: an ``EpochCounterWithStopper``, told the validation score.

    Arguments
    ---------
    *args, **kwargs
        Of ``speechbrain.Brain``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.start_scores: Scores | None = None  # of the validation clips, if known
        # Here, since what is frozen must be so before processes share the student.
        self._groups = layerwise_groups(
            self.hparams.student, self.hparams.layer_decay, self.hparams.trainable
        )

    def score_start(self, valid_set: Any, loader_options: dict[str, Any]) -> None:
        """Scores what training begins with, which is kept if no epoch does better."""
        self.evaluates = "valid"
        self.evaluate(valid_set, test_loader_kwargs=loader_options)
        self.evaluates = "test"
        self.start_scores = self.scores

    def on_fit_start(self) -> None:
        """As ``Brain``; what training begins with is a checkpoint to choose from."""
        super().on_fit_start()
        if self.checkpointer is not None and self.start_scores is not None:
            main = self.start_scores.main
            meta = {"epoch": 0, main: self.start_scores.averages()[main]}
            self.checkpointer.save_checkpoint(meta=meta)

    def init_optimizers(self) -> None:
        """An optimizer whose groups learn at rates of their own."""
        self.optimizer = self.opt_class(self._groups)
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def on_fit_batch_start(self, batch: ClipBatch, should_step: bool) -> None:
        """As ``DistillationBrain``; what is frozen does not even count along."""
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
        self, epoch: int | None, valid_losses: dict[str, float], scores: Scores
    ) -> None:
        # Before the checkpoint, which keeps how long nothing has improved.
        self.hparams.epoch_counter.update_metric(scores.averages()[scores.main])
        super()._finish_epoch(epoch, valid_losses, scores)
