"""Public protocols, from the released folders to the table: IJB-B/C, ``.bin`` sets, TinyFace.

python -m fedfr_jax.protocols ijb --folder IJBC --model MODEL --workdir OUT
python -m fedfr_jax.protocols bin --sets lfw.bin agedb_30.bin --model MODEL
python -m fedfr_jax.protocols tinyface --folder tinyface --model MODEL --workdir OUT
"""
