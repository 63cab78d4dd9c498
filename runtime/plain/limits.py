"""How much a file or an option may ask for: far above what anybody needs, far below what hurts."""

# Text that is read whole and parsed.
MOST_JSON_BYTES = 64 << 20  # a tokenizer of 250,000 words has 17 MB
MOST_MANIFEST_BYTES = 8 << 20  # that of a model of 3.9 billion parameters has 0.3 MB
MOST_YAML_BYTES = 128 << 10  # recipes have 3 KB; the parser takes 4 s for 128 KB
MOST_YAML_VALUES = (
    100_000  # with what an alias stands for counted wherever it is used: nine aliases of nine make billions
)
MOST_TEXT_BYTES = 1 << 30  # captions, one a line
MOST_LINES = 10_000_000  # of such a file
MOST_CAPTION = 1 << 16  # characters of one caption: models read up to 512 tokens of it, tokenizers all of it
MOST_DIGITS = 19  # of a whole number: 64 bits; more are no size, count or seed, and take long to convert

# Pixels of an image file: 256 MiB as RGBA. A PNG of 100 KB can hold that much, and claim any number.
MOST_PIXELS = 1 << 26

# Threads within an operator: twice the cores of the largest machines. ONNX Runtime starts them all.
MOST_THREADS = 1024

# Labels of one range, 0-9: each is an image.
MOST_LABELS = 1_000_000

# Files of one set of images; the names of more than that are slow to look through.
MOST_SHARDS = 100_000

# Passes of a network for one chunk, or steps from noise to data: plans take tens, references of calibration 512. At 1 ms a pass,
# this is more than a minute for a batch.
MOST_PASSES = 100_000

# Arrays in a compressed archive: images compress to a tenth, and a bomb to a thousandth. Below a gibibyte it does not matter.
MOST_EXPANSION = 100
HARMLESS_BYTES = 1 << 30
