"""The text a caption stands in, as a template with a place for it."""

CAPTION = "{caption}"  # the place


def fill_template(template: str, caption: str) -> str:
    """What the tokenizer gets for a caption; braces in captions mean nothing."""
    return template.replace(CAPTION, caption)
