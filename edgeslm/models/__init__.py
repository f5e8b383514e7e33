"""Where models come from (hub id, folder, .gguf, .bin, pypi:, an adapter) and what they are called."""
