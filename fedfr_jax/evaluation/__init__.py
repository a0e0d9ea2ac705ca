"""Generic and personalized evaluation of face embeddings (paper, evaluation protocol)."""

# The rates that stand for a protocol where one number must: FAR of 1:1, FPIR of 1:N.
HEADLINE_FAR, HEADLINE_FPIR = 1e-3, 1e-2
HEADLINE_MODELS = ("pretrained", "global", "personalized")  # the others are in tables alone
