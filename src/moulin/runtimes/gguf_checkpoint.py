"""Turns a GGUF file into a checkpoint in the form of the model hub, for runtimes that want one.

    python -m moulin.runtimes.gguf_checkpoint FILE.gguf DIRECTORY

Weights are widened to bfloat16, which brings back nothing that quantising took away. It is run in
the environment of the runtime vllm; `moulin runtime convert` does that. The directory appears whole
or not at all.

Reference: transformers, "GGUF and interaction with Transformers".
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from moulin.domain.errors import LocalError, MoulinError


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert one file; return 1 when that was not possible."""
    parser = argparse.ArgumentParser(prog="moulin.runtimes.gguf_checkpoint")
    parser.add_argument("file", type=Path, help="GGUF file")
    parser.add_argument("directory", type=Path, help="folder to write, which must not exist")
    found = parser.parse_args(arguments)
    try:
        convert(found.file.resolve(), found.directory.resolve())
    except MoulinError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    return 0


def convert(file: Path, directory: Path) -> None:
    """Write a checkpoint with the weights and the tokenizer of a GGUF file.

    Raises `LocalError` when the folder exists, or the library cannot read or widen the file.
    """
    if directory.exists():
        raise LocalError(f"write {directory}: it exists")
    draft = directory.with_name(f".{directory.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        _write(file, draft)
        draft.replace(directory)
    # The library's readers raise whatever a file they do not know leads them to.
    except Exception as cause:
        raise LocalError(f"convert {file}: {type(cause).__name__}: {cause}") from cause
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(file: Path, draft: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.bfloat16)
    # It is no longer quantised, but would still be written down as such.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(draft)
    AutoTokenizer.from_pretrained(**place).save_pretrained(draft)


if __name__ == "__main__":
    sys.exit(main())
