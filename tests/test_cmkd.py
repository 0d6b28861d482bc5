"""CNN and transformer teach each other, by YAML alone."""

import json

import numpy as np
import pytest
import speechbrain as sb
import torch
from recipe_runs import arguments_of, run_recipe
from small_rows import EVAL_IDS, TRAIN_IDS, rows_of, write_parquet
from speechbrain.utils.epoch_loop import EpochCounter
from test_brain import CLASSES, Tones, _fit

from efficientat_plugin.cli.load_model import load_tagger
from efficientat_plugin.cost.complexity import count_parameters
from efficientat_plugin.data.clips import collate
from efficientat_plugin.data.mixing import Mixup
from efficientat_plugin.evaluation.metrics import TaggingStats
from efficientat_plugin.features import LogMel, SpecMask
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.support.checkpoints import AtomicCheckpointer
from efficientat_plugin.teachers.load import open_teachers
from efficientat_plugin.training.brain import History
from efficientat_plugin.training.losses import DistillationLoss
from efficientat_plugin.training.mutual import MutualBrain
from efficientat_plugin.training.short_runs import prepare_for_short_run
from efficientat_plugin.training.train_log import PlainTrainLogger

SMALL = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_frames": 51}
SMALL |= {"frequency_stride": 16, "time_stride": 16}
PEERS = ("peer", "peer/model")
PATCHOUT = {"patchout_time": 1, "patchout_frequency": 1}


