"""``weit.models``: vision transformers with separate query, key and value."""

from weit.rules.family import PREFIX, Family

BLOCK = PREFIX + r"blocks\.\d+\."

FAMILIES = (
    Family(
        name="weit.models ViT",
        marks=(BLOCK + r"attn\.q", BLOCK + r"attn\.o", BLOCK + r"mlp\.fc1"),
        rules={
            BLOCK + r"attn\.q": "q",
            BLOCK + r"attn\.k": "k",
            BLOCK + r"attn\.v": "v",
            BLOCK + r"attn\.o": "o",
            BLOCK + r"mlp\.fc1": "fc1",
            BLOCK + r"mlp\.fc2": "fc2",
        },
    ),
)
