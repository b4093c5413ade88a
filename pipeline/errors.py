"""The errors a user can cause. Anything else that is raised is our own bug and keeps its traceback."""


class PipelineError(Exception):
    """A user's mistake or a machine's state: prints as one line, `<file or key>: what was found: what to do`."""


class ConfigError(PipelineError, ValueError):
    """A setting that cannot be right."""


class CohortError(PipelineError, ValueError):
    """A table of labels that cannot be right."""


class StoreError(PipelineError, OSError):
    """A store that is missing, damaged, or not the one asked for."""


class ImageError(PipelineError):
    """The content of one image cannot be used. Becomes a `failed` row; the other images of the shard go on."""


class EmptyImage(ImageError):
    """The image can be read, and holds nothing to embed. Becomes an `empty` row."""


CONTENT_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What decoders are known to raise on bad bytes. Readers turn these, around calls into a decoder only, into
ImageError. MemoryError is not here: it says something about the machine, not about the image."""


def one_line(error: BaseException) -> str:
    """The message of an error as one line of at most 500 characters, never empty."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else text[:497] + "..."
