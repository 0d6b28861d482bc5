"""The two sides of `speed.py`: one process each, which works on request.

> python benchmarks/sides.py ours train mn04 16 --weights FILE

It sets up, says "ready", then does the work as often as each line of standard input
says and answers with a line of JSON. The published side needs a checkout of
EfficientAT, of which nothing is copied here.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soundfile
import torch

SAMPLE_RATE, CLIP_SECONDS, CLASSES = 32000, 10, 527
WIDTHS = {"mn04": 0.4, "mn10": 1.0, "dymn04": 0.4, "dymn10": 1.0}
CURVE_STEPS, CURVE_RATE = 10, 1e-4
PROFILED_STEPS = 3
# What no file of weights tells
STATED: dict[str, Any] = {"n_mels": 128, "hop_length": 320, "clip_seconds": 10.0}
SCAN_SECONDS, WINDOW_SECONDS, HOP_SECONDS = 600, 10.0, 2.5
Work = Callable[[], Any]


def clips(batch: int) -> torch.Tensor:
    """Noise of changing loudness: [B, N]"""
    return noise(batch, SAMPLE_RATE * CLIP_SECONDS)


def noise(batch: int, num_samples: int) -> torch.Tensor:
    """Noise of changing loudness, so that clips differ: [B, N]"""
    generator = torch.Generator().manual_seed(0)
    alike = torch.randn(batch, num_samples, generator=generator)
    return 0.1 * alike * torch.linspace(0.1, 1, batch)[:, None]


def targets(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and a teacher's logits: [B, K] each."""
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(batch, CLASSES, generator=generator) < 0.005).float()
    return labels, torch.randn(batch, CLASSES, generator=generator) - 5


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
        from efficientat_plugin import MN, DyMN

        family = DyMN if self.model.startswith("dymn") else MN
        student = family(CLASSES, width=WIDTHS[self.model])
        student.load_state_dict(self.state)
        return student.eval()

    def log_mel(self) -> Any:
        """The published front end, in evaluation mode."""
        from efficientat_plugin import LogMel

        return LogMel().eval()

    def mel(self) -> Work:
        """Waveforms to log-mels."""
        log_mel, waveform = self.log_mel(), clips(self.batch)
        return torch.inference_mode()(lambda: log_mel(waveform))

    def network(self) -> Work:
        """Log-mels to logits, as AudioTagger has it."""
        from efficientat_plugin.students.inference_form import inference_form

        student = inference_form(self.student())
        log_mel = self.log_mel()(clips(self.batch)).unsqueeze(1)
        return torch.inference_mode()(lambda: student(log_mel).logits)

    def exported(self, folder: Path, front_end: str) -> Path:
        """A file as `efficientat export` writes it."""
        from efficientat_plugin.data.labels import audioset_labels
        from efficientat_plugin.export.onnx_file import export_onnx

        torch.save(self.student().state_dict(), folder / "student.pt")
        path = folder / "student.onnx"
        return export_onnx(
            folder / "student.pt",
            path,
            front_end=front_end,
            labels=audioset_labels(),
            **STATED,
        ).path

    def network_openvino(self, folder: Path) -> Work:
        """Log-mels to logits, exported, in OpenVINO."""
        from efficientat_plugin.runtime.sessions import open_session

        session = open_session(
            self.exported(folder, "out"), "openvino", torch.get_num_threads()
        )
        log_mel = self.log_mel()(clips(self.batch)).numpy()
        return lambda: session.run(log_mel)["logits"]

    def scan_onnxruntime(self, folder: Path) -> Work:
        """A long file to probabilities of its windows, exported, in ONNX Runtime."""
        return self.scan_exported(folder, "onnxruntime")

    def scan_openvino(self, folder: Path) -> Work:
        """A long file to probabilities of its windows, exported, in OpenVINO."""
        return self.scan_exported(folder, "openvino")

    def scan_exported(self, folder: Path, backend: str) -> Work:
        """The log-mel in numpy, once for all windows; the network by a runtime."""
        from efficientat_plugin.runtime import Tagger

        path = long_file(folder)
        tagger = Tagger(self.exported(folder, "out"), backend, torch.get_num_threads())
        return lambda: windows_of(tagger, path)

    def scan(self, folder: Path) -> Work:
        """A long file to probabilities of its windows."""
        from efficientat_plugin import AudioTagger
        from efficientat_plugin.data.labels import audioset_labels

        path = long_file(folder)
        student = self.student()
        torch.save(student.state_dict(), folder / "student.pt")
        tagger = AudioTagger.from_student(
            folder / "student.pt",
            audioset_labels(),
            run_opts={"device": "cpu"},
            **STATED,
        )

        return lambda: windows_of(tagger, path)

    def brain(self, folder: Path, **overrides: Any) -> tuple[Any, Any]:
        """The Brain of a recipe, and a batch for it."""
        from efficientat_plugin.contracts import ClipBatch, TeacherTarget
        from efficientat_plugin.support.launch import load_hparams

        labels, logits = targets(self.batch)

        def teacher(inputs: Any) -> Any:
            return TeacherTarget(logits, torch.ones(self.batch, dtype=torch.bool))

        family = "dymn10" if self.model.startswith("dymn") else "mn10"
        overrides |= {
            "width": WIDTHS[self.model],
            "pretrained": None,
            "batch_size": self.batch,
            "output_folder": str(folder),
            "keep_freed_memory": self.keep_memory,
        }
        file = Path(__file__).parent.parent / "hparams" / f"{family}.yaml"
        hparams = load_hparams(file, overrides)
        hparams["student"].load_state_dict(self.state)
        hparams["teacher"] = teacher
        brain = hparams["brain_class"](
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=self.run_opts,
        )
        brain.on_fit_start()
        brain.on_stage_start(brain_stage(), epoch=1)
        brain.modules.train()
        batch = ClipBatch(
            [f"clip{i}" for i in range(self.batch)],
            clips(self.batch),
            labels,
            torch.ones(self.batch),
            [""] * self.batch,
            torch.zeros(self.batch),
            [],
        )
        return brain, batch

    def train(self, folder: Path) -> Work:
        """A step as the recipe makes it."""
        brain, batch = self.brain(folder)
        return lambda: float(brain.fit_batch(batch))

    def profile(self, folder: Path) -> Work:
        """Operations of a step and the time they take themselves, ms: [rows, 2]"""
        step = self.train(folder)

        def work() -> Any:
            with torch.profiler.profile(acc_events=True) as profiled:
                for _ in range(PROFILED_STEPS):
                    step()
            times = {
                event.key: event.self_cpu_time_total / 1000 / PROFILED_STEPS
                for event in profiled.key_averages()
            }
            return [[name, f"{time:.3f}"] for name, time in times.items()]

        return work

    def curve(self, folder: Path) -> Work:
        """Losses of some steps with nothing drawn at random."""
        brain, batch = self.brain(
            folder,
            mixup=None,
            log_mel={"f_min_jitter": 0, "f_max_jitter": 0},
            student={"dropout": 0.0},
        )
        if hasattr(brain.hparams.student, "set_temperature"):
            brain.hparams.student.set_temperature(1.0)
        for group in brain.optimizer.param_groups:
            group["lr"] = CURVE_RATE
        return lambda: [float(brain.fit_batch(batch)) for _ in range(CURVE_STEPS)]


