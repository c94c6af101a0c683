"""Inference: loading trained models, and generating text from them."""
