"""The published ways of drawing test episodes, as pure functions of (lists, seed). No global generator is touched."""
