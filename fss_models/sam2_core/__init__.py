"""A thin, batched layer over the `sam2` package: build a preset, encode, memorise, attend, decode."""
