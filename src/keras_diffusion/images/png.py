"""Looks at the texts in a PNG before Pillow does, which keeps all of them in memory, unpacked."""

from keras_diffusion.system import limits

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COMPRESSED, TEXTS = (b"zTXt", b"iTXt"), (b"tEXt", b"zTXt", b"iTXt")


def refuse_many_texts(file):
    """Refuses a PNG with more texts than any image needs; the file is at its beginning before and after.

    Raises:
        ValueError: If there are more bytes of them, or more that may be compressed. Pillow unpacks 1 MB of each.
    """
    count = size = 0
    if file.read(len(SIGNATURE)) == SIGNATURE:
        while len(head := file.read(8)) == 8:  # https://www.w3.org/TR/png-3/#5Chunk-layout
            length, kind = int.from_bytes(head[:4]), head[4:]
            count += kind in COMPRESSED
            size += length * (kind in TEXTS)
            if count > limits.IMAGE_TEXTS or size > limits.IMAGE_TEXT_BYTES:
                raise ValueError(
                    f"it may hold {limits.IMAGE_TEXT_BYTES} bytes of text, and {limits.IMAGE_TEXTS} texts that may be "
                    "compressed; save it without"
                )
            file.seek(length + 4, 1)
    file.seek(0)
