"""Untrusted files, damaged and crafted by the thousand: no code runs, none crashes.

Each file is changed at random, byte by byte or by pieces of attacks, and read as a user
would. What must follow is what the file held before, something else of the same kind,
or one sentence that names it. A process of its own does it, whose audit hook sees every
command, connection, unpickled name and file that is written.
"""

import csv
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import sysconfig
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from lengths import short_and_full

REPOSITORY = Path(__file__).resolve().parents[1]
MEMORY = 12 << 30  # bytes of addresses; a damaged number may ask for any many
KINDS = ("YAML", "weights", "labels", "store", "logits", "table")
KINDS += ("embeddings", "metadata")
RUNS_CODE = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.startfile")
RUNS_CODE += ("subprocess.Popen", "socket.connect", "socket.getaddrinfo", "socket.bind")
RUNS_CODE += ("pickle.find_class", "ctypes.dlopen")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link")
CHANGES += ("os.chmod", "os.truncate", "shutil.rmtree")

# --- How a file is changed -----------------------------------------------------------

CODE = ["os.system", "torch.os.system", "os.mkdir", "subprocess.run", "torch.hub.load"]
CODE += ["speechbrain.utils.superpowers.run_shell", "stranger.code", "builtins.exec"]
PIECES = [f"!{kind}:{name} [MARK]" for name in CODE for kind in ("apply", "applyref")]
PIECES += [f"!{kind}:{name}" for name in CODE for kind in ("new", "name", "module")]
PIECES += [f"!!python/object/apply:{name} [MARK]" for name in CODE]
PIECES += [f"(!!python/object/apply:{name} [MARK])" for name in CODE]
PIECES += ["!include:../outside.yaml", "!include:/etc/passwd", "!include:student.ckpt"]
PIECES += ["!ref <student>", "!ref <student.__class__>", "<student> ** 9 ** 9", "!copy"]
PIECES += ["&a [*a]", "*a", "<<: *a", "? ", "---\n", "%TAG ! tag:x,1:\n---\n", "!tuple"]
PIECES += [
    "\x1b[2J",
    "\0",
    "\r",
    "\ufeff",
    "\u202e",
    "../" * 5 + "etc/passwd",
    "{[]: 1}",
]
PIECES += [
    "{[]: 1}",
    "0",
    "-1",
    "1e9",
    "1e999",
    ".nan",
    ".inf",
    "9" * 5000,
    "null",
    "true",
]
PIECES += [
    "[" * 300,
    "{" * 300,
    '"',
    "'",
    ",",
    "\t",
    "\n",
    ":",
    "=1+1",
    "<script>",
    "$x$",
]
PIECES += [
    "cos\nsystem\n(S'true'\ntR.",
    "\x80\x04\x95",
    "|O",
    "'descr': '|O'",
    "r\xff\xff",
]
KINDS_OF_CHANGE = ["bits", "bytes", "cut", "piece", "line", "copy", "out", "value"]


