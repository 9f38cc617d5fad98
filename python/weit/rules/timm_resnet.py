"""timm's (and torchvision's) ResNets: roles by stage and kernel size; stem and classifier stay dense."""

from weit.rules.family import PREFIX, Family

BLOCK = PREFIX + r"layer(\d+)\.\d+\."
SECOND = PREFIX + r"layer2\.\d+\."  # an HRNet has a layer1 of such blocks too, but no other

FAMILIES = (
    Family(  # before the basic blocks, whose marks it has too
        name="timm and torchvision ResNet with bottleneck blocks",
        marks=(SECOND + "conv2", SECOND + "conv3"),
        rules={
            BLOCK + "conv[13]": r"stage\1_1x1",
            BLOCK + "conv2": r"stage\1_3x3",
            BLOCK + r"downsample\.\d": r"stage\1_1x1",
        },
    ),
    Family(
        name="timm and torchvision ResNet with basic blocks",
        marks=(SECOND + "conv1", SECOND + "conv2"),
        rules={
            BLOCK + "conv[12]": r"stage\1_3x3",
            BLOCK + r"downsample\.\d": r"stage\1_1x1",
        },
    ),
)
