"""Which devices are there to compute on."""

import torch

__all__ = ["check_device"]


def check_device(device: str) -> None:
    """Refuses a device that is not there, before anything is read.

    Arguments
    ---------
    device : str
        As torch names it: "cpu", "cuda:0".

    Raises
    ------
    ValueError
        For a name that torch does not know, and for a device that is not there.

    Example
    -------
    >>> check_device("cpu")
    >>> check_device("cuda:99")
    Traceback (most recent call last):
    ValueError: the device cuda:99 is not there; give cpu...
    """
    try:
        kind = torch.device(device)
        if kind.type == "cuda":  # without taking memory of a GPU that others use
            there = (kind.index or 0) < torch.cuda.device_count()
        else:
            torch.zeros(1, device=kind)
            there = True
    # torch says it in its own ways: one without CUDA asserts
    except (RuntimeError, AssertionError, NotImplementedError):
        there = False
    if not there:
        raise ValueError(
            f"the device {device} is not there; give cpu, or cuda:0 where there is "
            "a GPU"
        )
    if kind.type == "meta":
        raise ValueError("nothing is computed on the device meta; give cpu or cuda:0")
