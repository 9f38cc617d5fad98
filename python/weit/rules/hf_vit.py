"""Hugging Face ViT and DeiT, under the module names of transformers 5 and of 4."""

from weit.rules.family import PREFIX, Family

LAYER = PREFIX + r"layers\.\d+\."
LAYER_4 = PREFIX + r"encoder\.layer\.\d+\."

FAMILIES = (
    Family(
        name="Hugging Face ViT and DeiT",
        marks=(LAYER + r"attention\.q_proj", LAYER + r"attention\.o_proj", LAYER + r"mlp\.fc1"),
        rules={
            LAYER + r"attention\.([qkvo])_proj": r"\1",
            LAYER + r"mlp\.(fc[12])": r"\1",
        },
    ),
    Family(
        name="Hugging Face ViT and DeiT of transformers 4",
        marks=(PREFIX + r"patch_embeddings\.projection", LAYER_4 + r"attention\.attention\.query"),
        rules={
            LAYER_4 + r"attention\.attention\.query": "q",
            LAYER_4 + r"attention\.attention\.key": "k",
            LAYER_4 + r"attention\.attention\.value": "v",
            LAYER_4 + r"attention\.output\.dense": "o",
            LAYER_4 + r"intermediate\.dense": "fc1",
            LAYER_4 + r"output\.dense": "fc2",
        },
    ),
)
