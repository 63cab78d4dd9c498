"""The largest sizes a model's configuration may name: far above any model there is, and small enough to be built without numbers.

With them, a model without memory for its parameters takes seconds at most, and its tensors are compared with the file before
anything is allocated.
"""

MOST_BLOCKS = 256  # flow blocks; published models have 6 to 8
MOST_LAYERS = 1024  # transformer layers of all flow blocks; published models have up to 64
MOST_WIDTH = 1 << 17  # of a residual stream, a hidden layer or a condition; the largest language models have 2^16
MOST_CLASSES = 1 << 20  # the largest sets of labelled images have 22,000
MOST_SIDE = 1 << 14  # pixels along one side of an image or its latents
MOST_TOKENS = 1 << 20  # tokens of an image or a text
