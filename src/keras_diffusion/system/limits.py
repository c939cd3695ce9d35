"""The most that a file may ask for: what is larger is refused before memory or time is spent on it."""

# Every checkpoint
TENSORS = 10_000  # four times those of SDXL
NAME = 1000  # characters
SHOWN = 1000  # names in the message of an error; its lists hold all
AXES = 8
ELEMENTS = 2**40  # of a tensor

# safetensors: SDXL's header has 0.4 MB, that of a LoRA up to 2 MB with the words of its training images
HEADER = 4_000_000  # bytes
QUOTES = 20 * TENSORS  # of names and texts in it; a tensor takes ten

# Pickles
PICKLE = 2**21  # bytes of one, and of a list of members
PICKLE_STEPS = 300_000  # a tensor takes about fifty
PICKLE_DEPTH = 64
PICKLE_ITEMS = 1_000_000  # of the whole structure, those of a shared part counted wherever it appears
PICKLE_ARGUMENTS = 8
PICKLE_SCALAR = 64  # bytes

# HDF5
HDF5_STRUCTURE = 2**24  # bytes; KerasCV's UNet has 3 million with its optimizer's state
HDF5_OBJECTS = 20_000  # groups and datasets; a trained UNet of KerasCV has 4,500
HDF5_DEPTH = 20
HDF5_AXES = 32

# JSON: configurations and indexes of weights; SDXL's index has 0.2 MB
JSON = 2**20  # bytes
WORDS = 1000  # that a tokenizer has beyond CLIP's
LEVELS = 16  # of a network
NETWORK = 5000  # tensors of one; the UNet of SDXL has 1,680
PATTERN = 300  # characters of a regular expression
PATTERN_CHOICES, PATTERNS_CHOICES = 2**9, 2**12  # ways to match: of one, where three repeats are 2**9, and of a file

# Images
IMAGE_FILE = 2**28  # bytes
IMAGE_TEXT = 32_000  # UTF-16 units about how it was made; a JPEG has room for 32,700
IMAGE_TEXTS, IMAGE_TEXT_BYTES = 8, 2**22  # compressed ones in a PNG, and bytes of all