def windows_of(tagger: Any, path: str) -> Any:
    """Probabilities of all windows: [windows, K]"""
    found = tagger.scan(path, None, WINDOW_SECONDS, HOP_SECONDS)
    return np.stack([window.probabilities for window in found])


def brain_stage() -> Any:
    """The training stage."""
    import speechbrain as sb

    return sb.Stage.TRAIN


class Published:
    """The published code, called as its own scripts call it."""

    def __init__(self, model: str, weights: str, batch: int, checkout: str) -> None:
        self.model, self.batch = model, batch
        self.state = torch.load(weights, weights_only=True)
        self.state.pop("temperature", None)
        os.chdir(checkout)  # it reads its tables by relative paths
        sys.path.insert(0, checkout)

    def student(self) -> Any:
        """With the given weights, in evaluation mode."""
        if self.model.startswith("dymn"):
            from models.dymn.model import get_model
        else:
            from models.mn.model import get_model
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the network
            student = get_model(width_mult=WIDTHS[self.model])
            student.load_state_dict(self.state)
            if hasattr(student, "update_params"):
                student.update_params(1000)  # the last temperature, 1
        return student.eval()

    def log_mel(self, jitter: bool = True) -> Any:
        """With the defaults of its ex_audioset.py."""
        from models.preprocess import AugmentMelSTFT

        jitters = {} if jitter else {"fmin_aug_range": 1, "fmax_aug_range": 1}
        return AugmentMelSTFT(freqm=0, timem=0, fmax=15000, **jitters).eval()

    def mel(self) -> Work:
        """Waveforms to log-mels."""
        log_mel, waveform = self.log_mel(), clips(self.batch)
        return torch.no_grad()(lambda: log_mel(waveform))

    def network(self) -> Work:
        """Log-mels to logits."""
        student = self.student()
        log_mel = self.log_mel()(clips(self.batch)).unsqueeze(1)
        return torch.no_grad()(lambda: student(log_mel)[0])

    def network_openvino(self, folder: Path) -> Work:
        """The network as it is, which it has no other form of."""
        del folder
        return self.network()

    def scan_onnxruntime(self, folder: Path) -> Work:
        """The loop, which it has no other form of."""
        return self.scan(folder)

    def scan_openvino(self, folder: Path) -> Work:
        """The loop, which it has no other form of."""
        return self.scan(folder)

    def scan(self, folder: Path) -> Work:
        """The loop of its windowed_inference.py, decoded by soundfile."""
        path, student, log_mel = long_file(folder), self.student(), self.log_mel()
        window, hop = int(WINDOW_SECONDS * SAMPLE_RATE), int(HOP_SECONDS * SAMPLE_RATE)

        def work() -> Any:
            waveform = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
            rows = []
            for start in range(0, waveform.shape[1] - window + 1, hop):
                spectrogram = log_mel(waveform[:, start : start + window])
                logits, _ = student(spectrogram.unsqueeze(0))
                rows.append(torch.sigmoid(logits.float()).squeeze().numpy())
            return np.stack(rows)

        return torch.no_grad()(work)

    def train(self, folder: Path, randomness: bool = True) -> Work:
        """A step as its ex_audioset.py makes it, kd_lambda and mixup as there."""
        from helpers.utils import mixup

        del folder
        student, log_mel = self.student().train(), self.log_mel(randomness).train()
        if not randomness:
            for module in student.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        rate = 0.0008 if randomness else CURVE_RATE
        optimizer = torch.optim.Adam(student.parameters(), lr=rate)
        waveform = clips(self.batch)
        labels, logits = targets(self.batch)
        soft = torch.sigmoid(logits)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits

        def work() -> Any:
            maps = log_mel(waveform.reshape(-1, waveform.shape[1])).unsqueeze(1)
            asked, taught = labels, soft
            if randomness:
                partner, weight = mixup(self.batch, 0.3)
                column = weight.reshape(-1, 1, 1, 1)
                maps = maps * column + maps[partner] * (1.0 - column)
                row = weight.reshape(-1, 1)
                asked = labels * row + labels[partner] * (1.0 - row)
                taught = soft * row + soft[partner] * (1.0 - row)
            predicted, _ = student(maps)
            loss = 0.1 * entropy(predicted, asked) + 0.9 * entropy(predicted, taught)
            value = float(loss.detach())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return value

        return work

    def curve(self, folder: Path) -> Work:
        """Losses of some steps with nothing drawn at random."""
        step = self.train(folder, randomness=False)
        return lambda: [step() for _ in range(CURVE_STEPS)]


