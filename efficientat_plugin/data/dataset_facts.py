"""What is known of labelled clips: how their table or folder is to be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from efficientat_plugin.data.columns import class_names

FORMS = ("auto", "class_folders", "sounds") + (
    *("fsd50k_folder", "tau2020_folder", "urbansound8k_folder"),
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Holds the arguments of ``read_table``: the facts of a data set.

    Arguments
    ---------
    form : str
        What the folder is: "auto" to detect it, or "class_folders", "sounds" (without
        labels, as files or in Parquet), "fsd50k_folder", "tau2020_folder" or
        "urbansound8k_folder".
    audio_column : str | None
        Column of file names or of the sound itself; None: the sound if the table holds
        it, otherwise a usual name such as ``filename``. Column names match in any case;
        in a table without a header, a number is the position of a column, from 0.
    label_column : str | None
        Column of class names or numbers, several joined by ``separator`` or as a list;
        or of a probability for each of ``classes``. None: a usual name such as
        ``category``.
    id_column : str | None
        Column of unique clip names, whose audio suffixes are removed; None: a column
        ``video_id`` or ``clip_id``, otherwise the file paths relative to the data.
    group_column, fold_column, split_column, device_column : str | None
        Columns of the recording's source (kept on one side of a split), fold, split and
        device; None: a column named "group", "fold", "split" or "device", if there is
        one; for splits also one named "subset", "set", "partition" or "usage" that
        holds only "train", "valid" and "test", otherwise folders in all file names.
    judged_column : str | None
        Column with 1 for each class whose presence or absence somebody judged, else 0;
        None: a column "judged" with lists of class names, if there is one.
    separator : str | None
        Separator of labels; "": none; None: see ``columns.read_labels``.
    classes : Sequence[str] | str | None
        All classes in their order, as a list or separated by commas; other labels are
        refused. They may be columns of 0 and 1. None: any.
    min_probability : float
        Where labels are probabilities, a class is present above this value.
    segments : bool
        False: files are read whole, even if there are columns of times.
    splits : Mapping[str, str] | None
        New names of the source's splits, such as ``{"dev": "valid"}``; rows of other
        splits are left out. None: all, under their own names.
    audio_folder : str | None
        Folder that file names are relative to; itself relative to the data. Files are
        also looked up in the data's folder and next to the table.
    config : str | None
        Configuration of a hub data set.
    cache_dir : str | None
        Cache folder of `datasets`; None: its default.
    num_clips : int | None
        Number of clips in the complete data set; a different number causes a warning.
    clip_seconds : float | None
        Usual clip length, s, for the YAML of a run to refer to; not used here.
    licence : str | None
        Licence of the data; stored in ``rows.info.license``.

    Raises
    ------
    ValueError
        If ``form`` or ``segments`` has no legal value.

    Example
    -------
    >>> Facts(classes="dog, cat").class_names
    ['dog', 'cat']
    """

    form: str = "auto"
    audio_column: str | None = None
    label_column: str | None = None
    id_column: str | None = None
    group_column: str | None = None
    fold_column: str | None = None
    split_column: str | None = None
    device_column: str | None = None
    judged_column: str | None = None
    separator: str | None = None
    classes: Sequence[str] | str | None = None
    min_probability: float = 0.5
    segments: bool = True
    splits: Mapping[str, str] | None = None
    audio_folder: str | None = None
    config: str | None = None
    cache_dir: str | None = None
    num_clips: int | None = None
    clip_seconds: float | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} must be one of {', '.join(FORMS)}")
        if not isinstance(self.segments, bool):
            raise ValueError(f"segments={self.segments!r} must be True or False")

    @property
    def class_names(self) -> list[str] | None:
        """All classes in their order, as a list; None: any."""
        return class_names(self.classes)

    @property
    def are_numbered(self) -> bool:
        """Whether columns are given by number, so that there may be no header."""
        given = (self.audio_column, self.label_column)
        return any(str(name).isdecimal() for name in given)
