"""From files to samples: the toy world, VOC, COCO, and any folder of images."""
