"""Conversations to prompts, tokens to events: normalise, template, parser."""
