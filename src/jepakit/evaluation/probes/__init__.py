"""Probes on features, each in the file named after it; their settings and their join in protocol.py."""
