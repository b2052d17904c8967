"""The base of everything that can be set: frozen, strict about names, finite."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
