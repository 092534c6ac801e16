"""What becomes of what was measured: a folder of results, with a report and plots."""
