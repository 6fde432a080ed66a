"""Models: loading, adapters, the packed forward pass, log-probabilities. Here and nowhere else torch meets transformers and PEFT."""

import logging

# PEFT loads bitsandbytes, which warns of kernels of a layer that is not used here
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
