"""The two sides of `speed.py` for models that score frames: one process each.

> python benchmarks/frame_sides.py ours train fmn04_tf 16 --weights FILE

It works on request, as `sides.py` does. The published side needs a checkout of
EfficientSED, of which nothing is copied here, and torchvision, einops and
rotary_embedding_torch on its path.
"""

import contextlib
import io
import os
import random
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from sides import SCAN_SECONDS, Work, brain_stage, noise, serve

SAMPLE_RATE, CLIP_SECONDS, CLASSES, FRAMES = 16000, 10, 447, 250
RATE = 0.003  # of learning
THRESHOLD, MEDIAN_FRAMES = 0.5, 9
STATED = {
    "sample_rate": SAMPLE_RATE,
    "n_mels": 128,
    "win_length": 400,
    "hop_length": 160,
    "n_fft": 512,
    "f_max": 7000.0,
    "log_floor": 1e-7,
    "log_floor_mode": "clamp",
}


class Detector(NamedTuple):
    """A published one: width and sequence model."""

    width: float
    sequence_model: str
    sequence_dim: int


DETECTORS = {
    "fmn04": Detector(0.4, "none", 104),
    "fmn04_tf": Detector(0.4, "tf", 104),
    "fmn10": Detector(1.0, "none", 256),
    "fmn10_tf": Detector(1.0, "tf", 256),
    "fmn10_gru": Detector(1.0, "gru", 256),
    "fmn10_hybrid": Detector(1.0, "hybrid", 256),
}


def clips(batch: int) -> torch.Tensor:
    """Noise of changing loudness: [B, N]"""
    return noise(batch, SAMPLE_RATE * CLIP_SECONDS)


def targets(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of frames and a teacher's logits: [B, K, T'] each."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, CLASSES, FRAMES)
    labels = (torch.rand(shape, generator=generator) < 0.005).float()
    return labels, torch.randn(shape, generator=generator) - 5


def new_student(model: str) -> Any:
    """As this project builds it, with random weights."""
    from efficientat_plugin import FrameMN

    return FrameMN(CLASSES, None, *DETECTORS[model])


