"""Runs, sweeps, evaluation, the leaderboard and the promotion of its winner."""
