"""Privacy audits of a trained run: what an attacker learns from what it shares.

Membership inference (:mod:`.membership`), images from an update (:mod:`.reconstruction`),
identities from class embeddings (:mod:`.leakage`), and a lower bound of epsilon (:mod:`.canary`).
The command is ``python -m fedfr_jax.audit``; see docs/audit.md. No module of the simulator imports
this package: the report reads the file ``audit.json`` that it writes.
"""
