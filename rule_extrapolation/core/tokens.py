"""The special tokens of every vocabulary: start of sequence, end of sequence and padding. Symbols follow from 3 on."""

SOS, EOS, PAD = 0, 1, 2
FIRST_SYMBOL = 3
