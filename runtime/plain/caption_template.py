"""The text a caption stands in, as a template with a place for it, and in a checkpoint one for the shape of the image."""

CAPTION = "{caption}"  # the place
ASPECT_RATIO = "{aspect_ratio}"  # filled by the export, for each shape; a bundle's templates have it no more


def fill_template(template: str, caption: str) -> str:
    """What the tokenizer gets for a caption; braces in captions mean nothing."""
    return template.replace(CAPTION, caption)
