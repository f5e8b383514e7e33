"""What is published about devices: one YAML file each, with a source for every figure. See `load.py`."""
