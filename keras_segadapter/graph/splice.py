"""Run a backbone again with the features of its stages replaced."""

from keras_segadapter.graph.replay import record, replay


def splice(backbone, inputs, stages, insert):
    """Run a backbone again on `inputs`, with the features of each stage replaced.

    Layers are used again, not copied: their weights are the backbone's.

    Args:
        backbone: A functional model, the one that `stages` come from.
        inputs: Symbolic image tensor `(B, H, W, C)`.
        stages: List of `Stage`.
        insert: Function `(index, features) -> features`: what the rest of the backbone
            receives in the place of the features of stage number `index`.

    Raises:
        ValueError: If the graph at this size is not the one that was probed.
    """
    recording = record(backbone)
    index_at = {stage.position: index for index, stage in enumerate(stages)}
    for stage in stages:
        known = stage.position < len(recording.calls)
        if not known or recording.calls[stage.position].shape[-1:] != (stage.channels,):
            raise ValueError(
                f"The backbone '{backbone.name}' runs other layers where its height "
                "and width are open than at a known size, so its stages can't be found "
                f"again. Build it with a fixed input_shape. Received: stage={stage}"
            )
    position = -1

    def visit(operation, *args, **kwargs):
        nonlocal position
        position += 1
        features = operation(*args, **kwargs)
        if position in index_at:
            features = insert(index_at[position], features)
        return features

    replay(recording, [inputs], visit)
