"""diffusers' ``DiTTransformer2DModel``: every block embeds time and label anew."""

from weit.rules.family import PREFIX, Family
from weit.rules.weit_dit import LAST_MODULATION, MODULATION

BLOCK = PREFIX + r"transformer_blocks\.\d+\."

FAMILIES = (
    Family(
        name="diffusers DiT",
        marks=(BLOCK + r"norm1\.emb\.class_embedder", BLOCK + r"attn1\.to_q", PREFIX + "proj_out_1"),
        rules={
            BLOCK + r"attn1\.to_([qkv])": r"\1",
            BLOCK + r"attn1\.to_out\.0": "o",
            BLOCK + r"ff\.net\.0\.proj": "fc1",
            BLOCK + r"ff\.net\.2": "fc2",
            BLOCK + r"norm1\.linear": MODULATION,
            BLOCK + r"norm1\.emb\.timestep_embedder\.linear_2": "time",
            PREFIX + "proj_out_1": LAST_MODULATION,
        },
    ),
)
