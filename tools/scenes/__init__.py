"""The parts of tools/make_sample_data.py."""
