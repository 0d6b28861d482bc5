"""Reads the files of an AST, from the hub or a folder, as untrusted input.

The settings that a config may have are listed here, so that it cannot name code,
another repository or a way of loading, nor ask for more memory than its weights fill.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch

from efficientat_plugin.support.files import read_text
from efficientat_plugin.support.hub import name_on_hub
from efficientat_plugin.support.limits import MAX_SETTINGS_BYTES, SAMPLE_RATES
from efficientat_plugin.support.plain_text import shown

MODEL_TYPE = "audio-spectrogram-transformer"
CONFIG_FILE, EXTRACTOR_FILE = "config.json", "preprocessor_config.json"
WEIGHTS = "model.safetensors"
MAX_MISSING = 2**24  # weights that a config may ask for beyond those in the file

NAMES = {int: "a whole number", float: "a number", bool: "a truth value"}

# Settings that are read: (type, lowest, highest).
CONFIG = {
    "hidden_size": (int, 1, 8192),
    "num_hidden_layers": (int, 1, 64),
    "num_attention_heads": (int, 1, 128),
    "intermediate_size": (int, 1, 32768),
    "hidden_dropout_prob": (float, 0, 1),
    "attention_probs_dropout_prob": (float, 0, 1),
    "initializer_range": (float, 0, 1),
    "layer_norm_eps": (float, 0, 1),
    "patch_size": (int, 1, 128),
    "qkv_bias": (bool, False, True),
    "frequency_stride": (int, 1, 128),
    "time_stride": (int, 1, 128),
    "max_length": (int, 1, 32768),
    "num_mel_bins": (int, 1, 1024),
}
EXTRACTOR = {
    "sampling_rate": (int, *SAMPLE_RATES),
    "num_mel_bins": (int, 1, 1024),
    "max_length": (int, 1, 32768),
    "do_normalize": (bool, False, True),
    "mean": (float, -1000, 1000),
    "std": (float, 1e-6, 1000),
}


def read_ast(
    transformers: Any,
    source: str | Path,
    savedir: str | Path | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """Reads the network of an AST and the settings of its front end.

    Arguments
    ---------
    transformers : module
    source, savedir, revision
        As in ``load_ast``.

    Returns
    -------
    transformers.ASTForAudioClassification
        In float32, with all weights loaded.
    transformers.ASTFeatureExtractor

    Raises
    ------
    OSError
        If a file is missing: the weights must be in one file of safetensors.
    ValueError
        If it is another network, a setting is not legal for an AST, or the weights
        are corrupt or do not fill the network.
    """
    if not os.path.isdir(source):
        name_on_hub(str(source))
    hub = {"cache_dir": savedir, "revision": revision or "main"}

    def locate(name: str) -> str:
        try:
            return transformers.utils.cached_file(source, name, **hub)
        except Exception as error:  # the hub raises errors of many kinds
            raise OSError(
                f"{source} has no {name} ({_reason(error)}); pass a folder that has "
                "it, or a name on the hub with safetensors, or check the network"
            ) from error

    config = _config(transformers, source, _json(source, locate(CONFIG_FILE)))
    settings = _json(source, locate(EXTRACTOR_FILE))
    settings = _legal(source, settings, EXTRACTOR, EXTRACTOR_FILE)
    extractor = transformers.ASTFeatureExtractor(**settings)
    return _network(transformers, source, config, locate(WEIGHTS)), extractor


def _config(transformers: Any, source: str | Path, settings: Mapping[str, Any]) -> Any:
    """Returns an ``ASTConfig`` of the known settings."""
    model_type = settings.get("model_type")
    if model_type != MODEL_TYPE:
        raise ValueError(
            f"{source} is a {_short(model_type)}; only an {MODEL_TYPE} is supported"
        )
    legal = _legal(source, settings, CONFIG, CONFIG_FILE)
    activation = settings.get("hidden_act", "gelu")
    known = transformers.activations.ACT2FN
    if not isinstance(activation, str) or activation not in known:
        raise ValueError(
            f"hidden_act of {source} is {_short(activation)}, which transformers does "
            f"not know; correct its {CONFIG_FILE}"
        )
    names = settings.get("id2label")
    number = len(names) if isinstance(names, dict) else 0
    labels = [names.get(str(place)) for place in range(number)] if names else []
    if not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(
            f"id2label of {source} does not name all of its classes, from "
            f'"0" on; correct its {CONFIG_FILE}'
        )
    return transformers.ASTConfig(
        **legal,
        hidden_act=activation,
        id2label=dict(enumerate(labels)),
        label2id={label: place for place, label in enumerate(labels)},
    )


def _network(transformers: Any, source: str | Path, config: Any, weights: str) -> Any:
    """Returns a network of this config with all weights loaded."""
    try:
        state = huggingface_hub.load_state_dict_from_file(weights)
    except Exception as error:  # safetensors has an error of its own
        raise ValueError(
            f"{WEIGHTS} of {source} is corrupt ({_reason(error)}); download or write "
            "it again"
        ) from error
    network_class = transformers.ASTForAudioClassification
    try:
        with torch.device("meta"):
            needed = sum(p.numel() for p in network_class(config).parameters())
        held = sum(weight.numel() for weight in state.values())
        if needed - held > MAX_MISSING:
            raise ValueError(f"it asks for {needed} weights, and there are {held}")
        network, info = network_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            attn_implementation="sdpa",
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and torch raise errors of many kinds
        raise ValueError(
            f"the {CONFIG_FILE} of {source} does not fit its weights "
            f"({_reason(error)}); use a checkpoint for classification"
        ) from error
    for what, names in info.items():
        if names:
            some = shown(sorted(map(str, names))[:3])
            raise ValueError(
                f"the weights of {source} do not fill the network ({what}: {some}); "
                "use a checkpoint for classification"
            )
    return network


def _json(source: str | Path, path: str) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, MAX_SETTINGS_BYTES))
    except (ValueError, RecursionError) as error:
        content = _reason(error)
    if not isinstance(content, dict):
        raise ValueError(
            f"{os.path.basename(path)} of {source} is not JSON with settings "
            f"({_short(content)}); download or write it again"
        )
    return content


def _legal(
    source: str | Path, given: Mapping[str, Any], known: Mapping[str, Any], file: str
) -> dict[str, Any]:
    """Returns the known settings of a file; refuses illegal values."""
    legal = {name: given[name] for name in known if name in given}
    for name, value in legal.items():
        kind, low, high = known[name]
        # The exact type, since in Python True is an int
        kinds = (int, float) if kind is float else (kind,)
        if type(value) not in kinds or not low <= value <= high:
            raise ValueError(
                f"{name} of {source} is {_short(value)}; it must be {NAMES[kind]} from "
                f"{low} to {high}; correct its {file}"
            )
    return legal


def _short(value: object) -> str:
    return shown(value)[:80]


def _reason(error: Exception) -> str:
    return shown(f"{type(error).__name__}: {error}".splitlines()[0])[:200]
