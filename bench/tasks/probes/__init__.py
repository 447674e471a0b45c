"""Memory probes: trains one small model per family for each probe, and makes the table model x probe."""
