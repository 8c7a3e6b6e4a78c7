"""Read the structure of a backbone's graph: sizes, strides, what passes where."""

import math

import keras

from keras_segadapter.graph.replay import record

PROBE_SIZE = 256  # pixels per side at which strides are measured, if it is open
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
        strides: For each call the image pixels that a feature pixel covers, or None.
        producer: Position of the call that made a tensor, by the tensor's id.
        outputs: Positions of the calls that make the backbone's outputs.
        watched: Positions that make the tensors given as `watched`, in their order.
        points: Positions of the feature maps that all that comes after passes through
            (the graph's articulation points).
    """

    def __init__(self, backbone, watched=()):
        (image,) = keras.tree.flatten(backbone.input)
        _, height, width, channels = image.shape
        self.name = backbone.name
        self.size = (height or PROBE_SIZE, width or PROBE_SIZE)
        probe = keras.Input((*self.size, channels), dtype=image.dtype)
        recording = record(backbone, [probe], watched)
        self.calls, outputs = recording.calls, recording.outputs
        self.producer = {
            id(tensor): position
            for position, call in enumerate(self.calls)
            for tensor in call.outputs
        }
        self.grids = [self._grid(call) for call in self.calls]
        self.strides = self._strides(probe)
        self.outputs = [self.producer.get(id(tensor)) for tensor in outputs]
        self.watched = [self.producer.get(id(t)) for t in recording.watched]
        self.points = self._articulation_points(probe, outputs)

    def _grid(self, call):
        if None in call.shape[1:]:
            return None  # a layer that does not tell its output's size
        if len(call.shape) == 4 and min(call.shape[1:3]) > 1:
            return call.shape[1:3]  # one pixel would be a pooled vector, not a map
        if call.is_tokens and call.shape[1] > 1:
            return _token_grid(call.shape[1], self.size)
        return None

    def _strides(self, probe):
        """Measure the strides along the way of the image, call by call.

        Convolutions without padding take some pixels off the border, so that in
        Inception the size of the image over that of the map gives 9, 18 and 43.
        """
        strides = []
        known = {id(probe): (1, self.size[0])}  # stride and height, by tensor
        for call, grid in zip(self.calls, self.grids, strict=True):
            stride = None
            if grid is not None:
                stride = self.size[0] // grid[0]
                sources = [known[id(t)] for t in call.inputs if id(t) in known]
                if self.size[0] % grid[0] and sources and not call.is_tokens:
                    stride = max(_after(*source, grid[0]) for source in sources)
                known.update({id(t): (stride, grid[0]) for t in call.outputs})
            strides.append(stride)
        return strides

    def _articulation_points(self, probe, outputs):
        # What comes after ends at the deepest output: the one with the fewest pixels,
        # and the last of those with equally many.
        def depth(tensor):
            pixels = math.prod(tensor.shape[1:-1]) if len(tensor.shape) > 2 else 0
            return (-pixels, self.producer.get(id(tensor), -1))

        end = max(outputs, key=depth)
        needed, stack = set(), [self.producer.get(id(end))]
        while stack:
            position = stack.pop()
            if position is not None and position not in needed:
                needed.add(position)
                stack += [self.producer.get(id(t)) for t in self.calls[position].inputs]
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
