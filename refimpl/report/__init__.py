"""Pictures and pages.

Learning curves and the picture of an ablation need matplotlib, which
`pip install "refimpl[plots]"` brings.
"""
