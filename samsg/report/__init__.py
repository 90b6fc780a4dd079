"""What a run amounts to (Section IV-C): metrics, Tables 1 and 2, Figures 4 and 5, all from its CSV files alone."""
