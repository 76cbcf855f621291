"""One loaded model in its own process: tokens in, tokens out, many sequences at a time."""
