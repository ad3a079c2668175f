"""From a name on the command line to a model in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from reference_engine.config import ModelConfig
from reference_engine.huge_pages import collapse_into_huge_pages
from reference_engine.models import embedded
from reference_engine.models.errors import ModelLoadError
from reference_engine.models.gguf_file import GgufFile
from reference_engine.models.gguf_tokenizer import tokenizer_from_gguf
from reference_engine.models.hf_config import parse_hf_config
from reference_engine.models.llama import LlamaModel, WeightSource
from reference_engine.models.ops import Ops, make_ops
from reference_engine.models.safetensors_dir import SafetensorsDir, read_json
from reference_engine.models.tokenizer import Tokenizer, tokenizer_from_directory
from reference_engine.sentinel import CHECKPOINT

SENTINEL = "sentinel"
# Data files only: no pickles (.bin, .pt), no Python.
HUB_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "*.jinja")
HUB_TOKENIZER_PATTERNS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, its shape and its tokenizer."""

    config: ModelConfig
    model: LlamaModel
    tokenizer: Tokenizer


def load_model(
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int | None = None,
    ops: Ops | None = None,
) -> LoadedModel:
    """Load ``name``: ``smollm2``, ``sentinel``, a Hugging Face directory, a ``.gguf`` file (or a directory with
    exactly one), or a hub id.

    ``max_model_len`` (tokens) is the longest sequence that will be served; it matters to models whose RoPE
    frequencies depend on it (dynamic NTK, LongRoPE).  ``ops`` overrides the arithmetic chosen for the device.  Raises
    ModelLoadError with one clear sentence.
    """
    path = resolve(name)
    chosen = ops or make_ops(device, dtype)

    def build(config: ModelConfig, weights: WeightSource) -> LlamaModel:
        return LlamaModel(config, weights, chosen, dtype=dtype, device=device, max_model_len=max_model_len)

    with torch.inference_mode():
        loaded = _load_gguf(path, build) if path.is_file() else _load_directory(path, build)
    if device.type == "cpu":
        collapse_into_huge_pages()
    return loaded


def resolve(name: str) -> Path:
    """The file or directory that ``name`` means; fetches the embedded model or a hub snapshot when it must."""
    if name == embedded.ALIAS:
        return embedded.ensure_embedded_model()
    if name == SENTINEL:
        return CHECKPOINT
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return _only_gguf(path) or path
    if _is_hub_id(name):
        return _fetch_from_hub(name)
    raise ModelLoadError(
        f"no model at {name!r}; give a directory, a .gguf file, a hub id like org/name, "
        f"or a built-in one: {embedded.ALIAS!r}, {SENTINEL!r}"
    )


def _only_gguf(directory: Path) -> Path | None:
    """The one GGUF file of a directory that is not a Hugging Face model directory."""
    if (directory / "config.json").is_file():
        return None
    files = sorted(directory.glob("*.gguf"))
    if len(files) > 1:
        raise ModelLoadError(f"{directory} holds {len(files)} .gguf files; name one of them, for example {files[0]}")
    return files[0] if files else None


def _is_hub_id(name: str) -> bool:
    """``org/name``: exactly one slash, no path syntax, no file extension of ours."""
    parts = name.split("/")
    plain = len(parts) == 2 and all(p and not p.startswith((".", "~", "-")) for p in parts)
    return plain and not name.endswith((".gguf", ".safetensors")) and "\\" not in name


def _fetch_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*HUB_PATTERNS, *HUB_TOKENIZER_PATTERNS]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises its own, httpx's and OS errors
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(
            f"{name!r} is no local path and could not be fetched from the Hugging Face hub ({first}); "
            "check the spelling and the connection, or pass a local directory or .gguf file"
        ) from None


def _load_gguf(path: Path, build: Callable[[ModelConfig, WeightSource], LlamaModel]) -> LoadedModel:
    file = GgufFile(path)
    tokenizer = tokenizer_from_gguf(file)
    return LoadedModel(file.config, build(file.config, file), tokenizer)


def _load_directory(path: Path, build: Callable[[ModelConfig, WeightSource], LlamaModel]) -> LoadedModel:
    if not (path / "config.json").is_file():
        raise ModelLoadError(
            f"{path} holds neither config.json nor a .gguf file; give a model directory or a .gguf file"
        )
    generation = path / "generation_config.json"
    config = parse_hf_config(read_json(path / "config.json"), read_json(generation) if generation.is_file() else None)
    tokenizer = tokenizer_from_directory(path)
    return LoadedModel(config, build(config, SafetensorsDir(path)), tokenizer)
