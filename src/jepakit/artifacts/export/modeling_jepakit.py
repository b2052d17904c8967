"""An EC-IJEPA encoder for transformers: AutoModel.from_pretrained(FOLDER, trust_remote_code=True).

jepakit copies this file and dense.py beside the weights; here it is imported by nothing. After the patch tokens come the
positions, averaged in squares, that the encoder was conditioned on in training (arXiv 2410.10773, section 3); they are
constants, held with the weights. B images, T patch tokens, D width.
"""

from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .dense import DenseEncoder


class ConditionedConfig(PretrainedConfig):
    """The shape of the encoder, in the words of transformers' IJepaConfig; its activation is GELU."""

    model_type = "jepakit_conditioned"

    def __init__(
        self,
        hidden_size: int = 192,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 3,
        intermediate_size: int = 768,
        layer_norm_eps: float = 1e-6,
        patch_size: int = 16,
        num_channels: int = 3,
        num_patches: int = 196,
        num_conditioning_tokens: int = 9,
        **kwargs: Any,
    ) -> None:
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = hidden_size, num_hidden_layers, num_attention_heads
        self.intermediate_size, self.layer_norm_eps = intermediate_size, layer_norm_eps
        self.patch_size, self.num_channels = patch_size, num_channels
        self.num_patches, self.num_conditioning_tokens = num_patches, num_conditioning_tokens
        super().__init__(**kwargs)


class ConditionedModel(PreTrainedModel):
    """pixel_values, normalised floats (B, C, H, W) of the size in config.json -> last_hidden_state, patch tokens (B, T, D)."""

    config_class = ConditionedConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"

    def __init__(self, config: ConditionedConfig) -> None:
        super().__init__(config)
        self.encoder = DenseEncoder(
            channels=config.num_channels,
            patch_size=config.patch_size,
            tokens=config.num_patches,
            conditioning_tokens=config.num_conditioning_tokens,
            width=config.hidden_size,
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            hidden=config.intermediate_size,
            eps=config.layer_norm_eps,
        )
        self.post_init()

    def forward(self, pixel_values: Tensor, return_dict: bool | None = None, **_: Any) -> Any:
        tokens = self.encoder(pixel_values)
        return (tokens,) if return_dict is False else BaseModelOutput(last_hidden_state=tokens)
