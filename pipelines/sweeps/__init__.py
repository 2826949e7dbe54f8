"""Many runs: the matrix, their order and execution, the table of a sweep, and its owner."""
