"""The parts of tools/score.py."""
