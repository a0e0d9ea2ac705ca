"""The published networks in PyTorch, written from their structure, as small as one likes.

Their parameters have the published names, which is what tests and benchmarks are about.
"""

import torch
from torch import nn
from torch.nn import BatchNorm1d, BatchNorm2d, Conv2d, Linear, PReLU, Sequential


def conv(inputs, outputs, size=3, stride=1, groups=1, bias=False, padding=None):
    padding = size // 2 if padding is None else padding
    return Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=bias)


class Residual(nn.Module):
    """Named parts in order, added to a shortcut."""

    def __init__(self, parts, shortcut=None, shortcut_name="shortcut", wrap=""):
        super().__init__()
        self.order, self.shortcut_name, self.wrap = list(parts), shortcut_name, wrap
        if wrap:
            setattr(self, wrap, Sequential(*parts.values()))
        else:
            for name, part in parts.items():
                setattr(self, name, part)
        setattr(self, shortcut_name, shortcut)

    def forward(self, x):
        y = x
        for name in [self.wrap] if self.wrap else self.order:
            y = getattr(self, name)(y)
        shortcut = getattr(self, self.shortcut_name)
        return y + (x if shortcut is None else shortcut(x))


class InOrder(nn.Module):
    """Modules by name, one after the other; the last map is flattened before ``flat``."""

    def __init__(self, flat, **parts):
        super().__init__()
        self.flat, self.order = flat, list(parts)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        for name in self.order:
            x = getattr(self, name)(x.flatten(1) if name == self.flat else x)
        return x


def spherenet(units, widths, embedding, side):
    def unit(width):
        return Residual(
            {
                "conv1": conv(width, width),
                "prelu1": PReLU(width),
                "conv2": conv(width, width),
                "prelu2": PReLU(width),
            }
        )

    layers = {}
    for i, (before, width, count) in enumerate(
        zip((3, *widths), widths, units, strict=False), start=1
    ):
        first = [conv(before, width, stride=2, bias=True), PReLU(width)]
        layers[f"layer{i}"] = Sequential(*first, *(unit(width) for _ in range(count)))
    return InOrder("fc", **layers, fc=Linear(widths[-1] * side**2, embedding))


def iresnet(blocks, widths, embedding, side, eps=1e-5):
    def norm(width):
        return BatchNorm2d(width, eps=eps)

    def block(before, width, stride):
        down = Sequential(conv(before, width, 1, stride), norm(width)) if stride > 1 else None
        return Residual(
            {
                "bn1": norm(before),
                "conv1": conv(before, width),
                "bn2": norm(width),
                "prelu": PReLU(width),
                "conv2": conv(width, width, stride=stride),
                "bn3": norm(width),
            },
            down,
            "downsample",
        )

    layers = {"conv1": conv(3, widths[0]), "bn1": norm(widths[0]), "prelu": PReLU(widths[0])}
    for i, (before, width, count) in enumerate(
        zip((widths[0], *widths), widths, blocks, strict=False), start=1
    ):
        layers[f"layer{i}"] = Sequential(
            block(before, width, 2), *(block(width, width, 1) for _ in range(count - 1))
        )
    return InOrder(
        "fc",
        **layers,
        bn2=norm(widths[-1]),
        fc=Linear(widths[-1] * side**2, embedding),
        features=BatchNorm1d(embedding, eps=eps),
    )


def adaface(blocks, widths, embedding, side):
    def block(before, width, stride):
        shortcut = (
            nn.MaxPool2d(1, stride)
            if before == width
            else Sequential(conv(before, width, 1, stride), BatchNorm2d(width))
        )
        parts = [
            BatchNorm2d(before),
            conv(before, width),
            BatchNorm2d(width),
            PReLU(width),
            conv(width, width, stride=stride),
            BatchNorm2d(width),
        ]
        return Residual(dict(enumerate(parts)), shortcut, "shortcut_layer", "res_layer")

    body = []
    for before, width, count in zip((widths[0], *widths), widths, blocks, strict=False):
        body += [block(before, width, 2), *(block(width, width, 1) for _ in range(count - 1))]
    first = widths[0]
    return InOrder(
        "",
        input_layer=Sequential(conv(3, first), BatchNorm2d(first), PReLU(first)),
        body=Sequential(*body),
        output_layer=Sequential(
            BatchNorm2d(widths[-1]),
            nn.Dropout(0.4),
            nn.Flatten(),
            Linear(widths[-1] * side**2, embedding),
            BatchNorm1d(embedding, affine=False),
        ),
    )


class Layers(nn.Module):
    """Modules under the name ``layers``, with the input added if asked."""

    def __init__(self, *modules, residual=False):
        super().__init__()
        self.layers, self.residual = Sequential(*modules), residual

    def forward(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)


def mobilefacenet(blocks, scale, widths, embedding, side):
    a, b, c, d = widths

    def full(before, width, size=1, stride=1, groups=1, padding=None, slope=True):
        parts = [conv(before, width, size, stride, groups, padding=padding), BatchNorm2d(width)]
        return Layers(*parts, *([PReLU(width)] if slope else []))

    def bottleneck(before, width, inside, stride, residual=False):
        return Layers(
            full(before, inside),
            full(inside, inside, 3, stride, inside),
            full(inside, width, slope=False),
            residual=residual,
        )

    def stage(width, inside, count):
        return Layers(*(bottleneck(width, width, inside, 1, True) for _ in range(count)))

    small, wide = a * scale, b * scale
    net = nn.Module()
    net.layers = nn.ModuleList(
        [
            full(3, small, 3, 2),
            full(small, small, 3, 1, a) if blocks[0] == 1 else stage(small, b, blocks[0]),
            bottleneck(small, small, b, 2),
            stage(small, b, blocks[1]),
            bottleneck(small, wide, c, 2),
            stage(wide, c, blocks[2]),
            bottleneck(wide, wide, d, 2),
            stage(wide, c, blocks[3]),
        ]
    )
    net.conv_sep = full(wide, d)
    net.features = Layers(
        full(d, d, side, 1, d, padding=0, slope=False),
        nn.Flatten(),
        Linear(d, embedding, bias=False),
        BatchNorm1d(embedding),
    )

    def forward(x):
        for layer in net.layers:
            x = layer(x)
        return net.features(net.conv_sep(x))

    net.forward = forward
    return net


def draw(net, seed=0, last=""):
    """Random values for all, none at its initial 0 or 1; ``last`` names a scale fixed at 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if not value.is_floating_point() or name == last:
                continue
            if value.ndim > 1:
                value.normal_(0, (1.5 / value[0].numel()) ** 0.5, generator=generator)
            elif name.endswith("running_var") or (
                name.endswith("weight") and f"{name[:-6]}running_var" in net.state_dict()
            ):
                value.uniform_(0.5, 1.5, generator=generator)
            else:
                value.uniform_(-0.3, 0.3, generator=generator)
    return net.eval()


def features(net, images):
    """(N, d) of (N, S, S, 3) images."""
    with torch.no_grad():
        return net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
