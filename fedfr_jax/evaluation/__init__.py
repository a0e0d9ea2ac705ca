"""Generic and personalized evaluation of face embeddings (paper, evaluation protocol)."""
