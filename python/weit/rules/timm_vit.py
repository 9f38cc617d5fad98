"""timm's ViT and DeiT: a fused qkv, whose three parts have roles of their own."""

from weit.rules.family import PREFIX, Family

BLOCK = PREFIX + r"blocks\.\d+\."

FAMILIES = (
    Family(
        name="timm ViT and DeiT",
        marks=(BLOCK + r"attn\.qkv", BLOCK + r"attn\.proj", BLOCK + r"mlp\.fc1"),
        rules={
            BLOCK + r"attn\.qkv": ("q", "k", "v"),
            BLOCK + r"attn\.proj": "o",
            BLOCK + r"mlp\.fc1": "fc1",
            BLOCK + r"mlp\.fc2": "fc2",
        },
    ),
)
