"""Export, loading and pushing of saved models."""
