"""Runs `fss` commands on a Ray cluster through its Jobs API."""
