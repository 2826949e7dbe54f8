"""The base learner of BAM and HDMNet: a PSPNet that tells the base classes of a fold apart (BAM, CVPR 2022)."""
