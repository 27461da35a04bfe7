"""Pictures: decoding, resizing, filters and augmentation."""