class Ours:
    """What this project's users run."""

    def __init__(
        self,
        model: str,
        weights: str,
        batch: int,
        keep_memory: bool,
        run_opts: dict[str, Any],
    ) -> None:
        self.model, self.batch, self.keep_memory = model, batch, keep_memory
        self.run_opts = {"device": "cpu"} | run_opts
        self.state = torch.load(weights, weights_only=True)

    def student(self) -> Any:
        """With the given weights, in evaluation mode."""
        student = new_student(self.model)
        student.load_state_dict(self.state)
        return student.eval()

    def log_mel(self) -> Any:
        """The published front end, in evaluation mode."""
        from efficientat_plugin import LogMel

        return LogMel(**STATED).eval()

    def network(self) -> Work:
        """Log-mels to logits of frames, as EventDetector has it."""
        from efficientat_plugin import inference_form

        student = inference_form(self.student())
        log_mel = self.log_mel()(clips(self.batch)).unsqueeze(1)
        return torch.inference_mode()(lambda: student(log_mel).strong)

    def saved(self, folder: Path) -> Path:
        """The weights, as a file."""
        torch.save(self.student().state_dict(), folder / "student.pt")
        return folder / "student.pt"

    def events(self, folder: Path) -> Work:
        """A long file to events."""
        from efficientat_plugin import EventDetector, audioset_strong_labels

        path = long_file(folder)
        detector = EventDetector.from_student(
            self.saved(folder),
            audioset_strong_labels(),
            run_opts={"device": "cpu"},
            clip_seconds=float(CLIP_SECONDS),
            **STATED,
        )
        return lambda: len(detector.events(path, threshold=THRESHOLD))

    def events_onnxruntime(self, folder: Path) -> Work:
        """A long file to events, exported, in ONNX Runtime."""
        return self.events_exported(folder, "onnxruntime")

    def events_openvino(self, folder: Path) -> Work:
        """A long file to events, exported, in OpenVINO."""
        return self.events_exported(folder, "openvino")

    def events_exported(self, folder: Path, backend: str) -> Work:
        """The log-mel in numpy; the network by a runtime."""
        from efficientat_plugin import audioset_strong_labels
        from efficientat_plugin.export.onnx_file import export_onnx
        from efficientat_plugin.runtime.detector import Detector

        path = long_file(folder)
        file = export_onnx(
            self.saved(folder),
            folder / "student.onnx",
            front_end="out",
            labels=audioset_strong_labels(),
            clip_seconds=float(CLIP_SECONDS),
            **STATED,
        ).path
        detector = Detector(file, backend, torch.get_num_threads())
        return lambda: len(detector.events(path, threshold=THRESHOLD))

    def brain(self, folder: Path, **overrides: Any) -> tuple[Any, Any]:
        """The Brain of a recipe, and a batch for it."""
        from efficientat_plugin import EventBrain
        from efficientat_plugin.contracts import ClipBatch, TeacherTarget
        from efficientat_plugin.support.launch import load_hparams

        labels, logits = targets(self.batch)
        known = torch.ones(self.batch)

        def teacher(inputs: Any) -> Any:
            return TeacherTarget(logits, known.bool())

        width, sequence_model, sequence_dim = DETECTORS[self.model]
        overrides |= {
            "dataset": "none",
            "events": "none",
            "start_from": {"backbone": None},
            "train_loader": {"batch_size": self.batch},
            "grad_accumulation_factor": 1,
            "output_folder": str(folder),
            "keep_freed_memory": self.keep_memory,
        }
        file = Path(__file__).parent.parent / "hparams" / "fmn10_tf256.yaml"
        hparams = load_hparams(file, overrides)
        student = hparams["student"](
            CLASSES,
            width=width,
            sequence_model=sequence_model,
            sequence_dim=sequence_dim,
        )
        student.load_state_dict(self.state)
        modules = {
            name: hparams[name] for name in ("log_mel", "frame_shift", "spec_mask")
        } | {"student": student}
        hparams |= {
            "student": student,
            "teacher": teacher,
            "make_stats": types.SimpleNamespace,
            "layer_decay": hparams["rates"]["layer_decay"],
            "head_scale": 1.0,
            "lr_schedule": None,
            "temperature_schedule": None,
        }
        brain = EventBrain(
            modules={name: each for name, each in modules.items() if each is not None},
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=self.run_opts,
        )
        brain.on_fit_start()
        brain.on_stage_start(brain_stage(), epoch=1)
        brain.modules.train()
        names = [f"clip{i}" for i in range(self.batch)]
        batch = ClipBatch(
            names,
            clips(self.batch),
            labels.amax(2),
            known,
            [""] * self.batch,
            torch.zeros(self.batch),
            [],
            labels,
            known,
        )
        return brain, batch

    def train(self, folder: Path) -> Work:
        """A step as the recipe makes it."""
        brain, batch = self.brain(folder)
        return lambda: float(brain.fit_batch(batch))


