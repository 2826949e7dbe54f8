"""Golden cases: tensors of the reference implementations, and the runners that compare ours with them."""
