"""Checks names on the Hugging Face hub, and logs every look-up there."""

import logging
import re
from typing import Any

import huggingface_hub
from huggingface_hub import constants

from efficientat_plugin.support.plain_text import shown

logger = logging.getLogger(__name__)

NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # user/name


def name_on_hub(source: str) -> str:
    """Returns a name to look up on the hub, if no local file has that name.

    Misspelt paths must not be sent to the hub: a path that cannot be a name on the hub
    is refused, and a look-up is logged.

    Arguments
    ---------
    source : str
        The name or path as given.

    Returns
    -------
    str
        ``source``.

    Raises
    ------
    FileNotFoundError
        If it does not have the form user/name.

    Example
    -------
    >>> name_on_hub("results/finetune/1234")
    Traceback (most recent call last):
    FileNotFoundError: there is no file or folder results/finetune/1234; check the ...
    """
    if not NAME.fullmatch(source):
        raise FileNotFoundError(
            f"there is no file or folder {source}; check the path, or give user/name "
            "on the hub"
        )
    if not constants.HF_HUB_OFFLINE:
        logger.warning(
            "There is no file or folder %s here; looking on the Hugging Face hub",
            source,
        )
    return source


def look_up(source: str, file: str, config: Any = None) -> None:
    """Refuses at once a file that neither the cache nor the hub has.

    The hub's own client would retry an unreachable server for half a minute.

    Arguments
    ---------
    source : str
        The name as given; no local file has it.
    file : str
        The file to look up in it.
    config : FetchConfig or None
        SpeechBrain's.

    Raises
    ------
    FileNotFoundError
        With the reason, and whether the hub was contacted.
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
            f"{absent}, and the hub was not contacted, since that is forbidden "
            "(HF_HUB_OFFLINE or allow_network); check the path"
        )
    try:
        address = huggingface_hub.hf_hub_url(source, file, revision=revision)
        token = getattr(config, "token", None)
        huggingface_hub.get_hf_file_metadata(address, token=token)
    except Exception as error:  # from the hub, or from its HTTP client
        why = shown(" ".join(str(error).split())[:200])
        raise FileNotFoundError(
            f"{absent}, and it was not found on the hub ({constants.ENDPOINT}): {why}"
        ) from error
