"""Models: loading, adapters, the packed forward pass, log-probabilities. Here and nowhere else torch meets transformers and PEFT."""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT loads it, and it warns of kernels of its own layer, which is not used
