"""Pictures. They need matplotlib, which `pip install "refimpl[plots]"` brings."""
