"""How other libraries name the tensors of their vision towers, beside our own names.

`CLIP` stands for transformers' CLIP and SigLIP, `VIT` for its ViT.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True)
class Source:
    """Where one of our tensors comes from: a tensor, which third of it, what scales its rows."""

    name: str
    third: int | None = None
    scale: str | None = None


@dataclass(frozen=True)
class Layout:
    """How a library names a tower's tensors; `{}` stands for `weight` or `bias`.

    modules: our module, or parameter, to their name.
    layer: how the names in a layer begin, `{}` being its index.
    layer_modules: our module in a local layer to their name.
    fused: the tensor that holds queries, keys and values, if they share one.
    scales: our module to the vector that scales what it gives (LayerScale), where there is one.
    """

    positions: str
    modules: Mapping[str, str]
    layer: str
    layer_modules: Mapping[str, str]
    prefix: str = ""
    fused: str | None = None
    scales: Mapping[str, str] = field(default_factory=dict)

    def source(self, ours: str) -> Source:
        """Return where our tensor (`local_layers.0.fc1.bias`) comes from."""
        module, _, kind = ours.rpartition(".") if "." in ours else (ours, "", "")
        if not module.startswith("local_layers."):
            return Source(self.prefix + self.modules[module].format(kind))
        _, index, module = module.split(".", 2)
        start = self.prefix + self.layer.format(index)
        if self.fused is not None and module in FUSED:
            return Source(start + self.fused.format(kind), third=FUSED.index(module))
        scale = self.scales.get(module)
        return Source(
            start + self.layer_modules[module].format(kind),
            scale=None if scale is None else start + scale,
        )


CLIP = Layout(
    positions="embeddings.position_embedding.weight",
    modules={
        "patch_embedding": "embeddings.patch_embedding.{}",
        "class_embedding": "embeddings.class_embedding",
        "layernorm_pre": "pre_layrnorm.{}",
        "layernorm_post": "post_layernorm.{}",
    },
    layer="encoder.layers.{}.",
    layer_modules={
        "self_attn.q_proj": "self_attn.q_proj.{}",
        "self_attn.k_proj": "self_attn.k_proj.{}",
        "self_attn.v_proj": "self_attn.v_proj.{}",
        "self_attn.o_proj": "self_attn.out_proj.{}",
        "fc1": "mlp.fc1.{}",
        "fc2": "mlp.fc2.{}",
        "input_layernorm": "layer_norm1.{}",
        "post_attention_layernorm": "layer_norm2.{}",
    },
)
VIT = Layout(
    positions="embeddings.position_embeddings",
    modules={
        "patch_embedding": "embeddings.patch_embeddings.projection.{}",
        "class_embedding": "embeddings.cls_token",
        "layernorm_post": "layernorm.{}",
    },
    layer="encoder.layer.{}.",
    layer_modules={
        "self_attn.q_proj": "attention.attention.query.{}",
        "self_attn.k_proj": "attention.attention.key.{}",
        "self_attn.v_proj": "attention.attention.value.{}",
        "self_attn.o_proj": "attention.output.dense.{}",
        "fc1": "intermediate.dense.{}",
        "fc2": "output.dense.{}",
        "input_layernorm": "layernorm_before.{}",
        "post_attention_layernorm": "layernorm_after.{}",
    },
)
TIMM = Layout(
    positions="pos_embed",
    modules={
        "patch_embedding": "patch_embed.proj.{}",
        "class_embedding": "cls_token",
        "layernorm_pre": "norm_pre.{}",
        "layernorm_post": "norm.{}",
    },
    layer="blocks.{}.",
    layer_modules={
        "self_attn.o_proj": "attn.proj.{}",
        "fc1": "mlp.fc1.{}",
        "fc2": "mlp.fc2.{}",
        "input_layernorm": "norm1.{}",
        "post_attention_layernorm": "norm2.{}",
    },
    fused="attn.qkv.{}",
    scales={"self_attn.o_proj": "ls1.gamma", "fc2": "ls2.gamma"},
)
OPEN_CLIP = Layout(
    positions="positional_embedding",
    modules={
        "patch_embedding": "conv1.{}",
        "class_embedding": "class_embedding",
        "layernorm_pre": "ln_pre.{}",
        "layernorm_post": "ln_post.{}",
    },
    layer="transformer.resblocks.{}.",
    layer_modules={
        "self_attn.o_proj": "attn.out_proj.{}",
        "fc1": "mlp.c_fc.{}",
        "fc2": "mlp.c_proj.{}",
        "input_layernorm": "ln_1.{}",
        "post_attention_layernorm": "ln_2.{}",
    },
    prefix="visual.",
    fused="attn.in_proj_{}",
    scales={"self_attn.o_proj": "ls_1.gamma", "fc2": "ls_2.gamma"},
)
