"""Variables of other tools that change features, or where weights come from: printed if set."""

import os

from pipelines.command.progress import say

RESULTS = (
    "NVIDIA_TF32_OVERRIDE",  # TF32 in all of CUDA's libraries
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",  # TF32 in torch's matrix products
    "ONEDNN_DEFAULT_FPMATH_MODE",  # bfloat16 or TF32 inside float32 operations on CPUs
    "DNNL_DEFAULT_FPMATH_MODE",  # its older name
    "ONEDNN_MAX_CPU_ISA",  # instruction sets, from here on: these change the last bits
    "DNNL_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "TIMM_FUSED_ATTN",  # timm's kernels of attention
    "TIMM_USE_SCIPY_INTERP",  # timm's resampling of relative positions
    "HF_ENDPOINT",  # where timm's weights are fetched from
)


def say_surroundings() -> None:
    """Print one line with all that are set."""
    found = [f"{name}={os.environ[name]}" for name in RESULTS if os.environ.get(name)]
    if found:
        say(f"set in the environment, and affecting the results: {', '.join(found)}")
