"""Local files and object stores: reading, atomic writing, encodings, and owners of folders."""
