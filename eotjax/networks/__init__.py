"""Flax modules: unet for images, mlp for vectors, with the times' embedding (a new
network goes beside them), and the frozen autoencoder, the space of its latents and
the reading of its weights; kernels computes convolutions and products, on a CPU by
oneDNN. It knows nothing of diffusion, transport, data or configs.
"""
