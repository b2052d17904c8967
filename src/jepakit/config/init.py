"""What a run begins from: weights that are there already, or none."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jepakit.core.settings import Settings

InitPart = Literal["encoder", "target_encoder", "predictor"]
USUAL_PARTS: tuple[InitPart, ...] = ("encoder", "target_encoder")


class Init(Settings):
    """Weights at step 0. A resume goes on from its own checkpoint and reads none of these again."""

    path: str | None = Field(
        None, description="weights to begin from, all that jepakit.load takes; none: random ones (--init-from)"
    )
    parts: tuple[InitPart, ...] | None = Field(
        None, min_length=1, description="what is taken from there; none: encoder,target_encoder; the rest is made by the seed"
    )

    @field_validator("parts", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        """Words between commas, as on the command line."""
        return tuple(dict.fromkeys(word.strip() for word in given.split(","))) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _of_something(self) -> "Init":
        if self.parts and self.path is None:
            raise ValueError("parts says what is taken of init.path: give that too (--init-from), or leave init.parts out")
        return self
