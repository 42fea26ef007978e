"""Train one run: python -m rule_extrapolation.runner model=minlstm. The same as rule-extrapolation train."""

from rule_extrapolation.cli.train import main

if __name__ == "__main__":
    main()
