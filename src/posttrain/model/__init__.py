"""Models: loading, adapters, the packed forward pass, log-probabilities. Here and nowhere else torch meets transformers and PEFT."""
