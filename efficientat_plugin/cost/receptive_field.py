"""Computes the receptive field: the part of the log-mel that one cell depends on."""

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from efficientat_plugin.cost.tracing import Window, trace

if TYPE_CHECKING:
    from efficientat_plugin.features import LogMel

# Operations whose results are not maps, since they depend on all cells
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
ENLARGING = ("transposed_convolution", "upsample")  # prefixes of their names


class ReceptiveField(NamedTuple):
    """The part of the log-mel that a cell depends on, and the step between cells."""

    bands: int  # mel bands
    frames: int  # mel frames
    band_step: int = 1  # mel bands from cell to cell
    frame_step: int = 1  # mel frames from cell to cell

    def milliseconds(self, log_mel: "LogMel") -> float:
        """Computes the length in ms: hops between the frames, and the last window.

        Arguments
        ---------
        log_mel : LogMel
            The student's front end. The one sample before it, which pre-emphasis uses,
            is not counted.

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
    """Computes the field after a convolution or pooling."""
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
    """Computes the receptive field of the last maps, through the convolutions alone.

    Squeeze-excite, the context of dynamic blocks, and everything after a mean over
    bands or frames are left out, since they make every cell depend on the whole clip,
    if only through a few numbers. If there are several paths, the widest counts. The
    field is not cut to the size of the clip: it may have more bands than the log-mel.

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
        If ``n_mels`` or ``n_frames`` is less than 1, or the student enlarges maps.

    Example
    -------
    >>> layers = [nn.Conv2d(1, 8, 3, stride=2), nn.Conv2d(8, 8, (1, 3))]
    >>> receptive_field(nn.Sequential(*layers))
    ReceptiveField(bands=3, frames=7, band_step=2, frame_step=2)
    """
    fields = {0: ReceptiveField(1, 1)}  # of the values that are maps
    for operation in trace(student, n_mels, n_frames).operations:
        if operation.name in REDUCTIONS:
            continue
        # The kernels of a convolution may be values, too; its maps come first.
        read = operation.read[:1] if operation.window else operation.read
        known = [fields[value] for value in read if value in fields]
        if not known:
            continue
        if operation.name.startswith(ENLARGING):
            raise ValueError(
                f"the student enlarges its maps ({operation.name}), for which no "
                "receptive field can be computed; give only the layers before it"
            )
        field = _widest(known)
        if operation.window is not None:
            field = _behind(field, operation.window)
        fields |= dict.fromkeys(operation.written, field)
    return _widest(list(fields.values()))


def _widest(fields: list[ReceptiveField]) -> ReceptiveField:
    """Returns the largest sizes and steps, separately in bands and frames."""
    return ReceptiveField(*(max(numbers) for numbers in zip(*fields, strict=True)))
