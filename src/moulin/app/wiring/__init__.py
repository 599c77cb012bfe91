"""The one place that names concrete classes: each module fills in one port, `factory` joins them."""
