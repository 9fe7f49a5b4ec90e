"""Pictures and pages.

Learning curves need matplotlib, which `pip install "refimpl[plots]"` brings.
"""
