"""What FCP and VRP-SAM share: learned prompts for a frozen SAM from a support image and its mask."""
