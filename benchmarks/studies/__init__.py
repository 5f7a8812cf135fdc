"""The parts of the two studies: each its design and what becomes of its measurements, and what they share."""
