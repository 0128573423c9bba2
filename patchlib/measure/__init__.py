"""What results say: effects, detection, intervals, heads, unpatched runs, distance."""
