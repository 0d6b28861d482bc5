"""Checks that a device is available."""

import torch

__all__ = ["check_device"]


def check_device(device: str) -> None:
    """Refuses a device that is not available, before anything is read.

    Arguments
    ---------
    device : str
        As torch names it: "cpu", "cuda:0".

    Raises
    ------
    ValueError
        If torch does not know the name, or the device is not available.

    Example
    -------
    >>> check_device("cpu")
    >>> check_device("cuda:99")
    Traceback (most recent call last):
    ValueError: the device cuda:99 is not available; give cpu...
    """
    try:
        kind = torch.device(device)
        if kind.type == "cuda":  # without allocating memory on a shared GPU
            there = (kind.index or 0) < torch.cuda.device_count()
        else:
            torch.zeros(1, device=kind)
            there = True
    # torch raises several types; one without CUDA asserts
    except (RuntimeError, AssertionError, NotImplementedError):
        there = False
    if not there:
        raise ValueError(
            f"the device {device} is not available; give cpu, or cuda:0 if there is "
            "a GPU"
        )
    if kind.type == "meta":
        raise ValueError("the device meta computes nothing; give cpu or cuda:0")
