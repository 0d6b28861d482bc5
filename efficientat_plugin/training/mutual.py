"""Trains two students that teach each other."""

import logging
from collections.abc import Sequence
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from torch import Tensor

from efficientat_plugin.contracts import (
    ClipBatch,
    StudentOutput,
    TeacherInput,
    TeacherTarget,
)
from efficientat_plugin.evaluation.metrics import Scores
from efficientat_plugin.evaluation.report import OF_BOTH
from efficientat_plugin.training.brain import TRAIN, DistillationBrain, Trained

logger = logging.getLogger(__name__)

PEER = "peer_"  # prefix of the peer's numbers


class MutualBrain(DistillationBrain):
    """A ``DistillationBrain`` for two students, each of which teaches the other.

    Both take the same log-mels, and each is trained on the labels and on the other's
    logits, which are detached: the loss is the sum of two distillation losses.
    Checkpoints hold both students, and the best of either is kept.

    Its ``modules`` and ``hparams`` also have a ``peer``, and its ``hparams`` a
    ``peer_lr_scale``, the peer's learning rate as a multiple of the student's. A
    ``teacher`` in the ``hparams`` is ignored.

    Source: Zhang et al., "Deep Mutual Learning", CVPR 2018, section 3.2, with the loss
    of Gong et al., "CMKD", 2022.

    Arguments
    ---------
    *args, **kwargs
        Arguments of ``speechbrain.Brain``.
    """

    peer_scores: Scores

    def trained(self) -> list[Trained]:
        """Returns both models, each named with its teacher."""
        own, peer = self.hparams.student, self.hparams.peer
        names = type(own).__name__, type(peer).__name__
        if names[0] == names[1]:
            names = f"{names[0]} (student)", f"{names[1]} (peer)"
        epochs = self.hparams.history.epochs
        [student] = super().trained()
        # The training loss is the sum for both students, so it belongs to neither.
        of_student = [
            {OF_BOTH if name == "train_loss" else name: value for name, value in each}
            for each in map(dict.items, epochs)
        ]
        of_peer = [
            {name: epoch[name] for name in ("epoch", "num_clips", "num_classes")}
            | {
                name.removeprefix(PEER): value
                for name, value in epoch.items()
                if name.startswith(PEER)
            }
            for epoch in epochs
        ]
        return [
            student._replace(
                name=f"{names[0]} taught by {names[1]}", epochs=of_student
            ),
            Trained(
                f"{names[1]} taught by {names[0]}",
                peer,
                self.peer_scores,
                of_peer,
                folder="peer",
            ),
        ]

    def compute_forward(  # type: ignore[override]
        self, batch: ClipBatch, stage: sb.Stage
    ) -> tuple[StudentOutput, StudentOutput, TeacherInput]:
        """Computes the outputs of both, and returns them with the log-mels."""
        output, inputs = super().compute_forward(batch, stage)
        peer = self._on_device(self.modules.peer, stage)
        return output, peer(inputs.log_mel.unsqueeze(1)), inputs

    def compute_objectives(  # type: ignore[override]
        self,
        predictions: tuple[StudentOutput, StudentOutput, TeacherInput],
        batch: ClipBatch,
        stage: sb.Stage,
    ) -> Tensor:
        """Computes both losses in training, else the label loss of the student."""
        output, peer_output, inputs = predictions
        labels = self._labels(inputs)
        if stage != TRAIN:
            self.some_labelled |= bool((batch.labelled > 0).any())
            known = batch.labels, batch.labelled
            self.stats.append(batch.clip_id, output.logits, *known)
            self.peer_stats.append(batch.clip_id, peer_output.logits, *known)
            return self.hparams.loss(output.logits, labels)
        loss = self.hparams.loss
        own_loss = loss(output.logits, labels, self._as_target(peer_output))
        return own_loss + loss(peer_output.logits, labels, self._as_target(output))

    def _as_target(self, output: StudentOutput) -> Any:
        logits = output.logits.detach()
        known = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        return self.hparams.loss.soft_target(TeacherTarget(logits, known))

    def init_optimizers(self) -> None:
        """Makes one optimizer for both, each with its own learning rate."""
        groups: Sequence[dict[str, Any]] = [
            {"params": [*self.hparams.student.parameters()]},
            {
                "params": [*self.hparams.peer.parameters()],
                "lr_scale": self.hparams.peer_lr_scale,
            },
        ]
        self.optimizer = self.opt_class(groups)
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Like ``DistillationBrain``, with statistics of the peer as well."""
        super().on_stage_start(stage, epoch)
        self.peer_stats = self.hparams.make_stats()
        self.peer_stats.logits = True

    def on_stage_end(
        self, stage: sb.Stage, stage_loss: float, epoch: int | None = None
    ) -> None:
        """Like ``DistillationBrain``, but scores the peer as well."""
        if stage != TRAIN:
            self.peer_stats.gather()
            self.peer_scores = self.peer_stats.summarize()
            if if_main_process():
                logger.info("The peer: %s", self.peer_scores.line())
        super().on_stage_end(stage, stage_loss, epoch)

    def _averages(self, scores: Scores) -> dict[str, float]:
        peer = self.peer_scores.averages()
        return scores.averages() | {f"{PEER}{name}": n for name, n in peer.items()}
