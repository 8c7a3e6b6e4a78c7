"""Let mkdocstrings show docstrings in Keras' form, Google's with a little more."""

import re
import textwrap

import griffe


class KerasDocstrings(griffe.Extension):
    """List call arguments like arguments, and leave what is returned as prose."""

    def on_instance(self, *, obj, **kwargs):
        if obj.docstring:
            text = obj.docstring.value.replace(
                "\nCall arguments:\n", "\nOther Parameters: Call arguments:\n"
            )
            text = re.sub(
                r"^Returns:\n((?:(?: +.*)?\n?)+)",
                lambda found: f"**Returns:**\n\n{textwrap.dedent(found[1])}",
                text,
                flags=re.MULTILINE,
            )
            obj.docstring.value = re.sub(
                r"^(Example|Source):", r"**\1:**", text, flags=re.MULTILINE
            )
