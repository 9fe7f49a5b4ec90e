"""The shipped models: `*.safetensors` with a card (`*.json`) each, installed as `refimpl.weights`.

Read them with `importlib.resources.files("refimpl.weights")`; a path relative to `__file__` breaks
in an editable install, where this folder lies beside the package and not inside it.
"""
