"""The base of everything that can be set: frozen, strict about names, finite."""

from typing import Self

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def over(self, base: Self) -> Self:
        """What was given here, over the values of `base` where nothing was."""
        return base.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})
