"""How much of the log-mel one cell of a student's maps is computed from."""

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from efficientat_plugin.cost.tracing import Window, trace

if TYPE_CHECKING:
    from efficientat_plugin.features import LogMel

# Operations whose results are no maps, since they have seen all of them
REDUCTIONS = (
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "logsumexp",
    "_adaptive_avg_pool2d",
    "adaptive_max_pool2d",
)
ENLARGING = ("transposed_convolution", "upsample")  # first words of their names


class ReceptiveField(NamedTuple):
    """What a cell of the last maps sees, and how far its neighbour's view is."""

    bands: int  # mel bands
    frames: int  # mel frames
    band_step: int = 1  # mel bands from cell to cell
    frame_step: int = 1  # mel frames from cell to cell

    def milliseconds(self, log_mel: "LogMel") -> float:
        """Its length in time: hops between its frames, and the last one's window.

        Arguments
        ---------
        log_mel : LogMel
            The student's front end. The one sample before, which pre-emphasis needs,
            is left out.

        Returns
        -------
        float

        Example
        -------
        >>> from efficientat_plugin.features import LogMel
        >>> ReceptiveField(bands=3, frames=3).milliseconds(LogMel())
        45.0
        """
        samples = (self.frames - 1) * log_mel.hop_length + log_mel.win_length
        return 1000 * samples / log_mel.sample_rate


def _behind(field: ReceptiveField, window: Window) -> ReceptiveField:
    """The field behind a convolution or pooling."""
    reach = [
        dilation * (kernel - 1)
        for kernel, dilation in zip(window.kernel, window.dilation, strict=True)
    ]
    return ReceptiveField(
        field.bands + reach[0] * field.band_step,
        field.frames + reach[1] * field.frame_step,
        field.band_step * window.stride[0],
        field.frame_step * window.stride[1],
    )


def receptive_field(
    student: nn.Module, n_mels: int = 128, n_frames: int = 1000
) -> ReceptiveField:
    """The receptive field of the last maps, along the convolutions alone.

    Squeeze-excite, the context of dynamic blocks, and everything behind a mean over
    bands or frames see the whole clip: with them every cell depends on all of it, if
    only by a few numbers. They are left out; of several paths the widest counts. The
    field does not end where the clip does: it may have more bands than the log-mel.

    Source: Araujo et al., "Computing Receptive Fields of Convolutional Neural
    Networks", Distill 2019, equation 2.

    Arguments
    ---------
    student : torch.nn.Module
        Takes [B, 1, F, T].
    n_mels : int
        F, at least 1.
    n_frames : int
        T, at least 1.

    Returns
    -------
    ReceptiveField

    Raises
    ------
    ValueError
        For a clip without bands or frames, and for maps that are enlarged.

    Example
    -------
    >>> layers = [nn.Conv2d(1, 8, 3, stride=2), nn.Conv2d(8, 8, (1, 3))]
    >>> receptive_field(nn.Sequential(*layers))
    ReceptiveField(bands=3, frames=7, band_step=2, frame_step=2)
    """
    fields = {0: ReceptiveField(1, 1)}  # of values that are maps
    for operation in trace(student, n_mels, n_frames).operations:
        if operation.name in REDUCTIONS:
            continue
        # A convolution's kernels may be values as well; its maps come first.
        read = operation.read[:1] if operation.window else operation.read
        known = [fields[value] for value in read if value in fields]
        if not known:
            continue
        if operation.name.startswith(ENLARGING):
            raise ValueError(
                f"the student enlarges its maps ({operation.name}), and the receptive "
                "field of that is not known here; ask for the part in front of it"
            )
        field = _widest(known)
        if operation.window is not None:
            field = _behind(field, operation.window)
        fields |= dict.fromkeys(operation.written, field)
    return _widest(list(fields.values()))


def _widest(fields: list[ReceptiveField]) -> ReceptiveField:
    """The widest of each in bands and in frames, and the coarsest steps."""
    return ReceptiveField(*(max(numbers) for numbers in zip(*fields, strict=True)))