def changed(content: bytes, draw: random.Random) -> bytes:
    """A few changes of one kind."""
    content, place = bytearray(content), draw.randrange(len(content) + 1)
    kind = draw.choice(KINDS_OF_CHANGE)
    if kind == "bits":
        for _ in range(draw.choice([1, 1, 3, 10])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "bytes":
        content[place : place + 8] = draw.randbytes(draw.randrange(16))
    elif kind == "cut":
        del content[place:]
    elif kind == "piece":
        content[place:place] = draw.choice(PIECES).encode()
    elif kind == "copy":
        content[place:place] = content[place : place + draw.randrange(200)]
    elif kind == "out":
        del content[place : place + draw.randrange(200)]
    else:
        lines = bytes(content).split(b"\n")
        row = draw.randrange(len(lines))
        if kind == "line":
            lines.insert(row, draw.choice(PIECES).encode())
        else:
            head = lines[row].partition(b":")[0]
            lines[row] = head + b": " + draw.choice(PIECES).encode()
        content = b"\n".join(lines)
    return bytes(content)


# --- What is read, and how -----------------------------------------------------------


class ModelFolder:
    """As fine-tuning leaves it."""

    def __init__(self, folder: Path) -> None:
        import torch

        from efficientat_plugin import MN
        from efficientat_plugin.data.labels import LabelTable
        from efficientat_plugin.pretrained import folder as model_folder
        from efficientat_plugin.pretrained.folder import TrainedModel, hyperparams

        torch.manual_seed(0)
        self.folder = folder / "model"
        self.folder.mkdir()
        options = {"num_classes": 3, "width": 0.1}
        student = MN(**options).eval()
        student.options, student.front_end = options, {"sample_rate": 32000}
        labels = LabelTable(["/m/a", "/m/b", "/m/c"], ["dog", "(cat)", "bird: <é>"])
        model = TrainedModel(student, labels, "multiclass", 1.0)
        (self.folder / "hyperparams.yaml").write_text(hyperparams(model))
        torch.save(student.state_dict(), self.folder / "student.ckpt")
        model_folder._write_labels(self.folder / "labels.csv", labels)
        (self.folder / "metrics.json").write_text('{"test": {"mAP": 0.5}}')
        self.sound = (0.1 * torch.randn(8000)).numpy()

    def yaml(self):
        files = [self.folder / "hyperparams.yaml"]
        return files, self._read

    def weights(self):
        return [self.folder / "student.ckpt"], self._read

    def labels(self):
        from efficientat_plugin.data.labels import LabelTable

        def read():
            table = LabelTable.from_csv(self.folder / "labels.csv")
            return table.mids, table.names

        return [self.folder / "labels.csv"], read

    def _read(self):
        """Tags from the folder; training on from it must not crash either."""
        from efficientat_plugin import AudioTagger
        from efficientat_plugin.pretrained.folder import read_model_folder

        try:
            read_model_folder(self.folder)
        except (OSError, ValueError) as error:
            check_sentence(error, self.folder)
        on_cpu = {"device": "cpu"}
        tagger = AudioTagger.from_hparams(str(self.folder), run_opts=on_cpu)
        return tagger.tag(self.sound, sample_rate=32000, top_k=None)


class Stores:
    """Logits, stored and as published."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        from efficientat_plugin.teachers.store.writer import StoreWriter

        self.folder = folder
        about = {"teacher": "t", "labels_sha256": "l", "num_classes": 5}
        about |= {"sample_rate": 32000, "clip_seconds": 1.0}
        self.ids = [f"clip-{k}é" for k in range(20)]
        logits = np.random.default_rng(0).normal(size=(20, 5)).astype("f4")
        with StoreWriter(folder / "whole", **about) as writer:
            writer.append(self.ids, logits)
        np.save(folder / "logits.npy", logits)
        index = {f"Y{'x' * 10}{k:1x}.mp3": k for k in range(16)}
        (folder / "index.pkl").write_bytes(pickle.dumps(index))

    def store(self, name):
        from efficientat_plugin.teachers.store.logits_store import LogitsStore
        from efficientat_plugin.teachers.store.verify import verify

        def read():
            store = LogitsStore(self.folder / name)
            found = store.lookup(self.ids)
            clips = [store.clip(row) for row in range(len(store))]
            verify(store, [(clip, [0]) for clip in self.ids], minimum_coverage=0)
            return found.logits.tolist(), found.known.tolist(), clips

        return list((self.folder / name).iterdir()), read

    def published(self):
        from efficientat_plugin.teachers.store.import_published import import_published

        logits, index = self.folder / "logits.npy", self.folder / "index.pkl"

        def read():
            imported = self.folder / "imported"
            shutil.rmtree(imported, ignore_errors=True)
            store = import_published(logits, index, imported, labels_sha256="l")
            return [store.clip(row) for row in range(len(store))]

        return [logits, index], read


class Kept:
    """Embeddings of a resumed run, and the metadata of an exported file."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        from efficientat_plugin.cli.resumed_output import KeptResults, SoundFile
        from efficientat_plugin.data.labels import LabelTable
        from efficientat_plugin.runtime.front_end import FrontEndSettings
        from efficientat_plugin.runtime.model_file import ModelFacts

        self.parts, self.facts = folder / "x.npz.parts", folder / "facts.txt"
        self.sounds = [SoundFile(f"{k}é.wav", k, k) for k in range(9)]
        kept = KeptResults(self.parts, {"pooling": "avg"})
        rows = [np.full(4, sound.size, np.float32) for sound in self.sounds]
        kept.add(self.sounds, np.stack(rows))
        kept.close()
        settings = FrontEndSettings(
            *(32000, 128, 1024, 800, 320, 0.0, 15000.0, 0.97, 1e-5, "add", False),
            *(4.5, 5.0),
        )
        labels = LabelTable(["a", "b"], ["A", "B"])
        about = "m", "0" * 64, "MN", labels, "multiclass", 1.0, "repeat", settings
        texts = ModelFacts(*about, False, None, "fp32").as_texts()
        lines = [f"{name}={text}" for name, text in texts.items()]
        self.facts.write_text("\n".join(lines), encoding="utf-8")

    def embeddings(self):
        from efficientat_plugin.cli.resumed_output import KeptResults

        def read():
            with closing(KeptResults(self.parts, {"pooling": "avg"})) as kept:
                there = [sound for sound in self.sounds if sound in kept.done]
                return there, [row.tolist() for row in kept.rows(there)]

        return [self.parts], read

    def metadata(self):
        import numpy as np

        from efficientat_plugin.runtime.front_end import LogMel
        from efficientat_plugin.runtime.model_file import read_facts

        def read():
            text = self.facts.read_text(encoding="utf-8", errors="replace")
            pairs = [line.split("=", 1) for line in text.split("\n") if "=" in line]
            facts = read_facts(dict(pairs), str(self.facts))
            LogMel(facts.front_end)(np.zeros((1, 4000), np.float32))
            return str(facts._replace(labels=None)), facts.labels.names

        return [self.facts], read


class Tables:
    """Clips and their labels, as text."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tables"
        self.folder.mkdir()
        rows = [
            [f"{k}.wav", "dog;cat" if k % 2 else "['dog', \"cat\"]"] for k in range(9)
        ]
        with open(self.folder / "clips.csv", "w", newline="") as file:
            csv.writer(file).writerows([["file", "labels"], *rows])
        lines = [json.dumps({"file": name, "labels": text}) for name, text in rows]
        (self.folder / "clips.jsonl").write_text("\n".join(lines))

    def tables(self):
        from efficientat_plugin.data.columns import read_labels
        from efficientat_plugin.data.text_tables import read_text_table

        def read():
            found = []
            for name in ("clips.csv", "clips.jsonl"):
                columns = read_text_table(self.folder / name)
                found += [read_labels(columns[key], key) for key in columns]
            return found

        return list(self.folder.iterdir()), read


def check_sentence(error: Exception, folder: Path) -> None:
    """One line that names the file, for a person to read."""
    text = str(error)
    if isinstance(error, UnicodeError) or str(folder) not in text:
        raise AssertionError(f"it does not name the file: {text!r}") from error
    if not text.isprintable() or len(text) > 2000:
        raise AssertionError(f"it is no plain line: {text[:2000]!r}") from error


# --- What must not happen ------------------------------------------------------------


class Guard:
    """Notes what the process does while it is on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.is_on = str(folder), False
        places = [
            *sysconfig.get_paths().values(),
            str(REPOSITORY / "efficientat_plugin"),
        ]
        self.code = tuple(places) + ("<frozen",)
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.is_on:
            return
        if event.startswith(RUNS_CODE):
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "exec":
            name = getattr(arguments[0], "co_filename", "<string>")
            generated = name == "<string>" or name.startswith("<")
            if not generated and not name.startswith(self.code):
                self.seen.append(f"exec of {name}")
        elif event == "import" and "stranger" in str(arguments[0]):
            self.seen.append(f"import of {arguments[0]}")
        elif event == "open" and self._writes(*arguments[1:3]):
            self._note(event, arguments[:1])
        elif event in CHANGES:
            self._note(event, arguments)

    @staticmethod
    def _writes(mode: str | None, flags: int | None) -> bool:
        by_flags = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return bool(by_flags or set(mode or "") & set("wax+"))

    def _note(self, event: str, arguments: tuple) -> None:
        """Paths out of the folder; they may be relative to an open one, named last."""
        place = os.getcwd()
        if len(arguments) > 1 and isinstance(arguments[-1], int) and arguments[-1] >= 0:
            place = f"/proc/self/fd/{arguments[-1]}"
        for path in arguments:
            if isinstance(path, str | bytes | os.PathLike):
                path = os.path.realpath(os.path.join(place, os.fsdecode(path)))
                if not path.startswith(self.folder) and path != os.devnull:
                    self.seen.append(f"{event} {path}")


def run(folder: Path, seed: int, tries: int) -> dict[str, Counter]:
    """Reads changed files of each kind; counts what comes of it, and faults."""
    models, stores, tables = ModelFolder(folder), Stores(folder), Tables(folder)
    kept = Kept(folder)
    mark = folder / "mark"
    readers = {
        "YAML": models.yaml(),
        "weights": models.weights(),
        "labels": models.labels(),
        "store": stores.store("whole"),
        "logits": stores.published(),
        "table": tables.tables(),
        "embeddings": kept.embeddings(),
        "metadata": kept.metadata(),
    }
    (folder / "outside.yaml").write_text(f"x: !applyref:os.mkdir [{mark}]")
    (folder / "stranger.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    sys.path.insert(0, str(folder))
    guard, counts = Guard(folder), {}
    for kind, (files, read) in readers.items():
        expected, counts[kind] = read(), Counter()
        files = [file for file in sorted(files) if file.stat().st_size]  # no lock
        draw = random.Random(f"{seed} {kind}")
        for number in range(tries):
            file = draw.choice(files)
            whole = file.read_bytes()
            text = changed(whole, draw).replace(b"MARK", str(mark).encode())
            file.write_bytes(text)
            guard.is_on = True
            try:
                outcome = outcome_of(read, expected, folder)
            except BaseException as error:
                guard.is_on = False
                place = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__} at {place.filename}:{place.lineno}"
                kept = f"{seed}-{kind}-{number}-{file.name}"
                (folder.parent / kept).write_bytes(text)
                print(f"{kept}: {what}: {error!s:.300}", file=sys.stderr)
                outcome = "FAULT"
            guard.is_on = False
            file.write_bytes(whole)
            counts[kind][outcome] += 1
            if guard.seen or mark.exists():
                raise AssertionError(f"{kind}, try {number}: {guard.seen}, {text!r}")
        assert read() == expected
    return counts


def outcome_of(read: Callable, expected: object, folder: Path) -> str:
    try:
        return "the same" if read() == expected else "another"
    except (OSError, ValueError) as error:
        check_sentence(error, folder)
        return "refused"


@short_and_full(5, 500)
def test_untrusted_files_run_no_code_and_crash_nothing(tmp_path, seed, tries, figures):
    folder = tmp_path / "files"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, __file__, str(folder), str(seed), str(tries)],
        env=os.environ
        | {"TMPDIR": str(folder), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    for kind in KINDS:
        found = [f"{n} {outcome}" for outcome, n in sorted(counts[kind].items())]
        figures(kind, f"{tries} files", *found)
        assert sum(counts[kind].values()) == tries
        assert "FAULT" not in counts[kind], done.stderr[-4000:]
    figures("peak memory", f"{counts['peak_memory_mb']} MB")


def main() -> None:
    folder, seed, tries = Path(sys.argv[1]).resolve(), *map(int, sys.argv[2:])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import logging
    import warnings

    logging.disable()
    warnings.simplefilter("ignore")
    counts: dict = run(folder, seed, tries)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    counts["peak_memory_mb"] = usage.ru_maxrss // 1024
    print(json.dumps(counts))


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
