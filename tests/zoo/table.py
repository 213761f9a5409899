"""The architectures that are tried, by family, and those that torch.export or ONNX cannot take, with the reason."""

from __future__ import annotations

from typing import Any

from tests.zoo.architectures import Architecture

TEXT = ("input_ids", "attention_mask")
PAIR = (*TEXT, "decoder_input_ids")
IMAGE = ("pixel_values",)
BOTH = (*IMAGE, *TEXT)


def _family(family: str, inputs: tuple[str, ...], names: str, **special: dict[str, Any]) -> list[Architecture]:
    """Architectures of one family: those whose sizes suffice, then those with settings of their own (dashes of their
    names written as underscores)."""
    return [
        *(Architecture(family, name, inputs=inputs) for name in names.split()),
        *(Architecture(family, **({"model_type": name, "inputs": inputs} | given)) for name, given in special.items()),
    ]


def _settings(**config: Any) -> dict[str, Any]:
    return {"config": config}


_LATENT = {
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
}
_GROUPED = {"n_group": 2, "topk_group": 1, "n_routed_experts": 4, "num_experts_per_tok": 2}
_SCAN = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 4,
}
_STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
_PYRAMID = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_LARGER = {"image": 64}
_WINDOWS = {"patch_size": 4, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
_PATCHES = {"context_length": 32, "patch_length": 8, "patch_stride": 8, "num_input_channels": 1}
_CONVOLUTIONS = {"conv_dim": [32] * 7, "apply_spec_augment": False, "layerdrop": 0.0}

ALL: list[Architecture] = [
    *_family(
        "BERT",
        TEXT,
        "bert albert bert-generation camembert data2vec-text distilbert dpr electra ernie ibert megatron-bert"
        " mobilebert rembert roberta roberta-prelayernorm roformer splinter squeezebert xlm-roberta xlm-roberta-xl",
        nomic_bert={},
        esm={
            **_settings(vocab_size=33, mask_token_id=32, pad_token_id=1, position_embedding_type="rotary"),
            "sizes": {"vocabulary": 30},
        },
    ),
    *_family("modern encoders", TEXT, "eurobert gte jina_embeddings_v3 modernbert"),
    *_family("disentangled attention", TEXT, "deberta deberta-v2 mpnet"),
    *_family("sparse and approximated attention", TEXT, "big_bird convbert mra nystromformer yoso"),
    *_family("attention replaced", ("input_ids",), "fnet"),
    *_family("characters", TEXT, "canine"),
    *_family("permuted and cross-lingual", TEXT, "xlm xlnet flaubert ctrl"),
    *_family("tables and entities", TEXT, "tapas", luke=_settings(entity_vocab_size=20)),
    *_family(
        "documents",
        (*TEXT, "bbox"),
        "layoutlm",
        layoutlmv3=_settings(coordinate_size=6, shape_size=4, visual_embed=False),
        lilt=_settings(channel_shrink_ratio=4, hidden_size=48),
    ),
    *_family(
        "GPT",
        TEXT,
        "gpt2 openai-gpt opt biogpt xglm gpt_bigcode gpt_neox gpt_neox_japanese",
        codegen=_settings(rotary_dim=4),
        gptj=_settings(rotary_dim=4),
        gpt_neo=_settings(attention_types=[[["global", "local"], 1]]),
    ),
    *_family("linear biases", TEXT, "bloom mpt falcon"),
    *_family(
        "Llama",
        TEXT,
        "llama mistral qwen2 qwen3 phi phi3 persimmon stablelm starcoder2 olmo olmo2 olmo3 granite cohere cohere2 glm"
        " glm4 smollm3 exaone4 helium arcee apertus bitnet diffllama doge nanochat",
        nemotron=_settings(head_dim=8, num_key_value_heads=2),
    ),
    *_family("Gemma", TEXT, "gemma gemma2 gemma3_text vaultgemma"),
    *_family("latent attention", TEXT, "", minicpm3=_settings(**_LATENT), youtu=_settings(**_LATENT)),
    *_family(
        "mixtures of experts",
        TEXT,
        "mixtral qwen2_moe qwen3_moe olmoe phimoe gpt_oss granitemoe jetmoe glm4_moe minimax afmoe",
        deepseek_v2=_settings(**_LATENT, **_GROUPED, first_k_dense_replace=1),
        deepseek_v3=_settings(**_LATENT, **_GROUPED, first_k_dense_replace=1),
        dots1=_settings(**_GROUPED, n_shared_experts=1),
    ),
    *_family(
        "state spaces",
        TEXT,
        "mamba falcon_mamba",
        mamba2=_settings(num_heads=8, head_dim=8, state_size=16, n_groups=2, chunk_size=4),
    ),
    *_family(
        "state spaces with attention",
        TEXT,
        "jamba lfm2 recurrent_gemma",
        bamba=_settings(**_SCAN),
        granitemoehybrid=_settings(**_SCAN),
    ),
    *_family("linear recurrences", ("input_ids",), "xlstm", rwkv=_settings(rescale_every=0)),
    *_family("T5", PAIR, "t5 mt5 umt5 longt5 switch_transformers"),
    *_family(
        "BART",
        PAIR,
        "bart mbart blenderbot blenderbot-small marian m2m_100 pegasus pegasus_x plbart mvp bigbird_pegasus nllb-moe"
        " prophetnet",
    ),
    *_family("ViT", IMAGE, "vit deit ijepa vit_msn beit data2vec-vision dinov2 dinov2_with_registers dinov3_vit yolos"),
    *_family("vision backbones", IMAGE, "vitdet sam_vision_model internvl_vision aimv2_vision_model dpt"),
    *_family(
        "windows and pyramids",
        IMAGE,
        "",
        swin=_settings(**_WINDOWS),
        swinv2=_settings(**_WINDOWS),
        swin2sr={**_settings(**(_WINDOWS | {"patch_size": 1, "image_size": 16})), "sizes": {"image": 16}},
        segformer={**_settings(**_PYRAMID), "sizes": _LARGER},
        poolformer={**_settings(**_PYRAMID), "sizes": _LARGER},
        focalnet=_settings(embed_dim=16, depths=[1, 1, 1, 1]),
        pvt_v2=_settings(**_PYRAMID, num_attention_heads=[1, 2, 2, 4]),
        cvt=_settings(embed_dim=[16, 24, 32], num_heads=[1, 3, 4], depth=[1, 2, 3]),
        glpn=_settings(**_PYRAMID, num_attention_heads=[1, 2, 2, 4]),
    ),
    *_family(
        "convolutional",
        IMAGE,
        "",
        mobilenet_v1=_settings(depth_multiplier=0.25),
        mobilenet_v2={**_settings(depth_multiplier=0.25), "sizes": _LARGER},
        mobilevit=_settings(hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 12, 16, 24, 32, 48]),
        swiftformer=_settings(depths=[1, 1, 2, 1], embed_dims=[12, 16, 24, 32]),
        hgnet_v2=_settings(
            depths=[1, 1, 1, 1],
            hidden_sizes=[16, 24, 32, 48],
            stem_channels=[3, 8, 8],
            stage_in_channels=[8, 16, 24, 32],
            stage_mid_channels=[8, 8, 12, 16],
            stage_out_channels=[16, 24, 32, 48],
            stage_num_blocks=[1, 1, 2, 1],
        ),
        resnet={**_settings(embedding_size=16, **_STAGES), "sizes": _LARGER},
        regnet={**_settings(embedding_size=16, groups_width=8, **_STAGES), "sizes": _LARGER},
        convnext={**_settings(**_STAGES), "sizes": _LARGER},
        convnextv2={**_settings(**_STAGES), "sizes": _LARGER},
        efficientnet={
            **_settings(width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320),
            "sizes": _LARGER,
        },
    ),
    *_family("images as tokens", ("input_ids",), "imagegpt"),
    *_family("CLIP", BOTH, "clip altclip chinese_clip metaclip_2 siglip blip"),
    *_family("vision and language", BOTH, "git flava clipseg", visual_bert={"inputs": TEXT}),
    *_family(
        "wav2vec",
        ("input_values",),
        "",
        **{
            name: _settings(**_CONVOLUTIONS)
            for name in ("wav2vec2", "hubert", "wavlm", "unispeech", "data2vec-audio", "wav2vec2-conformer")
        },
        sew={},
    ),
    *_family(
        "spectrograms",
        ("input_features",),
        "",
        whisper={"inputs": ("input_features", "decoder_input_ids"), "sizes": {"time": 128}},
        qwen2_audio_encoder={"sizes": {"time": 128}},
        speech_to_text={
            **_settings(input_feat_per_channel=40),
            "inputs": ("input_features", "decoder_input_ids"),
            "sizes": {"mel": 80, "time": 40},
        },
        **{"wav2vec2-bert": {**_settings(feature_projection_input_dim=160), "sizes": {"mel": 40, "time": 160}}},
    ),
    *_family("waveforms to text", ("input_values", "decoder_input_ids"), "moonshine"),
    *_family(
        "time series",
        ("past_values",),
        "",
        patchtst={**_settings(**_PATCHES), "sizes": {"time": 32, "channels": 1}},
        patchtsmixer={**_settings(**_PATCHES), "sizes": {"time": 32, "channels": 1}},
    ),
]

