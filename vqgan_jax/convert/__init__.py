"""Other people's weights: read without their libraries and without running their pickles."""
