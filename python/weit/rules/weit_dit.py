"""``weit.models`` DiT: the blocks of the ViT, and what a condition shifts, scales and gates them by."""

from weit.rules.family import PREFIX, Family
from weit.rules.weit_vit import BLOCK
from weit.rules.weit_vit import FAMILIES as VIT

MODULATION = ("shift1", "scale1", "gate1", "shift2", "scale2", "gate2")
LAST_MODULATION = ("shift", "scale")

FAMILIES = (
    Family(  # before the ViT, whose marks it has too
        name="weit.models DiT",
        marks=(BLOCK + "modulation", *VIT[0].marks),
        rules={
            **VIT[0].rules,
            BLOCK + "modulation": MODULATION,
            PREFIX + "modulation": LAST_MODULATION,
            PREFIX + r"time_embed\.fc2": "time",
        },
    ),
)
