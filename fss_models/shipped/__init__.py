"""Pretrained weights and bundles that come with the package: NAME.safetensors with NAME.json, champion/, folds/."""
