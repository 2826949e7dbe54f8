"""What a recipe may say, a file a section. Unknown keys are errors; every default is here."""
