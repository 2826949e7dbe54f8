"""Which settings and which winner: search, choice, calibration, promotion."""
