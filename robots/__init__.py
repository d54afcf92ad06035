"""Robot files that come with dzedge."""