_DOUBLE = (
    "bert albert deberta-v2 roformer roberta fnet layoutlm gpt2 opt bart pegasus marian vit beit dinov2 swin segformer"
    " resnet convnext regnet mobilenet_v2 clip wav2vec2 hubert whisper speech_to_text patchtst"
)
# these compute a part of themselves in float32, whatever the dtype of their weights
_SINGLE_INSIDE = "modernbert xlnet gptj falcon llama qwen3 gemma2 cohere phi3 olmo2 minicpm3 mamba mamba2 t5 git"
# tolerances of gradients and states of a training step in float64, besides the outputs
TRAINED = dict.fromkeys(_DOUBLE.split(), 1e-10) | dict.fromkeys(_SINGLE_INSIDE.split(), 1e-6)

_RELATIVES = (
    "bert-generation camembert data2vec-text ernie xlm-roberta xlm-roberta-xl roberta-prelayernorm rembert dpr splinter"
    " gte gpt_neox_japanese biogpt openai-gpt codegen arcee apertus doge helium smollm3 olmo olmo3 exaone4 stablelm"
    " starcoder2 persimmon nanochat glm cohere2 gemma vaultgemma youtu jetmoe glm4_moe afmoe dots1 granitemoe phimoe"
    " minimax falcon_mamba granitemoehybrid mt5 umt5 blenderbot mbart plbart mvp pegasus_x bigbird_pegasus vit_msn"
    " ijepa dinov2_with_registers data2vec-vision pvt_v2 glpn altclip chinese_clip metaclip_2 unispeech data2vec-audio"
    " sew"
)
LONG = frozenset(_RELATIVES.split())  # close relatives of others in the table: only `-m long` runs them

# torch.export or ONNX cannot take them; the words are those of the error
REFUSED: list[tuple[Architecture, str]] = [
    (Architecture("sparse and approximated attention", "longformer"), "its code decides by the data"),
    (Architecture("sparse and approximated attention", "led", inputs=PAIR), "its code decides by the data"),
    (Architecture("BART", "fsmt", inputs=PAIR), "its code decides by the data"),
    (Architecture("vision and language", "vilt", inputs=BOTH), "its code decides by the data"),
    (Architecture("vision backbones", "pixtral", inputs=IMAGE), "sizes are specialised"),
]
