"""What keeps features apart beside the prediction: VICReg (C-JEPA), SIGReg (LeJEPA) or VISReg; the projector before each."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from torch import nn

from jepakit.core.parallel import BatchNorm
from jepakit.model.regularizers.sigreg import SIGReg
from jepakit.model.regularizers.vicreg import VICReg
from jepakit.model.regularizers.visreg import VISReg


def _name_kind(value: Any) -> Any:
    """Settings without a kind are VICReg's: runs from before there were two kinds name none."""
    return {"kind": "vicreg", **value} if isinstance(value, Mapping) else value


Regularizer = Annotated[VICReg | SIGReg | VISReg, Field(discriminator="kind"), BeforeValidator(_name_kind)]


def projector(widths: tuple[int, ...], width: int) -> nn.Module:
    """(Linear without bias, batch norm, ReLU) for all widths but the last, then Linear; nothing for no widths."""
    layers: list[nn.Module] = []
    for hidden in widths[:-1]:
        layers += [nn.Linear(width, hidden, bias=False), BatchNorm(hidden), nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers, *([nn.Linear(width, widths[-1])] if widths else []))
