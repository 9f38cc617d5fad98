"""Hugging Face ResNet: roles by stage and kernel size; embedder and classifier stay dense."""

from weit.rules.family import PREFIX, Family

BLOCK = PREFIX + r"stages\.(\d+)\.layers\.\d+\."
_SHORTCUT = {BLOCK + r"shortcut\.convolution": r"stage\1_1x1"}

FAMILIES = (
    Family(  # before the basic blocks, whose marks it has too
        name="Hugging Face ResNet with bottleneck layers",
        marks=(BLOCK + r"layer\.1\.convolution", BLOCK + r"layer\.2\.convolution"),
        rules={
            BLOCK + r"layer\.[02]\.convolution": r"stage\1_1x1",
            BLOCK + r"layer\.1\.convolution": r"stage\1_3x3",
            **_SHORTCUT,
        },
    ),
    Family(
        name="Hugging Face ResNet with basic layers",
        marks=(BLOCK + r"layer\.0\.convolution", BLOCK + r"layer\.1\.convolution"),
        rules={BLOCK + r"layer\.[01]\.convolution": r"stage\1_3x3", **_SHORTCUT},
    ),
)
