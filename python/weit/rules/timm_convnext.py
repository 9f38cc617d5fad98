"""timm's ConvNeXt: pointwise layers and downsampling by stage; depthwise, stem and head stay dense."""

from weit.rules.family import PREFIX, Family

STAGE = PREFIX + r"stages\.(\d+)\."

FAMILIES = (
    Family(
        name="timm ConvNeXt",
        marks=(STAGE + r"blocks\.\d+\.conv_dw", STAGE + r"blocks\.\d+\.mlp\.fc1"),
        rules={
            STAGE + r"blocks\.\d+\.mlp\.fc1": r"stage\1_fc1",
            STAGE + r"blocks\.\d+\.mlp\.fc2": r"stage\1_fc2",
            STAGE + r"downsample\.1": r"stage\1_2x2",
        },
    ),
)
