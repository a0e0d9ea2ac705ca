"""Regenerates the inputs of the golden cases from a seed (NumPy only).

Every array comes from ``numpy.random.RandomState(seed)``, drawn in the order
written here, so the files need to hold only what was computed from them.
Weight names and layouts are those of the PyTorch checkpoints that users of
FedFR have (NCHW convolutions, ``(out, in)`` linear layers).
"""

import numpy as np

SPHERE20_BLOCKS = (1, 2, 4, 1)
CHANNELS = (64, 128, 256, 512)
EMBEDDING = 512


def sphere20_shapes():
    """Name -> shape of every tensor of the 20-layer SphereNet, in order."""
    shapes, cin = {}, 3
    for i, (blocks, c) in enumerate(zip(SPHERE20_BLOCKS, CHANNELS, strict=True), 1):
        shapes[f"layer{i}.0.weight"] = (c, cin, 3, 3)
        shapes[f"layer{i}.0.bias"] = (c,)
        shapes[f"layer{i}.1.weight"] = (c,)  # PReLU slope
        for b in range(2, 2 + blocks):
            for k in (1, 2):
                shapes[f"layer{i}.{b}.conv{k}.weight"] = (c, c, 3, 3)
                shapes[f"layer{i}.{b}.prelu{k}.weight"] = (c,)
        cin = c
    shapes["fc.weight"] = (EMBEDDING, 512 * 7 * 7)  # input flattened as C, H, W
    shapes["fc.bias"] = (EMBEDDING,)
    return shapes


def sphere20_weights(rng):
    """One random set of SphereNet-20 weights (float32)."""
    out = {}
    for name, shape in sphere20_shapes().items():
        x = rng.standard_normal(shape)
        if "prelu" in name or name.split(".")[1] == "1":
            x = 0.25 + 0.02 * x
        elif name.endswith("bias"):
            x = 0.01 * x
        else:
            x = x * np.sqrt(1.0 / np.prod(shape[1:]))
        out[name] = x.astype(np.float32)
    return out


def component_case(seed, batch=6, local_classes=5, public_classes=4):
    """Inputs for the single loss terms: labels >= local_classes are public."""
    rng = np.random.RandomState(seed)
    n = rng.standard_normal
    labels = np.concatenate(
        [
            rng.randint(0, local_classes, batch - 2),
            local_classes + rng.randint(0, public_classes, 2),
        ]
    )
    case = dict(
        features=n((batch, EMBEDDING)),
        global_features=n((batch, EMBEDDING)),
        previous_features=n((batch, EMBEDDING)),
        class_embeddings=n((local_classes + public_classes, EMBEDDING)),
        transform_weight=np.eye(EMBEDDING) + 0.02 * n((EMBEDDING, EMBEDDING)),
        transform_bias=0.05 * n(EMBEDDING),
        binary_weight=n((local_classes, EMBEDDING)),
        binary_bias=0.1 * n(local_classes),
    )
    case = {k: v.astype(np.float32) for k, v in case.items()}
    return dict(case, labels=labels)


def local_training_case(seed, batch=4, steps=3, local_classes=5, public_classes=7):
    """Inputs for a few steps of one client's FedFR training on SphereNet-20."""
    rng = np.random.RandomState(seed)
    n = rng.standard_normal
    return dict(
        global_weights=sphere20_weights(rng),
        previous_weights=sphere20_weights(rng),
        class_embeddings=n((local_classes + public_classes, EMBEDDING)).astype(np.float32),
        binary_weight=n((local_classes, EMBEDDING)).astype(np.float32),
        # transform starts at the identity with zero bias, binary_bias at zero
        images=rng.randint(0, 256, (steps, batch, 112, 112, 3)).astype(np.uint8),  # RGB
        labels=rng.randint(0, local_classes + public_classes, (steps, batch)),
    )


def _pictures(rng, base, count):
    """``count`` pictures of one identity, its base and a little noise: uint8 (count, 112, ...)."""
    noise = rng.randint(-12, 13, (count, 112, 112, 3))
    return np.clip(base + noise, 0, 255).astype(np.uint8)


def rounds_case(seed):
    """Inputs for whole rounds of three clients: every mini-batch is all that a client has.

    A batch size of 6 makes the order of images irrelevant: client 0 has 6 images of 2
    identities; client 1 has 4 images of 2 identities and finds 2 public images alike (the two of
    public identity 0); client 2 has 12 copies of one image. Public: 3 identities, 2 images each.
    """
    rng = np.random.RandomState(seed)
    weights = sphere20_weights(rng)
    base = np.kron(rng.randint(0, 256, (8, 7, 7, 3)), np.ones((1, 16, 16, 1), int))
    alike = (3 * base[2] + base[5]) // 4  # public identity 0 looks like identity 0 of client 1
    clients = [
        (np.concatenate([_pictures(rng, base[i], 3) for i in (0, 1)]), [0, 0, 0, 1, 1, 1]),
        (np.concatenate([_pictures(rng, base[i], 2) for i in (2, 3)]), [0, 0, 1, 1]),
        (np.repeat(_pictures(rng, base[4], 1), 12, axis=0), [0] * 12),
    ]
    public = np.concatenate([_pictures(rng, b, 2) for b in (alike, base[6], base[7])])
    return dict(
        weights=weights,
        batch=6,
        epochs=(2, 2),
        lr=1e-3,
        # the rate falls to a tenth after so many epochs of a round
        decay_epochs=(8, 1),
        images=[x for x, _ in clients],
        labels=[np.array(y) for _, y in clients],
        identities=(2, 2, 1),
        public_images=public,
        public_labels=np.array([0, 0, 1, 1, 2, 2]),
        probes=_pictures(rng, base[5], 2),
    )
