"""Settings of runs that overfit: few images, many epochs, a high rate."""

import small  # noqa: F401 - registers the tiny network

SETTINGS = {
    "method": {"name": "fedavg"},
    "data": {
        "image_size": 16,
        "generated": {"identities": 40, "images_per_identity": (8, 8)},
        "split": {
            "held_out_identities": 14,
            "client_fraction": 0.6,
            "identities_per_client": (4, 4),
            "verification_images": 4,
        },
    },
    "model": {"name": "tiny", "embedding": 16},
    "pretrain": {"epochs": 0},
    "fed": {
        "num_clients": 3,
        "rounds": 2,
        "batch_size": 8,
        "local_epochs": (40,),
        "lr_decay_epochs": (40,),
        "lr": 0.05,
        "weight_decay": 0.0,
    },
    "eval": {"fars": (0.1,), "batch_size": 32, "examples": 0, "every": 0},
    "engine": {"lanes": 1, "conv": "grouped"},
}
