"""`fss pretrain`: SAM 2's parts of the nano preset, trained class-agnostically on instance masks."""
