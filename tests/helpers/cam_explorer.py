"""What tests do with a CAM explorer: choose views, read the picture, upload."""

import io
from datetime import UTC, datetime

import numpy as np
from PIL import Image


def show(explorer, *views):
    for view, button in explorer.views.items():
        button.value = view in views


def pixels(explorer):
    return np.asarray(Image.open(io.BytesIO(explorer.picture.value)))


def png(colour="red", size=(40, 48)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


def np_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def upload(explorer, content, name="mine.png"):
    file = {"name": name, "type": "image/png", "size": len(content), "content": memoryview(content)}
    explorer.upload.value = (file | {"last_modified": datetime(2024, 1, 1, tzinfo=UTC)},)
