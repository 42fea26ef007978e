"""The tokens that every language has, and where those of its alphabet begin."""

SOS, EOS, PAD = 0, 1, 2
FIRST_SYMBOL = 3
