"""Deploy open-weight language models on your own hardware, with or without a network."""

__version__ = "0.1.0"
