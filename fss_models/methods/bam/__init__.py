"""BAM (CVPR 2022): a meta learner for the new class and a base learner for what the new class is not."""
