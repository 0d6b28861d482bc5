"""Names of the Hugging Face hub: what may be asked of it, and only aloud."""

import logging
import re
from typing import Any

import huggingface_hub
from huggingface_hub import constants

from efficientat_plugin.support.plain_text import shown

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


def look_up(source: str, file: str, config: Any = None) -> None:
    """Refuses at once what neither the cache nor the hub has.

    The hub's own client asks a server that is not there again and again, for half a
    minute.

    Arguments
    ---------
    source : str
        As it was given, of which nothing is here.
    file : str
        What is wanted of it.
    config : FetchConfig or None
        SpeechBrain's.

    Raises
    ------
    FileNotFoundError
        Saying whether the hub was asked.
    """
    name_on_hub(source)
    absent = f"there is no file or folder {source}"
    revision = getattr(config, "revision", None)
    folder = getattr(config, "huggingface_cache_dir", None)
    found = huggingface_hub.try_to_load_from_cache(source, file, folder, revision)
    if isinstance(found, str):
        return
    if constants.HF_HUB_OFFLINE or not getattr(config, "allow_network", True):
        raise FileNotFoundError(
            f"{absent}, and the hub was not asked for it, since that is forbidden "
            "(HF_HUB_OFFLINE or allow_network); check the path"
        )
    try:
        address = huggingface_hub.hf_hub_url(source, file, revision=revision)
        token = getattr(config, "token", None)
        huggingface_hub.get_hf_file_metadata(address, token=token)
    except Exception as error:  # of the hub, and of whatever client it has
        why = shown(" ".join(str(error).split())[:200])
        raise FileNotFoundError(
            f"{absent}, and it was not found on the hub ({constants.ENDPOINT}): {why}"
        ) from error
