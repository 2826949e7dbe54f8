"""What GF-SAM and Matcher share: a frozen SAM that is given points, and the cells whose similarity places them."""
