"""Configuration of X-SAM (arXiv 2508.04655). The defaults describe the full released model."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class XSAMMaskDecoderConfig(PreTrainedConfig):
    """
    Pixel decoder, query decoder and mask losses. The fields that `transformers.Mask2FormerConfig` also has mean the
    same, so that transformers' Mask2Former modules can be built from this configuration.

    Args:
        feature_size (`int`): channels inside the pixel decoder.
        mask_feature_size (`int`): channels of the per-pixel embeddings that are multiplied with the queries.
        hidden_dim (`int`): channels of the queries, the phrases and the `<SEG>` embedding.
        encoder_layers (`int`): deformable attention layers of the pixel decoder.
        decoder_layers (`int`): number of predictions; the query decoder has one layer less.
        num_queries (`int`): most segments that one `<SEG>` can give.
        class_logit_clamp (`float`): class logits lie in [-clamp, clamp]; 500 in the paper's code, 50 in its newer branch.
        use_point_sampling (`bool`): mask losses on sampled points (as trained) or on all pixels of the labels.
        train_num_points (`int`): sampled points per mask.
        class_weight, mask_weight, dice_weight, no_object_weight (`float`): weights of the losses and matching costs.
    """

    model_type = "xsam_mask_decoder"
    base_config_key = "mask_decoder_config"

    feature_size: int = 256
    mask_feature_size: int = 256
    hidden_dim: int = 256
    encoder_layers: int = 6
    encoder_feedforward_dim: int = 1024
    decoder_layers: int = 10
    dim_feedforward: int = 2048
    num_attention_heads: int = 8
    num_queries: int = 200
    activation_function: str = "relu"
    # transformers' decoder uses this value as layer drop as well, which would break the training of X-SAM.
    dropout: float = 0.0
    pre_norm: bool = False
    enforce_input_projection: bool = False
    # One level of the feature pyramid is refined: log2(8 / 4), see Mask2FormerPixelDecoder.
    feature_strides: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    common_stride: int = 4
    class_logit_clamp: float = 500.0
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    use_point_sampling: bool = True
    train_num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    init_std: float = 0.02
    init_xavier_std: float = 1.0

    def __post_init__(self, **kwargs) -> None:
        if self.dropout:
            raise ValueError(f"mask_decoder_config.dropout is {self.dropout}, but has to be 0: it drops whole layers.")
        if self.feature_size % 32:
            raise ValueError(
                f"mask_decoder_config.feature_size is {self.feature_size}; group norm needs a multiple of 32."
            )
        super().__post_init__(**kwargs)


class XSAMConfig(PreTrainedConfig):
    """
    X-SAM: two image towers, a causal language model and a mask decoder over the high-resolution tower.

    Args:
        text_config (`dict` or `PreTrainedConfig`): any causal LM that `AutoModel` knows; Phi-3-mini-4k by default.
        vision_config (`dict` or `PreTrainedConfig`): global image tower; SigLIP2-so400m-patch14-384 by default.
        high_res_vision_config (`dict` or `PreTrainedConfig`): dense image tower; SAM ViT-L by default.
        mask_decoder_config (`dict` or `XSAMMaskDecoderConfig`): pixel and query decoder.
        vision_feature_layer (`int`): hidden state of the global tower that the language model sees (0 = patch
            embedding, -1 = last block).
        high_res_feature_layer (`int`): hidden state of the dense tower that the language model sees.
        high_res_downsample_factor (`int`): the dense tower's tokens are merged factor x factor for the language model.
        connector_feature_layers (`list[int]`): hidden states of the dense tower that feed the mask decoder, for the
            finest scale first.
        connector_scale_factors (`list[float]`): how much the connector enlarges each of them (a power of two).
        connector_hidden_size (`int`): channels inside the connector.
        image_token_id, region_token_id (`int`): placeholders for image tokens and region embeddings. They have rows in
            the vocabulary, but are never predicted.
        seg_token_id, phrase_start_token_id, phrase_end_token_id (`int`): `<SEG>`, `<p>` and `</p>`.
        num_region_points (`int`): pixels that are read for one region.
        num_region_tokens (`int`): embeddings that stand for one region; each pools `num_region_points /
            num_region_tokens` consecutive points. 1 in the paper's code, 64 in its newer branch.
        region_pooling (`str`): "max" (the paper's code) or "mean" (its newer branch).
        num_labels (`int`): classes of the linear head, only used by `XSAMForUniversalSegmentation` (stage 1).
        tie_word_embeddings (`bool`): whether the language model head shares the input embeddings; taken from
            `text_config` if not given.
    """

    model_type = "xsam"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="phi3",
            # 32,064 rows in Phi-3 are cut to the tokenizer's 32,011 and the five special tokens of X-SAM.
            init_kwargs={"vocab_size": 32016, "sliding_window": 2047},
        ),
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="siglip_vision_model",
            init_kwargs={
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
            },
        ),
        "high_res_vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="sam_vision_model",
            init_kwargs={
                "hidden_size": 1024,
                "mlp_dim": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "global_attn_indexes": [5, 11, 17, 23],
                # The library's default of 1e-10 gives zero features and exploding gradients when trained from scratch.
                "initializer_range": 0.02,
            },
        ),
        "mask_decoder_config": SubConfigSpec(config_class=XSAMMaskDecoderConfig),
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    high_res_vision_config: dict | PreTrainedConfig | None = None
    mask_decoder_config: dict | PreTrainedConfig | None = None
    vision_feature_layer: int = -2
    high_res_feature_layer: int = -2
    high_res_downsample_factor: int = 2
    connector_feature_layers: list[int] | tuple[int, ...] = (12, 18, 24)
    connector_scale_factors: list[float] | tuple[float, ...] = (2.0, 1.0, 0.5)
    connector_hidden_size: int = 512
    seg_token_id: int = 32011
    phrase_start_token_id: int = 32012
    phrase_end_token_id: int = 32013
    image_token_id: int = 32014
    region_token_id: int = 32015
    num_region_points: int = 256
    num_region_tokens: int = 1
    region_pooling: str = "max"
    initializer_range: float = 0.02
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs) -> None:
        super().__post_init__(**kwargs)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        self._check_connector()
        self._check_regions()
        self._check_token_ids()
        self._check_language_model()

    @property
    def num_image_tokens(self) -> int:
        """Tokens that one image takes in the language model: those of the global tower, then those of the dense one."""
        low_resolution = (self.vision_config.image_size // self.vision_config.patch_size) ** 2
        return low_resolution + self.high_res_token_grid**2

    @property
    def high_res_token_grid(self) -> int:
        """Side of the square grid of dense tokens that the language model sees."""
        patches = self.high_res_vision_config.image_size // self.high_res_vision_config.patch_size
        return patches // self.high_res_downsample_factor

    @property
    def connector_out_channels(self) -> list[int]:
        """Channels of the maps that the mask decoder reads, finest first."""
        return [int(self.high_res_vision_config.hidden_size / scale) for scale in self.connector_scale_factors]

    def _check_connector(self) -> None:
        if len(self.connector_feature_layers) != 3 or len(self.connector_scale_factors) != 3:
            raise ValueError(
                "The mask decoder reads three scales, but connector_feature_layers has "
                f"{len(self.connector_feature_layers)} entries and connector_scale_factors "
                f"{len(self.connector_scale_factors)}. Give three of each."
            )
        for scale in self.connector_scale_factors:
            if scale not in (0.25, 0.5, 1, 2, 4):
                raise ValueError(f"connector_scale_factors has {scale}; possible are 0.25, 0.5, 1, 2 and 4.")

    def _check_regions(self) -> None:
        if self.region_pooling not in ("max", "mean"):
            raise ValueError(f"region_pooling is {self.region_pooling!r}; possible are 'max' and 'mean'.")
        if self.num_region_points % self.num_region_tokens:
            raise ValueError(
                f"num_region_points ({self.num_region_points}) has to be a multiple of num_region_tokens "
                f"({self.num_region_tokens})."
            )

    def _check_token_ids(self) -> None:
        names = ("seg_token_id", "phrase_start_token_id", "phrase_end_token_id", "image_token_id", "region_token_id")
        ids = [getattr(self, name) for name in names]
        if len(set(ids)) < len(ids):
            raise ValueError(f"The special tokens need an id each, but are {dict(zip(names, ids, strict=True))}.")
        for name, token_id in zip(names, ids, strict=True):
            if not 0 <= token_id < self.text_config.vocab_size:
                raise ValueError(
                    f"{name} is {token_id}, outside the vocabulary of text_config (vocab_size "
                    f"{self.text_config.vocab_size}). Set it to the tokenizer's id of that token."
                )

    def _check_language_model(self) -> None:
        """Some models change their logits after the head, which this package has no part for."""
        for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
            if getattr(self.text_config, name, None) not in (None, 1):
                raise ValueError(
                    f"text_config.{name} is {getattr(self.text_config, name)}: language models that rescale their logits "
                    "are not supported. Choose another one."
                )


__all__ = ["XSAMConfig", "XSAMMaskDecoderConfig"]
