"""Makes students faster for inference, with the same outputs.

In evaluation a batch norm is a scale and a shift, which can be folded into the
convolution before it. The folded student then runs in the memory layout, and on the
number of clips at once, that is fastest on a CPU, and each convolution there applies
its activation, or adds the residual, by itself.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from efficientat_plugin.contracts import StudentOutput
from efficientat_plugin.students.blocks import (
    ConcurrentSqueezeExcite,
    ConvNormActivation,
    InvertedResidual,
)
from efficientat_plugin.students.cpu.fused import FusedConv2d, PackedLinear, is_fused
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.dynamic import (
    ContextGenerator,
    DynamicConv,
    DynamicInvertedResidual,
    StaticConv,
)
from efficientat_plugin.students.frame_mn import FrameMN
from efficientat_plugin.students.student import Student
from efficientat_plugin.support.memory import keep_blocks_of_a_few_clips

CLIPS_PER_CALL = 4  # on a CPU; with more, memory is mapped again and again


class InferenceForm(nn.Module):
    """A student for inference only, which is faster; made by `inference_form`.

    Arguments
    ---------
    student : Student
        Already folded by `folded_student`, and perhaps fused by `fuse_`.

    Shape
    -----
    log_mel : [B, 1, F, T]
    logits : [B, K]
    embedding : [B, D]
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, log_mel: Tensor) -> StudentOutput:
        """Computes logits and embeddings: [B, 1, F, T] -> [B, K], [B, D]."""
        if log_mel.device.type != "cpu" or len(log_mel) <= CLIPS_PER_CALL:
            return self.student(log_mel)
        parts = [self.student(clips) for clips in log_mel.split(CLIPS_PER_CALL)]
        joined = (torch.cat(part) for part in zip(*parts, strict=True))
        return type(parts[0])(*joined)  # a FrameOutput, if the student gives one


def folded_student(student: Student) -> Student:
    """Copies a student and folds its batch norms into the convolutions before them.

    Up to rounding, the copy gives the same output as the student in evaluation mode; it
    cannot be trained.

    Arguments
    ---------
    student : Student

    Returns
    -------
    Student
        Of the same class, with a different state dict.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> student = MN(num_classes=3, width=0.1).eval()
    >>> log_mel = torch.randn(2, 1, 128, 100)
    >>> torch.allclose(
    ...     folded_student(student)(log_mel)[0], student(log_mel)[0], atol=1e-5
    ... )
    True
    """
    student = copy.deepcopy(student).eval()
    for module in list(student.modules()):
        if isinstance(module, ConvNormActivation):
            _fold_into(module, "0", "1")
        elif isinstance(module, ContextGenerator):
            _fold_into(module, "joint_conv", "joint_norm")
        elif isinstance(module, DynamicInvertedResidual):
            for part in ("exp", "depth", "proj"):
                if hasattr(module, f"{part}_conv"):
                    _fold_into(module, f"{part}_conv", f"{part}_norm")
    return student.requires_grad_(False)


def inference_form(student: Student) -> InferenceForm:
    """Returns a copy of a student for inference only.

    Arguments
    ---------
    student : Student

    Returns
    -------
    InferenceForm

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> inference_form(MN(3, width=0.1))(torch.zeros(9, 1, 128, 100)).logits.shape
    torch.Size([9, 3])
    """
    keep_blocks_of_a_few_clips()
    folded = folded_student(student)
    if isinstance(folded, DyMN):  # its few plain convolutions gain nothing
        return InferenceForm(folded)
    return InferenceForm(fuse_(folded))


class FusedResidual(nn.Module):
    """An `InvertedResidual` for inference, which works in place where it can.

    Arguments
    ---------
    block : InvertedResidual
        With `FusedConv2d` for its convolutions.

    Shape
    -----
    maps : [B, in_channels, F, T], overwritten if the block has a residual
    result : [B, out_channels, F', T']
    """

    def __init__(self, block: InvertedResidual) -> None:
        super().__init__()
        *layers, projection = block.block
        self.layers = nn.Sequential(*map(_gate_in_place, layers))
        self.projection: Any = projection
        self.has_residual = block.has_residual

    def forward(self, maps: Tensor) -> Tensor:
        expanded = self.layers(maps)
        if self.has_residual:
            return self.projection.add_to(maps, expanded)
        return self.projection(expanded)


class GateInPlace(nn.Module):
    """Multiplies maps by the gate of a squeeze-excite in place."""

    def __init__(self, squeeze_excite: nn.Module) -> None:
        super().__init__()
        self.squeeze_excite = squeeze_excite

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mul_(self.squeeze_excite(maps))


def fuse_(student: Student) -> Student:
    """Replaces layers of a folded student by ones that are computed in one pass.

    Arguments
    ---------
    student : Student
        Already folded by `folded_student`.

    Returns
    -------
    Student
        The same one.
    """
    for module in list(student.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ConvNormActivation):
                setattr(module, name, _fused(child))
    for module in list(student.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, InvertedResidual) and child.block:
                setattr(module, name, FusedResidual(child))
    if isinstance(student, FrameMN):
        heads: Any = student
        heads.strong_head = PackedLinear(heads.strong_head)
        for module in list(student.seq_model.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear:
                    setattr(module, name, PackedLinear(child))
    return student


def _fused(layers: ConvNormActivation) -> nn.Module:
    """Joins a folded convolution and its activation, if oneDNN knows it."""
    convolution, _, *rest = layers
    activation = rest[0] if rest else nn.Identity()
    if isinstance(convolution, nn.Conv2d) and is_fused(activation):
        return FusedConv2d(convolution, activation)
    return layers


def _gate_in_place(layer: nn.Module) -> nn.Module:
    if isinstance(layer, ConcurrentSqueezeExcite) and len(layer.conc_se_layers) == 1:
        return GateInPlace(layer.conc_se_layers[0])
    return layer


def _fold_into(module: nn.Module, conv_name: str, norm_name: str) -> None:
    """Folds a batch norm into the convolution, and replaces it by an identity."""
    conv: Any = module.get_submodule(conv_name)
    norm: Any = module.get_submodule(norm_name)
    if isinstance(conv, DynamicConv):
        _fold_into_bank(conv, norm)
    elif isinstance(conv, StaticConv):
        conv.module = fuse_conv_bn_eval(conv.module, norm)
    else:
        setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
    setattr(module, norm_name, nn.Identity())


def _fold_into_bank(conv: DynamicConv, norm: Any) -> None:
    """Scales each kernel of the bank, since the mixture of kernels is linear."""
    # In double precision, so that the result is rounded only once.
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    kernels = conv.weight[0, 0].double().unflatten(1, (len(scale), -1))
    scaled = (kernels * scale[:, None]).flatten(1)[None, None]
    conv.weight = nn.Parameter(scaled.to(conv.weight.dtype))
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype))
