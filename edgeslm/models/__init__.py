"""Where models come from (hub id, folder, .gguf, .bin, pypi:) and what they are called."""
