"""What a training has to know of the stack that will serve its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from loraserve.contract.base_model import Base
from loraserve.contract.document import Document
from loraserve.errors import LoraserveError
from loraserve.planning.model_shapes import ModelShape
from loraserve.planning.setting_sections import TrainingBase
from loraserve.planning.stack_settings import Settings


class TrainingTarget(Document):
    """Written by `pulumi up` for its Job; elsewhere it comes from the stack's file."""

    base: Base
    trained_on: TrainingBase
    model_shape: ModelShape
    chat_template: str | None = None
    instance: str

    @classmethod
    def of(cls, settings: Settings, instance: str | None = None) -> Self:
        template = settings.chat_template
        return cls(
            base=settings.base,
            trained_on=settings.trained_on,
            model_shape=settings.model_shape,
            chat_template=template.read_text(encoding="utf-8") if template else None,
            instance=instance or settings.gpu_instance_type,
        )

    @classmethod
    def parse(cls, text: str, refusal: Callable[[str], LoraserveError]) -> Self:
        return cls._parsed(text, refusal)

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True)
