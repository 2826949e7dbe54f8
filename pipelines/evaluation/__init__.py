"""Episodes scored: results, speed, overlays, and the number of steps chosen by scores."""
