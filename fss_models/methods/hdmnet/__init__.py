"""HDMNet (CVPR 2023): query and support matched at three resolutions, on BAM's base learner."""
