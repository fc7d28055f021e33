"""Vision encoders: pictures to tiles to tokens, and the text tower of the contrastive stage."""
