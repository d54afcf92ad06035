"""Export: torch lives here and nowhere else. Nobody imports this package at run time."""
