"""From a name to a model; and one clear sentence for everything that can be wrong with it."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reference_engine.models.errors import ModelLoadError
from reference_engine.models.loader import resolve

PICKLE_RAN = Path(__file__).with_name("pickle-ran")


class Bomb:
    """Unpickling this would create a file."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (PICKLE_RAN,))


def one_sentence(error: pytest.ExceptionInfo[ModelLoadError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) > 20
    return message


def test_shards_load_like_one_file(save_tiny: Any, load_tiny: Any, run_paged: Any) -> None:
    path, _ = save_tiny("llama", shard="30KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    merged: dict[str, torch.Tensor] = {}
    for file in path.glob("*.safetensors"):
        merged |= load_file(file)
    whole = path.parent / "whole"
    shutil.copytree(path, whole, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(merged, whole / "model.safetensors")
    tokens = [random.randrange(300) for _ in range(9)]
    assert torch.equal(run_paged(load_tiny(path), tokens, [9]), run_paged(load_tiny(whole), tokens, [9]))


def test_pickles_are_never_opened(save_tiny: Any, load_tiny: Any) -> None:
    path, _ = save_tiny("llama")
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "tokenizer.pkl"):
        (path / name).write_bytes(pickle.dumps(Bomb()))
    (path / "modeling_llama.py").write_text("raise SystemExit('remote code ran')")
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}
    (path / "config.json").write_text(json.dumps(config))
    load_tiny(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"no \.safetensors file") as error:
        load_tiny(path)
    one_sentence(error)
    assert not PICKLE_RAN.exists()


def test_a_directory_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    assert resolve(str(tmp_path)) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelLoadError, match=r"holds 2 \.gguf files"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["/no/such/model", "no-such-model", "./a/b", "a/b/c", "missing/file.gguf"])
def test_a_wrong_path_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelLoadError, match="no model at") as error:
        resolve(name)
    assert name in one_sentence(error)


def test_a_hub_id_without_the_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelLoadError, match="could not be fetched from the Hugging Face hub") as error:
        resolve("nobody/no-such-model")
    one_sentence(error)


def test_only_data_files_are_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import fnmatch

    import huggingface_hub

    asked: list[str] = []

    def snapshot(name: str, *, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert resolve("org/name") == tmp_path
    unwanted = ("pytorch_model.bin", "modeling.py", "model.pt", "weights.pkl", "model.onnx", "x.bin.index.json")
    assert not [f for f in unwanted if any(fnmatch.fnmatch(f, pattern) for pattern in asked)]
    wanted = ("model-00001-of-2.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json")
    assert all(any(fnmatch.fnmatch(f, pattern) for pattern in asked) for f in wanted)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda p: (p / "tokenizer.json").write_text("{}"), "not a readable tokenizer"),
        (lambda p: (p / "config.json").unlink(), "neither config.json nor a .gguf"),
        (lambda p: (p / "config.json").write_text("{oops"), "not valid JSON"),
        (lambda p: (p / "config.json").write_text("[]"), "must hold a JSON object"),
        (lambda p: (p / "model.safetensors").write_bytes(b"nonsense"), "not a readable safetensors file"),
    ],
)
def test_damaged_directories(damage: Any, message: str, save_tiny: Any, load_tiny: Any) -> None:
    path, _ = save_tiny("llama")
    damage(path)
    with pytest.raises(ModelLoadError, match=message) as error:
        load_tiny(path)
    assert str(path) in one_sentence(error)


def rewrite(path: Path, change: Any) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def test_missing_misshapen_and_quantised_tensors(save_tiny: Any, load_tiny: Any) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    path, _ = save_tiny("llama")
    rewrite(path, lambda t: t.update({name: t[name][:-1].contiguous()}))
    with pytest.raises(ModelLoadError, match="do not belong together"):
        load_tiny(path)
    rewrite(path, lambda t: t.update({name: t[name].to(torch.int8)}))
    with pytest.raises(ModelLoadError, match="is int8, a quantised format"):
        load_tiny(path)
    rewrite(path, lambda t: t.pop(name))
    with pytest.raises(ModelLoadError, match=f"lacks the tensor '{name}'"):
        load_tiny(path)


def test_an_index_may_not_point_elsewhere(save_tiny: Any, load_tiny: Any) -> None:
    path, _ = save_tiny("llama", shard="30KB")
    index = path / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    first = next(iter(raw["weight_map"]))
    for target, message in (
        ("../../etc/x.safetensors", "not a .safetensors file beside it"),
        ("weights.bin", "not a .safetensors file beside it"),
        ("gone.safetensors", "is missing"),
    ):
        raw["weight_map"][first] = target
        index.write_text(json.dumps(raw))
        with pytest.raises(ModelLoadError, match=message):
            load_tiny(path)
