"""Side-by-side speed: us and a peer in one run; one file per comparison."""
