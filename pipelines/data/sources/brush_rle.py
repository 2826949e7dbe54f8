"""The run lengths of Label Studio's brush: thi.ng's `rle-pack`, one bit stream over the RGBA bytes of the whole photo.

Header: 32 bits number of words, 5 bits word size - 1, four times 4 bits run size - 1. Then follow runs until there are
enough words: 1 bit (1: one word is repeated), 2 bits that select a run size, that many bits for the length - 1, and
then one word if it is repeated, else `length` words. The mask is the alpha channel.
"""

from __future__ import annotations

import numpy as np

_HEADER, _WORD = 32 + 5 + 4 * 4, 8  # bits
_LONGEST = 1 << 16  # words of the longest run
OPAQUE = 128  # least alpha of an object's pixel; the edge of the brush is soft


def decode_brush(data: bytes, height: int, width: int) -> np.ndarray:
    """`value.rle` as bytes -> [height, width] bool. Raises ValueError for a broken stream or one of another size."""
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    if len(bits) < _HEADER:
        raise ValueError("brush RLE ends early")
    words, size = _number(bits, 0, 32), _number(bits, 32, 5) + 1
    if size != _WORD:
        raise ValueError(f"brush RLE with words of {size} bits, not {_WORD}")
    if words != 4 * height * width:
        raise ValueError(f"brush RLE has {words:,} values, a photo of {width}x{height} has {4 * height * width:,}")
    lengths = [_number(bits, 37 + 4 * i, 4) + 1 for i in range(4)]
    return _runs(bits, words, lengths).reshape(height, width, 4)[:, :, 3] >= OPAQUE


def _runs(bits: np.ndarray, words: int, lengths: list[int]) -> np.ndarray:
    """The decoded words, [words] uint8. Raises ValueError for a broken stream."""
    out = np.empty(words, dtype=np.uint8)
    at, filled = _HEADER, 0
    while filled < words:
        repeated, which = _number(bits, at, 1), _number(bits, at + 1, 2)
        count = _number(bits, at + 3, lengths[which]) + 1
        at += 3 + lengths[which]
        if filled + count > words:
            raise ValueError("brush RLE has a run beyond the photo's end")
        taken = _WORD if repeated else _WORD * count
        if at + taken > len(bits):
            raise ValueError("brush RLE ends early")
        out[filled : filled + count] = np.packbits(bits[at : at + taken])
        at, filled = at + taken, filled + count
    return out


def _number(bits: np.ndarray, start: int, count: int) -> int:
    """The number in `count` bits from `start`, highest bit first. Raises ValueError beyond the end of the stream."""
    if start + count > len(bits):
        raise ValueError("brush RLE ends early")
    value = 0
    for bit in bits[start : start + count].tolist():
        value = value << 1 | bit
    return value


def encode_brush(mask: np.ndarray) -> bytes:
    """[H, W] bool -> `value.rle` as bytes: runs of equal RGBA bytes, none longer than 2^16."""
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    runs, values = np.diff(ends, prepend=0) * 4, flat[ends - 1]
    pieces = -(-runs // _LONGEST)
    lengths = np.full(int(pieces.sum()), _LONGEST, dtype=np.int64)
    lengths[np.cumsum(pieces) - 1] = runs - (pieces - 1) * _LONGEST
    chunks = 0b111 << 24 | (lengths - 1) << 8 | np.repeat(values, pieces) * 255  # repeated, fourth run size, one word
    body = (chunks[:, None] >> np.arange(26, -1, -1)) & 1
    sizes = int("".join(f"{n - 1:04b}" for n in (3, 4, 8, 16)), 2)
    header = (4 * flat.size << 21) | (_WORD - 1) << 16 | sizes
    head = [(header >> shift) & 1 for shift in range(_HEADER - 1, -1, -1)]
    return np.packbits(np.concatenate([np.array(head), body.ravel()]).astype(np.uint8)).tobytes()
