"""The main path: check everything, then run stages, each in a folder of its own that is complete or done again."""
