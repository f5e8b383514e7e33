"""Programs that run on a device. They import nothing of the project but each other, so they can be pushed alone."""
