"""Jobs on Ray: a gang of actors for inference, Ray Train for training."""
