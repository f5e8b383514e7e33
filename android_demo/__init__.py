"""The Android demo: an app that embeds an exported model. Its Python side only builds and tests it."""
