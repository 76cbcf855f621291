"""Pocket's tools for `llm --functions`, which makes a tool of each function here."""

import sys


def find_file(name: str) -> str:
    """Find a file by name and return its path"""
    sys.stderr.write("calls: 1\n")
    return "/docs/report.txt"


def count_lines(path: str) -> str:
    """Count the lines of a file"""
    sys.stderr.write("calls: 2\n")
    return "42"


def send_message(to: str, text: str) -> str:
    """Send a text message"""
    sys.stderr.write("calls: 3\n")
    return "sent"
