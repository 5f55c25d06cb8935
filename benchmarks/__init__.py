"""Side-by-side measurements; they print ratios and are no tests."""
