"""The numbers of a run: written, read again, and shown while it runs."""
