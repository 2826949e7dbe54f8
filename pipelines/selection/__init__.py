"""Choosing settings and the winner: search, leaderboard, calibration, promotion."""
