"""The basis of the latents in which changes are sparse."""
