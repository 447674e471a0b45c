"""Memory cells: one file per architecture, equations first."""
