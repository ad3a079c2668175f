"""Weights of a Hugging Face directory: ``*.safetensors``, one file or shards.  No pickle is ever opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from reference_engine.models.errors import ModelLoadError

INDEX = "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from ``path``; ModelLoadError when it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ModelLoadError(f"{path} is not valid JSON ({error}); download the model again") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} must hold a JSON object; download the model again")
    return value


class SafetensorsDir:
    """Tensors of one directory by their Hugging Face names (``model.layers.0.self_attn.q_proj.weight``)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file_of: dict[str, Path] = {}
        index = directory / INDEX
        if index.is_file():
            for name, file in read_json(index).get("weight_map", {}).items():
                self._file_of[name] = self._inside(str(file))
        else:
            files = sorted(directory.glob("*.safetensors"))
            if not files:
                raise ModelLoadError(
                    f"{directory} holds no .safetensors file; convert the model (pickled weights are never opened)"
                )
            for file in files:
                with _open(file) as handle:
                    self._file_of.update(dict.fromkeys(handle.keys(), file))

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored.  Raises ModelLoadError when it is missing."""
        if name not in self._file_of:
            raise ModelLoadError(
                f"{self.directory} lacks the tensor {name!r}; the download is incomplete or the model is another one"
            )
        with _open(self._file_of[name]) as handle:
            try:
                tensor: Tensor = handle.get_tensor(name)
            except SafetensorError:
                raise ModelLoadError(
                    f"{self._file_of[name]} lacks the tensor {name!r} that the index promises; download the model again"
                ) from None
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelLoadError(
                f"tensor {name!r} is {kind}, a quantised format; use F32, F16 or BF16 safetensors, or a GGUF file"
            )
        return tensor

    def _inside(self, file: str) -> Path:
        """A shard's path; an index may not point out of its directory."""
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelLoadError(
                f"the index names {file!r}, which is not a .safetensors file beside it; the model is damaged"
            )
        return self.directory / file


def _open(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except FileNotFoundError:
        raise ModelLoadError(f"{file} is missing; the download is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{file} is not a readable safetensors file ({error}); download it again") from None
