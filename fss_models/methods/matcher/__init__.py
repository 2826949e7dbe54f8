"""Matcher: one-to-one matches of patches become prompts, and SAM's masks for them are judged (ICLR 2024)."""
