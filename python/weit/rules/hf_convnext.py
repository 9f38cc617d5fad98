"""Hugging Face ConvNeXt and ConvNeXt V2: as timm's, under other names."""

from weit.rules.family import PREFIX, Family

STAGE = PREFIX + r"stages\.(\d+)\."

FAMILIES = (
    Family(
        name="Hugging Face ConvNeXt",
        marks=(STAGE + r"layers\.\d+\.dwconv", STAGE + r"layers\.\d+\.pwconv1"),
        rules={
            STAGE + r"layers\.\d+\.pwconv1": r"stage\1_fc1",
            STAGE + r"layers\.\d+\.pwconv2": r"stage\1_fc2",
            STAGE + r"downsampling_layer\.1": r"stage\1_2x2",
        },
    ),
)
