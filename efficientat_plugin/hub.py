"""Names of the Hugging Face hub: what may be asked of it, and only aloud."""

import logging
import re

from huggingface_hub import constants

logger = logging.getLogger(__name__)

NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # user/name


def name_on_hub(source: str) -> str:
    """A name to ask the hub for, where nothing of that name is here.

    The hub would be told of any path that is misspelt: what cannot be a name of it is
    refused, and what can is logged.

    Arguments
    ---------
    source : str
        As it was given.

    Returns
    -------
    str
        ``source``.

    Raises
    ------
    FileNotFoundError
        If it has not the form user/name.

    Example
    -------
    >>> name_on_hub("results/finetune/1234")
    Traceback (most recent call last):
    FileNotFoundError: there is no file or folder results/finetune/1234; check the ...
    """
    if not NAME.fullmatch(source):
        raise FileNotFoundError(
            f"there is no file or folder {source}; check the path, or give user/name "
            "of the hub"
        )
    if not constants.HF_HUB_OFFLINE:
        logger.warning(
            "There is no file or folder %s here: the Hugging Face hub is asked for it",
            source,
        )
    return source
