"""Compiling for machines that are not there, and reading what the compiler made."""
