"""Pre-training of backbones: images on the device, their augmentation, the training's progress, and model cards."""
