"""timm's ViT and DeiT: a fused qkv, whose three parts have roles of their own, as have the two of an MLP with gates."""

from weit.rules.family import PREFIX, Family, Role

BLOCK = PREFIX + r"blocks\.\d+\."

_MARKS = (BLOCK + r"attn\.qkv", BLOCK + r"attn\.proj", BLOCK + r"mlp\.fc1")
_RULES: dict[str, Role] = {
    BLOCK + r"attn\.qkv": ("q", "k", "v"),
    BLOCK + r"attn\.proj": "o",
    BLOCK + r"mlp\.fc1": "fc1",
    BLOCK + r"mlp\.fc2": "fc2",
}

FAMILIES = (
    Family(  # before the others, whose marks it has too
        name="timm ViT with gated MLPs",
        marks=(*_MARKS, BLOCK + "mlp:GluMlp"),
        # Models differ in which half is the gate, but one family of sizes does not.
        rules={**_RULES, BLOCK + r"mlp\.fc1": ("fc1_first", "fc1_second")},
    ),
    Family(name="timm ViT and DeiT", marks=_MARKS, rules=_RULES),
)
