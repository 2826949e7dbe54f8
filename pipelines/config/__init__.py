"""The sections of a recipe, one file each, with all keys and defaults. Unknown keys are errors."""
