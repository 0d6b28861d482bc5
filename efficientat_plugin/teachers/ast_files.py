"""Reads the files of an AST, from the hub or a folder, as untrusted input.

The settings that a config may have are listed here, so that it cannot name code,
another repository or a way of loading, nor ask for more memory than its weights fill.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import Tensor

from efficientat_plugin.support.files import read_text
from efficientat_plugin.support.hub import name_on_hub
from efficientat_plugin.support.limits import MAX_SETTINGS_BYTES, SAMPLE_RATES
from efficientat_plugin.support.plain_text import shown

MODEL_TYPE = "audio-spectrogram-transformer"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_MISSING = 2**24  # weights that a config may ask for beyond those in the files

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


class ASTFiles:
    """Reads the config, the weights and the front-end settings of an AST.

    Arguments
    ---------
    transformers : module
    source : str or Path
        A name on the hub, or a folder.
    savedir, revision
        As in ``load_ast``.
    """

    def __init__(
        self,
        transformers: Any,
        source: str | Path,
        savedir: str | Path | None,
        revision: str | None,
    ) -> None:
        self.transformers, self.source = transformers, source
        if not os.path.isdir(source):
            name_on_hub(str(source))
        self.hub = {"cache_dir": savedir, "revision": revision or "main"}

    def config(self) -> Any:
        """Returns an ``ASTConfig``.

        Raises
        ------
        OSError
            If there is no config.json.
        ValueError
            If it is another network's, or has values that are not legal for an AST.
        """
        told = self._json("config.json")
        model_type = told.get("model_type")
        if model_type != MODEL_TYPE:
            raise ValueError(
                f"{self.source} is a {_short(model_type)}; only an {MODEL_TYPE} is "
                "supported"
            )
        legal = self._legal(told, CONFIG, "config.json")
        activations = self.transformers.activations.ACT2FN
        activation = told.get("hidden_act", "gelu")
        if not isinstance(activation, str) or activation not in activations:
            raise ValueError(
                f"hidden_act of {self.source} is {_short(activation)}, which "
                "transformers does not know; correct its config.json"
            )
        names = self._class_names(told)
        return self.transformers.ASTConfig(
            **legal,
            hidden_act=activation,
            id2label=dict(enumerate(names)),
            label2id={name: place for place, name in enumerate(names)},
        )

    def extractor(self) -> Any:
        """Returns an ``ASTFeatureExtractor``; raises errors as ``config`` does."""
        name = "preprocessor_config.json"
        legal = self._legal(self._json(name), EXTRACTOR, name)
        return self.transformers.ASTFeatureExtractor(**legal)

    def network(self, config: Any) -> Any:
        """Returns an ``ASTForAudioClassification`` in float32 with all weights loaded.

        Raises
        ------
        OSError
            If there are no weights in safetensors.
        ValueError
            If they are corrupt, or do not fill the network.
        """
        state = self._state()
        network_class = self.transformers.ASTForAudioClassification
        try:
            with torch.device("meta"):
                asked = sum(p.numel() for p in network_class(config).parameters())
            held = sum(weight.numel() for weight in state.values())
            if asked - held > MAX_MISSING:
                raise ValueError(f"it asks for {asked} weights, and there are {held}")
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
                f"the config.json of {self.source} does not fit its weights "
                f"({_reason(error)}); use a checkpoint for classification"
            ) from error
        for what, names in info.items():
            if names:
                some = shown(sorted(map(str, names))[:3])
                raise ValueError(
                    f"the weights of {self.source} do not fill the network ({what}: "
                    f"{some}); use a checkpoint for classification"
                )
        return network

    def _class_names(self, told: Mapping[str, Any]) -> list[str]:
        """Returns the class names in the network's order; default: LABEL_0, ..."""
        names = told.get("id2label")
        if names is None:
            number = told.get("num_labels", 2)
            if not _is_legal(number, int, 1, 100_000):
                raise ValueError(
                    f"num_labels of {self.source} is {_short(number)}; correct its "
                    "config.json"
                )
            return [f"LABEL_{place}" for place in range(number)]
        number = len(names) if isinstance(names, dict) else 0
        places = [str(place) for place in range(number)]
        named = [names[place] for place in places if place in names]
        if not number or [type(name) for name in named] != [str] * number:
            raise ValueError(
                f"id2label of {self.source} does not name all of its classes, from "
                '"0" on; correct its config.json'
            )
        return named

    def _state(self) -> dict[str, Tensor]:
        files = [WEIGHTS]
        try:
            self._path(WEIGHTS)
        except OSError as error:
            try:
                told = self._json(INDEX).get("weight_map")
            except OSError:
                raise error from None
            if not isinstance(told, dict) or not all(map(_is_name, told.values())):
                raise ValueError(
                    f"the {INDEX} of {self.source} names files other than "
                    "*.safetensors in its own folder; use another checkpoint"
                ) from error
            files = sorted(set(told.values()))
        state: dict[str, Tensor] = {}
        for file in files:
            path = self._path(file)
            try:
                state |= huggingface_hub.load_state_dict_from_file(path)
            except Exception as error:  # safetensors has an error of its own
                raise ValueError(
                    f"{file} of {self.source} is corrupt ({_reason(error)}); download "
                    "or write it again"
                ) from error
        return state

    def _json(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        try:
            content = json.loads(read_text(path, MAX_SETTINGS_BYTES))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{name} of {self.source} is not JSON ({_reason(error)}); download or "
                "write it again"
            ) from error
        if not isinstance(content, dict):
            raise ValueError(
                f"{name} of {self.source} has no settings; download or write it again"
            )
        return content

    def _path(self, name: str) -> str:
        cached_file: Callable[..., str] = self.transformers.utils.cached_file
        try:
            return cached_file(self.source, name, **self.hub)
        except Exception as error:  # the hub raises errors of many kinds
            raise OSError(
                f"{self.source} has no {name} ({_reason(error)}); pass a folder that "
                "has it, or a name on the hub with safetensors, or check the network"
            ) from error

    def _legal(
        self, told: Mapping[str, Any], known: Mapping[str, Any], file: str
    ) -> dict[str, Any]:
        """Returns the known settings of a file; refuses illegal values."""
        legal = {name: told[name] for name in known if name in told}
        for name, value in legal.items():
            kind, low, high = known[name]
            if not _is_legal(value, kind, low, high):
                raise ValueError(
                    f"{name} of {self.source} is {_short(value)}; it must be "
                    f"{NAMES[kind]} from {low} to {high}; correct its {file}"
                )
        return legal


def _is_legal(value: Any, kind: type, low: float, high: float) -> bool:
    # The exact type, since in Python True is an int
    kinds = (int, float) if kind is float else (kind,)
    return type(value) in kinds and bool(low <= value <= high)


def _is_name(file: object) -> bool:
    """Whether this is the name of a safetensors file without any folder."""
    return (
        isinstance(file, str)
        and file.endswith(".safetensors")
        and not set(file) & set("/\\:\0")
    )


def _short(value: object) -> str:
    return shown(value)[:80]


def _reason(error: Exception) -> str:
    return shown(f"{type(error).__name__}: {error}".splitlines()[0])[:200]
