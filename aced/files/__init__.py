"""Local files and object stores: reading, atomic writing, encodings, and who owns a folder."""
