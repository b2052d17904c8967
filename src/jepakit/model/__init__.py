"""The method: what the encoder is shown, masks, encoder, predictor, targets, losses, and their join in jepa.py."""
