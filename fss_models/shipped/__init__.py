"""Pretrained weights and bundles that ship with the package: NAME.safetensors with NAME.json, champion/, folds/."""
