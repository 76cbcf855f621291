"""HTTP dialects, one file each, over one engine handle."""
