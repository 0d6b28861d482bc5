"""Writes a training log for people to read."""

from collections.abc import Mapping

from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.train_logger import TrainLogger

Numbers = Mapping[str, float]


class PlainTrainLogger(TrainLogger):
    """Appends a line of text to a file for each epoch and each test.

    Like SpeechBrain's ``FileTrainLogger``, but a score of 0.0673 is written as 0.0673
    instead of 6.73e-02. Any other SpeechBrain logger can replace it in a YAML.

    Arguments
    ---------
    save_file : str
        Path of the file; its folder must exist when the first line is written.

    Example
    -------
    >>> import tempfile
    >>> path = f"{tempfile.mkdtemp()}/train_log.txt"
    >>> log = PlainTrainLogger(path)
    >>> log.log_stats({"epoch": 1, "lr": 6e-5}, {"loss": 2.30258}, {"mAP": 0.0673})
    >>> with open(path) as file:
    ...     print(file.read(), end="")
    epoch: 1, lr: 6e-05 - train loss: 2.303 - valid mAP: 0.0673
    """

    def __init__(self, save_file: str) -> None:
        self.save_file = save_file

    @main_process_only
    def log_stats(
        self,
        stats_meta: Numbers,
        train_stats: Numbers | None = None,
        valid_stats: Numbers | None = None,
        test_stats: Numbers | None = None,
        verbose: bool = False,
    ) -> None:
        """Appends a line; see ``TrainLogger.log_stats``. ``verbose`` is ignored."""
        del verbose
        parts = [_listed("", stats_meta)]
        named = {"train ": train_stats, "valid ": valid_stats, "test ": test_stats}
        parts += [_listed(name, stats) for name, stats in named.items() if stats]
        with open(self.save_file, "a", encoding="utf-8") as file:
            print(" - ".join(parts), file=file)


def _listed(prefix: str, numbers: Numbers) -> str:
    """Formats numbers with four digits; ``history.csv`` has all of them."""
    return ", ".join(
        f"{prefix}{name}: {number}"
        if isinstance(number, int)
        else f"{prefix}{name}: {number:.4g}"
        for name, number in numbers.items()
    )
