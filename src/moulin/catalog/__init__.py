"""The catalogue of models: what there is, what it needs, which source is taken; no I/O here."""
