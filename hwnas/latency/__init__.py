"""The lookup table: measuring it, keeping it, and predicting whole networks from it."""
