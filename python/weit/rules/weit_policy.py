"""``weit.models``: policies for control. The blocks of the transformer are those of the ViT, the MLP's have no attention."""

from weit.rules import weit_vit
from weit.rules.family import PREFIX, Family

BLOCK = PREFIX + r"blocks\.\d+\."

FAMILIES = (
    Family(  # before the ViT, whose marks it has too
        name="weit.models transformer policy",
        marks=(PREFIX + "embed", *weit_vit.FAMILIES[0].marks),
        rules=dict(weit_vit.FAMILIES[0].rules),
    ),
    Family(
        name="weit.models MLP policy",
        marks=(PREFIX + "embed", BLOCK + "fc1", BLOCK + "fc2"),
        rules={BLOCK + "(fc[12])": r"\1"},
    ),
)
