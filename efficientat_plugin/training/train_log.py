"""A training log for people to read."""

from collections.abc import Mapping

from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.train_logger import TrainLogger

Numbers = Mapping[str, float]


class PlainTrainLogger(TrainLogger):
    """Adds a line of text to a file for each epoch and each test.

    Like SpeechBrain's ``FileTrainLogger``, but a score of 0.0673 stays 0.0673, where
    that writes 6.73e-02. Any other of SpeechBrain's loggers may take its place in a
    YAML.

    Arguments
    ---------
    save_file : str
        The file, in a folder that exists when the first line is written.

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
        """Adds a line; see ``TrainLogger.log_stats``. ``verbose`` is not heeded."""
        del verbose
        parts = [_listed("", stats_meta)]
        named = {"train ": train_stats, "valid ": valid_stats, "test ": test_stats}
        parts += [_listed(name, stats) for name, stats in named.items() if stats]
        with open(self.save_file, "a", encoding="utf-8") as file:
            print(" - ".join(parts), file=file)


def _listed(prefix: str, numbers: Numbers) -> str:
    """Four digits are enough to read; ``history.csv`` has all."""
    return ", ".join(
        f"{prefix}{name}: {number}"
        if isinstance(number, int)
        else f"{prefix}{name}: {number:.4g}"
        for name, number in numbers.items()
    )
