"""Downloads the sound of the tutorials into the folder ``sound``, if it is not there.

``sound/metro.wav`` is ten seconds in a metro station, from EfficientAT (MIT).
``sound/clips`` has a folder for each of eight classes, with clips of five seconds from
ESC-50 (K. J. Piczak, https://github.com/karolpiczak/ESC-50, CC BY-NC 3.0), each from
another recording. The published weights of mn04_as are fetched as well.

Run: python fetch_sound.py
"""

import csv
import sys
from pathlib import Path
from urllib.request import urlretrieve

from efficientat_plugin import load_student

METRO = (
    "https://raw.githubusercontent.com/fschmid56/EfficientAT/main/resources/"
    "metro_station-paris.wav"
)
ESC50 = "https://raw.githubusercontent.com/karolpiczak/ESC-50/master"
CLASSES = (
    "car_horn clock_alarm dog door_wood_knock engine keyboard_typing rain sneezing"
).split()


def fetch(
    folder: str | Path, clips_per_class: int, metro: str = METRO, esc50: str = ESC50
) -> None:
    """Downloads what is not there yet.

    Arguments
    ---------
    folder : str or Path
    clips_per_class : int
    metro : str
        The URL of the recording.
    esc50 : str
        The URL of a folder with ESC-50's ``meta/esc50.csv`` and ``audio``.
    """
    folder = Path(folder)
    _download(metro, folder / "metro.wav")
    table = _download(f"{esc50}/meta/esc50.csv", folder / "esc50.csv")
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for category in CLASSES:
        # One clip of each recording, so that training and test share none
        of_recording = {
            row["src_file"]: row["filename"]
            for row in reversed(rows)
            if row["category"] == category
        }
        for name in sorted(of_recording.values())[:clips_per_class]:
            _download(f"{esc50}/audio/{name}", folder / "clips" / category / name)


def _download(url: str, path: Path) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished, _ = urlretrieve(url, path.with_name(f".{path.name}.part"))
        Path(unfinished).rename(path)
    return path


if __name__ == "__main__":
    try:
        fetch(Path(__file__).parent / "sound", clips_per_class=12)
        load_student("mn04_as")
    except OSError as error:
        sys.exit(
            f"The sound or the weights of the tutorials cannot be fetched: {error}"
        )
