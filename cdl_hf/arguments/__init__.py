"""Arguments of a run: their fields, what each affects, sets of them. Nothing here imports torch or transformers."""
