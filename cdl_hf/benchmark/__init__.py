"""Measurements of speed and memory: training steps, input, start-up, long streams, and computed upper bounds."""
