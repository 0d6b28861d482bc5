"""The inference form: the same answers, from fewer operations."""

import pytest
import torch
from torch import nn

from efficientat_plugin.pretrained.weights import load_student
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.inference_form import (
    CLIPS_PER_CALL,
    InferenceForm,
    inference_form,
)
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.passt import PaSST


def trained(student):
    """With batch norms that do something, as after a training."""
    generator = torch.Generator().manual_seed(0)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, least in (
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
                (module.weight.data, 0.5),
                (module.bias.data, -0.5),
            ):
                value.copy_(least + torch.rand(value.shape, generator=generator))
    for parameter in student.parameters():  # that of a DyReLU begins at nothing
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.02 * noise
    return student.eval()


STUDENTS = {
    "mn": lambda: MN(7, width=0.2),
    "mn without gates": lambda: MN(7, width=0.1, se_dims="none"),
    "mn with three gates": lambda: MN(
        7, width=0.1, se_dims="cft", n_mels=64, n_frames=90
    ),
    "mn dilated": lambda: MN(7, width=0.1, dilated=True, head="linear"),
    "mn fully convolutional": lambda: MN(7, width=0.1, head="fully_convolutional"),
    "mn attention": lambda: MN(7, width=0.1, head="multihead_attention_pooling"),
    "dymn": lambda: DyMN(7, width=0.2, temperature=3.0),
    "dymn where mn has gates": lambda: DyMN(7, width=0.1, dynamic_blocks="replace_se"),
    "dymn of static convolutions": lambda: DyMN(7, width=0.1, use_dyconv=False),
    "dymn of static activations": lambda: DyMN(7, width=0.1, use_dyrelu=False),
    "dymn of three lines": lambda: DyMN(7, width=0.1, dyrelu_k=3),
    "dymn without gates": lambda: DyMN(7, width=0.1, use_coordinate_attention=False),
    "dymn dilated": lambda: DyMN(7, width=0.1, dilated=True, reduced_tail=True),
    "passt": lambda: PaSST(
        7, 64, num_frames=90, embed_dim=32, depth=1, num_heads=2
    ).eval(),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_inference_form_answers_as_the_student(name):
    torch.manual_seed(0)
    student = trained(STUDENTS[name]())
    log_mel = torch.randn(CLIPS_PER_CALL + 2, 1, 64, 90)
    form = inference_form(student)
    with torch.inference_mode():
        for clips in (log_mel, log_mel[:1]):
            expected, found = student(clips), form(clips)
            for old, new in zip(expected, found, strict=True):
                scale = old.abs().max().clamp(min=1)
                torch.testing.assert_close(new / scale, old / scale, atol=1e-5, rtol=0)
            assert expected.logits.std() > 1e-3  # not all alike


@pytest.mark.parametrize("name", ["mn", "dymn"])
def test_no_batch_norm_is_left(name):
    student = trained(STUDENTS[name]())
    before = {name: value.clone() for name, value in student.state_dict().items()}
    form = inference_form(student)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in form.modules())
    assert not any(parameter.requires_grad for parameter in form.parameters())
    for key, value in student.state_dict().items():  # the student is left alone
        assert torch.equal(value, before[key])
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_published_checkpoint_answers_alike(shared):
    student = load_student(shared / "checkpoints" / "mn04_as_mAP_432.pt")
    log_mel = torch.randn(3, 1, 128, 1000)
    with torch.inference_mode():
        found = inference_form(student)(log_mel).logits.sigmoid()
        expected = student(log_mel).logits.sigmoid()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_large_batch_is_computed_in_small_ones():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes = []
            self.student = MN(2, width=0.1).eval()

        def forward(self, log_mel):
            self.sizes.append(len(log_mel))
            return self.student(log_mel)

    counting = Counting()
    InferenceForm(counting)(torch.zeros(2 * CLIPS_PER_CALL + 1, 1, 64, 40))
    assert counting.sizes == [CLIPS_PER_CALL, CLIPS_PER_CALL, 1]
