"""The names of the precisions that a model computes in; what they mean on a device: `fss_models.execution`."""

from typing import Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]
