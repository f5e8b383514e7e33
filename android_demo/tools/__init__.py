"""Builds the app without the Android SDK: `python -m android_demo.tools.build`."""
