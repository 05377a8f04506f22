"""What a program will cost on chips that are not here: does it fit, how fast is it, where does the time go."""
