"""With how many bits a GPU multiplies numbers in fp32."""

import torch


def set_tf32(wanted: bool) -> None:
    """Products and convolutions alike: cuDNN has a switch of its own, which is on, and mixers would differ in it."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if wanted else "highest")
        torch.backends.cudnn.allow_tf32 = wanted
