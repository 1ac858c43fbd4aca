"""The nouns of the product: frozen values, one file a noun, no I/O and no clock."""