class Published:
    """The published code, called as its own scripts call it."""

    def __init__(self, model: str, weights: str, batch: int, checkout: str) -> None:
        self.model, self.batch = model, batch
        self.state = torch.load(weights, weights_only=True)
        os.chdir(checkout)
        sys.path.insert(0, checkout)
        # Needs CUDA to build, and is imported whatever the sequence model is
        absent: Any = types.ModuleType("mamba_ssm")
        absent.Mamba2 = None
        sys.modules["mamba_ssm"] = absent

    def student(self) -> Any:
        """With the given weights, in evaluation mode; its front end is a part."""
        from models.efficient_cnns.fmn.fmn_wrapper import FrameMNWrapper
        from models.prediction_wrapper import PredictionsWrapper

        width, sequence_model, sequence_dim = DETECTORS[self.model]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the network
            backbone = FrameMNWrapper(width)
            student = PredictionsWrapper(
                backbone,
                seq_model_type=None if sequence_model == "none" else sequence_model,
                seq_model_dim=sequence_dim,
                embed_dim=backbone.fmn.features[-1][0].out_channels,
            )
        missing, unknown = student.load_state_dict(self.state, strict=False)
        if unknown or any(".mel." not in f".{name}" for name in missing):
            raise RuntimeError(f"weights do not fit: {missing}, {unknown}")
        return student.eval()

    def network(self) -> Work:
        """Log-mels to logits of frames."""
        student = self.student()
        with torch.no_grad():
            log_mel = as_maps(student.mel_forward(clips(self.batch)))
        return torch.no_grad()(lambda: student(log_mel)[0])

    def events_onnxruntime(self, folder: Path) -> Work:
        """The loop, which it has no other form of."""
        return self.events(folder)

    def events_openvino(self, folder: Path) -> Work:
        """The loop, which it has no other form of."""
        return self.events(folder)

    def events(self, folder: Path) -> Work:
        """The loop of its inference.py, decoded by soundfile.

        Its filter and its threshold follow in numpy, without its data frames, which
        need packages that no longer install.
        """
        from scipy.ndimage import median_filter

        path, student = long_file(folder), self.student()
        chunk = CLIP_SECONDS * SAMPLE_RATE

        def work() -> Any:
            waveform = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
            parts = []
            for start in range(0, waveform.shape[1], chunk):
                mel = student.mel_forward(waveform[:, start : start + chunk])
                parts.append(student(mel)[0])
            scores = torch.sigmoid(torch.cat(parts, dim=2))[0].T.numpy()
            filtered = median_filter(scores, (MEDIAN_FRAMES, 1))
            active = np.pad(filtered > THRESHOLD, ((1, 1), (0, 0)))
            return int((np.diff(active.astype(np.int8), axis=0) > 0).sum())

        return torch.no_grad()(work)

    def train(self, folder: Path) -> Work:
        """A step as its ex_audioset_strong.py makes it, with a stored teacher."""
        from helpers.augment import frame_shift, mixup

        del folder
        student = self.student().train()
        groups = student.model.layerwise_lr_decay(RATE, 0.9)
        groups += [
            {"params": parameter, "lr": RATE}
            for name, parameter in student.named_parameters()
            if not name.startswith("model.")
        ]
        optimizer = torch.optim.Adam(groups, lr=RATE)
        waveform = clips(self.batch)
        labels, logits = targets(self.batch)
        soft = torch.sigmoid(logits)
        entropy = torch.nn.BCEWithLogitsLoss()

        def work() -> Any:
            maps, asked, taught = frame_shift(
                student.mel_forward(waveform),
                labels.clone(),
                pseudo_labels=soft.clone(),
            )
            if random.random() < 0.3:
                maps, asked, taught = mixup(maps, targets=asked, pseudo_strong=taught)
            predicted, _ = student(maps)
            loss = 0.9 * entropy(predicted, taught) + 0.1 * entropy(predicted, asked)
            value = float(loss.detach())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return value

        return work


def as_maps(log_mel: torch.Tensor) -> torch.Tensor:
    """Adds the channel that a network takes: -> [B, 1, F, T]"""
    return log_mel if log_mel.ndim == 4 else log_mel.unsqueeze(1)


def long_file(folder: Path) -> str:
    """Ten minutes of noise as 16-bit WAV."""
    path = folder / "long.wav"
    sound = np.random.default_rng(0).standard_normal(SAMPLE_RATE * SCAN_SECONDS)
    soundfile.write(path, 0.1 * sound, SAMPLE_RATE, "PCM_16")
    return str(path)


if __name__ == "__main__":
    events = ("events", "events_onnxruntime", "events_openvino")
    serve(Ours, Published, DETECTORS, alone=("network",), in_folder=("train", *events))
