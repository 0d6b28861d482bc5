"""Prepares students for runs of a few hundred steps."""

import math

import torch

from efficientat_plugin.students.frame_student import FrameStudent
from efficientat_plugin.students.student import Student


def prepare_for_short_run(
    student: Student, prior: float, batch_norm_momentum: float = 0.1
) -> None:
    """Starts a student where its first few hundred steps would bring it.

    With many classes, nearly all are absent from any clip, so the bias of the class
    layer starts at the log-odds of ``prior`` instead of 0. The published batch norms
    average over hundreds of steps; here their statistics adapt faster.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section
    4.1, for the prior.

    Arguments
    ---------
    student : Student
        With a linear class layer: an mlp or linear head, or a PaSST; or one that
        scores frames, of which both layers start so.
    prior : float
        Expected share of clips that have a class, between 0 and 1.
    batch_norm_momentum : float
        Weight of the newest batch in the running statistics, above 0 and at most 1.

    Raises
    ------
    ValueError
        For numbers out of range, and for other heads.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> student = MN(num_classes=2, width=0.1)
    >>> prepare_for_short_run(student, prior=0.5)
    >>> student.classifier[5].bias
    Parameter containing:
    tensor([0., 0.], requires_grad=True)
    """
    if not 0 < prior < 1 or not 0 < batch_norm_momentum <= 1:
        raise ValueError(
            f"prior={prior} must be between 0 and 1, and batch_norm_momentum="
            f"{batch_norm_momentum} above 0 and at most 1"
        )
    layers = [student.class_layer()]
    if isinstance(student, FrameStudent):
        layers.append(student.strong_head)
    for layer in layers:
        torch.nn.init.constant_(layer.bias, math.log(prior / (1 - prior)))
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = batch_norm_momentum
