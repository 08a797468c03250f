"""How an adapter is to be trained: written by people and by `pulumi up`, read by `loraserve train` and its Job."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from loraserve.contract.document import Document, Rank, TargetModules

Form = Literal["chat", "instruct", "completion"]
Method = Literal["qlora", "lora"]
ALL_LINEAR = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
PLENTY_OF_ROWS = 10_000
"""From here on a rank above USUAL_RANK may have something to hold."""
USUAL_RANK = 16


class Training(Document):
    rows: str
    """JSON Lines: a path relative to this file, or s3://bucket/key."""
    evaluations: tuple[str, ...] = ()
    """Files of `loraserve evaluate`, of whose rows nothing may be trained on."""
    form: Form = "chat"
    """Of rows with `input` and `output`: as a conversation, between [INST] and [/INST], or as a bare text."""
    system: str | None = None
    """What comes before each `input`."""
    skip_long: bool = False
    """Leave out rows longer than `max_length`, instead of refusing to train."""

    method: Method = "qlora"
    """qlora: the base in 4 bits while it is trained on; lora: in 16."""
    rank: Rank = 16
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    target_modules: TargetModules = ALL_LINEAR
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the rate rises; it then falls as a cosine."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 3
    batch_size: Annotated[int, Field(ge=1, le=256)] = 2
    accumulation: Annotated[int, Field(ge=1, le=1024)] = 8
    """Batches to a step."""
    max_length: Annotated[int, Field(ge=16)] = 2048
    """Tokens of prompt and answer together."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    checkpoint_steps: Annotated[int, Field(ge=1)] = 25
    """How many steps a lost node costs at most."""

    @model_validator(mode="after")
    def _system_of_inputs(self) -> Self:
        if self.system is not None and not self.system.strip():
            raise ValueError("system: is empty; leave it out")
        return self

    def steps(self, rows: int) -> int:
        batches = math.ceil(rows / self.batch_size)
        return self.epochs * math.ceil(batches / self.accumulation)

    def warnings(self, rows: int) -> list[str]:
        found = []
        if self.rank > USUAL_RANK and rows < PLENTY_OF_ROWS:
            found.append(
                f"rank {self.rank} for {rows:,} rows: above {USUAL_RANK} an adapter learns few rows by heart and forgets what the base "
                f"knew, which only an evaluation on general rows shows; {PLENTY_OF_ROWS:,} rows may want it"
            )
        if rows < self.batch_size * self.accumulation:
            found.append(
                f"{rows} rows are less than one step of {self.batch_size} x {self.accumulation}: there are {self.steps(rows)} steps in "
                "all; set accumulation lower"
            )
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the result besides the rows, for the lineage."""
        kept = {"evaluations", "rows", "skip_long", "checkpoint_steps"}
        return self.model_dump(mode="json", by_alias=True, exclude=kept)
