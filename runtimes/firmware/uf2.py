"""UF2: an image in the blocks that a board which shows itself as a drive takes.

    python3 uf2.py firmware.bin firmware.uf2 --base 0x10000000 --family 0xe48bff56

Blocks of 512 bytes, each with its place; https://github.com/microsoft/uf2 describes them. All words are little-endian:

    0   magic 0A324655, magic 9E5D5157, flags, address, bytes of data (256), number of the block, blocks, family
    32  data, zeros behind it
    508 magic 0AB16F30

A firmware folder holds a copy of this file, which needs nothing but Python.
"""

from __future__ import annotations

import argparse
import struct
from pathlib import Path

HEADER, END = struct.Struct("<8I"), struct.Struct("<I")
MAGIC, END_MAGIC = (0x0A324655, 0x9E5D5157), 0x0AB16F30
HAS_FAMILY = 0x2000
BLOCK_BYTES, DATA_BYTES = 512, 256  # the RP2040 takes pages of 256 bytes and nothing else


def blocks(image: bytes, base: int, family: int) -> bytes:
    """An image that lies at `base`, a multiple of 256, for a chip of that family."""
    if base % DATA_BYTES:
        raise ValueError(f"the image starts at {base:#x}; a multiple of {DATA_BYTES} was wanted")
    count, made = -(-len(image) // DATA_BYTES), bytearray()
    for number in range(count):
        at = number * DATA_BYTES
        header = HEADER.pack(*MAGIC, HAS_FAMILY, base + at, DATA_BYTES, number, count, family)
        data = image[at : at + DATA_BYTES].ljust(BLOCK_BYTES - HEADER.size - END.size, b"\0")
        made += header + data + END.pack(END_MAGIC)
    return bytes(made)


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description="Write a binary image as UF2.")
    parser.add_argument("image", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--base", type=lambda text: int(text, 0), required=True, help="address of the first byte")
    parser.add_argument("--family", type=lambda text: int(text, 0), required=True, help="number of the chip")
    options = parser.parse_args()
    options.output.write_bytes(blocks(options.image.read_bytes(), options.base, options.family))


if __name__ == "__main__":
    main()
