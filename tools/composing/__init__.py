"""The parts of tools/compose_pairs.py."""
