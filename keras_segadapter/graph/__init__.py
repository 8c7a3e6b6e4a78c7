"""A backbone's graph: find where its stages end, and splice layers in there."""

from keras_segadapter.graph.stages import Stage, find_stages

__all__ = ["Stage", "find_stages"]
