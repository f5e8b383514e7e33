"""EdgeSLM: distil a teacher language model into a small one, on the exact low-bit grid the device will run."""

__version__ = "0.1.0"
