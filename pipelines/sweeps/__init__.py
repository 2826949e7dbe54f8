"""Many runs: the matrix, the order and execution of runs, the table of a sweep, and its owner."""
