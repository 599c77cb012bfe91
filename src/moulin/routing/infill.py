"""The prompt for filling in the text between two others, in the form a model was trained on.

It decides nothing but the form; a model without one is refused.

Source: Qwen2.5-Coder's model card (prefix, suffix, middle).
"""

from typing import Any

from moulin.domain.errors import InvalidRequest
from moulin.domain.snapshot import ModelView


def infill(body: dict[str, Any], model: ModelView) -> None:
    """Replace prompt and suffix by one prompt, in place.

    Raises `InvalidRequest` for a model that knows no such form.
    """
    if not model.infill:
        raise InvalidRequest(
            f"{model.name} cannot fill in the text before a suffix",
            hint="use a model whose capabilities in GET /v1/models say completion_fim",
            details={"param": "model", "code": "unsupported_model"},
        )
    prefix, suffix, middle = model.infill
    body["prompt"] = f"{prefix}{body['prompt']}{suffix}{body.pop('suffix', None) or ''}{middle}"
