"""Long-context training: the parts of the recipe in launch/recipes/train.py."""