def long_file(folder: Path) -> str:
    """Ten minutes of noise as 16-bit WAV."""
    path = folder / "long.wav"
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE * SCAN_SECONDS)
    soundfile.write(path, 0.1 * noise, SAMPLE_RATE, "PCM_16")
    return str(path)


def peak_mb() -> float:
    """The most memory that this process ever had, MB; 0 where the system hides it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    # Not getrusage's: that one begins with what the parent had.
    found = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(found[0].split()[1]) / 1024


def serve(
    ours: Any,
    published: Any,
    models: Iterable[str],
    alone: Sequence[str],
    in_folder: Sequence[str],
) -> None:
    """Sets up what the command line asks for, and works on request.

    Arguments
    ---------
    ours, published : type
        The classes of the two sides.
    models : iterable of str
        Legal names.
    alone, in_folder : sequence of str
        Tasks, which are methods of both: those that need no folder, and those that do.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("ours", "published"))
    parser.add_argument("task", choices=(*alone, *in_folder))
    parser.add_argument("model", choices=models)
    parser.add_argument("batch", type=int)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--result", required=True, help="where the last one is kept")
    parser.add_argument("--checkout")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep_memory", action="store_true")
    parser.add_argument("--run_opts", default="{}", help="of SpeechBrain, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    given = arguments.model, arguments.weights, arguments.batch
    if arguments.side == "ours":
        side = ours(*given, arguments.keep_memory, json.loads(arguments.run_opts))
    else:
        side = published(*given, arguments.checkout)
    with TemporaryDirectory() as folder:
        needs_folder = arguments.task in in_folder
        work = getattr(side, arguments.task)(*[Path(folder)] * needs_folder)
        print("ready", flush=True)
        for line in sys.stdin:
            times = int(line)
            before, cpu_before = time.perf_counter(), time.process_time()
            for _ in range(times):
                result = work()
            seconds = (time.perf_counter() - before) / times
            cpu_seconds = (time.process_time() - cpu_before) / times
            np.save(arguments.result, np.asarray(result))
            answer = {"seconds": seconds, "cpu_seconds": cpu_seconds}
            print(json.dumps(answer | {"peak_mb": peak_mb()}), flush=True)


if __name__ == "__main__":
    scans = ("scan", "scan_onnxruntime", "scan_openvino")
    serve(
        Ours,
        Published,
        WIDTHS,
        alone=("mel", "network"),
        in_folder=("network_openvino", "train", "profile", "curve", *scans),
    )
