"""What setup.py and the Makefile need to build fastconv. Not installed; uses the standard library alone."""
