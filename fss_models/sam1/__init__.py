"""Segment Anything, version 1 (Kirillov et al., ICCV 2023): image encoder, prompt encoder, mask decoder."""
