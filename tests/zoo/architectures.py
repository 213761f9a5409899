"""Architectures of transformers with tiny configurations, random calibrated weights and inputs of two batch sizes.

A configuration is the class's own with its sizes cut down: `SIZES` are the names under which configurations keep them,
`SPECIAL` what an architecture needs besides. Nothing is downloaded.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

# what configurations call their sizes, and the tiny values
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "text_vocab_size", "src_vocab_size", "tgt_vocab_size"), 99),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim", "embedding_size"), 32),
    **dict.fromkeys(("decoder_hidden_size", "word_embed_proj_dim", "encoder_hidden_size", "hidden_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "decoder_num_hidden_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads"), 4
    ),
    **dict.fromkeys(("decoder_num_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "ffn_hidden_size"), 40
    ),
    **dict.fromkeys(("n_inner", "decoder_intermediate_size", "moe_intermediate_size", "feed_forward_size"), 40),
    **dict.fromkeys(("d_kv", "head_dim", "attention_head_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "top_k_experts"), 2),
    "image_size": 32,
    "patch_size": 8,
    "num_mel_bins": 16,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 4,
    "type_vocab_size": 2,
}


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Arguments:
        family: what kind of network it is.
        model_type: its name in transformers.
        config: settings beside `SIZES`; a dict as value configures the part of that name.
        inputs: names of the inputs, as `INPUTS` makes them.
        cls: the class; that of AutoModel by default.
        sizes: settings that the inputs need.
    """

    family: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    cls: str = ""
    sizes: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.model_type

    def build(self, seed: int = 0) -> nn.Module:
        """The network in evaluation mode, calibrated."""
        import transformers

        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = _configuration(self.model_type, self.config)
            if hasattr(config, "use_cache"):
                config.use_cache = False
            made = getattr(transformers, self.cls)(config) if self.cls else transformers.AutoModel.from_config(config)
        made.eval()
        calibrate(made, seed)
        return made

    def arguments(self, batch: int, seed: int = 0) -> dict[str, Any]:
        """Keyword arguments of `forward` for a batch size."""
        rng = torch.Generator().manual_seed(1000 * batch + seed)
        return {name: INPUTS[name](rng, batch, self.sizes) for name in self.inputs}


def _configuration(model_type: str, given: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return _shrunk(type(AutoConfig.for_model(model_type)), given)


def _shrunk(cls: Any, given: dict[str, Any]) -> Any:
    default = cls()
    renamed = getattr(default, "attribute_map", {})
    settings: dict[str, Any] = {
        name: size
        for name, size in SIZES.items()
        if isinstance(getattr(default, name, None), int) and name not in renamed
    }
    parts = getattr(cls, "sub_configs", {})
    for name in parts:
        part = getattr(default, name, None)
        if part is not None:
            settings[name] = _shrunk(type(part), given.get(name, {})).to_dict()
    settings |= {name: value for name, value in given.items() if name not in parts}
    known = inspect.signature(cls.__init__).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        settings = {name: value for name, value in settings.items() if name in known}
    return cls(**settings)


def calibrate(module: nn.Module, seed: int) -> None:
    """Random weights that a conversion error shows with: what is initialised to zeros or ones (biases, norms, layer
    scales, statistics) is given values; no head is zero."""
    rng = torch.Generator().manual_seed(seed)

    def noise(tensor: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(tensor.shape, generator=rng, dtype=torch.float32).to(tensor.dtype)

    with torch.no_grad():
        for tensor in module.parameters():
            if not tensor.is_floating_point() or tensor.numel() == 0:
                continue
            if tensor.std(correction=0) < 1e-6:  # constant
                tensor.add_(noise(tensor, 0.1))
            elif tensor.dim() >= 2 and float(tensor.abs().max()) < 0.2:  # initialised with a standard deviation of 0.02
                fan_in = tensor[0].numel()
                tensor.mul_(min(1.0 / (fan_in**0.5 * float(tensor.std())), 20.0))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(noise(buffer, 0.1))
            elif name.endswith("running_var"):
                buffer.mul_(1 + 0.5 * torch.rand(buffer.shape, generator=rng))


Maker = Callable[[torch.Generator, int, dict[str, int]], Any]


def _ids(length: int, lowest: int = 5, name: str = "length") -> Maker:
    def make(rng: torch.Generator, batch: int, sizes: dict[str, int]) -> torch.Tensor:
        return torch.randint(lowest, sizes.get("vocabulary", 90), (batch, sizes.get(name, length)), generator=rng)

    return make


def _mask(rng: torch.Generator, batch: int, sizes: dict[str, int]) -> torch.Tensor:
    """The last row is shorter than the others."""
    mask = torch.ones(batch, sizes.get("length", 7), dtype=torch.int64)
    mask[-1, -2:] = 0
    return mask


def _noise(*shape: int | str) -> Maker:
    """Normal numbers; a text in the shape is a size that architectures may set, after the colon its default."""

    def make(rng: torch.Generator, batch: int, sizes: dict[str, int]) -> torch.Tensor:
        parts = [s.split(":") if isinstance(s, str) else s for s in shape]
        whole = [p if isinstance(p, int) else sizes.get(p[0], int(p[1])) for p in parts]
        return torch.randn(batch, *whole, generator=rng)

    return make


def _boxes(rng: torch.Generator, batch: int, sizes: dict[str, int]) -> torch.Tensor:
    corner = torch.randint(0, 30, (batch, sizes.get("length", 7), 2), generator=rng)
    return torch.cat([corner, corner + torch.randint(1, 20, corner.shape, generator=rng)], -1)


INPUTS: dict[str, Maker] = {
    "input_ids": _ids(7),
    "attention_mask": _mask,
    "decoder_input_ids": _ids(5, name="decoder_length"),
    "token_type_ids": lambda rng, batch, sizes: torch.randint(0, 2, (batch, sizes.get("length", 7)), generator=rng),
    "bbox": _boxes,
    "pixel_values": _noise("channels:3", "image:32", "image:32"),
    "pixel_values_videos": _noise("frames:4", 3, "image:32", "image:32"),
    "input_features": _noise("mel:16", "time:40"),
    "input_values": _noise("samples:1200"),
    "past_values": _noise("time:24", "channels:3"),
    "inputs_embeds": _noise("length:7", "features:32"),
}
