"""Read the structure of a backbone's graph: sizes, strides, what passes where."""

import math

import keras

from keras_segadapter.graph.replay import kernels, record

# Height and width at which strides are measured, where they are open. Feature maps have
# its proportion, which nothing else has: no patches by positions, no fixed grid.
PROBE_SIZE = (256, 768)
MOST_LEADING_TOKENS = 32  # class and registers


class Graph:
    """A backbone's calls at a probe size, in order of execution.

    Args:
        backbone: A functional model with one image input.
        watched: Tensors of its graph.

    Attributes:
        name: The backbone's name.
        size: Height and width of the probe image.
        calls: List of `Call`.
        grids: For each call the height and width, in feature pixels, of the map or the
            tokens that it makes; None where it makes something else.
        strides: For each call the image pixels that a feature pixel covers, or None;
            the larger of height and width.
        producer: Position of the call that made a tensor, by the tensor's id.
        outputs: Positions of the calls that make the backbone's outputs.
        watched: Positions that make the tensors given as `watched`, in their order.
        points: Positions of the feature maps that all that comes after passes through
            (the graph's articulation points).
        ends: Positions of the feature maps that are outputs and that no call reads.
    """

    def __init__(self, backbone, watched=()):
        (image,) = keras.tree.flatten(backbone.input)
        _, height, width, channels = image.shape
        self.name = backbone.name
        self.size = (height or PROBE_SIZE[0], width or PROBE_SIZE[1])
        probe = keras.Input((*self.size, channels), dtype=image.dtype)
        recording = record(backbone, [probe], watched)
        self.calls, outputs = recording.calls, recording.outputs
        self.producer = {
            id(tensor): position
            for position, call in enumerate(self.calls)
            for tensor in call.outputs
        }
        self._known = {id(probe): (self.size, (1, 1))}  # grid and strides, by tensor
        self.grids, self.strides = [], []
        for call in self.calls:
            self._check_token_count(call)
            for tensor in call.outputs:  # a split has several
                grid = self._grid(tensor.shape)
                strides = grid and self._strides(call, tensor.shape, grid)
                if strides:
                    self._known[id(tensor)] = (grid, strides)
            found = call.shape and self._known.get(id(call.outputs[0]))
            self.grids.append(found[0] if found else None)
            self.strides.append(max(found[1]) if found else None)
        self.outputs = [self.producer.get(id(tensor)) for tensor in outputs]
        self.watched = [self.producer.get(id(t)) for t in recording.watched]
        self.points = self._articulation_points(probe, outputs)
        read = {self.producer.get(id(t)) for call in self.calls for t in call.inputs}
        ends = {p for p in self.outputs if p is not None and p not in read}
        self.ends = {position for position in ends if self.grids[position]}

    def _check_token_count(self, call):
        """Validate that a layer tells how many tokens it makes of an image or map.

        Raises:
            ValueError: If it tells the number of another grid, as keras-hub's DINOv3
                does (0.32) for images that are not square. One token more or less, as
                in its SigLIP, does not matter.
        """
        from_map = call.is_tokens and any(len(t.shape) == 4 for t in call.inputs)
        if not from_map or not isinstance(call.operation, keras.Layer):
            return

        def single(value):
            symbolic = isinstance(value, keras.KerasTensor)
            shape = (1, *value.shape[1:]) if symbolic else ()
            return keras.KerasTensor(shape, value.dtype) if symbolic else value

        args, kwargs = keras.tree.map_structure(single, (call.args, call.kwargs))
        try:  # by `call`, where the layer's own method asks `compute_output_shape`
            made = keras.Operation.compute_output_spec(call.operation, *args, **kwargs)
        except Exception:  # of any kind: a foreign `call` that needs real tensors
            return
        told, count = call.shape[1], made.shape[1]
        if None not in (told, count) and (
            _token_grid(told, self.size) != _token_grid(count, self.size)
        ):
            raise ValueError(
                "The compute_output_shape of a layer must tell how many tokens it "
                "makes. That of keras-hub's DINOv3 is right for square images only: "
                "build it with a square image_shape, to which `segment` resizes. "
                f"Received: backbone='{self.name}' with the layer "
                f"'{call.operation.name}', which makes {count} tokens of an image of "
                f"{self.size[0]} x {self.size[1]} pixels and tells {told}"
            )

    def _grid(self, shape):
        if None in shape[1:]:
            return None  # a layer that does not tell its output's size
        if len(shape) == 4 and min(shape[1:3]) > 1:
            return shape[1:3]  # one pixel would be a pooled vector, not a map
        if len(shape) == 3 and shape[1] > 1:
            return _token_grid(shape[1], self.size)
        return None

    def _strides(self, call, shape, grid):
        """Return the strides (vertical, horizontal) of an output of a call, or None.

        They are measured along the way of the image, call by call: convolutions without
        padding take some pixels off the border, so that in Inception the size of the
        image over that of the map gives 9, 18 and 43. None is returned for a tensor of
        four axes that is no feature map, such as patches by positions.
        """
        exact = tuple(side // new for side, new in zip(self.size, grid, strict=True))
        if len(shape) == 3:  # tokens
            return exact
        alike = [t for t in call.inputs if t.shape[1:-1] == grid]
        if alike:
            known = [self._known[id(t)][1] for t in alike if id(t) in self._known]
            return known[0] if known else None
        sources = [t for t in call.inputs if id(t) in self._known and len(t.shape) == 4]
        if not sources or _only_moves_values(call, shape):
            if len(set(exact)) == 1 and grid == tuple(s // exact[0] for s in self.size):
                return exact
            return dict(self._known.values()).get(grid)
        strides = [
            tuple(map(_after, old_strides, old_grid, grid))
            for old_grid, old_strides in (self._known[id(t)] for t in sources)
        ]
        strides = tuple(max(axis) for axis in zip(*strides, strict=True))
        # Strides may differ, as where text is read, but by a power of two.
        ratio = math.log2(strides[0] / strides[1])
        return strides if ratio == round(ratio) and abs(ratio) <= 3 else None

    def size_divisor(self, positions):
        """Return what the sides of an image must be a multiple of, in pixels.

        That is the deepest stride of what is made up to `positions`: of these places
        themselves and of maps that are upsampled, to meet finer ones of their size.
        """
        divisors = {self.strides[position] for position in positions}
        for position in self._needed(positions):
            grid = self.grids[position]
            made = [self.producer.get(id(t)) for t in self.calls[position].inputs]
            maps = [p for p in made if grid and p is not None and self.grids[p]]
            upsampled = [p for p in maps if times(grid, self.grids[p]) >= 1.5]
            divisors.update(self.strides[p] for p in upsampled)
        return math.lcm(*divisors)

    def _needed(self, positions):
        """Return the positions of the calls that those at `positions` depend on."""
        needed, stack = set(), [*positions]
        while stack:
            position = stack.pop()
            if position is not None and position not in needed:
                needed.add(position)
                stack += [self.producer.get(id(t)) for t in self.calls[position].inputs]
        return needed

    def _articulation_points(self, probe, outputs):
        # What comes after ends at the deepest output: the one with the fewest pixels,
        # and the last of those with equally many.
        def depth(tensor):
            pixels = math.prod(tensor.shape[1:-1]) if len(tensor.shape) > 2 else 0
            return (-pixels, self.producer.get(id(tensor), -1))

        end = max(outputs, key=depth)
        needed = self._needed([self.producer.get(id(end))])
        last_read = {}
        for position in sorted(needed):
            for tensor in self.calls[position].inputs:
                if tensor.shape[:1] == (None,):  # else no image's, as rotary positions
                    last_read[id(tensor)] = position
        points, earlier_read_until = [], last_read.get(id(probe), -1)
        for position in sorted(needed):
            call = self.calls[position]
            if earlier_read_until <= position and self.grids[position]:
                points.append(position)
            for tensor in call.outputs:
                earlier_read_until = max(
                    earlier_read_until, last_read.get(id(tensor), -1)
                )
        return points


def times(grid, other):
    """Return how many times as large as another a grid is, on its larger axis."""
    return max(side / new for side, new in zip(grid, other, strict=True))


def _only_moves_values(call, shape):
    """Return whether a call reshapes or transposes."""
    shapes = [shape, *(tensor.shape for tensor in call.inputs)]
    sizes = {None if None in s[1:] else math.prod(s[1:]) for s in shapes}
    return len(sizes) == 1 and not kernels(call.operation)


def _token_grid(count, size):
    """Return height and width of the patches among `count` tokens, or None.

    Only few tokens, class and registers, come before the patches. A patch size that
    divides the image's is preferred.
    """
    height, width = size
    strides = range(1, min(size) + 1)
    exact = [s for s in strides if height % s == width % s == 0]
    for stride in (*exact, *strides):
        grid = (height // stride, width // stride)
        if 0 <= count - math.prod(grid) <= min(MOST_LEADING_TOKENS, math.prod(grid)):
            return grid
    return None


def _after(stride, height, new_height):
    """Return the stride behind a call that changes the height.

    The factor is whole, but for borders.
    """
    if height >= new_height:
        return stride * round(height / new_height)
    return max(1, stride // round(new_height / height))
