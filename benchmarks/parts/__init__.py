"""The parts of the report of a CPU: each measures, tells what was asked of it, and reports."""