def _common(parent):
    """The options of all runs."""
    return {
        "dataset": parent / "data",
        "dataset_cache": parent / "cache",
        "train_split": "bal_train",
        "clip_seconds": 0.5,
        "class_balanced": False,
        "clips_per_epoch": 4,
        "batch_size": 4,
        "eval_batch_size": 4,
        "num_workers": 0,
        "number_of_epochs": 1,
        "pretrained": None,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small transformer taught by a CNN, a CNN taught by one, and both at once."""
    parent = tmp_path_factory.mktemp("cmkd")
    torch.manual_seed(0)
    torch.save(MN(527, width=0.1).state_dict(), parent / "cnn.pt")
    torch.save(PaSST(527, **SMALL).state_dict(), parent / "transformer.pt")
    for split, ids in {"bal_train": TRAIN_IDS, "eval": EVAL_IDS}.items():
        rows = [row | {"labels": ["/m/09x0r"]} for row in rows_of(ids)]
        write_parquet(parent / "data" / "data" / split / "0.parquet", rows)
    options = {
        "cmkd_transformer_from_cnn": SMALL
        | PATCHOUT
        | {
            "teacher_name": parent / "cnn.pt",
            "teacher_options": "{n_mels: 128, hop_length: 320}",
        },
        "cmkd_cnn_from_transformer": {
            "width": 0.1,
            "teacher_name": parent / "transformer.pt",
            "teacher_options": "{n_mels: 128, hop_length: 320, time_stride: 16, "
            "num_heads: 2}",
            "compare_without_teacher": True,
        },
        "cmkd_mutual": SMALL | PATCHOUT | {"width": 0.1, "prior": 0.01},
    }
    calls = [
        arguments_of(yaml, output_folder=parent / yaml, **_common(parent) | given)
        for yaml, given in options.items()
    ]
    return parent, run_recipe("audioset_kd", calls)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("yaml", "kind"),
    [("cmkd_transformer_from_cnn", PaSST), ("cmkd_cnn_from_transformer", MN)],
)
def test_either_family_is_taught_by_the_other(runs, yaml, kind):
    parent, printed = runs
    assert "Teacher: it takes the student's log-mel, for 8 clips" in printed
    assert json.loads((parent / yaml / "scores.json").read_text())["num_clips"] == 2
    (saved,) = (parent / yaml / "save").glob("CKPT*/student.ckpt")
    state = torch.load(saved, weights_only=True)
    student = kind(527, **SMALL) if kind is PaSST else kind(527, width=0.1)
    student.load_state_dict(state)
    names = {path.name for path in saved.parent.iterdir()}
    assert not any("teacher" in name for name in names)


@pytest.mark.slow
def test_the_comparison_scores_the_teacher_itself(runs):
    parent, _ = runs
    table = (parent / "cmkd_cnn_from_transformer" / "comparison.md").read_text()
    for row in ("student with teacher", "teacher", "student without teacher"):
        assert f"| {row} |" in table


@pytest.mark.slow
def test_mutual_training_keeps_both(runs):
    parent, _ = runs
    (folder,) = (parent / "cmkd_mutual" / "save").glob("CKPT*")
    MN(527, width=0.1).load_state_dict(
        torch.load(folder / "student.ckpt", weights_only=True)
    )
    PaSST(527, **SMALL).load_state_dict(
        torch.load(folder / "peer.ckpt", weights_only=True)
    )


@pytest.mark.slow
def test_a_transformer_of_mutual_training_teaches(runs):
    """By the checkpoint, the run folder or the model folder, without options."""
    parent, _ = runs
    (peer,) = (parent / "cmkd_mutual" / "save").glob("CKPT*/peer.ckpt")
    network = PaSST(527, **SMALL).eval()
    network.load_state_dict(torch.load(peer, weights_only=True))
    waveform = 0.1 * torch.randn(2, 16000)
    expected = network(LogMel().eval()(waveform).unsqueeze(1)).logits
    for name in (peer, *(parent / "cmkd_mutual" / each for each in PEERS)):
        teacher, labels, target = open_teachers(name)
        torch.testing.assert_close(teacher(waveform).logits, expected)
        assert (len(labels), target) == (527, "multilabel")


@pytest.mark.slow
def test_mutual_training_reports_both_by_who_taught_whom(runs):
    parent, printed = runs
    folder = parent / "cmkd_mutual"
    scores = json.loads((folder / "scores.json").read_text())
    table = (folder / "comparison.md").read_text().splitlines()[2:4]
    assert len(table) == 2 and "student" not in "".join(table)
    kinds = {"MN": MN(527, width=0.1), "PaSST": PaSST(527, **SMALL)}
    for name, other, place in [("MN", "PaSST", "."), ("PaSST", "MN", "peer")]:
        row = f"{name} taught by {other}"
        (line,) = [each for each in table if f"| {row} |" in each]
        cells = [cell.strip() for cell in line.split("|")]
        assert cells[2] == f"{scores[row]['mAP']:.3f}" and f"{row}: mAP" in printed
        assert cells[6] == f"{count_parameters(kinds[name]):,}"
        own = json.loads((folder / place / "scores.json").read_text())
        assert own["mAP"] == scores[row]["mAP"] and own["num_clips"] == 2
        assert (folder / place / "per_class.csv").read_text().count("\n") == 2


@pytest.mark.slow
def test_a_mutual_run_is_evaluated_again_as_it_was(runs):
    parent, _ = runs
    before = (parent / "cmkd_mutual" / "scores.json").read_text()
    options = SMALL | PATCHOUT | {"width": 0.1, "prior": 0.01}
    options |= {"output_folder": parent / "cmkd_mutual"}
    call = arguments_of("cmkd_mutual", **_common(parent) | options)
    run_recipe("audioset_kd", [[*call, "--test_only"]])
    assert (parent / "cmkd_mutual" / "scores.json").read_text() == before


@pytest.mark.slow
def test_a_named_student_has_no_peer(runs):
    """Which would be one that nobody trained."""
    parent, _ = runs
    options = SMALL | PATCHOUT | {"width": 0.1}
    options |= {"output_folder": parent / "named", "pretrained": parent / "cnn.pt"}
    call = arguments_of("cmkd_mutual", **_common(parent) | options)
    run_recipe("audioset_kd", [[*call, "--test_only"]])
    (folder,) = (parent / "named" / "evaluated").iterdir()
    assert "PaSST" not in (folder / "scores.json").read_text()
    assert not (folder / "peer").exists()


MODELS = {
    "cmkd_transformer_from_cnn/model": PaSST,
    "cmkd_cnn_from_transformer/model": MN,
    "cmkd_cnn_from_transformer/without_teacher/model": MN,
    "cmkd_mutual/model": MN,
    "cmkd_mutual/peer/model": PaSST,
}


@pytest.mark.slow
@pytest.mark.parametrize("folder", MODELS)
def test_whatever_was_trained_is_a_model(runs, folder):
    parent, printed = runs
    run = (parent / folder).parent
    name = "peer" if run.name == "peer" else "student"
    saves = (run.parent if name == "peer" else run) / "save"
    (saved,) = saves.glob(f"CKPT*/{name}.ckpt")
    sound = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    predicted = []
    for path in (run, parent / folder, saved):
        tagger = load_tagger(str(path), None, "cpu")
        assert type(tagger.ensemble.members[0].student) is MODELS[folder]
        assert len(tagger.labels) == 527 and tagger.clip_seconds == 0.5
        predicted.append(tagger.probabilities([sound], 32000))
    assert np.array_equal(predicted[0], predicted[1]) and np.array_equal(
        predicted[0], predicted[2]
    )
    assert f"is in {parent / folder}" in printed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "checkpoint", "bare", "unreachable"])
def test_a_transformer_is_evaluated_by_any_name(runs, kind):
    parent, _ = runs
    (saved,) = (parent / "cmkd_mutual" / "save").glob("CKPT*/peer.ckpt")
    source = {
        "run": parent / "cmkd_transformer_from_cnn",
        "checkpoint": saved,
        "bare": parent / "transformer.pt",  # of the sizes in the YAML
        "unreachable": "passt_s_swa_p16_128_ap476",
    }[kind]
    options = SMALL | {"output_folder": parent / kind, "pretrained": source}
    options |= {"pretrained_folder": parent / "no downloads"}
    call = arguments_of("cmkd_transformer_from_cnn", **_common(parent) | options)
    expect = int(kind == "unreachable")
    printed = run_recipe("audioset_kd", [[*call, "--test_only"]], expect=expect)
    if expect:
        assert "HF_HUB_OFFLINE forbids downloads" in printed
        assert "Traceback" not in printed
    else:
        (folder,) = (parent / kind / "evaluated").iterdir()
        assert json.loads((folder / "scores.json").read_text())["num_clips"] == 2


# --- Mutual training ---------------------------------------------------------------


def test_two_of_one_kind_are_distinguished():
    brain, _ = _mutual(peer=MN(CLASSES, width=0.2))
    brain.scores = brain.peer_scores = "some"
    assert [one.name for one in brain.trained()] == [
        "MN (student) taught by MN (peer)",
        "MN (peer) taught by MN (student)",
    ]


def _mutual(folder=None, epochs=1, **overrides):
    torch.manual_seed(0)
    student = MN(CLASSES, width=0.1, dropout=0.0)
    prepare_for_short_run(student, prior=0.25, batch_norm_momentum=0.5)
    options = {"n_mels": 64, "num_frames": 25, "embed_dim": 32, "depth": 1}
    peer = PaSST(CLASSES, num_heads=4, time_stride=16, **options)
    hparams = {
        "student": student,
        "peer": peer,
        "peer_lr_scale": 0.5,
        "loss": DistillationLoss(kd_weight=0.5),
        "teacher": None,
        "mixup": Mixup(0.3),
        "make_stats": TaggingStats,
        "lr_schedule": lambda epoch: 0.004,
        "temperature_schedule": None,
        "history": History(),
        "train_logger": PlainTrainLogger("/dev/null"),
        "output_folder": folder,
        "seed": 0,
        "max_unreadable_share": 0.01,
    } | overrides
    counter = EpochCounter(limit=epochs)
    checkpointer = None
    if folder is not None:
        recoverables = {"student": student, "peer": peer, "epochs": counter}
        recoverables["history"] = hparams["history"]
        checkpointer = AtomicCheckpointer(folder, recoverables)
    brain = MutualBrain(
        modules={
            "log_mel": LogMel(hop_length=640, n_mels=64),
            "spec_mask": SpecMask(),
            "student": student,
            "peer": peer,
        },
        opt_class=lambda parameters: torch.optim.AdamW(parameters, lr=0.004),
        hparams=hparams,
        run_opts={"device": "cpu", "noprogressbar": True, "max_grad_norm": 1e9},
        checkpointer=checkpointer,
    )
    return brain, counter


def test_each_learns_at_its_rate_from_the_others_detached_word():
    brain, counter = _mutual(loss=DistillationLoss(kd_weight=1.0), mixup=None)
    brain.on_fit_start()
    brain.on_stage_start(sb.Stage.TRAIN, 1)
    rates = [group["lr"] for group in brain.optimizer.param_groups]
    assert rates == [0.004, 0.002]
    batch = collate([Tones()[row] for row in range(4)])
    brain.modules.train()
    predictions = brain.compute_forward(batch, sb.Stage.TRAIN)
    output, peer_output, _ = predictions
    loss = brain.compute_objectives(predictions, batch, sb.Stage.TRAIN)
    towards_student, towards_peer = torch.autograd.grad(
        loss, [output.logits, peer_output.logits]
    )
    # With the teacher's word alone, each gradient is the difference of probabilities.
    gap = (output.logits.sigmoid() - peer_output.logits.sigmoid()).detach()
    torch.testing.assert_close(towards_student, gap / gap.numel())
    torch.testing.assert_close(towards_peer, -gap / gap.numel())


@pytest.mark.slow
def test_both_fit_a_handful_of_clips(tmp_path):
    brain, counter = _mutual(tmp_path, epochs=20, mixup=None)
    _fit(brain, counter)
    assert brain.scores.mAP == 1.0 and brain.peer_scores.mAP > 0.9
    epochs = brain.hparams.history.epochs
    assert {"mAP", "peer_mAP"} <= set(epochs[0])
    kept = brain.checkpointer.list_checkpoints()
    best = max(epoch["peer_mAP"] for epoch in epochs)
    assert best in [checkpoint.meta["peer_mAP"] for checkpoint in kept]
