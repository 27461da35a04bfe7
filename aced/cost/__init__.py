"""FLOPs of a step, and peak rates of hardware."""
