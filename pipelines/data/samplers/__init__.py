"""The published ways of drawing test episodes, as pure functions of (lists, seed).

They do not use global random generators.
"""
