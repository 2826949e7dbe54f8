"""Tests of class-agnostic pretraining."""
