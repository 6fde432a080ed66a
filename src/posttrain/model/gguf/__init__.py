"""Models as llama.cpp reads them: GGUF files, written with the library ``gguf`` alone."""
